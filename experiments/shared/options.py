"""The options of every experiment: their types, what refuses them, and how they are saved."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from jaxrnn.files import write_atomically

_CONFIG_FILE = "config.json"

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveFraction = Annotated[float, Field(gt=0, lt=0.5)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class InputError(ValueError):
    """An option or a file from the user cannot be used; the text says where and why."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The options that every experiment has."""

    # A config.json with any other option was written by another experiment.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    seed: int = 0
    """Seed of every random number."""
    folder: Path | None = None
    """Folder to write into; by default a new one, runs/NAME-YYYYmmdd-HHMMSS."""


@dataclasses.dataclass(frozen=True)
class TrainConfig(RunConfig):
    """The options of every experiment that trains."""

    # What may be given beside --from: the other options are those of the networks.
    with_source: ClassVar[frozenset[str]] = frozenset()

    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Folder of a finished run: use its networks, without training."""
    resume: Path | None = None
    """Folder of an interrupted run: continue from its last checkpoint, with the same options."""
    seeds: Positive = 1
    """Networks to train side by side in one vmapped call; tables give their mean and spread."""
    steps: Positive = 1000
    """Maximum number of training steps; validation may stop a network earlier."""
    eval_every: Positive = 50
    """Training steps from one validation to the next, all in one compiled call."""
    patience: Positive = 10
    """Validations without a new best after which a network stops."""
    devices: Positive | None = None
    """Devices to train on at most (a CPU's are its cores), each with an equal share of the
    networks; by default all. If given, and the networks cannot be shared evenly, each batch is
    split instead. Results differ in rounding."""
    save_seconds: NotNegative = 30.0
    """Save at the first validation at least this many seconds after the last checkpoint; 0 saves at
    every validation."""


def check_config(config: RunConfig) -> None:
    """Refuse options outside the ranges that their annotations state."""
    try:
        TypeAdapter(type(config)).validate_python(dataclasses.asdict(config))
    except ValidationError as error:
        raise InputError(_describe_error(error)) from None


def write_config(folder: Path, config: RunConfig) -> None:
    """Write config.json, whole or not at all.

    Raises:
      InputError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--folder {folder}: {error.strerror}") from None
    contents = TypeAdapter(type(config)).dump_json(config, indent=1) + b"\n"
    write_atomically(folder / _CONFIG_FILE, contents)


def read_config(folder: Path, kind: type[RunConfig]) -> RunConfig:
    """The config that `write_config` wrote into `folder`."""
    path = folder / _CONFIG_FILE
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected the folder of a run") from None
    except ValidationError as error:
        raise InputError(f"{path}: {_describe_error(error)}") from None


def name_option(field: str) -> str:
    """The option of a field of a config."""
    return "--from" if field == "source" else "--" + field.replace("_", "-")


def _describe_error(error: ValidationError) -> str:
    """The first of pydantic's errors: which option, its value, and what was expected."""
    first = error.errors()[0]
    option = "--" + ".".join(str(part).replace("_", "-") for part in first["loc"])
    return f"{option} is {first['input']!r}: {first['msg']}"

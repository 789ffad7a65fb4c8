"""The networks that a run leaves behind: safetensors files, and one description of them all.

In the folder of a run, networks/NAME-0.safetensors, NAME-1.safetensors, ... hold the parameters of
the networks called NAME, in the format of `jaxrnn.interop.safetensors`, and networks/networks.json
holds what they need to be used: the experiment and its options, from which the layer is built; what
their inputs mean; and the SHA-256 of each file, since that format has no checksum.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

import jaxrnn
from experiments.data.files import read_bytes
from experiments.shared.options import InputError, RunConfig
from jaxrnn import Layer, Params
from jaxrnn.files import FileFormatError, write_atomically
from jaxrnn.interop.safetensors import load_params, save_params

FOLDER = "networks"
_FILE = "networks.json"
_SUFFIX = ".safetensors"

AnyConfig = TypeVar("AnyConfig", bound=RunConfig)
AnyInputs = TypeVar("AnyInputs")
Networks = Mapping[str, tuple[Layer, Params, np.ndarray]]
"""By name, a layer, the parameters [S, ...] of S networks, and their validation [S]."""


@dataclasses.dataclass(frozen=True)
class Description:
    """The contents of networks.json."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    format: Literal[1]
    experiment: str
    jaxrnn: str
    jax: str
    config: dict[str, Any]
    inputs: dict[str, Any]
    files: dict[str, str]


def save_networks(config: RunConfig, experiment: str, inputs: Any, networks: Networks) -> None:
    """Write networks into the folder of a run, the one with the best validation first, and the
    description last; nothing without a folder.

    `inputs` is a dataclass that says what the networks read and what they put out."""
    if config.folder is None:
        return
    files: dict[str, str] = {}
    for name, kept in networks.items():
        files |= write_networks(config.folder, name, *kept)
    describe_networks(config, config.folder, experiment, inputs, files)


def write_networks(
    folder: Path, name: str, layer: Layer, params: Params, validation: np.ndarray
) -> dict[str, str]:
    """Write the files of networks [S, ...], best validation first; their names and digests."""
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    files = {}
    for rank, network in enumerate(np.argsort(validation, kind="stable")):
        path = place / f"{name}-{rank}{_SUFFIX}"
        save_params(path, layer, jax.tree.map(lambda leaf, at=network: leaf[at], params))
        files[path.name] = _digest(path.read_bytes())
    return files


def describe_networks(
    config: RunConfig, folder: Path, experiment: str, inputs: Any, files: dict[str, str]
) -> None:
    """Write the description of files that were written."""
    options = TypeAdapter(type(config)).dump_python(config, mode="json")
    description = Description(
        format=1,
        experiment=experiment,
        jaxrnn=jaxrnn.__version__,
        jax=jax.__version__,
        config=options | dict.fromkeys(("folder", "resume", "source")),
        inputs=TypeAdapter(type(inputs)).dump_python(inputs, mode="json"),
        files=files,
    )
    contents = TypeAdapter(Description).dump_json(description, indent=1) + b"\n"
    write_atomically(folder / FOLDER / _FILE, contents)


def read_source(source: Path, config: type[AnyConfig]) -> AnyConfig:
    """The options of the run whose networks are in the folder `source`.

    Raises:
      InputError: there are no such networks, or they are those of another experiment.
    """
    description = _read(source)
    wanted = config.__module__.split(".")[1]
    if description.experiment != wanted:
        raise InputError(
            f"{_place(source)} describes networks of {description.experiment}, expected {wanted}"
        )
    return _validate(source, "config", config, description.config)


def read_inputs(source: Path, kind: type[AnyInputs]) -> AnyInputs:
    """What the networks in `source` read and put out, as `save_networks` was told.

    Raises:
      InputError: the description is damaged.
    """
    return _validate(source, "inputs", kind, _read(source).inputs)


def load_networks(source: Path, name: str, layer: Layer) -> Params:
    """The parameters [S, ...] of the networks called `name`.

    Raises:
      InputError: a file is missing, damaged, not the one that was described, or does not fit.
    """
    files = _read(source).files
    several: list[Params] = []
    while f"{name}-{len(several)}{_SUFFIX}" in files:
        file = f"{name}-{len(several)}{_SUFFIX}"
        several.append(_load(source / FOLDER / file, layer, files[file]))
    if not several:
        raise InputError(f"{_place(source)} lists no {name}-0{_SUFFIX}")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)


def _load(path: Path, layer: Layer, digest: str) -> Params:
    content = read_bytes(path)
    if _digest(content) != digest:
        raise InputError(f"{path} is not the file that {_FILE} describes: another SHA-256")
    try:
        params = load_params(path, layer)
    except FileFormatError as error:
        raise InputError(str(error)) from None
    for place, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(place, simple=True, separator=".")
            raise InputError(f"{path}: {name} has an entry that is not finite")
    return params


def _place(source: Path) -> Path:
    return source / FOLDER / _FILE


def _read(source: Path) -> Description:
    content = read_bytes(_place(source))
    try:
        return TypeAdapter(Description).validate_json(content)
    except ValidationError as error:
        raise InputError(f"{_place(source)}: {_first(error)}") from None


def _validate(source: Path, part: str, kind: type[Any], value: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise InputError(f"{_place(source)}: {part}: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    first: Any = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "the description"
    return f"{place} is {first['input']!r:.60}: {first['msg']}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

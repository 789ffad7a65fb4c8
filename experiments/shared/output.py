"""What every experiment shares: its options, its findings, its folder and the table it prints."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from jaxrnn.files import write_atomically

_PIPE_WIDTH = 118
_CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
"""The folder in a run's folder where training is saved."""

Data = dict[str, Any]
"""Measurements: dicts, strings, numbers and NumPy arrays, as JSON can hold them."""

Tick = Callable[[float, str], None]
"""``tick(done, doing)``: the part done, from 0 to 1, and what comes next."""


class InputError(ValueError):
    """What a person gave, an option or a file, cannot be used; the text says where and why."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The options that every experiment has."""

    # The config.json of another experiment has other options, and is none of this one.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    seed: int = 0
    """Seed of every random number."""
    folder: Path | None = None
    """Folder to write into; without it a new one, runs/NAME-YYYYmmdd-HHMMSS."""


class Finding(NamedTuple):
    """One row of the table.

    holds: whether `measured` meets `criterion`, computed from the data. required: whether the
    program fails where it does not.
    """

    name: str
    claim: str
    criterion: str
    measured: str
    holds: bool
    required: bool = False

    @property
    def verdict(self) -> str:
        """The word that the table prints."""
        return "holds" if self.holds else "REFUTED"


class Result(NamedTuple):
    """What `run` returns: measurements, the findings drawn from them, and a text to print."""

    data: Data
    findings: list[Finding]
    text: str = ""


def within(tick: Tick, start: float, stop: float, prefix: str) -> Tick:
    """The `tick` of a part of the work that takes from `start` to `stop` of the whole."""

    def part(done: float, doing: str) -> None:
        tick(start + done * (stop - start), f"{prefix}: {doing}" if doing else prefix)

    return part


@contextmanager
def progress_bar(console: Console) -> Iterator[Tick]:
    """A progress bar that shows what is being measured."""
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    # The speed is that of the last ten minutes: a compiled call can take many seconds.
    with Progress(
        *columns,
        console=console,
        transient=True,
        speed_estimate_period=600,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("starting", total=1.0)
        yield lambda done, doing: progress.update(task, completed=done, description=escape(doing))


def name_folder(name: str, folder: Path | None) -> Path:
    """The folder of a run, which is made when there is something to write."""
    return folder or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def check_config(config: RunConfig) -> None:
    """Refuse options outside the ranges that their annotations state."""
    try:
        TypeAdapter(type(config)).validate_python(dataclasses.asdict(config))
    except ValidationError as error:
        raise InputError(_describe_error(error)) from None


def write_config(folder: Path, config: RunConfig) -> None:
    """Write config.json, whole or not at all.

    Raises:
      InputError: no folder can be made there.
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


def write_run(folder: Path, config: RunConfig, result: Result) -> None:
    """Write config.json, metrics.json and findings.csv."""
    write_config(folder, config)
    write_json(folder / "metrics.json", result.data)
    header = ["name", "claim", "criterion", "measured", "verdict"]
    findings = [[*finding[:4], finding.verdict] for finding in result.findings]
    write_csv(folder / "findings.csv", [header, *findings])


def print_findings(console: Console, title: str, findings: Sequence[Finding]) -> None:
    """Print the table: claim, measured, verdict."""
    table = Table(title=title, show_lines=True, title_justify="left", expand=True)
    table.add_column("", no_wrap=True)
    table.add_column("claim", ratio=10)
    table.add_column("measured", ratio=9)
    table.add_column("verdict", no_wrap=True)
    for finding in findings:
        colour = "green" if finding.holds else "red"
        claim = f"{escape(finding.claim)}\n[dim]holds if {escape(finding.criterion)}[/dim]"
        verdict = f"[{colour}]{finding.verdict}[/{colour}]"
        table.add_row(finding.name, claim, escape(finding.measured), verdict)
    # A pipe has no width of its own, and rich would squeeze the table into 80 columns.
    (console if console.is_terminal else Console(width=_PIPE_WIDTH)).print(table)


def write_json(path: Path, value: Any) -> None:
    """Write measurements as JSON, whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=1, default=_plain) + "\n").encode())


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write a table as CSV, whole or not at all."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_atomically(path, text.getvalue().encode())


def _plain(value: Any) -> Any:
    """A value that JSON has no form for, as one that it has."""
    return np.asarray(value).tolist()


def _describe_error(error: ValidationError) -> str:
    """The first of pydantic's complaints: which option, what it is, what was expected."""
    first = error.errors()[0]
    option = "--" + ".".join(str(part).replace("_", "-") for part in first["loc"])
    return f"{option} is {first['input']!r}: {first['msg']}"

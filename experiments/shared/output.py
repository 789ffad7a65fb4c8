"""What a run shows and writes: its progress bar, its folder, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
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

from experiments.shared.findings import Result
from experiments.shared.options import RunConfig, write_config
from jaxrnn.files import write_atomically

_WIDTH = 100
CHECKPOINTS = "checkpoints"
"""The folder in a run's folder that training is saved in."""

Tick = Callable[[float, str], None]
"""``tick(done, doing)``: the fraction of the work that is done, and what comes next."""


def within(tick: Tick, start: float, stop: float, prefix: str) -> Tick:
    """The `tick` of a part of the work that goes from `start` to `stop` of the whole."""

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
    """The folder of a run; it is created by whatever writes into it first."""
    return folder or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def write_run(folder: Path, config: RunConfig, result: Result) -> None:
    """Write config.json, metrics.json and findings.csv."""
    write_config(folder, config)
    write_json(folder / "metrics.json", result.data)
    header = ["name", "claim", "criterion", "measured", "verdict"]
    findings = [[*finding[:4], finding.verdict] for finding in result.findings]
    write_csv(folder / "findings.csv", [header, *findings])


def write_json(path: Path, value: Any) -> None:
    """Write measurements as JSON, whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=1, default=_to_numbers) + "\n").encode())


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write a table as CSV, whole or not at all."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_atomically(path, text.getvalue().encode())


def to_text(table: Table) -> str:
    """A table as plain text."""
    file = io.StringIO()
    Console(file=file, width=_WIDTH).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _to_numbers(value: Any) -> Any:
    """An array or scalar, for which JSON has no form, as nested lists or a number."""
    return np.asarray(value).tolist()

"""What an experiment returns: its data, its findings, and the table that they are printed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_PIPE_WIDTH = 118

Data = dict[str, Any]
"""Measurements: dicts, strings, numbers and arrays, which `write_json` can write."""


class Finding(NamedTuple):
    """One row of the table.

    holds: whether `measured` meets `criterion`, computed from the data. required: whether the
    program fails if it does not.
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


def describe_seeds(values: Any, digits: int = 3) -> str:
    """Mean and standard deviation over seeds, "1.234 ± 0.005 (5 seeds)"; for one seed its value."""
    values = np.asarray(values)
    if values.size == 1:
        return f"{values.mean():.{digits}f}"
    spread = values.std(ddof=1)
    return f"{values.mean():.{digits}f} ± {spread:.{digits}f} ({values.size} seeds)"


def count_layers(depth: str) -> str:
    """A depth in words: 1 layer, 2 layers."""
    return f"{depth} layer" if depth == "1" else f"{depth} layers"

"""The look of the figures: readable 900 pixels wide, colour-blind safe, no global state."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from jaxrnn.files import write_atomically

SIZE = (8.0, 4.5)

# Okabe & Ito's palette, which people of every colour vision tell apart.
BLACK, GREY = "#000000", "#8c8c8c"
BLUE, VERMILION, SKY = "#0072b2", "#d55e00", "#56b4e9"
SERIES = (BLUE, VERMILION, "#009e73", "#cc79a7", "#e69f00")

_STYLE: Any = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


@contextmanager
def saved_figure(path: Path, size: tuple[float, float] = SIZE) -> Iterator[Figure]:
    """A figure in the house style, written to `path` at the end of the block."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        image = io.BytesIO()
        figure.savefig(image, format="png")
    write_atomically(path, image.getvalue())


def say(figure: Figure, finding: str, detail: str = "") -> None:
    """Title a figure with what it finds, and below it how that was measured."""
    figure.suptitle(finding, x=0.01, ha="left", fontsize=12, fontweight="bold")
    if detail:
        figure.supxlabel(detail, x=0.01, ha="left", fontsize=9, color="#555555")


def mark_steps(axes: Axes, steps: list[int]) -> None:
    """A logarithmic x axis with a tick at each of `steps`, written in full."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(steps))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())

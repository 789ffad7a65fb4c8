"""The figure of `online`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from experiments.online.findings import summarize
from experiments.shared.figures import SERIES, saved_figure, say
from experiments.shared.findings import Data

_TITLES = {"xor": "product of two delayed signs", "sine": "drifting sine in noise"}
_SMOOTH = 5  # points of the curves that are averaged


def plot(data: Data, folder: Path) -> None:
    """Draw online.png."""
    with saved_figure(folder / "online.png", (9.5, 8.0)) as figure:
        upper, middle, lower = figure.subplots(3)
        for axes, name in ((upper, "xor"), (middle, "sine")):
            _draw_stream(axes, data, name)
        _draw_delays(lower, data)
        say(
            figure,
            "A gradient of the whole past sees further back than a truncated one of its cost",
            f"{data['units']} units; means over seeds, {_SMOOTH} points at a time; errors squared",
        )


def _draw_stream(axes: Axes, data: Data, name: str) -> None:
    summary = summarize(data, name)
    shown = sorted(summary, key=lambda learner: float(summary[learner]["error"].mean()))
    for colour, learner in zip(SERIES, shown[: len(SERIES)], strict=False):
        error = np.asarray(data["streams"][name][learner]["error"]).mean(0)
        smooth = np.convolve(error, np.ones(_SMOOTH) / _SMOOTH, mode="valid")
        places = data["block"] * (np.arange(len(smooth)) + 0.5 * _SMOOTH)
        label = f"{learner}, {summary[learner]['cost']:.0f} us per step"
        axes.plot(places, smooth, color=colour, linewidth=1, label=label)
    axes.set_yscale("log")
    axes.set_title(f"{_TITLES[name]}, squared error of the best five")
    axes.set_xlabel("step; the rule changes at each quarter")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)


def _draw_delays(axes: Axes, data: Data) -> None:
    for colour, (name, errors) in zip(SERIES, data["delays"].items(), strict=False):
        means = np.asarray(errors).mean(1)
        axes.plot(data["delay"], means, color=colour, marker="o", markersize=4, label=name)
    axes.set_ylim(0, 1.4)
    axes.set_title("error at the end of learning one delay")
    axes.set_xlabel("steps back of the later of the two signs")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)

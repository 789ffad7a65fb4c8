"""The figures of `cognition`, of the kind the field prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from experiments.cognition.findings import AT_REST
from experiments.shared.figures import BLACK, GREY, SERIES, VERMILION, saved_figure, say
from experiments.shared.findings import Data


def plot(data: Data, folder: Path) -> None:
    """Draw psychometric.png, trajectories.png, variance.png and, if there are small networks,
    connectivity.png."""
    _plot_psychometric(data["psychometric"], folder / "psychometric.png")
    _plot_trajectories(data["points"], folder / "trajectories.png")
    _plot_variance(data["clusters"], data["tasks"], folder / "variance.png")
    if data["small"]:
        _plot_connectivity(data["small"], folder / "connectivity.png")


def _plot_psychometric(curves: Data, path: Path) -> None:
    with saved_figure(path) as figure:
        axes = figure.subplots()
        levels = np.asarray(curves["levels"])
        for (task, shares), colour in zip(curves["shares"].items(), SERIES * 2, strict=False):
            axes.plot(levels, np.mean(shares, axis=0), "o-", ms=4, color=colour, label=task)
        axes.axhline(0.5, color=GREY, lw=1, ls=":")
        axes.set(xlabel="signed coherence", ylabel="choices of the first direction")
        axes.legend(loc="upper left")
        say(
            figure,
            "The stronger the evidence, the surer the choice",
            f"share of {curves['trials']} noisy trials for each coherence",
        )


def _plot_trajectories(points: Data, path: Path) -> None:
    with saved_figure(path, (8.0, 4.6)) as figure:
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        spans = {"before the stimulus": (0, 10), "during the stimulus": (0, 40)}
        for axes, (name, span) in zip(panels, spans.items(), strict=True):
            _draw_trajectories(axes, points, span)
            _draw_points(axes, points[name])
            axes.set(title=name, xlabel="first principal component")
        panels[0].set_ylabel("second principal component")
        panels[0].legend(loc="upper left", fontsize=8)
        rests = points["before the stimulus"]["waited"] <= AT_REST
        say(
            figure,
            f"Decisions {'leave a point of rest and ' if rests else ''}part by their evidence",
            "noiseless trials, bluer for one choice and redder for the other; larger dots: after "
            "40 steps",
        )


def _draw_trajectories(axes: Axes, points: Data, span: tuple[int, int]) -> None:
    trajectories, levels = np.asarray(points["trajectories"]), np.asarray(points["levels"])
    colours = mpl.colormaps["coolwarm"](0.5 + 0.5 * levels / np.abs(levels).max())
    for place, colour in enumerate(colours):
        path = trajectories[span[0] : span[1], place]
        axes.plot(path[:, 0], path[:, 1], color=colour, lw=1.2)
        axes.plot(*path[-1], "o", color=colour, ms=4)


def _draw_points(axes: Axes, found: Data) -> None:
    places, unstable = np.asarray(found["places"]), np.asarray(found["unstable"])
    converged = np.asarray(found["converged"])
    kinds: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "stable": (converged & (unstable == 0), {"marker": "o", "color": BLACK}),
        "saddle": (converged & (unstable > 0), {"marker": "x", "color": BLACK}),
        "slow": (~converged, {"marker": "+", "color": VERMILION}),
    }
    for name, (chosen, style) in kinds.items():
        axes.plot(*places[chosen].T, ls="", ms=7, label=name, zorder=5, **style)


def _plot_variance(clusters: Data, tasks: list[str], path: Path) -> None:
    with saved_figure(path, (8.0, 4.2)) as figure:
        axes = figure.subplots()
        profiles, labels = np.asarray(clusters["profiles"]), np.asarray(clusters["labels"])
        image = axes.imshow(
            profiles.T, aspect="auto", cmap="magma", vmin=0, vmax=1, interpolation="nearest"
        )
        for edge in np.flatnonzero(np.diff(labels)):
            axes.axvline(edge + 0.5, color="white", lw=1)
        axes.set_yticks(range(len(tasks)), tasks)
        axes.set(xlabel="active units, by cluster")
        axes.grid(visible=False)
        figure.colorbar(image, label="task variance / largest", shrink=0.8)
        say(
            figure,
            f"Units fall into {len(np.unique(labels))} groups by the tasks that they serve",
            f"mean silhouette {clusters['silhouette']:.2f}; with shuffled columns "
            f"{clusters['shuffled']:.2f}",
        )


def _plot_connectivity(small: Data, path: Path) -> None:
    with saved_figure(path, (8.0, 4.4)) as figure:
        panels = figure.subplots(1, 2, width_ratios=(1, 1))
        limit = np.quantile(np.abs(np.asarray(small["connectivity"]["after"])), 0.99)
        for axes, name in zip(panels, ("before", "after"), strict=True):
            w = np.asarray(small["connectivity"][name])
            image = axes.imshow(w, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            axes.set(title=f"{name} training", xlabel="from unit", ylabel="to unit")
            axes.grid(visible=False)
            figure.colorbar(image, shrink=0.7)
        say(
            figure,
            "Every unit excites or inhibits, before and after training",
            f"recurrent weights of one network for {small['connectivity']['task']}; red excites",
        )

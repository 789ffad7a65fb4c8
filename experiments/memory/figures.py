"""The figures of `memory`: how long each recipe remembers, and how far its gradient reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter

from experiments.memory.findings import find_best, group_climbs, reach
from experiments.memory.recipes import DEFAULT, RECIPES
from experiments.shared.figures import BLACK, BLUE, GREY, SERIES, VERMILION, saved_figure, say
from experiments.shared.findings import Data
from experiments.shared.tasks import PROBLEMS

_LN10 = np.log(10)
_TITLES = {"latch": "hold a sign", "order": "order of two", "adding": "add two", "copy": "copy ten"}


def plot(data: Data, folder: Path) -> None:
    """Draw memory.png, reaches.png and lengths.png; of networks of another run, used.png."""
    if "used" in data:
        _plot_used(data["used"], folder / "used.png")
        return
    _plot_before_and_after(data, folder / "memory.png")
    _plot_reaches(data, folder / "reaches.png")
    _plot_lengths(data, folder / "lengths.png")


def _plot_used(used: list[Data], path: Path) -> None:
    """How much is right, by length."""
    with saved_figure(path, (8.0, 4.5)) as figure:
        axes = figure.subplots()
        for place, group in enumerate(used):
            rights = np.array([np.mean(test["right"]) for test in group["tests"].values()])
            label = f"{group['problem']}, {group['recipe']}"
            colour = SERIES[place % len(SERIES)]
            axes.plot(list(group["tests"]), rights, color=colour, marker="o", ms=4, label=label)
        axes.set(xscale="log", ylim=(0, 1.03), xlabel="length", ylabel="right")
        figure.legend(loc="outside right upper")
        say(figure, "What trained networks remember", "mean over the networks, fresh sequences")


def _plot_before_and_after(data: Data, path: Path) -> None:
    """The default network and the best vanilla one: the lengths they solve, and their gradients."""
    groups = group_climbs(data["climbs"])
    with saved_figure(path, (9.0, 3.0 + 0.45 * len(groups))) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
        factors = []
        for row, (problem, entries) in enumerate(reversed(groups.items())):
            best = find_best(entries)
            shown = ((-0.18, BLUE, DEFAULT), (0.18, VERMILION, best))
            ends = []
            for shift, colour, name in shown:
                lengths = reach(entries[name])
                ends.append(max(float(np.median(lengths)), PROBLEMS[problem].shortest))
                left.barh(row - shift, ends[-1], 0.32, color=colour)
                left.plot(lengths, np.full(len(lengths), row - shift), "|", color=BLACK, ms=7)
                left.annotate(
                    f" {np.median(lengths):,.0f}  {name}",
                    (max(ends[-1], lengths.max()), row - shift),
                    va="center",
                    fontsize=8,
                )
            factors.append(ends[1] / ends[0])
        left.set_yticks(range(len(groups)), [_TITLES[name] for name in reversed(groups)])
        left.set(xscale="log", xlim=(1, 3e5), xlabel="longest length solved")
        left.grid(visible=False, axis="y")
        _draw_gradients(right, groups)
        say(
            figure,
            f"A vanilla network remembers {min(factors):.0f} to {max(factors):.0f} times as long "
            "when it is started and trained for it",
            f"{data['seeds']} networks each (ticks; bars are medians). Right: the lecture's where "
            "it first fails, the best's over its longest length",
        )


def _draw_gradients(axes: Axes, groups: dict[str, dict[str, Data]]) -> None:
    """Gradient norms by lag of the default network and of the best, before and after training."""
    ends: dict[tuple[str, int, float], list[str]] = {}
    for problem, entries in groups.items():
        for colour, name in ((BLUE, DEFAULT), (VERMILION, find_best(entries))):
            rung = entries[name]["rungs"][-1]
            for when, style in (("before", ":"), ("after", "-")):
                logs = np.mean(np.asarray(rung[f"norms_{when}"]), axis=0) / _LN10
                axes.plot(rung["lags"], logs, ls=style, color=colour, lw=1.3, alpha=0.8)
            if np.isfinite(logs[-1]):
                end = (colour, rung["lags"][-1], round(float(logs[-1]), 1))
                ends.setdefault(end, []).append(_TITLES[problem])
    for (colour, lag, value), problems in ends.items():
        axes.annotate(" " + ", ".join(problems), (lag, value), fontsize=8, color=colour)
    for colour, label in ((BLUE, "lecture"), (VERMILION, "best")):
        for style, when in ((":", "before"), ("-", "after")):
            axes.plot([], [], ls=style, color=colour, label=f"{label}, {when} training")
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set(xscale="log", xlabel="lag k", ylabel="gradient norm by lag (power of ten)")
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlim(right=9 * max((lag for _, lag, _ in ends), default=1))
    top = max(np.max(line.get_ydata(), initial=0) for line in axes.lines)
    axes.set_ylim(top=max(0.7, 2 * top))
    axes.legend(loc="upper right", ncols=2, fontsize=8)


def _plot_reaches(data: Data, path: Path) -> None:
    """Every recipe on every problem."""
    groups = group_climbs(data["climbs"])
    names = [name for name in RECIPES if any(name in entries for entries in groups.values())]
    with saved_figure(path, (10.0, 1.6 + 0.32 * len(names))) as figure:
        panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axes, (problem, entries) in zip(panels, groups.items(), strict=True):
            for row, name in enumerate(reversed(names)):
                if name not in entries:
                    continue
                lengths = np.maximum(reach(entries[name]), 1)
                colour = GREY if not RECIPES[name].vanilla else SERIES[0 if name == DEFAULT else 1]
                axes.barh(row, np.median(lengths), 0.6, color=colour, alpha=0.85)
                axes.plot(lengths, np.full(len(lengths), row), "|", color=BLACK, ms=7)
            axes.set(xscale="log", xlabel="longest length solved", title=_TITLES[problem])
            axes.set_yticks(range(len(names)), reversed(names))
            axes.grid(visible=False, axis="y")
        say(
            figure,
            "Which recipe remembers how long",
            f"{data['seeds']} networks each (ticks; bars are medians). Blue: the lecture's; grey: "
            "not vanilla. 1: not even the shortest length",
        )


def _plot_lengths(data: Data, path: Path) -> None:
    """The loss of every recipe against the length, with its spread over the networks."""
    groups = group_climbs(data["climbs"])
    with saved_figure(path, (10.0, 6.8)) as figure:
        panels = figure.subplots(2, 2, squeeze=False).ravel()
        names = [name for name in RECIPES if any(name in entries for entries in groups.values())]
        styles: dict[str, Any] = {
            name: {"color": (*SERIES, GREY, BLACK)[place % 7], "ls": ("-", "--", ":")[place // 7]}
            for place, name in enumerate(names)
        }
        for axes, (problem, entries) in zip(panels, groups.items(), strict=False):
            for name, entry in entries.items():
                lengths = [rung["length"] for rung in entry["rungs"]]
                losses = np.array([rung["loss"] for rung in entry["rungs"]], float)
                blind = np.array([PROBLEMS[problem].blind_loss(length) for length in lengths])
                parts = np.clip(np.nan_to_num(losses / blind[:, None], nan=10), 1e-4, 10)
                logs = np.log10(parts)
                mean, spread = logs.mean(axis=1), logs.std(axis=1)
                axes.plot(lengths, 10**mean, marker="o", ms=3, lw=1.2, **styles[name])
                low, high = 10 ** (mean - spread), 10 ** (mean + spread)
                axes.fill_between(lengths, low, high, color=styles[name]["color"], alpha=0.1, lw=0)
            axes.axhline(1, color=GREY, lw=0.8)
            axes.set(xscale="log", yscale="log", title=_TITLES[problem], ylim=(5e-5, 20))
            axes.set(xlabel="length", ylabel="loss / loss without memory")
            axes.xaxis.set_minor_formatter(NullFormatter())  # no labels within a decade
        for axes in panels[len(groups) :]:
            axes.set_visible(False)
        handles = [panels[0].plot([], [], **styles[name])[0] for name in names]
        figure.legend(handles, names, loc="outside right upper")
        say(
            figure,
            "The loss against the length",
            "geometric mean and spread over the networks; a line ends where most networks fail",
        )

"""The figure of `parallel`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, ScalarFormatter

from experiments.parallel.findings import IN_CHUNKS, OVER_DEVICES, PASSES, speedups
from experiments.shared.figures import BLACK, GREY, SERIES, saved_figure, say
from experiments.shared.findings import Data

_STYLES = {IN_CHUNKS: "-", OVER_DEVICES: "--"}


def plot(data: Data, folder: Path) -> None:
    """Draw parallel.png: times as fast by width and length, and by the Lyapunov exponent."""
    with saved_figure(folder / "parallel.png", (8.0, 7.0)) as figure:
        upper, lower = figure.subplots(2, 2)
        for axes, (number, what) in zip(upper, enumerate(PASSES), strict=True):
            _draw_shapes(axes, data["rows"], number)
            axes.set_title(f"{what}; dashed: over {data['devices']} devices")
        upper[0].set_ylabel("times as fast as in order")
        upper[0].legend(fontsize=8)
        _draw_exponents(lower[0], lower[1], data["exponents"])
        steps, batch, units = data["exponents_shape"]
        say(
            figure,
            "One long sequence in parallel",
            f"lower: Gaussian networks, T = {steps:,}, B = {batch}, H = {units}; "
            f"{data['device']}, jax {data['jax']}",
        )


def _draw_shapes(axes: Axes, rows: list[Data], number: int) -> None:
    chosen = [row for row in rows if row["kind"] == "orthogonal"]
    groups = list(dict.fromkeys(tuple(row["shape"][:2]) for row in chosen))
    for group, colour in zip(groups, SERIES * len(groups), strict=False):
        for way, style in _STYLES.items():
            line: Any = [
                (row["shape"][2], speedups(row, way)[number])
                for row in chosen
                if tuple(row["shape"][:2]) == group and way in row["forward"]["seconds"]
            ]
            if line:
                label = f"T {group[0]:,}, B {group[1]}" if way == IN_CHUNKS else None
                axes.plot(
                    *zip(*line, strict=True), style, color=colour, marker="o", ms=3, label=label
                )
    axes.axhline(1, color=BLACK, lw=0.8)
    axes.set(xlabel="hidden units H", xscale="log", yscale="log")
    axes.set_xticks(sorted({row["shape"][2] for row in chosen}))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())


def _draw_exponents(left: Axes, right: Axes, rows: list[Data]) -> None:
    exponents = [row["exponent"] for row in rows]
    ratios = [speedups(row, IN_CHUNKS) for row in rows]
    for number, what in enumerate(PASSES):
        left.plot(
            exponents,
            [pair[number] for pair in ratios],
            "o-",
            ms=4,
            color=SERIES[number],
            label=what,
        )
    left.axhline(1, color=BLACK, lw=0.8)
    left.axvline(0, color=GREY, lw=0.8, ls=":")
    left.set(xlabel="largest Lyapunov exponent (nats per step)", ylabel="times as fast as in order")
    left.legend()
    agreed = [
        (row["exponent"], row["residual"] / row["tolerance"]) for row in rows if row["agreed"]
    ]
    if agreed:
        right.plot(*zip(*agreed, strict=True), "o", color=SERIES[0], label="in chunks")
    others = [row["exponent"] for row in rows if not row["agreed"]]
    right.plot(others, [0] * len(others), "x", color=SERIES[1], label="in order: no seams")
    right.axhline(1, color=BLACK, lw=0.8, ls="--")
    right.axvline(0, color=GREY, lw=0.8, ls=":")
    right.set(xlabel="largest Lyapunov exponent (nats per step)", ylim=(-0.05, 1.1))
    right.set_ylabel("largest residual / tolerance")
    right.legend(loc="center right")

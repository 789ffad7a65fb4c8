"""The figures of the tour: moving averages, sunspot forecasts, and memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.shared.figures import (
    BLACK,
    BLUE,
    GREY,
    SERIES,
    SKY,
    VERMILION,
    mark_steps,
    saved_figure,
    say,
)
from experiments.shared.findings import Data, count_layers
from experiments.tour.averages import SPAN, divide_errors, measure_settled_error
from experiments.tour.retention import LN10, REMEMBERS, find_reach
from experiments.tour.sunspots import find_best_depth, find_linear_rmse

_ACTIVATION_STYLES = (("identity", BLUE, "o"), ("tanh", VERMILION, "^"))
_SHOWN_STEPS = 200


def plot(data: Data, folder: Path) -> None:
    """Draw averages.png, lengths.png, sunspots.png and memory.png."""
    _plot_averages(data["averages"], folder / "averages.png")
    _plot_lengths(data["averages"], folder / "lengths.png")
    _plot_sunspots(data["sunspots"], folder / "sunspots.png")
    _plot_memory(data["memory"], folder / "memory.png")


# Claims 3 and 4


def _plot_averages(data: Data, path: Path) -> None:
    """The three curves of one alpha, and all learned weights."""
    shown = int(np.argmin(np.abs(np.asarray(data["alphas"]) - 0.9)))
    identity_error, tanh_error = (
        measure_settled_error(data, name)[shown] for name, _, _ in _ACTIVATION_STYLES
    )
    seeds = np.shape(data["networks"]["tanh"]["w"])[1]
    with saved_figure(path) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
        _draw_average(left, data, shown)
        _draw_weights(right, data)
        say(
            figure,
            f"Without its tanh the step learns the moving average (to {identity_error:.0e});\n"
            f"with tanh it stays {100 * tanh_error:.0f} % off",
            f"w and u learned on sequences of {data['train_length']} steps, {seeds} seeds per "
            "alpha; % = RMS error over the RMS of the average",
        )


def _draw_average(axes: Axes, data: Data, shown: int) -> None:
    """The series, its average with the alpha at `shown`, and what the networks learned of it."""
    steps, part = np.arange(1, 1 + _SHOWN_STEPS), slice(0, _SHOWN_STEPS)
    axes.plot(steps, np.asarray(data["example"]["xs"])[part], color=GREY, alpha=0.4, lw=0.8)
    average = np.asarray(data["example"]["average"])[shown][part]
    axes.plot(steps, average, color=SKY, lw=5, label=f"average, alpha = {data['alphas'][shown]:g}")
    for name, colour, _ in _ACTIVATION_STYLES:
        curve = np.asarray(data["networks"][name]["example"])[shown][part]
        axes.plot(steps, curve, color=colour, lw=1.5, label=f"learned, {name}")
    axes.set(xlabel="time step", ylabel="value (series in grey)")
    axes.legend(loc="lower center", ncols=3, bbox_to_anchor=(0.5, 1.0), columnspacing=1.2)


def _draw_weights(axes: Axes, data: Data) -> None:
    """The learned w against alpha, and u against 1 - alpha."""
    alphas = np.asarray(data["alphas"])
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--")
    for name, colour, marker in _ACTIVATION_STYLES:
        w, u = (np.asarray(data["networks"][name][weight]) for weight in ("w", "u"))
        style: dict[str, Any] = {"color": colour, "marker": marker, "ls": "none", "ms": 6}
        axes.plot(np.repeat(alphas, w.shape[1]), w.ravel(), **style, label=f"w, {name}")
        repeated = np.repeat(1 - alphas, u.shape[1])
        axes.plot(repeated, u.ravel(), **style, mfc="none", label=f"u, {name}")
    axes.set(xlabel="alpha (w), 1 - alpha (u)", ylabel="learned weight")
    axes.legend(loc="upper left", handletextpad=0.2)


def _plot_lengths(data: Data, path: Path) -> None:
    """The error at every step of the long sequences."""
    train_length, networks = data["train_length"], data["networks"]
    ratios = [divide_errors(network["rms_error"], SPAN, 2 * SPAN) for network in networks.values()]
    with saved_figure(path) as figure:
        axes = figure.subplots()
        axes.axvspan(1, train_length, color=GREY, alpha=0.15, lw=0)
        axes.text(1.1, 2e-5, f"steps seen in training (1 to {train_length})", fontsize=9)
        for name, style in (("tanh", "-"), ("identity", "--")):
            errors = np.asarray(networks[name]["rms_error"])
            for alpha, colour, row in zip(data["alphas"], SERIES, errors, strict=False):
                steps = np.arange(1, len(row) + 1)
                label = f"{name}, alpha = {alpha:g}"
                axes.plot(steps, row, ls=style, color=colour, lw=1.3, label=label)
        mark_steps(axes, [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000])
        axes.set(yscale="log", xlabel="time step", ylabel="RMS error of the average")
        axes.legend(loc="center right", bbox_to_anchor=(1, 0.5), ncols=2)
        say(
            figure,
            f"Weights learned on {train_length} steps hold on {len(row):,}:\n"
            f"after step {SPAN} the error grows at most {np.max(ratios):.2f}-fold",
            f"the last {SPAN} steps against steps {SPAN + 1} to {2 * SPAN}; before, the average "
            "fills up from zero",
        )


# Claim 5


def _plot_sunspots(data: Data, path: Path) -> None:
    """The forecasts of the last third, and every model's error."""
    best, linear = find_best_depth(data), find_linear_rmse(data)
    years, rmse = data["years"], np.asarray(data["networks"][best]["rmse"])
    winner = min(linear, key=lambda name: linear[name])
    with saved_figure(path, (8.0, 5.0)) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(2.6, 1))
        _draw_forecasts(left, data, best, winner)
        _draw_errors(right, data)
        say(
            figure,
            f"{count_layers(best)} forecast next year's sunspot number to {rmse.mean():.1f} ± "
            f"{rmse.std(ddof=1):.1f},\n{winner} to {linear[winner]:.1f}, "
            f"persistence to {data['baselines']['rmse']['persistence']:.1f} (RMSE)",
            f"one-step forecasts of {years[0]:.0f} to {years[-1]:.0f}, on which no run chooses; "
            "± is the standard deviation over seeds",
        )


def _draw_forecasts(axes: Axes, data: Data, depth: str, linear: str) -> None:
    """The truth, and the forecasts of the networks of one depth and of one linear model."""
    years, forecasts = data["years"], np.asarray(data["networks"][depth]["forecasts"])
    name, low, high = count_layers(depth), forecasts.min(axis=0), forecasts.max(axis=0)
    label = f"{name}, all {len(forecasts)} seeds"
    axes.fill_between(years, low, high, color=VERMILION, alpha=0.3, lw=0, label=label)
    axes.plot(years, forecasts.mean(axis=0), color=VERMILION, lw=1.4, label=f"{name}, mean")
    line = data["baselines"]["forecasts"][linear]
    axes.plot(years, line, color=BLUE, lw=1, ls="--", label=linear)
    axes.plot(years, data["truth"], color=BLACK, marker=".", ms=4, lw=0.7, label="truth")
    axes.set(xlabel="year", ylabel="yearly sunspot number")
    axes.legend(loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1.0))


def _draw_errors(axes: Axes, data: Data) -> None:
    """The RMSE of every model, one row each, the lowest on top."""
    rows: list[tuple[str, float, float, str]] = [
        (name, value, 0.0, GREY if name == "persistence" else BLUE)
        for name, value in data["baselines"]["rmse"].items()
    ]
    for depth, network in data["networks"].items():
        rmse = np.asarray(network["rmse"])
        name = count_layers(depth)
        rows.append((name, float(rmse.mean()), float(rmse.std(ddof=1)), VERMILION))
        rows.append((f"{name}, ensemble", network["ensemble_rmse"], 0.0, VERMILION))
    rows.sort(key=lambda row: -row[1])
    for position, (_, value, spread, colour) in enumerate(rows):
        axes.errorbar(value, position, xerr=spread, fmt="o", color=colour, ms=5, capsize=3)
        axes.annotate(
            f"{value:.1f}", (value, position), (0, 5), textcoords="offset points", ha="center",
            fontsize=9,
        )  # fmt: skip
    axes.set(xlabel="test RMSE (sunspots)", ylim=(-0.5, len(rows) - 0.3))
    axes.margins(x=0.15)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])


# Claim 7


def _plot_memory(data: Data, path: Path) -> None:
    """Accuracy and gradient norm against the number of steps."""
    lags, networks = data["lags"], data["networks"]
    with saved_figure(path, (8.0, 6.5)) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True)
        for (depth, network), colour in zip(networks.items(), (BLUE, VERMILION), strict=True):
            accuracy = 100 * np.asarray(network["accuracy"])
            _draw_band(top, lags, accuracy, (0, 100), color=colour, label=count_layers(depth))
            for when, style in (("before", "-"), ("after", "--")):
                logs = np.asarray(network[f"log_norm_{when}"]) / LN10
                label = f"{count_layers(depth)}, {when} training"
                limits = (-np.inf, np.inf)
                _draw_band(bottom, lags, logs, limits, color=colour, ls=style, label=label)
        top.axhline(50, color=GREY, lw=1, ls=":")
        top.annotate("guessing", (lags[0], 50), (0, 3), textcoords="offset points", fontsize=9)
        top.set(ylabel="correct answers (%)", ylim=(35, 104))
        mark_steps(bottom, list(lags))
        bottom.set(xlabel="steps of noise k after the sign", ylabel="gradient norm (power of ten)")
        top.legend(loc="center left")
        bottom.legend(loc="lower left")
        reach = [
            f"{find_reach(lags, np.mean(network['accuracy'], axis=1))} steps with "
            f"{count_layers(depth)}"
            for depth, network in networks.items()
        ]
        shallow = next(iter(networks.values()))
        log_norm = np.mean(shallow["log_norm_before"], axis=1)[-1] / LN10
        say(
            figure,
            f"The memory lasts {' and '.join(reach)}:\n"
            f"over {lags[-1]} steps the gradient falls to $\\mathbf{{10^{{{log_norm:.0f}}}}}$",
            f"memory: {REMEMBERS:.0%} correct or more; mean ± std over "
            f"{len(shallow['accuracy'][0])} seeds; a network for each k, {data['budget']}",
        )


def _draw_band(
    axes: Axes, lags: Sequence[int], values: np.ndarray, limits: tuple[float, float], **style: Any
) -> None:
    """The mean of `values` [lags, seeds] as a line, a standard deviation as a band."""
    mean, spread = values.mean(axis=1), values.std(axis=1, ddof=1)
    low, high = np.clip(mean - spread, *limits), np.clip(mean + spread, *limits)
    axes.fill_between(lags, low, high, color=style["color"], alpha=0.2, lw=0)
    axes.plot(lags, mean, marker="o", ms=4, **style)

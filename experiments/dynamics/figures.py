"""The figures of `dynamics`: attractors, forecasts, spectra and return maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.shared.figures import BLACK, BLUE, GREY, SERIES, VERMILION, saved_figure, say
from experiments.shared.findings import Data


def plot(data: Data, folder: Path) -> None:
    """Draw dynamics-NAME.png for each series, and valid_times.png."""
    for name, case in data["cases"].items():
        _draw_case(case, folder / f"dynamics-{name}.png")
    _draw_times(data, folder / "valid_times.png")


def _draw_case(case: Data, path: Path) -> None:
    shown = case["shown"]
    with saved_figure(path, (9.0, 7.6)) as figure:
        panels = figure.subplots(3, 2)
        for axes, name, colour in zip(panels[0], ("true", "run"), (BLACK, BLUE), strict=True):
            states = np.asarray(shown[name])
            second = states[:, -1] if states.shape[1] > 1 else np.roll(states[:, 0], 10)
            axes.plot(states[:, 0], second, color=colour, linewidth=0.4)
            axes.set_title("the system" if name == "true" else "a network, left alone")
            axes.set_xlabel("first coordinate")
            axes.set_ylabel("last coordinate")
        for axes in panels[0]:
            axes.set_xlim(panels[0][0].get_xlim())
            axes.set_ylim(panels[0][0].get_ylim())
        _draw_forecast(panels[1][0], case)
        _draw_exponents(panels[1][1], case)
        _draw_spectra(panels[2][0], shown["spectra"])
        for name, colour in (("true", BLACK), ("run", BLUE)):
            tops = np.asarray(shown["maxima"][name])
            panels[2][1].plot(tops[:, 0], tops[:, 1], ".", color=colour, markersize=2, alpha=0.6)
        panels[2][1].set_title("return map of the last coordinate's maxima")
        panels[2][1].set_xlabel("maximum")
        panels[2][1].set_ylabel("next maximum")
        valid = np.median(case["models"]["network"]["valid"])
        unit = "Lyapunov times" if case["exponents"] is not None else "hundreds of steps"
        say(
            figure,
            f"{case['title']}: free runs stay right for {valid:.1f} {unit} in the median",
            "black: the system; blue: a network; coordinates in standard deviations",
        )


def _draw_forecast(axes: Axes, case: Data) -> None:
    shown = case["shown"]["forecast"]
    times = np.arange(1, len(shown["true"]) + 1) / case["time"]
    axes.plot(times, np.asarray(shown["true"])[:, 0], color=BLACK, linewidth=1.2)
    axes.plot(times, np.asarray(shown["run"])[:, 0], color=BLUE, linewidth=0.9)
    axes.axvline(shown["valid"], color=VERMILION, linewidth=1)
    axes.set_ylim(-3.5, 3.5)
    axes.set_title("a forecast, right up to the red line")
    axes.set_xlabel("Lyapunov times" if case["exponents"] is not None else "hundreds of steps")
    axes.set_ylabel("first coordinate")


def _draw_exponents(axes: Axes, case: Data) -> None:
    found: Any = np.asarray(case["models"]["network"]["exponents"]) * case["time"]
    places = np.arange(1, found.shape[1] + 1)
    for row in found:
        axes.plot(places, row, "o", color=BLUE, markersize=4, alpha=0.7)
    if case["exponents"] is not None:
        true = np.asarray(case["exponents"]) * case["time"]
        axes.plot(places, true[: len(places)], "_", color=BLACK, markersize=22)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.margins(y=0.1)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_xticks(places)
    axes.set_xlim(0.5, len(places) + 0.5)
    axes.set_title("Lyapunov exponents, each seed")
    axes.set_xlabel("exponent")
    axes.set_ylabel("nats per Lyapunov time")


def _draw_spectra(axes: Axes, spectra: Data) -> None:
    for name, colour in (("true", BLACK), ("run", BLUE)):
        if name in spectra:
            power = np.asarray(spectra[name])[0]
            frequency = np.arange(1, len(power) + 1) / (2 * len(power))
            axes.loglog(frequency, power, color=colour, linewidth=0.9)
    axes.set_title("power spectrum of the first coordinate")
    axes.set_xlabel("cycles per step")
    axes.set_ylabel("share of the power")


def _draw_times(data: Data, path: Path) -> None:
    cases = data["cases"]
    with saved_figure(path, (8.0, 1.2 + 0.9 * len(cases))) as figure:
        axes = figure.subplots()
        models = list(next(iter(cases.values()))["models"])
        height = 0.8 / len(models)
        for number, model in enumerate(models):
            medians = [np.median(case["models"][model]["valid"]) for case in cases.values()]
            places = np.arange(len(cases)) + number * height
            axes.barh(places, medians, height, color=SERIES[number % len(SERIES)], label=model)
        axes.set_yticks(np.arange(len(cases)) + 0.4 - height / 2)
        axes.set_yticklabels([case["title"] for case in cases.values()])
        axes.invert_yaxis()
        axes.set_xlabel("median valid time, Lyapunov times")
        axes.legend()
        say(figure, "How long forecasts of chaotic systems stay right")

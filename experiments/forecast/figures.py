"""The figures of `forecast`, and its forecasts as a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from experiments.shared.figures import BLACK, BLUE, GREY, SERIES, SKY, saved_figure, say
from experiments.shared.findings import Data
from experiments.shared.output import write_csv

_HISTORY = 100  # rows of history


def plot(data: Data, folder: Path) -> None:
    """Draw the history, forecasts, bands and true values of each column; write forecast.csv."""
    _write_forecast(data, folder / "forecast.csv")
    for place, column in enumerate(data["series"]["columns"]):
        name = "forecast.png" if len(data["series"]["columns"]) == 1 else f"forecast-{place}.png"
        _plot_column(data, place, column, folder / name)


def _plot_column(data: Data, place: int, column: str, path: Path) -> None:
    name = data["series"]["name"]
    if "test" not in data:
        with saved_figure(path, (8.0, 4.0)) as figure:
            _draw_forecasts(figure.subplots(), data, place, column)
            say(figure, f"{name}: what follows", f"bands of {data['band']:.0%}")
        return
    test = data["test"]
    with saved_figure(path, (8.0, 6.5)) as figure:
        top, bottom = figure.subplots(2, 1, height_ratios=(3, 2))
        _draw_forecasts(top, data, place, column)
        _draw_errors(bottom, test, place, column)
        ours, persistence = (test["rmse"][key][:, place] for key in ("ensemble", "persistence"))
        say(
            figure,
            f"{name}: one step ahead RMSE {ours[0]:.3g}, persistence {persistence[0]:.3g}",
            f"{len(test['origins'])} forecasts of the test rows; bands of {data['band']:.0%}; "
            f"{len(data['networks']['steps'])} networks",
        )


def _draw_forecasts(axes: Axes, data: Data, place: int, column: str) -> None:
    """The end of the series, the last forecast of test rows, and that of what follows."""
    series, future = data["series"], data["future"]
    times, values = np.asarray(series["times"]), np.asarray(series["values"])
    step = float(np.median(np.diff(times)))
    start = max(0, len(times) - _HISTORY)
    axes.plot(times[start:], values[start:, place], color=BLACK, lw=1.2, label="truth")
    shown = [(future["row"], future["forecast"], future["band"], BLUE, "future")]
    if "test" in data:
        test = data["test"]
        last = test["last"]["ensemble"], test["last_band"]
        shown.insert(0, (test["origins"][-1], *last, SERIES[1], "test"))
    for row, forecast, band, colour, label in shown:
        path, edges = np.asarray(forecast)[:, place], np.asarray(band)[..., place]
        when = times[row] + step * np.arange(1, len(path) + 1)
        axes.plot(when, path, color=colour, lw=1.6, label=f"forecast, {label}")
        axes.fill_between(when, *edges, color=colour, alpha=0.2, lw=0)
    axes.set(xlabel=series["unit"], ylabel=column)
    axes.margins(y=0.15)  # room for the legend
    axes.legend(loc="upper left", ncols=3)


def _draw_errors(axes: Axes, test: Data, place: int, column: str) -> None:
    """The error of every model by the number of steps ahead, the ensemble's on top."""
    names = [*(name for name in test["rmse"] if name != "ensemble"), "ensemble"]
    colours = (GREY, *SERIES[2:], SKY, BLACK, BLUE)
    for number, name in enumerate(names):
        colour = SERIES[1] if name == "ensemble" else colours[number % len(colours)]
        rmse = np.asarray(test["rmse"][name])[:, place]
        axes.plot(np.arange(1, len(rmse) + 1), rmse, color=colour, marker="o", ms=3, label=name)
    axes.set(xlabel="steps ahead", ylabel=f"test RMSE of {column}", ylim=(0, None))
    axes.locator_params(axis="x", integer=True)
    axes.legend(ncols=2, fontsize=8)


def _write_forecast(data: Data, path: Path) -> None:
    """The forecasts after the last row, and the edges of their bands, of each column."""
    columns, future = data["series"]["columns"], data["future"]
    names = [f"{column}{part}" for column in columns for part in ("", " low", " high")]
    steps = zip(future["forecast"], *future["band"], strict=True)
    rows = [
        [number, *np.stack([forecast, low, high], axis=1).ravel().tolist()]
        for number, (forecast, low, high) in enumerate(steps, start=1)
    ]
    write_csv(path, [["steps ahead", *names], *rows])

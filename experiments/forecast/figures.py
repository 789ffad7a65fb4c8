"""The figures of `forecast`, and its forecasts as a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.shared.figures import BLACK, BLUE, GREY, SERIES, saved_figure, say
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
    series, test, future = data["series"], data["test"], data["future"]
    times = np.asarray(series["times"])
    step = float(np.median(np.diff(times)))
    ahead = np.arange(1, len(test["truth"]) + 1)
    with saved_figure(path, (8.0, 6.5)) as figure:
        top, bottom = figure.subplots(2, 1, height_ratios=(3, 2))
        start = max(0, len(times) - _HISTORY)
        top.plot(times[start:], series["values"][start:, place], color=BLACK, lw=1.2, label="truth")
        for row, forecast, band, colour, label in [
            (test["origins"][-1], test["last"]["ensemble"], test["last_band"], SERIES[1], "test"),
            (future["row"], future["forecast"], future["band"], BLUE, "future"),
        ]:
            when = times[row] + step * ahead
            top.plot(when, forecast[:, place], color=colour, lw=1.6, label=f"forecast, {label}")
            top.fill_between(when, *band[..., place], color=colour, alpha=0.2, lw=0)
        top.set(xlabel=series["unit"], ylabel=column)
        top.margins(y=0.15)  # room for the legend
        top.legend(loc="upper left", ncols=3)
        colours = (GREY, SERIES[2], SERIES[3], SERIES[1])  # the ensemble is the last
        for (name, rmse), colour in zip(test["rmse"].items(), colours, strict=True):
            bottom.plot(ahead, rmse[:, place], color=colour, marker="o", ms=3, label=name)
        bottom.set(xlabel="steps ahead", ylabel=f"test RMSE of {column}", ylim=(0, None))
        bottom.locator_params(axis="x", integer=True)
        bottom.legend(ncols=2)
        ours, persistence = (test["rmse"][name][:, place] for name in ("ensemble", "persistence"))
        say(
            figure,
            f"{series['name']}: one step ahead RMSE {ours[0]:.3g}, "
            f"persistence {persistence[0]:.3g}",
            f"{len(test['origins'])} forecasts of the test rows; bands of {data['band']:.0%} from "
            f"{len(data['networks']['steps'])} networks",
        )


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

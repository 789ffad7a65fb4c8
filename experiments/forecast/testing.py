"""The test of forecasts: errors beside those of other models, the bands, and the findings."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.table import Table

from experiments.forecast.classical import MOST_ORIGINS, forecast_classically
from experiments.forecast.ensemble import BAND, Trust, forecast_ensemble
from experiments.forecast.preparation import PreparedSeries, choose_origins
from experiments.shared.baselines import forecast_baselines
from experiments.shared.findings import Data, Finding, describe_seeds
from experiments.shared.output import to_text
from jaxrnn import Layer, Params

_HARM = 1.03
_ROUNDING = 1e-9


def score_ensemble(
    prepared: PreparedSeries,
    network: Layer,
    params: Params,
    trust: Trust,
    *,
    max_order: int,
    classical: bool,
) -> Data:
    """The forecasts from the test rows, and their errors [H, C] in the series' units."""
    series, horizon, splits = prepared.series, prepared.horizon, prepared.splits
    origins = choose_origins(series, splits[1] - 1, len(series.values), horizon)
    segments = np.cumsum(series.begins)
    rows = origins + 1 + np.arange(horizon)[:, None]  # [H, N]
    same = segments[rows] == segments[origins]
    truth = np.where(same[..., None], series.values[rows], np.nan)
    ours = forecast_ensemble(network, params, prepared, trust, origins, splits[1])
    bands, paths = ours.pop("bands"), ours.pop("networks")
    baselines = forecast_baselines(
        series.values,
        series.begins,
        splits,
        origins,
        horizon,
        season=prepared.season,
        max_order=max_order,
    )
    if classical:
        few = np.unique(np.linspace(0, len(origins) - 1, MOST_ORIGINS).astype(int))
        for name, made in forecast_classically(prepared, origins[few]).items():
            baselines[name] = np.full((horizon, *truth.shape[1:]), np.nan)
            baselines[name][:, few] = made
    forecasts = baselines | ours
    with np.errstate(invalid="ignore"):
        inside = np.where(np.isnan(truth), np.nan, (bands[0] <= truth) & (truth <= bands[1]))
    return {
        "origins": origins,
        "truth": truth,  # [H, N, C], NaN where unknown or after a gap
        "rmse": {name: _rmse(forecast, truth) for name, forecast in forecasts.items()},  # [H, C]
        "network_rmse": _rmse(paths, truth),  # [S, H, C]
        "last": {name: forecast[:, -1] for name, forecast in forecasts.items()},
        "last_band": bands[:, :, -1],  # [2, H, C]
        "coverage": np.nanmean(inside, axis=1),  # [H, C]
        "deviation": np.nanstd(series.values[: splits[0]], axis=0),  # [C]
    }


def look_ahead(prepared: PreparedSeries, network: Layer, params: Params, trust: Trust) -> Data:
    """The forecast [H, C] of the rows after the last known one, and its band [2, H, C]."""
    values = prepared.series.values
    known = np.flatnonzero(~np.isnan(values).all(axis=1))
    made = forecast_ensemble(network, params, prepared, trust, known[-1:], len(values))
    return {
        "row": known[-1],
        "forecast": made["ensemble"][:, 0],
        "band": made["bands"][:, :, 0],
    }


def _rmse(forecasts: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """RMSE over the origins, the last axis but one."""
    return np.sqrt(np.nanmean((forecasts - truth) ** 2, axis=-2))


def judge(data: Data) -> list[Finding]:
    """One finding per model, one on what the networks add, and one on the bands."""
    test = data["test"]
    pooled = {name: _pool(rmse, test) for name, rmse in test["rmse"].items()}
    single = _pool(test["network_rmse"], test)  # [S, 2]
    ours, linear = pooled.pop("ensemble"), pooled.pop("linear part")
    first, further = data["trust"]
    steps = len(test["truth"])
    coverage = float(np.nanmean(test["coverage"]))
    return [
        Finding(
            "single",
            "The ensemble forecasts no worse than its networks do alone.",
            "its error over the horizon is at most their mean",
            f"one step {describe_seeds(single[:, 0], 2)}, "
            f"all steps {describe_seeds(single[:, 1], 2)}; "
            f"ensemble {ours[0]:.3g} and {ours[1]:.3g}",
            bool(ours[1] <= single[:, 1].mean() * (1 + _ROUNDING)),
        ),
        *(_compare(name, ours, theirs, steps) for name, theirs in pooled.items()),
        Finding(
            "linear part",
            "Followed as far as validation says, the networks do not harm the linear part.",
            f"its error is at most {_HARM:g} times that of the linear part alone",
            f"one step {ours[0]:.3g} against {linear[0]:.3g}, all steps {ours[1]:.3g} against "
            f"{linear[1]:.3g}; followed by {first:.2f} one step ahead, {further:.2f} further",
            bool((ours <= _HARM * linear).all()),
        ),
        Finding(
            "bands",
            f"The bands cover {BAND:.0%} of the true values.",
            "the share of the test values inside them differs by at most 10 percentage points",
            f"{coverage:.0%} inside",
            abs(coverage - BAND) <= 0.1,
        ),
    ]


def _compare(name: str, ours: np.ndarray, theirs: np.ndarray, steps: int) -> Finding:
    return Finding(
        name,
        f"The ensemble forecasts better than {name}.",
        "its error on the test rows is lower, one step ahead and over the horizon",
        f"one step {ours[0]:.3g} against {theirs[0]:.3g}, all {steps} steps {ours[1]:.3g} against "
        f"{theirs[1]:.3g}",
        bool((ours < theirs).all()),
    )


def _pool(rmse: Any, test: Data) -> np.ndarray:
    """RMSE one step ahead and over the horizon [..., 2]; for several columns the mean of their
    RMSEs, each in units of the column's standard deviation."""
    rmse = np.asarray(rmse)
    if rmse.shape[-1] > 1:
        rmse = rmse / test["deviation"]
    whole = np.sqrt(np.mean(rmse**2, axis=-2))
    return np.stack([rmse[..., 0, :].mean(axis=-1), whole.mean(axis=-1)], axis=-1)


def describe_future(data: Data) -> str:
    """The forecast of what follows, with its bands, as a table."""
    columns, future = data["series"]["columns"], data["future"]
    table = Table("steps ahead", *columns, title=f"what follows {data['series']['name']}")
    for step, (values, low, high) in enumerate(
        zip(future["forecast"], *future["band"], strict=True)
    ):
        cells = [f"{v:.5g} ({a:.5g} to {b:.5g})" for v, a, b in zip(values, low, high, strict=True)]
        table.add_row(str(step + 1), *cells)
    return to_text(table)

"""The yearly sunspot numbers, and the forecasts that need no network."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import statsmodels.api

from experiments.shared.findings import Data

_USUAL_ORDER = 9  # of an autoregression of this series, near its cycle of 11 years


class Series(NamedTuple):
    """Yearly `numbers` [N] and z [N], their square roots standardised by the training years; the
    years to fit and those to validate on end at these positions."""

    years: np.ndarray
    numbers: np.ndarray
    z: np.ndarray
    scale: float
    offset: float
    fit_end: int
    train_end: int


def load_series(validation_years: int) -> Series:
    """Statsmodels' copy of the yearly numbers; two thirds are for training."""
    table = statsmodels.api.datasets.sunspots.load_pandas().data
    years, numbers = (table[name].to_numpy() for name in ("YEAR", "SUNACTIVITY"))
    train_end = 2 * len(numbers) // 3
    roots = np.sqrt(numbers)
    offset, scale = float(roots[:train_end].mean()), float(roots[:train_end].std())
    fit_end = train_end - validation_years
    return Series(years, numbers, (roots - offset) / scale, scale, offset, fit_end, train_end)


def to_numbers(series: Series, z: Any) -> Any:
    """Sunspot numbers from standardised roots, in NumPy or JAX; no number is negative."""
    return (z * series.scale + series.offset).clip(0) ** 2


def rmse_of(series: Series, forecasts: np.ndarray, start: int, stop: int | None = None) -> Any:
    """RMSE [...] of forecasts [..., N], in sunspot numbers, over some years."""
    return np.sqrt(np.mean((forecasts - series.numbers)[..., start:stop] ** 2, axis=-1))


def measure_baselines(series: Series, max_order: int) -> Data:
    """RMSE on the test years of persistence and of two autoregressions."""
    fit_end, train_end = series.fit_end, series.train_end
    validation = [
        float(rmse_of(series, _autoregression(series, order, fit_end), fit_end, train_end))
        for order in range(1, max_order + 1)
    ]
    chosen = 1 + int(np.argmin(validation))
    forecasts = {"persistence": np.concatenate([series.numbers[:1], series.numbers[:-1]])}
    for order in (chosen, _USUAL_ORDER):
        forecasts[f"AR({order})"] = _autoregression(series, order, train_end)
    return {
        "chosen": f"AR({chosen})",
        "usual": f"AR({_USUAL_ORDER})",
        "validation_rmse": validation,
        "rmse": {
            name: float(rmse_of(series, forecast, train_end))
            for name, forecast in forecasts.items()
        },
        "forecasts": {name: forecast[train_end:] for name, forecast in forecasts.items()},
    }


def _autoregression(series: Series, order: int, stop: int) -> np.ndarray:
    """Forecasts [N] of a linear autoregression, least squares on the years before `stop`."""
    z = series.z
    columns = [z[order - lag : len(z) - lag] for lag in range(1, order + 1)]
    inputs = np.stack([*columns, np.ones(len(z) - order)], axis=1)  # [N - order, order + 1]
    weights, *_ = np.linalg.lstsq(inputs[: stop - order], z[order:stop], rcond=None)
    return to_numbers(series, np.concatenate([z[:order], inputs @ weights]))

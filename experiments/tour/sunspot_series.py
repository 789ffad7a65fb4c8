"""The yearly sunspot numbers split in time, and the forecasts that need no network."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from experiments.data.series import load_sunspots
from experiments.shared.baselines import fit_autoregression, forecast_autoregression
from experiments.shared.findings import Data

_USUAL_ORDER = 9  # of an autoregression of this series, near its cycle of 11 years


class SplitSunspots(NamedTuple):
    """Yearly `numbers` [N] and z [N], their square roots standardised by the training years.

    The years to fit end at `fit_end`, those to validate on at `train_end`; the rest test.
    """

    years: np.ndarray
    numbers: np.ndarray
    z: np.ndarray
    scale: float
    offset: float
    fit_end: int
    train_end: int


def split_sunspots(validation_years: int) -> SplitSunspots:
    """The series of `load_sunspots`; the first two thirds are for training."""
    series = load_sunspots()
    numbers = series.values[:, 0]
    train_end = 2 * len(numbers) // 3
    roots = np.sqrt(numbers)
    offset, scale = float(roots[:train_end].mean()), float(roots[:train_end].std())
    z = (roots - offset) / scale
    fit_end = train_end - validation_years
    return SplitSunspots(series.times, numbers, z, scale, offset, fit_end, train_end)


def to_numbers(series: SplitSunspots, z: Any) -> Any:
    """Sunspot numbers from standardised roots, in NumPy or JAX; no number is negative."""
    return (z * series.scale + series.offset).clip(0) ** 2


def rmse_of(
    series: SplitSunspots, forecasts: np.ndarray, start: int, stop: int | None = None
) -> Any:
    """RMSE [...] of forecasts [..., N], in sunspot numbers, from year `start` to `stop`."""
    return np.sqrt(np.mean((forecasts - series.numbers)[..., start:stop] ** 2, axis=-1))


def measure_baselines(series: SplitSunspots, max_order: int) -> Data:
    """RMSE on the test years of persistence and of two autoregressions."""
    fit_end, train_end = series.fit_end, series.train_end
    validation = [
        float(rmse_of(series, _autoregress(series, order, fit_end), fit_end, train_end))
        for order in range(1, max_order + 1)
    ]
    chosen = 1 + int(np.argmin(validation))
    forecasts = {"persistence": np.concatenate([series.numbers[:1], series.numbers[:-1]])}
    for order in (chosen, _USUAL_ORDER):
        forecasts[f"AR({order})"] = _autoregress(series, order, train_end)
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


def _autoregress(series: SplitSunspots, order: int, stop: int) -> np.ndarray:
    """One-step forecasts [N] of an autoregression fitted to the years before `stop`."""
    z = series.z[:, None]
    weights = fit_autoregression(z, np.zeros(len(z), bool), stop, order)
    following = forecast_autoregression(z, weights, np.arange(len(z) - 1), 1)[0]
    return to_numbers(series, np.concatenate([z[:1], following])[:, 0])

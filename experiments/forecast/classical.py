"""What a forecaster would fit: exponential smoothing and a (seasonal) ARIMA, by statsmodels.

Both are fitted once, to the rows before the test rows, and run on through them: their states are
those of all rows up to each origin, their parameters are not fitted again. The ARIMA is the one of
a few common orders with the smallest AICc, on the transform of the linear part.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from statsmodels.tsa.exponential_smoothing.ets import ETSModel
from statsmodels.tsa.statespace.sarimax import SARIMAX

from experiments.forecast.linear import apply_transform, invert_transform
from experiments.forecast.preparation import PreparedSeries

MOST_ROWS, LONGEST_SEASON, MOST_ORIGINS = 2000, 24, 64
"""Beyond these rows and seasons statsmodels takes too long; and the origins it forecasts from."""

_ORDERS = ((0, 1, 1), (1, 1, 1), (2, 1, 2), (1, 0, 0), (2, 0, 0), (2, 0, 1))
_SEASONAL_ORDERS = ((0, 1, 1), (1, 1, 1), (1, 0, 1), (2, 0, 0))
_ITERATIONS = 50


def forecast_classically(prepared: PreparedSeries, origins: np.ndarray) -> dict[str, np.ndarray]:
    """Forecasts [H, N, C] after the rows `origins`; none of a series that is too long, or has a
    missing value, a gap, or a season that is too long."""
    series = prepared.series
    if (
        np.isnan(series.values).any()
        or series.begins[1:].any()
        or len(series.values) > MOST_ROWS
        or prepared.season > LONGEST_SEASON
    ):
        return {}
    made: dict[str, list[np.ndarray]] = {"ETS": [], "ARIMA": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optimizers that stop early
        for values, name, column in zip(
            series.values.T, prepared.transforms, prepared.columns, strict=True
        ):
            z = apply_transform(name, values, column.floor)
            for kind, forecast in (("ETS", _smooth), ("ARIMA", _run_arima)):
                ahead = forecast(z, prepared, origins)
                with np.errstate(over="ignore"):
                    made[kind].append(invert_transform(name, ahead))
    return {name: np.stack(columns, axis=-1) for name, columns in made.items()}


def _smooth(z: np.ndarray, prepared: PreparedSeries, origins: np.ndarray) -> np.ndarray:
    """Additive exponential smoothing with a damped trend, and a season if there is one: [H, N]."""
    options: Any = {"error": "add", "trend": "add", "damped_trend": True}
    if prepared.season > 1:
        options |= {"seasonal": "add", "seasonal_periods": prepared.season}
    stop = prepared.splits[1]
    params = ETSModel(z[:stop], **options).fit(disp=False, maxiter=10 * _ITERATIONS).params
    return _roll(
        lambda origin: (
            ETSModel(z[: origin + 1], **options).smooth(params).forecast(prepared.horizon)
        ),
        origins,
    )


def _run_arima(z: np.ndarray, prepared: PreparedSeries, origins: np.ndarray) -> np.ndarray:
    stop, season = prepared.splits[1], prepared.season
    best: Any = None
    for order in _ORDERS if season == 1 else _ORDERS[:-1]:
        for seasonal in [(0, 0, 0, 0)] if season == 1 else [(*_SEASONAL_ORDERS[0], season)]:
            trend = "c" if order[1] + seasonal[1] < 2 else "n"
            model = SARIMAX(z[:stop], order=order, seasonal_order=seasonal, trend=trend)
            try:
                fitted = model.fit(disp=False, maxiter=_ITERATIONS, warn_convergence=False)
            except (ValueError, np.linalg.LinAlgError):  # a start that is not stationary
                continue
            if best is None or fitted.aicc < best.aicc:
                best = fitted
    return _roll(lambda origin: best.apply(z[: origin + 1]).forecast(prepared.horizon), origins)


def _roll(forecast: Callable[[int], np.ndarray], origins: np.ndarray) -> np.ndarray:
    return np.stack([forecast(int(origin)) for origin in origins], axis=1)

"""Forecasts of a series that need no network: persistence, seasonal persistence, autoregression."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_RIDGE = 1e-6  # of the mean square of the inputs: columns that repeat each other have a solution


def forecast_simply(
    values: np.ndarray,
    begins: np.ndarray,
    splits: tuple[int, int],
    origins: np.ndarray,
    horizon: int,
    *,
    season: int,
    max_order: int,
) -> Mapping[str, np.ndarray]:
    """The forecasts [H, N, C] of each baseline, 1 to H steps after the rows `origins` [N].

    Args:
      values: [T, C], NaN where missing; the last known value stands in for one.
      begins: [T] bool, where rows before are absent.
      splits: rows before the first are fitted on, rows from there to the second choose the order.
      season: of seasonal persistence, in rows.
    """
    filled = _fill(values, splits[0])
    lags = np.minimum(season - 1 - np.arange(horizon) % season, origins[:, None])  # [N, H]
    order = _choose_order(filled, values, begins, splits, max_order)
    weights = _fit(filled, values, begins, splits[0], order)
    return {
        "persistence": np.repeat(filled[None, origins], horizon, axis=0),
        f"seasonal persistence ({season})": filled[origins[:, None] - lags].swapaxes(0, 1),
        f"AR({order})": _iterate(filled, weights, origins, horizon),
    }


def _fill(values: np.ndarray, fit_end: int) -> np.ndarray:
    """The last known value of each column, and before the first the mean of the rows to fit."""
    known = ~np.isnan(values)
    last = np.maximum.accumulate(np.where(known, np.arange(len(values))[:, None], -1))
    means = np.nanmean(values[:fit_end], axis=0)
    filled = np.take_along_axis(values, np.maximum(last, 0), axis=0)
    return np.where(last >= 0, filled, means)


def _choose_order(
    filled: np.ndarray,
    values: np.ndarray,
    begins: np.ndarray,
    splits: tuple[int, int],
    max_order: int,
) -> int:
    """The order with the least one-step error on the rows between the splits."""
    start, stop = splits
    errors = []
    for order in range(1, max_order + 1):
        weights = _fit(filled, values, begins, start, order)
        forecasts = _iterate(filled, weights, np.arange(start - 1, stop - 1), 1)[0]
        scored = ~begins[start:stop, None] & ~np.isnan(values[start:stop])
        scale = filled[:start].std(axis=0)
        squares = ((forecasts - filled[start:stop]) / scale) ** 2
        errors.append(squares[scored].mean() if scored.any() else np.inf)
    return 1 + int(np.argmin(errors))


def _fit(
    filled: np.ndarray, values: np.ndarray, begins: np.ndarray, stop: int, order: int
) -> np.ndarray:
    """Least squares weights [C, order + 1] of each column's own lags, most recent first."""
    targets = np.arange(order, stop)
    segments = np.cumsum(begins)
    whole = segments[targets] == segments[targets - order]
    weights = np.zeros((filled.shape[1], order + 1))
    for column, series in enumerate(filled.T):
        rows = targets[whole & ~np.isnan(values[targets, column])]
        inputs = _lag(series, rows - 1, order)
        gram = inputs.T @ inputs
        ridge = _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
        weights[column] = np.linalg.solve(gram + ridge, inputs.T @ series[rows])
    return weights


def _lag(series: np.ndarray, rows: np.ndarray, order: int) -> np.ndarray:
    """The values [N, order + 1] at `rows` and before them, and a constant."""
    places = np.maximum(rows[:, None] - np.arange(order), 0)
    return np.concatenate([series[places], np.ones((len(rows), 1))], axis=1)


def _iterate(
    filled: np.ndarray, weights: np.ndarray, origins: np.ndarray, horizon: int
) -> np.ndarray:
    """Forecasts [H, N, C] that are fed back."""
    order = weights.shape[1] - 1
    lags = np.stack(
        [_lag(series, origins, order) for series in filled.T], axis=1
    )  # [N, C, order+1]
    forecasts = []
    for _ in range(horizon):
        forecast = np.sum(lags * weights, axis=-1)
        forecasts.append(forecast)
        lags = np.concatenate([forecast[..., None], lags[..., :-2], lags[..., -1:]], axis=-1)
    return np.stack(forecasts)

"""Forecasts of a series that need no network: persistence, seasonal persistence, autoregression."""

from __future__ import annotations

import numpy as np


def forecast_baselines(
    values: np.ndarray,
    begins: np.ndarray,
    splits: tuple[int, int],
    origins: np.ndarray,
    horizon: int,
    *,
    season: int,
    max_order: int,
) -> dict[str, np.ndarray]:
    """The forecasts [H, N, C] of each baseline, 1 to H steps after the rows `origins` [N].

    Args:
      values: [T, C], NaN where missing; the last known value replaces a missing one.
      begins: [T] bool, True at rows that follow a gap.
      splits: the rows before the first and those up to the second choose the order; all of them are
        fitted then.
      season: period of seasonal persistence, in rows; 1 leaves it out.
    """
    filled = fill_missing(values, splits[0])
    lags = np.minimum(season - 1 - np.arange(horizon) % season, origins[:, None])  # [N, H]
    order = _choose_order(values, begins, splits, max_order)
    weights = fit_autoregression(values, begins, splits[1], order)
    forecasts = {
        "persistence": np.repeat(filled[None, origins], horizon, axis=0),
        f"seasonal persistence ({season})": filled[origins[:, None] - lags].swapaxes(0, 1),
        f"AR({order})": forecast_autoregression(filled, weights, origins, horizon),
    }
    if season == 1:
        del forecasts["seasonal persistence (1)"]
    return forecasts


def fill_missing(values: np.ndarray, stop: int) -> np.ndarray:
    """The last known value of each column; before the first, the mean of the rows up to `stop`."""
    known = ~np.isnan(values)
    last = np.maximum.accumulate(np.where(known, np.arange(len(values))[:, None], -1))
    means = np.nanmean(values[:stop], axis=0)
    filled = np.take_along_axis(values, np.maximum(last, 0), axis=0)
    return np.where(last >= 0, filled, means)


def fit_autoregression(values: np.ndarray, begins: np.ndarray, stop: int, order: int) -> np.ndarray:
    """Least squares weights [C, order + 1] of each column's own lags, most recent first, and of a
    constant, fitted to the rows before `stop`; arguments as in `forecast_baselines`."""
    filled = fill_missing(values, stop)
    targets = np.arange(order, stop)
    segments = np.cumsum(begins)
    whole = segments[targets] == segments[targets - order]
    weights = np.zeros((values.shape[1], order + 1))
    for column, series in enumerate(filled.T):
        rows = targets[whole & ~np.isnan(values[targets, column])]
        inputs = _lag(series, rows - 1, order)
        weights[column] = np.linalg.lstsq(inputs, series[rows], rcond=None)[0]
    return weights


def forecast_autoregression(
    filled: np.ndarray, weights: np.ndarray, origins: np.ndarray, horizon: int
) -> np.ndarray:
    """Forecasts [H, N, C] of values without missing ones; each forecast is the next one's input."""
    order = weights.shape[1] - 1
    lags = [_lag(series, origins, order) for series in filled.T]
    inputs = np.stack(lags, axis=1)  # [N, C, order + 1]
    forecasts = []
    for _ in range(horizon):
        forecast = np.sum(inputs * weights, axis=-1)
        forecasts.append(forecast)
        inputs = np.concatenate([forecast[..., None], inputs[..., :-2], inputs[..., -1:]], axis=-1)
    return np.stack(forecasts)


def _choose_order(
    values: np.ndarray, begins: np.ndarray, splits: tuple[int, int], max_order: int
) -> int:
    """The order with the smallest one-step error on the rows between the splits."""
    start, stop = splits
    filled = fill_missing(values, start)
    scale = filled[:start].std(axis=0)
    scored = ~begins[start:stop, None] & ~np.isnan(values[start:stop])
    errors = []
    for order in range(1, max_order + 1):
        weights = fit_autoregression(values, begins, start, order)
        forecasts = forecast_autoregression(filled, weights, np.arange(start - 1, stop - 1), 1)[0]
        squares = ((forecasts - filled[start:stop]) / scale) ** 2
        errors.append(squares[scored].mean() if scored.any() else np.inf)
    return 1 + int(np.argmin(errors))


def _lag(series: np.ndarray, rows: np.ndarray, order: int) -> np.ndarray:
    """The values [N, order + 1] at `rows` and before them, and a constant."""
    places = np.maximum(rows[:, None] - np.arange(order), 0)
    return np.concatenate([series[places], np.ones((len(rows), 1))], axis=1)

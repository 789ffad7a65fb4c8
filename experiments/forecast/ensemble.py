"""What an ensemble of networks adds to the linear part, and the bands around the forecasts."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiments.forecast.preparation import (
    PreparedSeries,
    Stream,
    forecast_linearly,
    make_stream,
    measure_errors,
)
from jaxrnn import Array, Layer, Params

BAND = 0.8
"""The share of the true values that the bands should cover."""

_QUANTILE = 1.2816  # of the normal distribution at 0.9
_PRIOR_ROWS = 5  # which the errors on the fitted rows count for
_STRETCHES = 5
_DOUBT = 1.5  # standard errors of the gain by which it is doubted


@dataclass(frozen=True)
class Trust:
    """How far the networks are followed, one step ahead and further, 0 to 1; and the standard
    deviations [H][C] of the forecasts' errors, transformed, which the bands are made of."""

    first: float
    further: float
    spread: list[list[float]]

    def of_steps(self, horizon: int) -> np.ndarray:
        """The share [H, 1, 1] of the networks' corrections that is used."""
        shares = np.full((horizon, 1, 1), self.further)
        shares[0] = self.first
        return shares


def unroll_corrections(
    network: Layer, params: Params, state: Any, stream: Stream, horizon: int
) -> tuple[Any, Array]:
    """The state, and at each step the expected errors [T, H, C] of the linear part after it."""
    xs, mask, resets = stream
    state, ys = network.unroll(params, state, xs, mask=mask, resets=resets)
    return state, ys.reshape(*ys.shape[:-1], horizon, -1)


@functools.partial(jax.jit, static_argnums=(0, 3))
def correct(network: Layer, params: Params, stream: Stream, horizon: int) -> Array:
    """The corrections [S, T, H, C] of networks [S, ...], in standard deviations."""

    def one(params: Params) -> Array:
        return unroll_corrections(network, params, None, stream, horizon)[1]

    return jax.lax.map(one, params)


def decide_trust(prepared: PreparedSeries, network: Layer, params: Params) -> Trust:
    """From the errors on the validation rows: how much of the networks' mean correction leaves the
    smallest ones, and how large they are then."""
    first, second = prepared.splits
    rows = np.arange(len(prepared.series.values))
    errors = measure_errors(prepared, forecast_linearly(prepared, first, rows))
    added = correct(network, params, make_stream(prepared, errors), prepared.horizon)
    scale = np.asarray(prepared.scales.error)
    ahead = rows[:, None] + 1 + np.arange(prepared.horizon)
    scored = ((rows >= first - 1)[:, None] & (ahead < second))[..., None] & np.isfinite(errors)
    z = np.where(scored, errors / scale, 0.0)
    mean = np.where(scored, np.asarray(added, np.float64).mean(axis=0), 0.0)

    def share(steps: slice) -> float:
        """The best one, reduced by how doubtful the gain is, from its spread over five stretches of
        the validation rows (as James & Stein shrink a mean)."""
        of, by = mean[:, steps], z[:, steps]
        best = np.clip(np.sum(of * by) / max(np.sum(of**2), 1e-12), 0.0, 1.0)
        gains = np.sum(by**2 - (by - best * of) ** 2, axis=(1, 2))
        parts = np.array_split(gains[scored[:, steps].any(axis=(1, 2))], _STRETCHES)
        sums = np.array([part.sum() for part in parts])
        error = sums.std(ddof=1) / np.sqrt(_STRETCHES)
        middle = max(sums.mean(), 1e-12)
        return float(best * np.clip(1 - (_DOUBT * error / middle) ** 2, 0.0, 1.0))

    shares = share(slice(0, 1)), share(slice(1, None))
    left = z - mean * Trust(*shares, []).of_steps(prepared.horizon)[:, 0]
    counts = scored.sum(axis=0)
    squares = (np.where(scored, left, 0.0) ** 2).sum(axis=0) + _PRIOR_ROWS
    spread = scale * np.sqrt(squares / (counts + _PRIOR_ROWS))
    return Trust(*shares, np.maximum.accumulate(spread, axis=0).tolist())


def forecast_ensemble(
    network: Layer,
    params: Params,
    prepared: PreparedSeries,
    trust: Trust,
    origins: np.ndarray,
    stop: int,
) -> dict[str, np.ndarray]:
    """Forecasts in units, of a linear part fitted to the rows before `stop`: that part's and the
    ensemble's [H, N, C], the networks' [S, H, N, C], and the bands [2, H, N, C]."""
    rows = np.arange(len(prepared.series.values))
    linear = forecast_linearly(prepared, stop, rows)
    stream = make_stream(prepared, measure_errors(prepared, linear))
    added = np.asarray(correct(network, params, stream, prepared.horizon), np.float64)
    added = added[:, origins].swapaxes(1, 2)  # [S, H, N, C]
    scale = np.asarray(prepared.scales.error)[:, None]
    shared = trust.of_steps(prepared.horizon) * scale * added
    z = prepared.transform(linear[:, origins])
    middle = z + shared.mean(axis=0)
    half = _QUANTILE * np.asarray(trust.spread)[:, None]
    return {
        "linear part": linear[:, origins],
        "ensemble": prepared.invert(middle),
        "networks": prepared.invert(z + shared),
        "bands": prepared.invert(np.stack([middle - half, middle + half])),
    }

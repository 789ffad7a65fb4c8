"""Recursive forecasts many steps ahead, and the prediction bands of an ensemble."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.forecast.preparation import PreparedSeries, Stream, make_stream, to_units
from jaxrnn import Array, Key, Layer, Params

BAND = 0.8
"""The share of the true values that the bands should cover."""

_PATHS = 32  # sample paths of each network


def unroll_forecasts(
    network: Layer, params: Params, state: Any, stream: Stream
) -> tuple[Any, Array]:
    """The state, and one-step forecasts [T, *B, C]: each value plus the network's output."""
    xs, mask, resets = stream
    state, changes = network.unroll(params, state, xs, mask=mask, resets=resets)
    return state, xs[..., : changes.shape[-1]] + changes


def forecast_ensemble(
    network: Layer,
    params: Params,
    prepared: PreparedSeries,
    origins: np.ndarray,
    *,
    horizon: int,
    window: int,
    key: Key,
) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts [S, H, N, C] of each network [S, ...], and the bands [2, H, N, C] of the ensemble.

    The bands are quantiles over sample paths of every network. On a sample path each forecast is
    perturbed before it is fed back, by noise as large as the network's errors on the validation
    rows.
    """
    stream = make_stream(prepared)
    noise = _measure_noise(prepared, network, params)  # [S, C]
    one = functools.partial(forecast_recursively, network, horizon, window)
    over_networks = jax.vmap(one, in_axes=(None, None, 0, 0, 0))
    over_paths = jax.vmap(over_networks, in_axes=(None, None, None, None, 0))
    keys = jax.random.split(key, (_PATHS, len(noise)))
    rows = jnp.asarray(origins)
    still = over_networks(stream, rows, params, jnp.zeros_like(noise), keys[0])
    drawn = over_paths(stream, rows, params, noise, keys)  # [P, S, H, N, C]
    values, paths = (to_units(prepared, np.asarray(z, np.float64)) for z in (still, drawn))
    edges = ((1 - BAND) / 2, (1 + BAND) / 2)
    return values, np.quantile(paths.reshape(-1, *paths.shape[2:]), edges, axis=0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def forecast_recursively(
    network: Layer,
    horizon: int,
    window: int,
    stream: Stream,
    origins: Array,
    params: Params,
    noise: Array,
    key: Key,
) -> Array:
    """One network's forecasts [H, N, C] after the rows `origins` [N], from `window` rows each.

    Each forecast, plus Gaussian noise of standard deviation `noise` [C], is the next step's input.
    """
    places = origins - window + 1 + jnp.arange(window)[:, None]  # [window, N]
    past = jax.tree.map(lambda leaf: leaf[jnp.maximum(places, 0)], stream)
    past = past._replace(mask=past.mask & (places >= 0))
    state, ys = unroll_forecasts(network, params, None, past)
    known = jnp.ones((*ys.shape[1:-1], past.xs.shape[-1] - ys.shape[-1]), ys.dtype)

    def feed_back(carry: tuple[Any, Array], key: Key) -> tuple[tuple[Any, Array], Array]:
        state, forecast = carry
        forecast = forecast + noise * jax.random.normal(key, forecast.shape)
        xs = jnp.concatenate([forecast, known], axis=-1)
        state, change = network.step(params, state, xs)
        return (state, forecast + change), forecast

    return lax.scan(feed_back, (state, ys[-1]), jax.random.split(key, horizon))[1]


def _measure_noise(prepared: PreparedSeries, network: Layer, params: Params) -> Array:
    """The standard deviation [S, C] of each network's one-step errors on the validation rows."""
    stream = make_stream(prepared)
    first, second = prepared.splits
    forecasts = jax.vmap(lambda params: unroll_forecasts(network, params, None, stream)[1])(params)
    errors = np.asarray(forecasts)[:, first - 1 : second - 1] - prepared.z[first:second]
    scored = np.asarray(stream.mask)[first - 1 : second - 1] & ~prepared.series.begins[first:second]
    return jnp.asarray(np.nan_to_num(np.nanstd(errors[:, scored], axis=1)), jnp.float32)

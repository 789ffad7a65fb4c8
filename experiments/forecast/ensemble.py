"""Forecasts by networks that feed back their own, and the bands of an ensemble of them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.forecast.preparation import Problem, Stream, make_stream, to_units
from jaxrnn import Array, Key, Layer, Params

BAND = 0.8
"""The share of what happens that the bands are to hold."""

_PATHS = 32  # drawn by each network for the bands


def unroll_forecasts(
    network: Layer, params: Params, state: Any, stream: Stream
) -> tuple[Any, Array]:
    """The state, and forecasts [T, *B, C]: each value and the change that the network expects."""
    xs, mask, resets = stream
    state, changes = network.unroll(params, state, xs, mask=mask, resets=resets)
    return state, xs[..., : changes.shape[-1]] + changes


def forecast_ensemble(
    network: Layer,
    params: Params,
    problem: Problem,
    origins: np.ndarray,
    *,
    horizon: int,
    window: int,
    key: Key,
) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts [S, H, N, C] of each network [S, ...], and the bands [2, H, N, C] of all.

    A network's forecast feeds back its own output. The bands are quantiles over the networks and
    over paths that each draws, with the noise of its own errors on the validation rows added to
    what it feeds back.
    """
    stream = make_stream(problem)
    noise = _measure_noise(problem, network, params)  # [S, C]
    one = functools.partial(forecast, network, horizon, window)
    over_networks = jax.vmap(one, in_axes=(None, None, 0, 0, 0))
    over_paths = jax.vmap(over_networks, in_axes=(None, None, None, None, 0))
    keys = jax.random.split(key, (_PATHS, len(noise)))
    rows = jnp.asarray(origins)
    still = over_networks(stream, rows, params, jnp.zeros_like(noise), keys[0])
    drawn = over_paths(stream, rows, params, noise, keys)  # [P, S, H, N, C]
    values, paths = (to_units(problem, np.asarray(z, np.float64)) for z in (still, drawn))
    edges = ((1 - BAND) / 2, (1 + BAND) / 2)
    return values, np.quantile(paths.reshape(-1, *paths.shape[2:]), edges, axis=0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def forecast(
    network: Layer,
    horizon: int,
    window: int,
    stream: Stream,
    origins: Array,
    params: Params,
    noise: Array,
    key: Key,
) -> Array:
    """One network's forecasts [H, N, C] after the rows `origins` [N], from `window` rows each."""
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


def _measure_noise(problem: Problem, network: Layer, params: Params) -> Array:
    """The standard deviation [S, C] of each network's one-step errors on the validation rows."""
    stream = make_stream(problem)

    first, second = problem.splits
    forecasts = jax.vmap(lambda params: unroll_forecasts(network, params, None, stream)[1])(params)
    errors = np.asarray(forecasts)[:, first - 1 : second - 1] - problem.z[first:second]
    scored = np.asarray(stream.mask)[first - 1 : second - 1] & ~problem.series.begins[first:second]
    return jnp.asarray(np.nan_to_num(np.nanstd(errors[:, scored], axis=1)), jnp.float32)

"""How far a model's free run is from the system it was fitted to.

Source of the distances: Hess, Monfared, Brenner & Durstewitz 2023, "Generalized teacher forcing for
learning chaotic dynamics", section 4.1: D_stsp of states, and D_H of power spectra.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter1d

import jaxrnn
from experiments.dynamics.models import Model
from jaxrnn import Array, Layer, Params, diagnostics

BINS = 30
LIMIT = 0.4  # of the root mean square of the series about its mean
_RANGE = 4.0  # of the histograms, in standard deviations of the training rows
_EVIDENCE = 1e-5  # added to each bin of D_stsp
_SMOOTHING = 5.0  # frequencies over which spectra are averaged


def run_free(layer: Layer, params: Params, warm_up: Array, steps: int) -> Array:
    """`steps` states [steps, B, D] that follow on warm-ups [W, B, D]."""
    state, ys = layer.unroll(params, None, warm_up)
    _, (_, following) = jaxrnn.generate(layer, params, state, ys[-1], steps - 1)
    return jnp.concatenate([ys[-1:], following])


def run_all(model: Model, warm_up: Array, steps: int) -> np.ndarray:
    """Free runs of all seeds, [S, steps, B, D]."""
    run = jax.jit(jax.vmap(lambda params: run_free(model.layer, params, warm_up, steps)))
    return np.asarray(run(model.params))


def valid_steps(runs: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The steps until a run's error exceeds `LIMIT`, [S, B]: runs [S, T, B, D], true [T, B, D]."""
    spread = np.sqrt(np.mean(np.sum((true - true.mean((0, 1))) ** 2, axis=-1)))
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.sqrt(np.sum((runs - true) ** 2, axis=-1)) / spread
        wrong = ~(errors <= LIMIT)
    ever = wrong.any(axis=1)
    return np.where(ever, wrong.argmax(axis=1), true.shape[0])


def find_exponents(model: Model, warm_up: Array, count: int, steps: int) -> np.ndarray:
    """The largest Lyapunov exponents of each seed's closed loop, [S, count], in nats per step."""
    loop = jaxrnn.closed_loop(model.layer)

    def find(params: Params) -> Array:
        state, ys = model.layer.unroll(params, None, warm_up)
        xs = jnp.zeros((steps, loop.input_size))
        found = diagnostics.lyapunov_spectrum(
            loop, params, (state, ys[-1]), xs, num_exponents=count, discard=steps // 10
        )
        return found

    return np.asarray(jax.jit(jax.vmap(find))(model.params))


def compare(run: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Distances of two stretches of states [T, D]: of the histograms of each coordinate (total
    variation), of states in space, and of power spectra; 1, infinity and 1 for what diverged."""
    if not np.isfinite(run).all() or np.abs(run).max() > 100:
        return {"histograms": 1.0, "states": float("inf"), "spectra": 1.0}
    pairs = list(zip(run.T, true.T, strict=True))
    return {
        "histograms": float(np.mean([_total_variation(*pair) for pair in pairs])),
        "states": _divergence(run[:, :3], true[:, :3]),
        "spectra": float(np.mean([_hellinger(*map(power_spectrum, pair)) for pair in pairs])),
    }


def power_spectrum(series: np.ndarray) -> np.ndarray:
    """The smoothed power spectrum of a series [T], with a sum of 1; flat for one that stands."""
    power = np.abs(np.fft.rfft(series - series.mean()))[1:] ** 2
    smooth = gaussian_filter1d(power, _SMOOTHING) + np.finfo(float).tiny
    return smooth / smooth.sum()


def _total_variation(one: np.ndarray, other: np.ndarray) -> float:
    counts = [_count(each[:, None]) for each in (one, other)]
    return 0.5 * float(np.abs(counts[0] - counts[1]).sum())


def _divergence(run: np.ndarray, true: np.ndarray) -> float:
    """The Kullback-Leibler divergence of the states' histograms, of the true one from the run's."""
    p, q = (_count(each) + _EVIDENCE for each in (true, run))
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))


def _count(states: np.ndarray) -> Any:
    """The share of states in each bin, `BINS` per coordinate; those outside count in the last."""
    edges = np.linspace(-_RANGE, _RANGE, BINS + 1)
    clipped = np.clip(states, -_RANGE, _RANGE)
    return np.histogramdd(clipped, bins=[edges] * states.shape[1])[0] / len(states)


def _hellinger(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.sqrt(max(0.0, 1 - np.sum(np.sqrt(p * q)))))

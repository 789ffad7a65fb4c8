"""The series that networks learn from: simulated systems with noise, or one of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.chaotic_systems import SYSTEMS, simulate
from experiments.data.series import read_csv
from experiments.shared.options import InputError
from jaxrnn import Array, Key

_TRAIN, _VALIDATION, _TEST = 20_000, 3_000, 120_000
_LEAST = 2000  # rows of a series of one's own


class Observed(NamedTuple):
    """A series, standardised: the states [T, D] and what is observed of them, the rows of each
    part, and the steps per Lyapunov time, if the system is known."""

    name: str
    title: str
    states: Array
    observed: Array
    train: int
    validation: int
    lyapunov_time: float | None
    mean: np.ndarray
    deviation: np.ndarray


def observe_systems(names: Sequence[str], noises: Sequence[float], key: Key) -> list[Observed]:
    """Every system with each noise."""
    found = []
    for system in (SYSTEMS[name] for name in names):
        values = simulate(system, _TRAIN + _VALIDATION + _TEST)
        for noise in noises:
            name = f"{system.name}-{noise:g}"
            title = system.title + (f", {noise:.0%} noise" if noise else "")
            time = system.lyapunov_time
            found.append(_standardise(name, title, values, _TRAIN, _VALIDATION, time, noise, key))
    return found


def observe_file(path: Path, columns: Sequence[str], key: Key) -> list[Observed]:
    """The columns of a CSV file, one row per step."""
    if not columns:
        raise InputError("--columns is missing, expected those of --csv that are the state")
    values = read_csv(path, columns).values
    if np.isnan(values).any() or len(values) < _LEAST:
        raise InputError(f"{path}: expected at least {_LEAST} rows without missing values")
    train, validation = int(0.6 * len(values)), int(0.15 * len(values))
    return [_standardise("csv", path.stem, values, train, validation, None, 0.0, key)]


def _standardise(
    name: str,
    title: str,
    values: np.ndarray,
    train: int,
    validation: int,
    time: float | None,
    noise: float,
    key: Key,
) -> Observed:
    mean, deviation = values[:train].mean(0), values[:train].std(0)
    states = jnp.asarray((values - mean) / deviation, jnp.float32)
    observed = states + noise * jax.random.normal(key, states.shape)
    return Observed(name, title, states, observed, train, validation, time, mean, deviation)

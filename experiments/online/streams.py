"""Streams whose rule changes without a sign of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import Array, Key

NOISE = 0.3
AHEAD = 5
_SPEEDS = (0.2, 0.5, 0.3, 0.8, 0.4)  # radians per step, of one rule after the other
_DRIFT = 0.002  # standard deviation, per step, of the logarithm of the speed


class Signals(NamedTuple):
    """Inputs and targets, [T, 1]."""

    xs: Array
    targets: Array


def delayed_xor(key: Key, delays: Sequence[tuple[int, int]], steps: int) -> Signals:
    """Random signs, and the product of two of them that lie two delays back; every `steps` steps
    come the next two delays."""
    signs = jnp.where(jax.random.bernoulli(key, 0.5, (len(delays) * steps,)), 1.0, -1.0)
    parts = []
    for number, (first, second) in enumerate(delays):
        product = jnp.roll(signs, first) * jnp.roll(signs, second)
        parts.append(product[number * steps : (number + 1) * steps])
    return Signals(signs[:, None], jnp.concatenate(parts)[:, None])


def drifting_sine(key: Key, rules: int, steps: int) -> Signals:
    """A sine in noise, and where it will be `AHEAD` steps later without the noise. Its speed drifts
    (a random walk that returns to its mean), and jumps every `steps` steps."""
    key_drift, key_noise = jax.random.split(key)
    total = rules * steps + AHEAD

    def drift(log: Array, kick: Array) -> tuple[Array, Array]:
        log = 0.9995 * log + kick
        return log, log

    kicks = _DRIFT * jax.random.normal(key_drift, (total,))
    _, wander = jax.lax.scan(drift, jnp.zeros(()), kicks)
    means = jnp.asarray([_SPEEDS[number % len(_SPEEDS)] for number in range(rules)])
    speed = jnp.repeat(means, steps, total_repeat_length=total) * jnp.exp(wander)
    # Rounding of so long a sum is a jitter of the phase, in inputs and targets alike.
    clean = jnp.sin(jnp.cumsum(speed))
    noisy = clean + NOISE * jax.random.normal(key_noise, (total,))
    return Signals(noisy[:-AHEAD, None], clean[AHEAD:, None])

"""Series whose next value depends on a long past: Mackey-Glass and NARMA-10."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn import Array, Key

_PARTS = 10  # Runge-Kutta steps per unit of time
_TRANSIENT = 1000


def simulate_mackey_glass(delay: int, steps: int, start: float = 1.2) -> np.ndarray:
    """Mackey & Glass 1977, "Oscillation and chaos in physiological control systems", at times one
    apart, [steps]: ``dx/dt = 0.2 x(t - delay) / (1 + x(t - delay)^10) - 0.1 x``. By the Runge-Kutta
    method in double precision; halfway between two steps the past is interpolated."""
    h = 1 / _PARTS
    lag = delay * _PARTS

    def slope(x: Array, past: Array) -> Array:
        return 0.2 * past / (1 + past**10) - 0.1 * x

    def advance(past: Array, _: None) -> tuple[Array, Array]:
        """`past` holds x at the last lag + 1 steps, the oldest first."""
        x, old, new = past[-1], past[0], past[1]
        middle = (old + new) / 2
        k1 = slope(x, old)
        k2 = slope(x + h / 2 * k1, middle)
        k3 = slope(x + h / 2 * k2, middle)
        k4 = slope(x + h * k3, new)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return jnp.append(past[1:], x), x

    with jax.enable_x64(True):
        total = (_TRANSIENT + steps) * _PARTS
        past = jnp.full((lag + 1,), start, jnp.float64)
        _, xs = jax.jit(lambda past: lax.scan(advance, past, length=total))(past)
        return np.asarray(xs)[_TRANSIENT * _PARTS :: _PARTS]


def draw_narma(key: Key, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [steps], uniform in [0, 0.5), and the outputs [steps] of the nonlinear autoregressive
    moving average of order 10 (Atiya & Parlos 2000, equation 86). Now and then a series grows
    without bound: the first that does not is returned."""
    for attempt in jax.random.split(key, 100):
        u = np.asarray(jax.random.uniform(attempt, (steps,)), np.float64) / 2
        y = np.zeros(steps)
        for t in range(9, steps - 1):
            y[t + 1] = 0.3 * y[t] + 0.05 * y[t] * y[t - 9 : t + 1].sum() + 1.5 * u[t - 9] * u[t]
            y[t + 1] += 0.1
            if y[t + 1] > 2:
                break
        else:
            return u, y
    raise RuntimeError("every one of 100 series grew without bound")

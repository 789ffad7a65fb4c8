"""Chaotic systems of differential equations, simulated in JAX by the Runge-Kutta method.

Their exponents, in nats per unit of time, are those of Sprott 2003, "Chaos and Time-Series
Analysis", appendix A (Lorenz, Roessler). Those of Lorenz-96 with ten sites and a forcing of 8 are
what `measure_exponents` gives; Karimi & Paul 2010, "Extensive chaos in the Lorenz-96 model", show
how they grow with the number of sites.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn import Array, Layer, diagnostics, scanned

_TRANSIENT = 2000  # steps to the attractor


class System(NamedTuple):
    """A system of equations.

    name, title: for options and for figures. field: ds/dt of a state s. start: a state near the
    attractor. step, parts: the time of a step, which takes `parts` Runge-Kutta steps. exponent: the
    largest Lyapunov exponent, in nats per unit of time.
    """

    name: str
    title: str
    field: Callable[[Array], Array]
    start: tuple[float, ...]
    step: float
    parts: int
    exponent: float

    @property
    def lyapunov_time(self) -> float:
        """The number of steps in which errors grow by a factor e."""
        return 1 / (self.exponent * self.step)


def _lorenz(s: Array) -> Array:
    """Lorenz 1963, "Deterministic nonperiodic flow"."""
    x, y, z = s
    return jnp.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])


def _roessler(s: Array) -> Array:
    """Roessler 1976, "An equation for continuous chaos"."""
    x, y, z = s
    return jnp.stack([-y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)])


def _lorenz96(s: Array) -> Array:
    """Lorenz 1996, "Predictability: a problem partly solved", with a forcing of 8."""
    return (jnp.roll(s, -1) - jnp.roll(s, 2)) * jnp.roll(s, 1) - s + 8


SYSTEMS = {
    system.name: system
    for system in (
        System("lorenz", "Lorenz-63", _lorenz, (1.0, 1.0, 20.0), 0.01, 2, 0.9056),
        System("roessler", "Rössler", _roessler, (1.0, 1.0, 0.0), 0.1, 4, 0.0714),
        System("lorenz96", "Lorenz-96", _lorenz96, (8.1, *[8.0] * 9), 0.02, 2, 1.17),
    )
}


def advance(system: System, s: Array) -> Array:
    """The state one step after s."""
    h = system.step / system.parts

    def runge_kutta(_: int, s: Array) -> Array:
        k1 = system.field(s)
        k2 = system.field(s + h / 2 * k1)
        k3 = system.field(s + h / 2 * k2)
        k4 = system.field(s + h * k3)
        return s + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    return lax.fori_loop(0, system.parts, runge_kutta, s)


def as_layer(system: System) -> Layer:
    """The system as a layer without inputs, whose outputs are its states: for the diagnostics."""
    size = len(system.start)

    def step(params: tuple[()], s: Array, x: Array) -> tuple[Array, Array]:
        s = jnp.vectorize(lambda s: advance(system, s), signature="(n)->(n)")(s)
        return s, s

    def initial_state(params: tuple[()], batch_shape: tuple[int, ...]) -> Array:
        return jnp.broadcast_to(jnp.asarray(system.start), (*batch_shape, size))

    return scanned(0, size, lambda key: (), initial_state, step)


def simulate(system: System, steps: int) -> np.ndarray:
    """`steps` states on the attractor, [steps, dimension], computed in double precision."""
    with jax.enable_x64(True):
        total = jnp.zeros((_TRANSIENT + steps, 0))
        _, states = jax.jit(as_layer(system).unroll)((), None, total)
        return np.asarray(states[_TRANSIENT:])


def measure_exponents(system: System, count: int, steps: int = 50_000) -> np.ndarray:
    """The largest `count` Lyapunov exponents, in nats per unit of time."""
    with jax.enable_x64(True):
        layer = as_layer(system)
        found = jax.jit(
            lambda: diagnostics.lyapunov_spectrum(
                layer, (), None, num_steps=steps, num_exponents=count, discard=_TRANSIENT
            )
        )()
        return np.asarray(found) / system.step

"""Models of a system's next state: networks, a reservoir, polynomials and persistence.

Each is a layer that reads a state of the system and puts out the next one, so that a free run is
`jaxrnn.generate` and its exponents are those of `jaxrnn.closed_loop`.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn import Array, Key, Layer, Params, reservoir

PENALTIES = (1e-11, 1e-9, 1e-7, 1e-5, 1e-3, 1e-1, 10.0)
_WASHOUT = 100
_NARROW = 0.05  # standard deviation of the first readout, beside that of the default


class Model(NamedTuple):
    """A layer from states to next states, with parameters [S, ...] of one or several seeds."""

    layer: Layer
    params: Params


def make_network(states: int, units: int) -> Layer:
    """The network that is trained: it adds to the state it reads what it expects to change."""
    rnn = make_reservoir(states, units)
    return jaxrnn.residual(jaxrnn.stack(rnn, jaxrnn.dense(units, states)))


def make_reservoir(states: int, units: int) -> Layer:
    """The recurrent part, which begins as a reservoir of short memory."""
    return reservoir.echo_state_network(states, units, radius=0.5, input_scale=0.3, bias_scale=0.5)


def start_narrow(params: Params) -> Params:
    """Initial parameters whose readout is near zero, so that the first free runs stand still."""
    rnn, readout = params
    return rnn, readout._replace(w=_NARROW * readout.w)


def fit_changes(rnn: Layer, params: Params, train: Array, validation: Array) -> reservoir.Readout:
    """The readout of the changes from each state to the next by ridge regression."""
    joined = jnp.concatenate([train, validation[:1]])
    pairs = train, joined[1:] - joined[:-1]
    others = validation[:-1], validation[1:] - validation[:-1]
    options: Any = {"penalties": PENALTIES, "validation": others, "washout": _WASHOUT}
    return reservoir.fit_readout(rnn, params, *pairs, **options)[1]


def draw_reservoirs(states: int, units: int, keys: Key) -> Params:
    """Parameters [S, ...] of recurrent parts as they are drawn."""
    return jax.jit(jax.vmap(make_reservoir(states, units).init))(keys)


def fit_readouts(units: int, recurrent: Params, train: Array, validation: Array) -> Model:
    """Networks with these recurrent parts [S, ...], and readouts fitted by `fit_changes`."""
    rnn = make_reservoir(train.shape[1], units)

    def fit(params: Params) -> Params:
        return params, fit_changes(rnn, params, train, validation).params

    return Model(make_network(train.shape[1], units), jax.jit(jax.vmap(fit))(recurrent))


def fit_polynomial(degree: int, train: Array, validation: Array) -> Model:
    """A polynomial of the present state."""
    states = train.shape[1]
    expand = _make_monomials(states, degree)
    count = expand.output_size
    layer = jaxrnn.residual(jaxrnn.stack(expand, jaxrnn.dense(count, states)))
    readout = jax.jit(lambda: fit_changes(expand, (), train, validation).params)()
    return Model(layer, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], ((), readout)))


def make_persistence(states: int) -> Model:
    """The present state again."""
    layer = jaxrnn.scanned(states, states, lambda key: (), lambda p, b: (), lambda p, s, x: ((), x))
    return Model(layer, jnp.zeros((1, 0)))


def _make_monomials(states: int, degree: int) -> Layer:
    powers = [
        np.bincount(chosen, minlength=states)
        for size in range(1, degree + 1)
        for chosen in itertools.combinations_with_replacement(range(states), size)
    ]
    exponents = np.stack(powers)

    def step(params: Params, state: Any, x: Array) -> tuple[Any, Array]:
        columns = []
        for row in exponents:
            term = jnp.ones_like(x[..., 0])
            for place, power in enumerate(row):
                for _ in range(int(power)):
                    term = term * x[..., place]
            columns.append(term)
        return (), jnp.stack(columns, axis=-1)

    def initial_state(params: Params, batch_shape: Any) -> tuple[()]:
        return ()

    return jaxrnn.scanned(states, len(exponents), lambda key: (), initial_state, step)

"""The recipes that `memory` compares: how a network is built, initialised and trained."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrnn import (
    Array,
    Key,
    Layer,
    Params,
    clip_by_global_norm,
    dense,
    initializers,
    scanned,
    stack,
    vanilla_rnn,
)

_UNITS, _MORE = 64, 100
_SMALL = 0.003  # the scale of input weights that keeps the states where tanh is linear


class Recipe(NamedTuple):
    """A network and its training.

    name, summary: for the tables.
    layers: ``(input_size) -> layers``, the recurrent layers.
    readout: ``(input_size, output_size) -> layer``.
    optimizer: without its clipping.
    clip: the global norm at which the gradient is clipped.
    passes: consecutive validations that a network must pass to finish training.
    least: the smallest fraction of its learning rate that a network that got worse falls back to.
    grows: whether training at each length starts from the network of the previous length.
    mixes: whether a batch holds all lengths up to the current one.
    noise: standard deviation of the noise added, in training, to the argument of the activation; in
      a network of one layer.
    steadiness: weight of the regulariser that keeps back-propagated norms constant.
    vanilla: whether the cell is a vanilla one.
    """

    name: str
    summary: str
    layers: Callable[[int], tuple[Layer, ...]]
    readout: Callable[[int, int], Layer] = dense
    optimizer: optax.GradientTransformation = optax.adam(1e-3)
    clip: float | None = 1.0
    passes: int = 3
    least: float = 1 / 16
    grows: bool = False
    mixes: bool = False
    noise: float = 0.0
    steadiness: float = 0.0
    vanilla: bool = True

    def build(self, input_size: int, output_size: int) -> tuple[Layer, Layer]:
        """The recurrent layers as one, and the readout."""
        recurrent = stack(*self.layers(input_size))
        return recurrent, self.readout(recurrent.output_size, output_size)

    def full_optimizer(self) -> optax.GradientTransformation:
        """The optimizer with its clipping."""
        clip = clip_by_global_norm(self.clip) if self.clip else optax.identity()
        return optax.chain(clip, self.optimizer)


def _one(**options: Any) -> Callable[[int], tuple[Layer, ...]]:
    return lambda input_size: (vanilla_rnn(input_size, _UNITS, **options),)


def _three(input_size: int) -> tuple[Layer, ...]:
    first = vanilla_rnn(input_size, _UNITS)
    return (first, *(vanilla_rnn(_UNITS, _UNITS) for _ in range(2)))


def _gru(input_size: int) -> tuple[Layer, ...]:
    """A gated recurrent unit (Cho et al. 2014) by `scanned`."""
    sizes = (input_size + _UNITS, _UNITS)
    weights = jax.nn.initializers.lecun_normal()

    def init(key: Key) -> Params:
        return [(weights(k, sizes).T, jnp.zeros(_UNITS)) for k in jax.random.split(key, 3)]

    def initial_state(params: Params, batch_shape: tuple[int, ...] = ()) -> Array:
        return jnp.zeros((*batch_shape, _UNITS))

    def step(params: Params, h: Array, x: Array) -> tuple[Array, Array]:
        def affine(part: Any, h: Array) -> Array:
            return jnp.concatenate([x, h], axis=-1) @ part[0].T + part[1]

        update, reset = (jax.nn.sigmoid(affine(part, h)) for part in params[:2])
        h = (1 - update) * h + update * jnp.tanh(affine(params[2], reset * h))
        return h, h

    return (scanned(input_size, _UNITS, init, initial_state, step),)


def _switches(input_size: int) -> tuple[Layer, ...]:
    """Units that stay on or off until a large input flips them: h = tanh(4 h) at h = +-0.9993."""
    layer = vanilla_rnn(
        input_size,
        _MORE,
        w_ih_init=jax.nn.initializers.normal(3.0),
        w_hh_init=initializers.identity(4.0),
        learn_h0=True,
    )

    def init(key: Key) -> Params:
        params = layer.init(key)
        return params._replace(h0=jnp.ones(_MORE))

    return (layer._replace(init=init),)


def _small_states(input_size: int) -> tuple[Layer, ...]:
    small = jax.nn.initializers.normal(_SMALL)
    return (vanilla_rnn(input_size, _MORE, w_ih_init=small),)


def _large_readout(input_size: int, output_size: int) -> Layer:
    init = jax.nn.initializers.normal(0.01 / _SMALL)
    return dense(input_size, output_size, w_init=init)


def _rates_by_part(inputs: float, recurrent: float, readout: float) -> Any:
    """Adam with three learning rates: of the input matrix, of the rest of the recurrent layer, and
    of the readout, each in proportion to the magnitude of the weights."""

    def label(params: Params) -> Params:
        (layer,), last = params
        names = jax.tree.map(lambda _: "recurrent", layer)._replace(w_ih="inputs")
        return ((names,), jax.tree.map(lambda _: "readout", last))

    rates = {"inputs": inputs, "recurrent": recurrent, "readout": readout}
    return optax.multi_transform({name: optax.adam(rate) for name, rate in rates.items()}, label)


_relu = functools.partial(_one, activation=jax.nn.relu)
_identity = initializers.identity
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("lecture", "tanh, orthogonal start, Adam", _one(), clip=None),
        Recipe("deep", "the same in three layers", _three, clip=None),
        Recipe("clipped", "gradient clipped at norm 1", _one()),
        Recipe("learned start", "learned initial state", _one(learn_h0=True)),
        Recipe("identity tanh", "started at the identity", _one(w_hh_init=_identity())),
        Recipe(
            "radius 1.2",
            "Gaussian start of spectral radius 1.2",
            _one(w_hh_init=initializers.scaled_spectral_radius(1.2)),
        ),
        Recipe("orthogonal relu", "relu, orthogonal start", _relu()),
        Recipe("identity relu", "relu, started at the identity", _relu(w_hh_init=_identity())),
        Recipe("steady", "norms kept steady (Pascanu et al. 2013)", _one(), steadiness=1.0),
        Recipe("growing", "growing lengths", _one(), grows=True),
        Recipe(
            "relu growing",
            "relu, started at the identity, growing lengths",
            _relu(w_hh_init=_identity()),
            grows=True,
        ),
        Recipe(
            "switches",
            "units of gain 4 that start switched on, noise, a rate for each part",
            _switches,
            optimizer=_rates_by_part(1e-2, 2e-3, 1e-2),
            clip=0.02,
            passes=10,
            least=1 / 4,
            grows=True,
            mixes=True,
            noise=0.5,
        ),
        Recipe(
            "small states",
            "orthogonal, inputs of 0.003, a rate for each part",
            _small_states,
            readout=_large_readout,
            optimizer=_rates_by_part(3e-4, 3e-6, 1.0),
        ),
        Recipe("GRU", "not vanilla: gated", _gru, vanilla=False),
    )
}
"""The recipes by name. The lecture's is first; each of the others changes what its summary says."""
DEFAULT = "lecture"
"""The recipe that the others are compared with."""

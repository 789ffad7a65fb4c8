"""The recipes that `memory` compares: how a network is built, initialised and trained."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.memory.blocks import Blocks
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

_UNITS = 64
_BLOCKS = Blocks(switches=24, rotations=72, features=16, sums=16)


class Recipe(NamedTuple):
    """A network and its training.

    name, summary: for the tables.
    layers: ``(input_size) -> layers``, the recurrent layers.
    readout: ``(input_size, output_size) -> layer``.
    optimizer: without its clipping.
    clip: the global norm at which the gradient is clipped.
    passes: consecutive validations that a network must pass to finish training.
    patience: validations without a new best after which it goes back to that with half its rate.
    least: the smallest fraction of its learning rate that a network that got worse falls back to.
    grows: whether training at each length starts from the network of the previous length.
    mixes: whether half of a batch is of all lengths up to the current one.
    noise: standard deviation of the noise added, in training, to the argument of the activation of
      the first `noisy` units of a network of one layer.
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
    patience: float = math.inf
    least: float = 1 / 16
    grows: bool = False
    mixes: bool = False
    noise: float = 0.0
    noisy: int = 0
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


def _in_blocks(name: str, summary: str, blocks: Blocks) -> Recipe:
    return Recipe(
        name,
        summary,
        blocks.layers,
        readout=blocks.readout,
        optimizer=blocks.optimizer(),
        clip=None,
        passes=10,
        patience=15,
        least=1 / 64,
        grows=True,
        mixes=True,
        noise=0.5,
        noisy=blocks.switches,
    )


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
        _in_blocks("blocks", "switches, rotations and sums of features, side by side", _BLOCKS),
        _in_blocks("switches", "the bistable units of blocks alone", _BLOCKS.only("switches")),
        _in_blocks("rotations", "the orthogonal part of blocks alone", _BLOCKS.only("rotations")),
        _in_blocks("sums", "the sums of features alone", _BLOCKS.only("features", "sums")),
        Recipe("GRU", "not vanilla: gated", _gru, vanilla=False),
    )
}
"""The recipes by name. The lecture's is first; each of the others changes what its summary says."""
DEFAULT = "lecture"
"""The recipe that the others are compared with."""

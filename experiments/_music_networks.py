"""The networks of `music`: the plain one, and the one that shares what octaves have in common."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.data.piano_rolls import KEYS
from jaxrnn import (
    Array,
    Key,
    Layer,
    Params,
    RNNParams,
    dense,
    dropout,
    initializers,
    stack,
    vanilla_rnn,
)

_OCTAVE = 12
_PLAIN_SIZE = 150


def octave_network(size: int, layers: int, dropped: float, dropped_inputs: float) -> Layer:
    """Vanilla layers below a readout of one hidden layer, with what octaves share."""
    sizes = [KEYS + _OCTAVE] + [size] * layers
    below_readout: list[Layer] = [dropout(sizes[0], dropped_inputs)]
    for below, above in itertools.pairwise(sizes):
        below_readout += [_torch_rnn(below, above), dropout(above, dropped)]
    hidden = [_squashed(_torch_dense(size, size)), dropout(size, dropped)]
    return _sharing_octaves(stack(*below_readout, *hidden, _torch_dense(size, KEYS + _OCTAVE)))


def plain_network() -> Layer:
    """`torch.nn.RNN` of one layer and 150 units with a dense readout."""
    return stack(_torch_rnn(KEYS, _PLAIN_SIZE), _torch_dense(_PLAIN_SIZE, KEYS))


def _torch_rnn(below: int, above: int) -> Layer:
    """A vanilla layer that starts as `torch.nn.RNN`, with a spectral radius of about 0.58."""
    uniform = initializers.uniform(1 / math.sqrt(above))
    return vanilla_rnn(below, above, w_ih_init=uniform, w_hh_init=uniform)


def _torch_dense(below: int, above: int) -> Layer:
    return dense(below, above, w_init=initializers.uniform(1 / math.sqrt(below)))


def _squashed(layer: Layer) -> Layer:
    """The layer's outputs through tanh."""

    def step(params: Params, state: Any, x: Array) -> tuple[Any, Array]:
        state, y = layer.step(params, state, x)
        return state, jnp.tanh(y)

    def unroll(params: Params, state: Any, xs: Array, **options: Any) -> tuple[Any, Array]:
        state, ys = layer.unroll(params, state, xs, **options)
        return state, jnp.tanh(ys)

    return layer._replace(step=step, unroll=unroll)


def _sharing_octaves(layer: Layer) -> Layer:
    """From frames [..., KEYS] to logits [..., KEYS], by a layer that also reads how many keys of
    each pitch class sound, and whose further outputs are added to all keys of a pitch class."""
    classes = jnp.asarray(np.arange(KEYS)[:, None] % _OCTAVE == np.arange(_OCTAVE), jnp.float32)

    def widen(frames: Array) -> Array:
        frames = frames.astype(classes.dtype)
        return jnp.concatenate([frames, frames @ classes], axis=-1)

    def narrow(ys: Array) -> Array:
        return ys[..., :KEYS] + ys[..., KEYS:] @ classes.T

    def step(params: Params, state: Any, x: Array) -> tuple[Any, Array]:
        state, y = layer.step(params, state, widen(x))
        return state, narrow(y)

    def unroll(params: Params, state: Any, xs: Array, **options: Any) -> tuple[Any, Array]:
        state, ys = layer.unroll(params, state, widen(xs), **options)
        return state, narrow(ys)

    return layer._replace(input_size=KEYS, output_size=KEYS, step=step, unroll=unroll)


def drop_connect(params: Params, rate: float, key: Key) -> Params:
    """Drop recurrent weights, the same at every step, and scale the others up."""

    def drop(layer: Params, key: Key) -> Params:
        if not isinstance(layer, RNNParams):
            return layer
        kept = jax.random.bernoulli(key, 1 - rate, layer.w_hh.shape)
        return layer._replace(w_hh=jnp.where(kept, layer.w_hh / (1 - rate), 0.0))

    keys = jax.random.split(key, len(params))
    return tuple(drop(layer, k) for layer, k in zip(params, keys, strict=True))


@functools.partial(jax.jit, static_argnums=(0, 1))
def sample(network: Layer, count: int, params: Params, opening: Array, key: Key) -> Array:
    """`count` frames [count, N, KEYS] after the frames `opening` [P, N, KEYS], each key by itself
    given the past."""
    state, logits = network.unroll(params, None, opening)

    def draw(carry: tuple[Any, Array], key: Key) -> tuple[tuple[Any, Array], Array]:
        state, logits = carry
        frame = jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(opening.dtype)
        return network.step(params, state, frame), frame

    return lax.scan(draw, (state, logits[-1]), jax.random.split(key, count))[1]

"""The networks of `music`: a plain one, and one whose readout is shared by keys and octaves."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.piano_rolls import KEYS
from jaxrnn import (
    Array,
    Inputs,
    Key,
    Layer,
    Params,
    dense,
    dropout,
    generate,
    initializers,
    make_layer,
    stack,
    vanilla_rnn,
)

_OCTAVE = 12
_REACH = 12  # keys on either side of a key that its logit depends on
_CHANNELS = 4  # outputs of the recurrent network for each key
_SHARED_SIZE = 16
_APART = np.arange(KEYS)[:, None] - np.arange(KEYS)
_PLACES = np.where(np.abs(_APART) <= _REACH, _APART + _REACH, 2 * _REACH + 1)
_PLAIN_SIZE = 150
_CLASSES = np.asarray(np.arange(KEYS)[:, None] % _OCTAVE == np.arange(_OCTAVE), np.float32)


class SharedParams(NamedTuple):
    """The weights of the small network, the same for all keys, that computes their logits."""

    w_near: Array  # [2 * _REACH + 1, _SHARED_SIZE], for the keys that sound around the key
    w_channel: Array  # [_CHANNELS, _SHARED_SIZE], for the key's channels
    b: Array  # [_SHARED_SIZE]
    w_out: Array  # [_SHARED_SIZE]


def sharing_network(size: int, layers: int, dropped: float, dropped_inputs: float) -> Layer:
    """Vanilla layers and a dense hidden layer below a readout shared by keys and octaves."""
    return _sharing(channel_network(size, layers, dropped, dropped_inputs, _CHANNELS))


def channel_network(
    size: int, layers: int, dropped: float, dropped_inputs: float, channels: int
) -> Layer:
    """Vanilla layers and a dense hidden layer, from frames [..., KEYS] to `channels` outputs for
    each key [..., KEYS * channels].

    It reads the frame and the number of sounding keys of each pitch class. A key's channels are the
    sum of its own and those of its class."""
    sizes = [KEYS + _OCTAVE] + [size] * layers
    below_readout: list[Layer] = [dropout(sizes[0], dropped_inputs)]
    for below, above in itertools.pairwise(sizes):
        below_readout += [_torch_rnn(below, above), dropout(above, dropped)]
    hidden = [_squashed(_torch_dense(size, size)), dropout(size, dropped)]
    readout = _torch_dense(size, (KEYS + _OCTAVE) * channels)
    layer = stack(*below_readout, *hidden, readout)

    def run(params: Params, state: Any, inputs: Inputs, key: Key | None) -> tuple[Any, Array]:
        frames = inputs.xs.astype(_CLASSES.dtype)
        wide = jnp.concatenate([frames, frames @ _CLASSES], axis=-1)
        state, ys = layer.run(params, state, inputs._replace(xs=wide), key)
        ys = ys.reshape(*ys.shape[:-1], KEYS + _OCTAVE, channels)
        ys = ys[..., :KEYS, :] + _CLASSES @ ys[..., KEYS:, :]
        return state, ys.reshape(*ys.shape[:-2], KEYS * channels)

    return make_layer(KEYS, KEYS * channels, layer.init, layer.initial_state, run)


def plain_network() -> Layer:
    """`torch.nn.RNN` with one layer of 150 units, and a dense readout."""
    return stack(_torch_rnn(KEYS, _PLAIN_SIZE), _torch_dense(_PLAIN_SIZE, KEYS))


def _torch_rnn(below: int, above: int) -> Layer:
    """A vanilla layer initialised as `torch.nn.RNN`, with a spectral radius of about 0.58."""
    uniform = initializers.uniform(1 / math.sqrt(above))
    return vanilla_rnn(below, above, w_ih_init=uniform, w_hh_init=uniform)


def _torch_dense(below: int, above: int) -> Layer:
    return dense(below, above, w_init=initializers.uniform(1 / math.sqrt(below)))


def _squashed(layer: Layer) -> Layer:
    """The layer's outputs through tanh."""

    def run(params: Params, state: Any, inputs: Inputs, key: Key | None) -> tuple[Any, Array]:
        state, ys = layer.run(params, state, inputs, key)
        return state, jnp.tanh(ys)

    sizes = (layer.input_size, layer.output_size)
    return make_layer(*sizes, layer.init, layer.initial_state, run, causal=layer.causal)


def _sharing(layer: Layer) -> Layer:
    """From frames [..., KEYS] to logits [..., KEYS].

    A key's logit is the first of its channels, which `layer` computes, plus the output of a small
    network, the same for every key, that reads all of them and the keys that sound around it.
    Parameters: (those of `layer`, SharedParams).
    """

    def init(key: Key) -> Params:
        key_layer, key_near, key_channel = jax.random.split(key, 3)
        near, channel = (
            initializers.uniform(1 / math.sqrt(below))(key, (below, _SHARED_SIZE), jnp.float32)
            for key, below in ((key_near, 2 * _REACH + 1), (key_channel, _CHANNELS))
        )
        zeros = jnp.zeros(_SHARED_SIZE)
        return layer.init(key_layer), SharedParams(near, channel, zeros, zeros)

    def narrow(shared: SharedParams, ys: Array, frames: Array) -> Array:
        channels = ys.reshape(*ys.shape[:-1], KEYS, _CHANNELS)
        # One matrix [KEYS, KEYS, _SHARED_SIZE], zero out of reach: faster than gathering the
        # surroundings of each key.
        band = jnp.pad(shared.w_near, [(0, 1), (0, 0)])[_PLACES]
        near = jnp.einsum("...j,jkh->...kh", frames.astype(_CLASSES.dtype), band)
        hidden = jnp.tanh(near + channels @ shared.w_channel + shared.b)
        return channels[..., 0] + hidden @ shared.w_out

    def initial_state(params: Params, batch_shape: tuple[int, ...]) -> Any:
        return layer.initial_state(params[0], batch_shape)

    def run(params: Params, state: Any, inputs: Inputs, key: Key | None) -> tuple[Any, Array]:
        state, ys = layer.run(params[0], state, inputs, key)
        return state, narrow(params[1], ys, inputs.xs)

    return make_layer(KEYS, KEYS, init, initial_state, run)


@functools.partial(jax.jit, static_argnums=(0, 1))
def sample(network: Layer, count: int, params: Params, opening: Array, key: Key) -> Array:
    """Draw `count` frames [count, N, KEYS] that follow the frames `opening` [P, N, KEYS]; keys are
    independent given the past."""

    def feed(logits: Array, key: Key | None) -> Array:
        assert key is not None
        return jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(opening.dtype)

    state, logits = network.unroll(params, None, opening)
    key_first, key_rest = jax.random.split(key)
    first = feed(logits[-1], key_first)
    _, (rest, _) = generate(network, params, state, first, count - 1, feed=feed, key=key_rest)
    return jnp.concatenate([first[None], rest])

"""A frame's keys as a sequence: a second vanilla network runs over them, from low to high.

Each key's probability depends on the frames before and on the keys below it in the same frame, so
that the product over the keys is a joint likelihood (the idea of RNN-NADE, Boulanger-Lewandowski et
al. 2012, with nothing but vanilla cells). The network over time computes channels for each key; the
network over keys, the same at every frame, reads those, the keys around it in the frame before, and
the keys below it that were decided. Before the first frame of a piece stands an empty one.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.data.piano_rolls import KEYS, PianoRolls
from experiments.music.networks import channel_network
from experiments.music.pieces import PackedPieces
from jaxrnn import (
    Array,
    Inputs,
    Key,
    Layer,
    Params,
    deep_rnn,
    generate,
    make_layer,
    masked_mean,
)

_CHANNELS = 12
_REACH = 12  # keys on either side, in the frame before
_BELOW = 16  # decided keys below


class JointParams(NamedTuple):
    """The network over time, and the one over keys."""

    channels: Params
    keys: Params


class JointNetwork(NamedTuple):
    """Its layers: over time, and over keys, to the logit of each."""

    channels: Layer
    keys: Layer

    def init(self, key: Key) -> JointParams:
        """Draw the parameters."""
        parts = zip(self, jax.random.split(key), strict=True)
        return JointParams(*(layer.init(part) for layer, part in parts))

    def unroll(self, params: JointParams, pieces: Any, key: Key | None) -> Array:
        """Channels [T, B, KEYS, C] for the frame after each, of frames (xs, mask, resets)."""
        xs, mask, resets = pieces
        ys = self.channels.unroll(params.channels, None, xs, mask=mask, resets=resets, key=key)[1]
        return ys.reshape(*ys.shape[:-1], KEYS, _CHANNELS)

    def score(self, params: JointParams, channels: Array, frame: Array, following: Array) -> Array:
        """The logits [..., KEYS] of `following` [..., KEYS], each given the keys below it."""
        features = [channels, _around(frame), _below(following)]
        xs = jnp.moveaxis(jnp.concatenate(features, axis=-1), -2, 0)  # [KEYS, ..., F]
        _, logits = self.keys.unroll(params.keys, None, xs)
        return jnp.moveaxis(logits[..., 0], 0, -1)

    def draw(self, params: JointParams, channels: Array, frame: Array, key: Key) -> Array:
        """A frame [B, KEYS] that follows `frame`, drawn key by key."""
        fixed = jnp.concatenate([channels, _around(frame)], axis=-1)
        batch = frame.shape[:-1]

        def decide(carry: tuple[Any, Array], now: tuple[Array, Key]) -> Any:
            h, below = carry
            h, logit = self.keys.step(params.keys, h, jnp.concatenate([now[0], below], axis=-1))
            sounds = jax.random.bernoulli(now[1], jax.nn.sigmoid(logit[..., 0]))
            sounds = sounds.astype(below.dtype)
            return (h, jnp.concatenate([sounds[..., None], below[..., :-1]], axis=-1)), sounds

        start = self.keys.initial_state(params.keys, batch), jnp.zeros((*batch, _BELOW))
        keys = jax.random.split(key, KEYS)
        drawn = lax.scan(decide, start, (jnp.moveaxis(fixed, -2, 0), keys))[1]
        return jnp.moveaxis(drawn, 0, -1).astype(frame.dtype)


def joint_network(
    size: int, layers: int, dropped: float, dropped_inputs: float, keys_size: int
) -> JointNetwork:
    """The network over time is that of `sharing_network` below its readout."""
    channels = channel_network(size, layers, dropped, dropped_inputs, _CHANNELS)
    features = _CHANNELS + 2 * _REACH + 1 + _BELOW
    return JointNetwork(channels, deep_rnn((features, keys_size, 1)))


def begin_with_silence(rolls: PianoRolls) -> PianoRolls:
    """Each roll behind an empty frame."""

    def begin(several: list[np.ndarray]) -> list[np.ndarray]:
        return [np.concatenate([np.zeros_like(roll[:1]), roll]) for roll in several]

    return PianoRolls(rolls.name, begin(rolls.train), begin(rolls.valid), begin(rolls.test))


def score_joint_batch(
    network: JointNetwork, params: JointParams, batch: tuple[Array, Array], key: Key | None
) -> Array:
    """The mean NLL of a batch of frames [W + 1, B, KEYS] with a mask [W + 1, B]."""
    frames, mask = batch
    channels = network.unroll(params, (frames[:-1], mask[:-1], None), key)
    logits = network.score(params, channels, frames[:-1], frames[1:])
    return masked_mean(_sum_nats(logits, frames[1:]), mask[1:])


def score_joint_pieces(
    network: JointNetwork, params: JointParams, pieces: PackedPieces
) -> tuple[Array, Array]:
    """The mean NLL of all frames of pieces behind an empty frame, and of all but the first."""
    logits = _predict(network, params, pieces)
    return _mean_nats(_sum_nats(logits, pieces.following), pieces)


@functools.partial(jax.jit, static_argnums=0)
def score_joint_networks(
    network: JointNetwork, params: JointParams, pieces: PackedPieces
) -> tuple[Array, Array]:
    """Both scores of each of S networks [S, 2], and of the mean of their probabilities of each key,
    given the keys below, [2]."""
    logits = lax.map(lambda one: _predict(network, one, pieces), params)
    on, off = (
        jax.nn.logsumexp(jax.nn.log_sigmoid(sign * logits), axis=0) - math.log(len(logits))
        for sign in (1.0, -1.0)
    )
    pooled = -jnp.sum(jnp.where(pieces.following == 1, on, off), axis=-1)
    singles = jax.vmap(lambda z: jnp.stack(_mean_nats(_sum_nats(z, pieces.following), pieces)))
    return singles(logits), jnp.stack(_mean_nats(pooled, pieces))


@functools.partial(jax.jit, static_argnums=(0, 1))
def sample_jointly(
    network: JointNetwork, count: int, params: JointParams, opening: Array, key: Key
) -> Array:
    """Draw `count` frames [count, N, KEYS] that follow the frames `opening` [P, N, KEYS]."""
    layer = _with_inputs(network.channels)
    silence = jnp.zeros_like(opening[:1])
    state, ys = layer.unroll(params.channels, None, jnp.concatenate([silence, opening]))

    def feed(y: Array, key: Key | None) -> Array:
        assert key is not None
        channels = y[..., KEYS:].reshape(*y.shape[:-1], KEYS, _CHANNELS)
        return network.draw(params, channels, y[..., :KEYS].astype(opening.dtype), key)

    key_first, key_rest = jax.random.split(key)
    first = feed(ys[-1], key_first)
    rest = generate(layer, params.channels, state, first, count - 1, feed=feed, key=key_rest)[1][0]
    return jnp.concatenate([first[None], rest])


def _with_inputs(layer: Layer) -> Layer:
    """The layer's inputs before its outputs."""

    def run(params: Params, state: Any, inputs: Inputs, key: Key | None) -> tuple[Any, Array]:
        state, ys = layer.run(params, state, inputs, key)
        return state, jnp.concatenate([inputs.xs.astype(ys.dtype), ys], axis=-1)

    sizes = (layer.input_size, layer.input_size + layer.output_size)
    return make_layer(*sizes, layer.init, layer.initial_state, run)


def _predict(network: JointNetwork, params: JointParams, pieces: PackedPieces) -> Array:
    channels = network.unroll(params, (pieces.xs, pieces.mask, pieces.resets), None)
    return network.score(params, channels, pieces.xs, pieces.following)


def _mean_nats(nats: Array, pieces: PackedPieces) -> tuple[Array, Array]:
    after_first = pieces.scored & ~pieces.resets  # not the empty frame's successor
    return masked_mean(nats, pieces.scored), masked_mean(nats, after_first)


def _sum_nats(logits: Array, frames: Array) -> Array:
    nats = optax.sigmoid_binary_cross_entropy(logits, frames.astype(logits.dtype))
    return jnp.sum(nats, axis=-1)


def _around(frame: Array) -> Array:
    """The keys [..., KEYS, 2 * _REACH + 1] within reach of each key of a frame."""
    padded = jnp.pad(frame, [*[(0, 0)] * (frame.ndim - 1), (_REACH, _REACH)])
    shifts = [padded[..., place : place + KEYS] for place in range(2 * _REACH + 1)]
    return jnp.stack(shifts, axis=-1).astype(jnp.float32)


def _below(frame: Array) -> Array:
    """The keys [..., KEYS, _BELOW] below each key of a frame, the nearest first."""
    padded = jnp.pad(frame, [*[(0, 0)] * (frame.ndim - 1), (_BELOW, 0)])
    shifts = [padded[..., _BELOW - 1 - place :][..., :KEYS] for place in range(_BELOW)]
    return jnp.stack(shifts, axis=-1).astype(jnp.float32)

"""The score of `music`: the negative log-likelihood (NLL) per frame, in nats."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.piano_rolls import PianoRolls
from experiments.music.pieces import PackedPieces
from experiments.shared.findings import Data
from jaxrnn import Array, Key, Layer, Params, masked_mean


def score_batch(
    network: Layer, params: Params, batch: tuple[Array, Array], key: Key | None
) -> Array:
    """The mean NLL of a batch of frames [W + 1, B, KEYS] with a mask [W + 1, B]."""
    frames, mask = batch
    _, logits = network.unroll(params, None, frames[:-1], mask=mask[:-1], key=key)
    return masked_mean(_score_frames(logits, frames[1:]), mask[1:])


def score_pieces(network: Layer, params: Params, pieces: PackedPieces) -> Array:
    """The mean NLL of all frames but the first of each piece."""
    logits = _unroll(network, params, pieces)
    return masked_mean(_score_frames(logits, pieces.following), pieces.scored)


def score_models(
    rolls: PianoRolls,
    test: PackedPieces,
    network: tuple[Layer, Params],
    plain: tuple[Layer, Params],
) -> Data:
    """The mean NLL of the test pieces under every model; parameters [S, ...]."""
    singles, ensemble = _score_networks(*network, test)
    plains, plain_ensemble = _score_networks(*plain, test)
    return {
        "marginal": score_markov(rolls, np.zeros_like),
        "Markov": score_markov(rolls, lambda before: before),
        "plain": plains,  # [S]
        "plain ensemble": plain_ensemble,
        "network": singles,  # [S]
        "ensemble": ensemble,
    }


def score_markov(rolls: PianoRolls, condition: Callable[[np.ndarray], np.ndarray]) -> float:
    """The mean NLL of the test pieces under a model of independent keys.

    A key's probability is its frequency given the `condition`, 0 or 1, of the key in the frame
    before. The counts include one more frame, in which the key sounds as often as it does overall
    (half a frame for a key that never sounds).
    """

    def count(pieces: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """How often each key [2, KEYS] is in each condition, and sounds in the frame after."""
        before = condition(np.concatenate([piece[:-1] for piece in pieces]))
        after = np.concatenate([piece[1:] for piece in pieces])
        cases = np.stack([before == 0, before == 1])
        return cases.sum(axis=1), (cases & (after == 1)).sum(axis=1)

    frames, sounding = count(rolls.train)
    overall = (sounding.sum(axis=0) + 0.5) / (frames.sum(axis=0) + 1)
    p = (sounding + overall) / (frames + 1)
    frames, sounding = count(rolls.test)
    nats = -(sounding * np.log(p) + (frames - sounding) * np.log1p(-p))
    return float(nats.sum() / frames[:, 0].sum())


def _score_networks(network: Layer, params: Params, test: PackedPieces) -> tuple[np.ndarray, float]:
    """The mean NLL of each network [S], and of the mean of their probabilities."""

    @jax.jit
    def score(params: Params, test: PackedPieces) -> tuple[Array, Array]:
        logits = jax.vmap(lambda params: _unroll(network, params, test))(params)
        on, off = (  # the logarithms of the mean probabilities
            jax.nn.logsumexp(jax.nn.log_sigmoid(sign * logits), axis=0) - math.log(len(logits))
            for sign in (1.0, -1.0)
        )
        pooled = -jnp.sum(jnp.where(test.following == 1, on, off), axis=-1)
        singles = jax.vmap(lambda z: masked_mean(_score_frames(z, test.following), test.scored))
        return singles(logits), masked_mean(pooled, test.scored)

    singles, ensemble = score(params, test)
    return np.asarray(singles, np.float64), float(ensemble)


def _unroll(network: Layer, params: Params, pieces: PackedPieces) -> Array:
    return network.unroll(params, None, pieces.xs, mask=pieces.mask, resets=pieces.resets)[1]


def _score_frames(logits: Array, frames: Array) -> Array:
    """The NLL of each frame [...], summed over its keys."""
    targets = frames.astype(logits.dtype)
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)

"""The pieces of `music` as its networks read them: padded for training, packed for scoring."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.piano_rolls import PianoRolls
from jaxrnn import Array, Key, pack_sequences, pad_sequences

_ROWS = 16  # of packed pieces
_MANY_FRAMES = 12_500  # as the chorales have to train on


class PackedPieces(NamedTuple):
    """Pieces packed into R rows of T frames.

    mask: which frames belong to a piece. resets: first frames of pieces. following: the frame
    after each. scored: frames whose following frame is of the same piece.
    """

    xs: Array  # [T, R, KEYS]
    mask: Array  # [T, R], as the others but following
    resets: Array
    following: Array  # [T, R, KEYS]
    scored: Array


class Pieces(NamedTuple):
    """The pieces to train on, padded, and those to validate and test on, packed."""

    train: Array  # [T, N, KEYS]
    lengths: Array  # [N]
    valid: PackedPieces
    test: PackedPieces


def arrange_pieces(rolls: PianoRolls) -> Pieces:
    """The three splits of `rolls`, on the device."""
    padded, _ = pad_sequences(rolls.train)
    lengths = jnp.asarray([len(roll) for roll in rolls.train], jnp.int32)
    return Pieces(padded, lengths, pack_pieces(rolls.valid), pack_pieces(rolls.test))


def measure_growth(pieces: Pieces) -> float:
    """The frames to train on, as a multiple of those of the chorales; at least 1."""
    return max(int(jnp.sum(pieces.lengths)) / _MANY_FRAMES, 1.0)


def pack_pieces(rolls: list[np.ndarray]) -> PackedPieces:
    """Pack rolls [frames, KEYS] into at most 16 rows."""
    packed = pack_sequences(rolls, num_rows=min(_ROWS, len(rolls)))
    assert packed.mask is not None
    following = jnp.roll(packed.xs, -1, axis=0)
    scored = jnp.roll(packed.mask & ~packed.resets, -1, axis=0).at[-1].set(False)
    return PackedPieces(packed.xs, packed.mask, packed.resets, following, scored)


def draw_batch(key: Key, pieces: Pieces, size: int, window: int) -> tuple[Array, Array]:
    """Random stretches [W + 1, B, KEYS] of training pieces, and their mask [W + 1, B].

    Pieces are drawn in proportion to their length, so that every frame counts about the same.
    """
    longest = pieces.train.shape[0]
    window = min(window, longest - 1)
    key_pieces, key_starts = jax.random.split(key)
    weights = jnp.log(jnp.maximum(pieces.lengths - 1, window).astype(jnp.float32))
    drawn = jax.random.categorical(key_pieces, weights, shape=(size,))
    lengths = pieces.lengths[drawn]
    starts = jax.random.randint(key_starts, (size,), 0, jnp.maximum(lengths - window, 1))
    frames = starts + jnp.arange(window + 1)[:, None]  # [W + 1, B]
    return pieces.train[jnp.minimum(frames, longest - 1), drawn], frames < lengths

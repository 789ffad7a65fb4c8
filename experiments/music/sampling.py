"""Samples of `music`: continuations of test pieces, or of a MIDI file in whatever key it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.piano_rolls import PianoRolls, pitches_of, shift_keys
from experiments.music.joint import JointNetwork, JointParams, sample_jointly, score_joint_batch
from experiments.shared.findings import Data
from jaxrnn import Key

_score = jax.jit(score_joint_batch, static_argnums=(0, 3))


def sample_continuations(
    network: JointNetwork,
    params: JointParams,
    rolls: PianoRolls,
    count: int,
    primed: int,
    frames: int,
    key: Key,
) -> tuple[Data, np.ndarray]:
    """Test pieces, and a network's continuations of their openings: as pitches, and as the frames
    [frames - primed, count, KEYS] that were drawn."""
    primed = min(primed, max(map(len, rolls.test)))
    pieces = [piece for piece in rolls.test if len(piece) >= primed]
    pieces = [pieces[number % len(pieces)] for number in range(count)]
    opening = jnp.asarray(np.stack([piece[:primed] for piece in pieces], axis=1))
    drawn = np.asarray(sample_jointly(network, frames - primed, params, opening, key))
    sampled = np.concatenate([opening, drawn])
    return {
        "primed": primed,
        "real": [pitches_of(piece[:frames]) for piece in pieces],
        "sampled": [pitches_of(roll) for roll in sampled.swapaxes(0, 1)],
    }, drawn


def continue_roll(
    network: JointNetwork,
    params: JointParams,
    roll: np.ndarray,
    count: int,
    primed: int,
    frames: int,
    key: Key,
) -> tuple[Data, int]:
    """Continuations of the opening of a roll, and the semitones by which it was raised for the
    network; samples are in the roll's own key."""
    opening, shift = _transpose(network, params, roll[:primed])
    openings = jnp.asarray(np.stack([opening] * count, axis=1))
    drawn = sample_jointly(network, frames - len(opening), params, openings, key)
    sampled = np.concatenate([openings, drawn]).swapaxes(0, 1)
    return {
        "primed": len(opening),
        "real": [pitches_of(roll[:frames])] * count,
        "sampled": [pitches_of(shift_keys(one, -shift)) for one in sampled],
    }, shift


def _transpose(
    network: JointNetwork, params: JointParams, roll: np.ndarray
) -> tuple[np.ndarray, int]:
    """The roll in the key, at most six semitones away, in which the network expects it most, and
    the semitones that it was raised by."""
    shifts = [shift for shift in range(-5, 7) if shift_keys(roll, shift).sum() == roll.sum()]
    silence = np.zeros_like(roll[:1])
    nats = []
    for shift in shifts:
        frames = jnp.asarray(np.concatenate([silence, shift_keys(roll, shift)]))[:, None]
        batch = frames, jnp.ones(frames.shape[:2], bool)
        nats.append(float(_score(network, params, batch, None)))
    shift = shifts[int(np.argmin(nats))]
    return shift_keys(roll, shift), shift

"""The standard problems of long-term memory, each drawn afresh from a key for any length."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrnn import Array, Key

_COPIED, _ALPHABET = 10, 8  # symbols to copy, and how many there are


class Batch(NamedTuple):
    """xs [T, B, D]; the step of each sequence's answer, last [B]; and the targets of these answers
    [B] or of every output [T, B]."""

    xs: Array
    last: Array
    targets: Array


class MemoryProblem(NamedTuple):
    """A family of sequences of any length, and the answer that a network must give at their end.

    draw: ``(key, length, batch_size, mixed=False) -> Batch`` of sequences of this length, an int of
      at least `shortest`; if mixed, every second one is of a length up to it whose logarithm is
      uniform.
    loss: ``(outputs, targets) -> scalar``, of the last outputs [B, O] or of all [T, B, O].
    right: ``(outputs, targets) -> scalar``, the fraction of correct answers.
    everywhere: whether every output counts, or only the last.
    blind_loss: ``(length) -> float``, the loss of the best answers without memory.
    solves: ``(length, loss, right) -> bool``.
    margin: the fraction of `blind_loss` below which a problem is solved with a safety margin.
    """

    name: str
    input_size: int
    output_size: int
    shortest: int
    draw: Callable[..., Batch]
    loss: Callable[[Array, Array], Array]
    right: Callable[[Array, Array], Array]
    everywhere: bool
    blind_loss: Callable[[int], float]
    solves: Callable[[int, float, float], bool]
    margin: float


def draw_latch(key: Key, length: int, batch_size: int, mixed: bool = False) -> Batch:
    """A sign, +1 or -1, then `length` steps of Gaussian noise; output the sign at the end.

    Source: Bengio, Simard & Frasconi 1994, "Learning long-term dependencies with gradient descent
    is difficult", section II. The noise has standard deviation 1; no other input flags the sign.
    """
    key_lengths, key_signs, key_noise = jax.random.split(key, 3)
    lengths = _draw_lengths(key_lengths, 5, length, batch_size, mixed)
    positive = jax.random.bernoulli(key_signs, shape=(batch_size,))
    xs = jax.random.normal(key_noise, (length + 1, batch_size, 1))
    xs = xs.at[0, :, 0].set(2.0 * positive - 1)
    return Batch(xs, lengths, positive.astype(jnp.int32))


def draw_order(key: Key, length: int, batch_size: int, mixed: bool = False) -> Batch:
    """Two signals, each X or Y, among four distractors: output XX, XY, YX or YY at the end.

    Source: Pascanu, Mikolov & Bengio 2013, "On the difficulty of training recurrent neural
    networks", section 4.1, after Hochreiter & Schmidhuber 1997, "Long short-term memory",
    experiment 6a. The signals stand in [T/10, 2T/10) and [4T/10, 5T/10).
    """
    key_lengths, *keys = jax.random.split(key, 5)
    lengths = _draw_lengths(key_lengths, 10, length, batch_size, mixed)
    signals = jax.random.bernoulli(keys[0], shape=(2, batch_size)).astype(jnp.int32)
    bounds = [lengths * part // 10 for part in (1, 2, 4, 5)]
    first = jax.random.randint(keys[1], (batch_size,), bounds[0], bounds[1])
    second = jax.random.randint(keys[2], (batch_size,), bounds[2], bounds[3])
    symbols = jax.random.randint(keys[3], (length, batch_size), 2, 6)
    batch = jnp.arange(batch_size)
    symbols = symbols.at[first, batch].set(signals[0]).at[second, batch].set(signals[1])
    return Batch(jax.nn.one_hot(symbols, 6), lengths - 1, 2 * signals[0] + signals[1])


def draw_adding(key: Key, length: int, batch_size: int, mixed: bool = False) -> Batch:
    """Pairs of a number in [0, 1) and a marker: output the sum of the two marked numbers.

    Source: Hochreiter & Schmidhuber 1997, experiment 4, in the form of Arjovsky, Shah & Bengio
    2016, "Unitary evolution recurrent neural networks", section 5.2: one marker in each half.
    Always answering 1 has a squared error of 1/6, the variance of the sum.
    """
    key_lengths, key_numbers, *key_marks = jax.random.split(key, 4)
    lengths = _draw_lengths(key_lengths, 2, length, batch_size, mixed)
    numbers = jax.random.uniform(key_numbers, (length, batch_size))
    half = lengths // 2
    first = jax.random.randint(key_marks[0], (batch_size,), 0, half)
    second = jax.random.randint(key_marks[1], (batch_size,), half, lengths)
    steps = jnp.arange(length)[:, None]
    marks = ((steps == first) | (steps == second)).astype(numbers.dtype)
    xs = jnp.stack([numbers, marks], axis=-1)
    return Batch(xs, lengths - 1, jnp.sum(numbers * marks, axis=0))


def draw_copy(key: Key, length: int, batch_size: int, mixed: bool = False) -> Batch:
    """Ten symbols out of eight, T - 1 blanks, a marker, ten blanks: output blanks up to and
    including the marker, then the symbols in order. T + 20 steps; never mixed.

    Source: Arjovsky, Shah & Bengio 2016, section 5.1, after Hochreiter & Schmidhuber 1997. Without
    memory the best loss is 10 log 8 / (T + 20) nats per step.
    """
    del mixed
    symbols = jax.random.randint(key, (_COPIED, batch_size), 0, _ALPHABET)
    blank, mark = _ALPHABET, _ALPHABET + 1
    xs = jnp.full((length + 2 * _COPIED, batch_size), blank)
    xs = xs.at[:_COPIED].set(symbols).at[length + _COPIED - 1].set(mark)
    targets = jnp.full(xs.shape, blank).at[-_COPIED:].set(symbols)
    last = jnp.full((batch_size,), len(xs) - 1)
    return Batch(jax.nn.one_hot(xs, _ALPHABET + 2), last, targets)


def _draw_lengths(key: Key, shortest: int, length: int, batch_size: int, mixed: bool) -> Array:
    """Lengths [B]: all `length` or, if mixed, every second one from the shortest up, with a uniform
    logarithm."""
    if not mixed or length <= shortest:
        return jnp.full((batch_size,), length)
    ratio = (length + 1) / shortest
    parts = jax.random.uniform(key, (batch_size,))
    lengths = jnp.clip((shortest * ratio**parts).astype(jnp.int32), shortest, length)
    return jnp.where(jnp.arange(batch_size) % 2 == 0, length, lengths)


def _cross_entropy(outputs: Array, targets: Array) -> Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, targets))


def _mean_right(outputs: Array, targets: Array) -> Array:
    return jnp.mean(jnp.argmax(outputs, axis=-1) == targets)


def _squared_error(outputs: Array, targets: Array) -> Array:
    return jnp.mean((outputs[:, 0] - targets) ** 2)


def _near(outputs: Array, targets: Array) -> Array:
    return jnp.mean(jnp.abs(outputs[:, 0] - targets) < 0.2)  # two standard deviations of loss 0.01


def _symbols_right(outputs: Array, targets: Array) -> Array:
    return _mean_right(outputs[-_COPIED:], targets[-_COPIED:])


def _blind_copy(length: int) -> float:
    return _COPIED * math.log(_ALPHABET) / (length + 2 * _COPIED)


PROBLEMS = {
    problem.name: problem
    for problem in (
        MemoryProblem(
            *("latch", 1, 2, 1, draw_latch, _cross_entropy, _mean_right, False),
            lambda length: math.log(2),
            lambda length, loss, right: right >= 0.99,
            0.03,
        ),
        MemoryProblem(
            *("order", 6, 4, 10, draw_order, _cross_entropy, _mean_right, False),
            lambda length: math.log(4),
            lambda length, loss, right: right == 1.0,
            0.002,
        ),
        MemoryProblem(
            *("adding", 2, 1, 2, draw_adding, _squared_error, _near, False),
            lambda length: 1 / 6,
            lambda length, loss, right: loss <= 0.01,
            0.02,
        ),
        MemoryProblem(
            *("copy", 10, 9, 1, draw_copy, _cross_entropy, _symbols_right, True),
            _blind_copy,
            lambda length, loss, right: loss <= _blind_copy(length) / 2,
            0.1,
        ),
    )
}
"""The problems by name. Solved means: 99 % of the signs correct; every order correct; a squared
error of at most 0.01; at most half the loss without memory."""

"""Truncated back-propagation through time: one update per window of a long sequence."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._checks import check_function, check_size
from jaxrnn.training.update import Average, Metrics, TrainState, TrainStep


def truncate_train_step(train_step: TrainStep, window: int) -> TrainStep:
    """A step that applies `train_step` to one window of a time-major batch after another.

    With ``make_train_step(..., has_carry=True)`` this is truncated back-propagation through time:
    one update per window, the recurrent state carried from each window to the next, the gradient
    cut between them (Williams & Peng 1990, "An efficient gradient-based algorithm for on-line
    training of recurrent network trajectories": BPTT(h; h') with h = h'). Without a carry every
    window starts from the initial state. Resets in the batch begin new sequences.

    Args:
      train_step: the step for one window, as `make_train_step` makes it.
      window: time steps per window. If they are at least T, it is plain back-propagation through
        time.

    Returns:
      The step ``(state, batch) -> (state, metrics)``. Its batch is a pytree of arrays [T, ...]; if
      `window` does not divide T, the last window is shorter, and compiled into the same program. It
      starts from ``state.carry`` and leaves the last carry there, so that the next batch may
      continue the same sequences. Its metrics are those of `train_step`, stacked to [windows];
      ``state.step`` counts updates.

    Raises:
      TypeError, ValueError: an argument is not as described. From the step, when it is traced: the
        arrays of the batch differ in length.
    """
    check_function("train_step", train_step)
    window = check_size("window", window)

    def truncated_step(
        state: TrainState, batch: Any, *, average: Average | None = None
    ) -> tuple[TrainState, Metrics]:
        num_steps = check_time_axis(batch)
        whole = num_steps // window * window
        update = train_step if average is None else functools.partial(train_step, average=average)
        windows = jax.tree.map(
            lambda leaf: leaf[:whole].reshape(-1, window, *leaf.shape[1:]), batch
        )
        parts: list[Metrics] = []
        if whole or not num_steps:  # T = 0: no window, and metrics [0]
            state, metrics = lax.scan(update, state, windows)
            parts.append(metrics)
        if whole < num_steps:
            state, metrics = update(state, jax.tree.map(lambda leaf: leaf[whole:], batch))
            parts.append(jax.tree.map(lambda leaf: leaf[None], metrics))
        return state, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    return truncated_step


def check_time_axis(batch: Any) -> int:
    """T, the length of every array of the batch."""
    lengths = [leaf.shape[:1] for leaf in jax.tree.leaves(batch)]
    if not lengths or len(set(lengths)) > 1 or not lengths[0]:
        got = ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(batch)) or "no array"
        raise ValueError(f"batch has {got}, expected arrays [T, ...] of one length")
    return lengths[0][0]

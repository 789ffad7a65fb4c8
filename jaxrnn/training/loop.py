"""Many training steps: as a pure function, and in a loop on the host."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax import lax

from jaxrnn._checks import check_function, check_size
from jaxrnn._types import Array, Key
from jaxrnn.training.update import Metrics, TrainState, TrainStep, step_keys


class MakeBatch(Protocol):
    """A pure function ``(key, step) -> batch``."""

    def __call__(self, key: Key, step: Array, /) -> Any:
        """The batch of one training step."""


class NonFiniteError(FloatingPointError):
    """`fit` stopped because too many steps in a row were skipped.

    state: the TrainState with the parameters of the last accepted update. history: the metrics of
    every step of this call of `fit`.
    """

    def __init__(self, message: str, state: TrainState, history: Metrics) -> None:
        super().__init__(message)
        self.state, self.history = state, history


def train_steps(
    train_step: TrainStep, state: TrainState, make_batch: MakeBatch, num_steps: int
) -> tuple[TrainState, Metrics]:
    """Take `num_steps` training steps in one scan: a pure function of `state`.

    It runs eagerly and under ``jit``, ``vmap`` (say over seeds and learning rates) and
    ``shard_map``; `fit` is the loop on the host. Two calls with the same functions and `num_steps`
    compile once.

    Args:
      train_step: ``(state, batch) -> (state, metrics)``, as `make_train_step` makes it.
      state: the state to start from; 100 steps and then 100 from the state they return are 200.
      make_batch: a pure function ``(key, step) -> batch``; the data depend on the run's key and the
        step alone.
      num_steps: training steps.

    Returns:
      (state, metrics), the metrics of every step stacked to [num_steps].

    Raises:
      TypeError, ValueError: an argument is not as described.
    """
    _check_arguments(train_step, state, make_batch)
    return _scan_steps(
        train_step, make_batch, check_size("num_steps", num_steps, at_least=0), state
    )


def fit(
    train_step: TrainStep,
    state: TrainState,
    make_batch: MakeBatch,
    num_steps: int,
    *,
    steps_per_call: int = 100,
    max_skipped: int | None = 20,
    callback: Callable[[TrainState, Metrics], None] | None = None,
) -> tuple[TrainState, Metrics]:
    """Take `num_steps` training steps, in a loop on the host over compiled calls of `train_steps`.

    Args:
      train_step, state, make_batch, num_steps: as for `train_steps`. Functions are compiled once
        each: a lambda or a step that is made anew for every call compiles anew.
      steps_per_call: training steps per compiled call; the last call may have fewer.
      max_skipped: training stops if a compiled call ends with this many skipped steps in a row (of
        networks trained side by side, steps that every network skipped). None: never.
      callback: called after every compiled call with the state and the metrics of its steps as
        NumPy arrays: for progress, for saving, or to stop by raising.

    Returns:
      (state, history), the metrics of every step stacked to [num_steps], as NumPy arrays.

    Raises:
      NonFiniteError: `max_skipped` was reached; the error holds the last good state.
      TypeError, ValueError: an argument is not as described, or is traced by ``jit`` or ``vmap``.
    """
    _check_arguments(train_step, state, make_batch)
    num_steps = check_size("num_steps", num_steps, at_least=0)
    steps_per_call = check_size("steps_per_call", steps_per_call)
    if max_skipped is not None:
        max_skipped = check_size("max_skipped", max_skipped)
    if callback is not None:
        check_function("callback", callback)
    _check_concrete(state)
    history: list[Metrics] = []
    in_a_row = 0
    for start in range(0, max(num_steps, 1), steps_per_call):  # no steps: one empty call
        size = min(steps_per_call, num_steps - start)
        state, metrics = _scan_steps(train_step, make_batch, size, state)
        _check_concrete((state, metrics))  # traced if `train_step` closes over a traced array
        history.append(jax.tree.map(np.asarray, metrics))
        if callback is not None and size:
            callback(state, history[-1])
        in_a_row = _count_skipped(history[-1], in_a_row)
        if max_skipped is not None and in_a_row >= max_skipped:
            raise _too_many_skipped(in_a_row, state, history)
    return state, _concatenate(history)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _scan_steps(
    train_step: TrainStep, make_batch: MakeBatch, num_steps: int, state: TrainState
) -> tuple[TrainState, Metrics]:
    def body(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        return train_step(state, make_batch(step_keys(state)[0], state.step))

    return lax.scan(body, state, length=num_steps)


def _check_arguments(train_step: Any, state: Any, make_batch: Any) -> None:
    check_function("train_step", train_step)
    if not isinstance(state, TrainState):
        raise TypeError(f"state is a {type(state).__name__}, expected a TrainState")
    check_function("make_batch", make_batch)


def _check_concrete(tree: Any) -> None:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(
            "state is traced by a JAX transformation, expected concrete arrays: fit is a loop on "
            "the host; under jit, vmap and shard_map call train_steps"
        )


def _count_skipped(metrics: Metrics, before: int) -> int:
    """The number of steps in a row, up to the last of `metrics` [steps, ...], that updated nothing;
    `before` of them precede its first."""
    if "skipped" not in metrics:  # a step of the caller's own
        return 0
    skipped = np.asarray(metrics["skipped"])
    others = tuple(range(1, skipped.ndim))  # networks, and windows of a step
    updated = np.flatnonzero(~(skipped.all(axis=others) & skipped.any(axis=others)))
    return len(skipped) - 1 - int(updated[-1]) if updated.size else before + len(skipped)


def _too_many_skipped(in_a_row: int, state: TrainState, history: list[Metrics]) -> NonFiniteError:
    message = (
        f"the last {in_a_row} steps were skipped because their loss, gradient or update was not "
        "finite; this error's state has the parameters of the last good update (see max_skipped)"
    )
    return NonFiniteError(message, state, _concatenate(history))


def _concatenate(history: list[Metrics]) -> Metrics:
    return jax.tree.map(lambda *parts: np.concatenate(parts), *history)

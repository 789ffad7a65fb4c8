"""Training as a pure function: a state, a step, and a loop compiled many steps at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxrnn._checks import (
    check_function,
    check_key,
    check_positive,
    check_size,
)
from jaxrnn._types import Array, Key, Params
from jaxrnn.training.update import (
    LossFn,
    Metrics,
    TrainState,
    TrainStep,
    WindowLossFn,
    check_optimizer,
    make_update,
    over_windows,
    step_keys,
    with_carry,
    without_carry,
)

__all__ = [
    "MakeBatch",
    "NonFiniteError",
    "TrainStep",
    "clip_by_global_norm",
    "fit",
    "init_train_state",
    "make_train_step",
    "make_truncated_train_step",
]

MakeBatch = Callable[[Key, Array], Any]


class NonFiniteError(FloatingPointError):
    """Training stopped, because too many steps in a row were skipped.

    state: the TrainState with the parameters of the last update that was taken. history: the
    metrics of every step of this call of `fit`.
    """

    def __init__(self, message: str, state: TrainState, history: Metrics) -> None:
        super().__init__(message)
        self.state, self.history = state, history


def init_train_state(
    params: Params, optimizer: optax.GradientTransformation, key: Key, *, carry: Any = None
) -> TrainState:
    """The state before the first step; `carry` is for `make_truncated_train_step`.

    Raises:
      TypeError, ValueError: `optimizer` is not an optax transformation, `key` not a random key.
    """
    check_optimizer(optimizer)
    check_key("key", key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key, carry)


def make_train_step(loss_fn: LossFn, optimizer: optax.GradientTransformation) -> TrainStep:
    """A pure training step ``(state, batch) -> (state, metrics)``.

    Args:
      loss_fn: ``(params, batch, key) -> (loss, metrics)`` with a scalar loss and a dict of metrics.
      optimizer: any optax transformation; clipping and schedules are part of it.

    Returns:
      The step. Its metrics are those of `loss_fn` and ``loss``; ``grad_norm``, the global norm of
      the gradient before the optimizer; and ``skipped``, whether the update was left out. That is
      where the loss or the gradient is not finite, or the update would make an entry of the
      parameters or of the optimizer's state so that was finite before: then parameters,
      optimizer's state and carry stay as they were, and only ``state.step`` goes on.
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn is {loss_fn!r}, expected a function of (params, batch, key)")
    return make_update(without_carry(loss_fn), optimizer)


def make_truncated_train_step(
    loss_fn: WindowLossFn, optimizer: optax.GradientTransformation, window: int
) -> TrainStep:
    """A training step by truncated back-propagation through time, ``(state, batch) -> (state,
    metrics)``: one update a window of `window` steps, the recurrent state carried from each window
    to the next and the gradient cut between them (Williams & Peng 1990, BPTT(h; h') with h = h').

    Args:
      loss_fn: ``(params, carry, batch, key) -> (loss, (carry, metrics))`` of one window, with the
        carry of the same structure, shapes and dtypes as it was given: say the state that
        ``layer.unroll(params, carry, xs)`` takes and returns. Marks of `resets` in the batch begin
        new sequences.
      optimizer: as for `make_train_step`.
      window: the most steps of one window.

    Returns:
      The step. Its batch is a pytree of time-major arrays [T, ...]; what T leaves over after whole
      windows is one shorter window, compiled with the others in one program. It starts from
      ``state.carry`` (`init_train_state` takes the first) and leaves the last there, so that the
      next batch may go on with the same streams. Its metrics are [windows], those of
      `make_train_step`. ``state.step`` counts updates. A window of T or more steps is plain
      back-propagation through time.
    """
    window = check_size("window", window)
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn is {loss_fn!r}, expected a function of (params, carry, batch, key)"
        )
    return over_windows(make_update(with_carry(loss_fn), optimizer), window)


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
    """Take `num_steps` training steps, many in one compiled call.

    Args:
      train_step: as `make_train_step` makes it. Two calls of `fit` with the same `train_step` and
        `make_batch` compile once.
      state: where to start; running 100 steps and then 100 from the state they return is running
        200.
      make_batch: a pure function ``(key, step) -> batch``, traced into the compiled call. The data
        follow from the run's key and the step alone.
      num_steps: steps to take. steps_per_call: steps in one compiled call; the last may be shorter.
      max_skipped: training stops once a compiled call ends with so many steps in a row skipped (of
        networks trained side by side, by every one). None: never.
      callback: called between compiled calls with the state and the metrics [steps] of the steps
        just taken, as NumPy arrays: for progress, saving, or stopping by raising.

    Returns:
      (state, history), the metrics of every step stacked to [num_steps].

    Raises:
      NonFiniteError: `max_skipped` was reached; it holds the last good state.
      TypeError, ValueError: an argument is not as described.

    Under ``jit`` or ``vmap`` (say over keys and learning rates) all steps are one loop; there is no
    callback, and no end before the last step.
    """
    num_steps = check_size("num_steps", num_steps, at_least=0)
    steps_per_call = check_size("steps_per_call", steps_per_call)
    if not isinstance(state, TrainState):
        raise TypeError(f"state is a {type(state).__name__}, expected a TrainState")
    check_function("train_step", train_step)
    check_function("make_batch", make_batch)
    if max_skipped is not None:
        max_skipped = check_size("max_skipped", max_skipped)
    if callback is not None:
        check_function("callback", callback)
    if _is_traced(state):
        _refuse_callback(callback)
        steps_per_call = max(num_steps, 1)
    history: list[Metrics] = []
    in_a_row = 0
    for start in range(0, max(num_steps, 1), steps_per_call):  # no steps: one empty call
        size = min(steps_per_call, num_steps - start)
        state, metrics = _take_steps(train_step, make_batch, size, state)
        if not _is_traced((state, metrics)):
            metrics = jax.tree.map(np.asarray, metrics)
        else:  # a closure is traced, and the state from now on
            _refuse_callback(callback)
        history.append(metrics)
        if callback is not None and size:
            callback(state, metrics)
        if not _is_traced(metrics):
            in_a_row = _count_skipped(metrics, in_a_row)
            if max_skipped is not None and in_a_row >= max_skipped:
                raise _too_many_skipped(in_a_row, state, history)
    return state, _concatenate(history)


def clip_by_global_norm(max_norm: float | Array) -> optax.GradientTransformation:
    """Scale the gradient down to a global norm of `max_norm` where it is larger.

    As ``optax.clip_by_global_norm``, which squares the gradient as it stands: where that overflows
    (an entry of 1e20 in float32) it makes the update zero, and where it underflows it sees no norm.
    Here the largest entry is divided out first. A gradient that is not finite stays so; the train
    step leaves it out.

    Source: Pascanu, Mikolov & Bengio 2013, "On the difficulty of training recurrent neural
    networks", algorithm 1.
    """
    max_norm = check_positive("max_norm", max_norm)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        leaves = jax.tree.leaves(updates)
        dtype = functools.reduce(jnp.promote_types, [leaf.dtype for leaf in leaves], jnp.float32)
        sizes = [jnp.max(jnp.abs(leaf), initial=0).astype(dtype) for leaf in leaves]
        largest = functools.reduce(jnp.maximum, sizes, jnp.zeros((), dtype))
        # XLA multiplies by 1 / unit, which is not to be subnormal.
        most = jnp.finfo(dtype).max.astype(dtype) / 8
        unit = jnp.where(largest == 0, jnp.ones_like(largest), jnp.minimum(largest, most))
        squares = [jnp.sum(jnp.square(leaf.astype(dtype) / unit)) for leaf in leaves]
        norm = jnp.sqrt(sum(squares, start=jnp.zeros((), dtype)))  # at least 1 where not all are 0
        factor = jnp.minimum(jnp.asarray(max_norm, dtype) / norm, unit)

        def scale(leaf: Array) -> Array:
            return (leaf.astype(dtype) / unit * factor).astype(leaf.dtype)

        return jax.tree.map(scale, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _take_steps(
    train_step: TrainStep, make_batch: MakeBatch, num_steps: int, state: TrainState
) -> tuple[TrainState, Metrics]:
    def body(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        key_data = step_keys(state)[0]
        return train_step(state, make_batch(key_data, state.step))

    return lax.scan(body, state, length=num_steps)


def _count_skipped(metrics: Metrics, before: int) -> int:
    """The steps in a row, up to the last of `metrics` [steps, ...], that updated nothing; `before`
    are those up to its first."""
    if "skipped" not in metrics:  # a step of the caller's own
        return 0
    skipped = np.asarray(metrics["skipped"])
    others = tuple(range(1, skipped.ndim))  # networks, and windows of a step, if there are any
    updated = np.flatnonzero(~(skipped.all(axis=others) & skipped.any(axis=others)))
    return len(skipped) - 1 - int(updated[-1]) if updated.size else before + len(skipped)


def _too_many_skipped(in_a_row: int, state: TrainState, history: list[Metrics]) -> NonFiniteError:
    message = (
        f"the last {in_a_row} steps were skipped, their loss, gradient or update not being finite; "
        "the parameters of the last good update are in this error's state (see max_skipped)"
    )
    return NonFiniteError(message, state, _concatenate(history))


def _concatenate(history: list[Metrics]) -> Metrics:
    concatenate: Any = jnp.concatenate if _is_traced(history) else np.concatenate
    return jax.tree.map(lambda *parts: concatenate(parts), *history)


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _refuse_callback(callback: Any) -> None:
    if callback is not None:
        raise ValueError("callback is given under a JAX transformation, expected None")

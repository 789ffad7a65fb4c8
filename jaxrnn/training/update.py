"""One update of a training state, and what keeps a step that went wrong from harming it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrnn._checks import check_floating, check_shape
from jaxrnn._types import Array, Key, Params

Metrics = dict[str, Array]
LossFn = Callable[[Params, Any, Key], tuple[Array, Metrics]]
WindowLossFn = Callable[[Params, Any, Any, Key], tuple[Array, tuple[Any, Metrics]]]
TrainStep = Callable[["TrainState", Any], tuple["TrainState", Metrics]]


class TrainState(NamedTuple):
    """All that the next training step depends on.

    step: int32 scalar, the number of steps, skipped ones too. params: the caller's pytree.
    opt_state: optax's. key: the run's random key; it never changes, and each step folds its number
    into it, so that a run resumed from a saved state repeats what it would have done.
    carry: what truncated back-propagation takes from window to window, the recurrent states.
    """

    step: Array
    params: Params
    opt_state: optax.OptState
    key: Key
    carry: Any = None


def make_update(
    loss_fn: WindowLossFn,
    optimizer: optax.GradientTransformation,
    average: Callable[[Any, Any], Any] | None = None,
) -> TrainStep:
    """One update of the parameters. `average` is what devices that share it make of ``((loss,
    metrics, gradients), batch)``, each with its part of the batch."""
    check_optimizer(optimizer)
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key_loss = step_keys(state)[1]
        (loss, (carry, metrics)), grads = value_and_grad(state.params, state.carry, batch, key_loss)
        if average is not None:
            loss, metrics, grads = average((loss, metrics, grads), batch)
        return update_or_skip(optimizer, state, loss, grads, carry, metrics)

    return update


def without_carry(loss_fn: LossFn) -> WindowLossFn:
    """`loss_fn` as a loss that hands its carry on as it is, with its result checked."""

    def loss_of_window(
        params: Params, carry: Any, batch: Any, key: Key
    ) -> tuple[Array, tuple[Any, Metrics]]:
        result = loss_fn(params, batch, key)
        check_loss(result)
        loss, metrics = result
        return loss, (carry, metrics)

    return loss_of_window


def with_carry(loss_fn: WindowLossFn) -> WindowLossFn:
    """`loss_fn` with its result checked."""

    def loss_of_window(
        params: Params, carry: Any, batch: Any, key: Key
    ) -> tuple[Array, tuple[Any, Metrics]]:
        result = loss_fn(params, carry, batch, key)
        _check_window_loss(result, carry)
        return result

    return loss_of_window


def over_windows(update: TrainStep, window: int) -> TrainStep:
    """The step that takes `update` once for each window of a batch [T, ...]."""

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        num_steps = check_time_axis(batch)
        whole = num_steps // window * window
        windows = jax.tree.map(
            lambda leaf: leaf[:whole].reshape(-1, window, *leaf.shape[1:]), batch
        )
        parts: list[Metrics] = []
        if whole or not num_steps:  # of no steps at all, no window
            state, metrics = lax.scan(update, state, windows)
            parts.append(metrics)
        if whole < num_steps:
            state, metrics = update(state, jax.tree.map(lambda leaf: leaf[whole:], batch))
            parts.append(jax.tree.map(lambda leaf: leaf[None], metrics))
        return state, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    return train_step


def update_or_skip(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    loss: Array,
    grads: Any,
    carry: Any,
    metrics: Metrics,
) -> tuple[TrainState, Metrics]:
    """The state after one update, and the metrics with loss, grad_norm and skipped.

    The update is skipped, and all but the number of steps stays as it was, where the loss or an
    entry of the gradient is not finite, or where an entry of the parameters or the optimizer's
    state that was finite would not be after it. The last is what a gradient of 1e30 does to Adam:
    its square overflows, and holds that entry still for good.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    own, updated_own = (state.params, state.opt_state), (params, opt_state)
    finite = jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), (loss, grads))
    unharmed = jax.tree.map(_stays_finite, own, updated_own)
    taken = jnp.all(jnp.stack(jax.tree.leaves((finite, unharmed))))
    before, after = (*own, state.carry), (*updated_own, carry)
    params, opt_state, carry = jax.tree.map(
        lambda old, new: jnp.where(taken, new, old), before, after
    )
    metrics = {**metrics, "loss": loss, "grad_norm": optax.tree.norm(grads), "skipped": ~taken}
    return TrainState(state.step + 1, params, opt_state, state.key, carry), metrics


def _stays_finite(old: Array, new: Array) -> Array:
    if not jnp.issubdtype(jnp.result_type(new), jnp.inexact):
        return jnp.ones((), bool)
    return jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old))


def step_keys(state: TrainState) -> tuple[Key, Key]:
    """The keys of this step: one for the data, one for the loss."""
    first, second = jax.random.split(jax.random.fold_in(state.key, state.step))
    return first, second


def check_loss(result: Any) -> None:
    """Refuse what is not a scalar floating-point loss with a dict of metrics of other names than
    those that the step adds."""
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        kinds = result if isinstance(result, tuple) else (result,)
        got = ", ".join(type(part).__name__ for part in kinds)
        raise TypeError(f"loss_fn returns ({got}), expected (loss, dict of metrics)")
    taken = [name for name in ("loss", "grad_norm", "skipped") if name in result[1]]
    if taken:
        raise ValueError(
            f"loss_fn returns the metrics {taken}, expected other names than the step's"
        )
    loss = jnp.asarray(result[0])
    check_shape("loss", loss, ())
    check_floating("loss", loss)


def check_optimizer(optimizer: Any) -> None:
    """Refuse what is not an optax transformation."""
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}, expected an optax.GradientTransformation"
        )


def _check_window_loss(result: Any, carry: Any) -> None:
    if not isinstance(result, tuple) or len(result) != 2:
        kind = type(result).__name__
        raise TypeError(f"loss_fn returns a {kind}, expected (loss, (carry, dict of metrics))")
    loss, aux = result
    if not isinstance(aux, tuple) or len(aux) != 2:
        kind = type(aux).__name__
        raise TypeError(f"loss_fn returns (loss, {kind}), expected (loss, (carry, metrics))")
    check_loss((loss, aux[1]))
    before, after = (_describe_arrays(tree) for tree in (carry, aux[0]))
    if before != after:
        raise ValueError(f"loss_fn returns the carry {after}, expected as it was given, {before}")


def _describe_arrays(tree: Any) -> str:
    return str(jax.tree.map(lambda leaf: jax.typeof(leaf).str_short(), tree))


def check_time_axis(batch: Any) -> int:
    """T, the length of every array of the batch."""
    lengths = [leaf.shape[:1] for leaf in jax.tree.leaves(batch)]
    if not lengths or len(set(lengths)) > 1 or not lengths[0]:
        got = ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(batch)) or "no array"
        raise ValueError(f"batch has {got}, expected arrays [T, ...] of one length")
    return lengths[0][0]

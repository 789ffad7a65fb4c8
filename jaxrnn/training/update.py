"""One update of a training state, which a loss or gradient that is not finite cannot harm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from jaxrnn._checks import check_flag, check_floating, check_function, check_key, check_shape
from jaxrnn._types import Array, Key, Params

Metrics = dict[str, Array]
LossFn = Callable[[Params, Any, Key], tuple[Array, Metrics]]
CarryLossFn = Callable[[Params, Any, Any, Key], tuple[Array, tuple[Any, Metrics]]]
Average = Callable[[Any, Any], Any]
"""``((loss, metrics, gradients), batch)`` of one device to the average over all devices."""


class TrainState(NamedTuple):
    """Everything that the next training step depends on.

    step: int32 scalar, the number of steps so far, skipped ones included. params: the caller's
    pytree. opt_state: the optimizer's. key: the run's random key; it never changes, and each step
    folds its number into it, so that a run resumed from a saved state repeats what it would have
    done. carry: what the loss hands from step to step, such as recurrent states, or None.
    """

    step: Array
    params: Params
    opt_state: Any
    key: Key
    carry: Any = None


class TrainStep(Protocol):
    """``(state, batch) -> (state, metrics)``; see `make_train_step`."""

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[TrainState, Metrics]:
        """The state and the metrics after one step."""


def init_train_state(
    params: Params, optimizer: optax.GradientTransformation, key: Key, *, carry: Any = None
) -> TrainState:
    """The state before the first step; `carry` is for ``make_train_step(..., has_carry=True)``.

    Raises:
      TypeError, ValueError: `optimizer` is not an optax transformation, `key` not a random key.
    """
    _check_optimizer(optimizer)
    check_key("key", key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key, carry)


def make_train_step(
    loss_fn: LossFn | CarryLossFn,
    optimizer: optax.GradientTransformation,
    *,
    has_carry: bool = False,
) -> TrainStep:
    """A pure training step ``(state, batch) -> (state, metrics)``.

    Args:
      loss_fn: ``(params, batch, key) -> (loss, metrics)`` with a scalar loss and a dict of metrics.
      optimizer: any optax transformation; clipping and schedules are part of it.
      has_carry: if True, `loss_fn` is ``(params, carry, batch, key) -> (loss, (carry, metrics))``.
        It is given ``state.carry``, through which no gradient flows, and returns the next one with
        the same structure, shapes and dtypes: say the state that
        ``layer.unroll(params, carry, xs)`` reads and returns.

    Returns:
      The step ``(state, batch, *, average=None) -> (state, metrics)``. Its metrics are those of
      `loss_fn` and
        ``loss``;
        ``grad_norm``: the global norm of the gradient before the optimizer;
        ``skipped``: True if the update was rejected, because the loss or a gradient was not finite
        or because it would have made a finite parameter or optimizer entry non-finite. A rejected
        update changes nothing but ``state.step``.
      ``average((loss, metrics, gradients), batch)`` is how devices that share the step combine
      theirs (`jaxrnn.sharding.shard_train_step`).

    Raises:
      TypeError, ValueError: an argument is not as described. From the step, when it is traced: the
        result of `loss_fn` is not.
    """
    check_function("loss_fn", loss_fn)
    _check_optimizer(optimizer)
    check_flag("has_carry", has_carry)

    def loss_of(params: Params, carry: Any, batch: Any, key: Key) -> Any:
        fn: Any = loss_fn
        if has_carry:
            result = fn(params, carry, batch, key)
            _check_carry_loss(result, carry)
            return result
        result = fn(params, batch, key)
        _check_loss(result)
        loss, metrics = result
        return loss, (carry, metrics)

    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

    def train_step(
        state: TrainState, batch: Any, *, average: Average | None = None
    ) -> tuple[TrainState, Metrics]:
        _, key_loss = step_keys(state)
        (loss, (carry, metrics)), grads = value_and_grad(state.params, state.carry, batch, key_loss)
        if average is not None:
            loss, metrics, grads = average((loss, metrics, grads), batch)
        return _update_or_skip(optimizer, state, loss, grads, carry, metrics)

    return train_step


def step_keys(state: TrainState) -> tuple[Key, Key]:
    """The keys of this step: one for the batch, one for the loss."""
    key_batch, key_loss = jax.random.split(jax.random.fold_in(state.key, state.step))
    return key_batch, key_loss


def _update_or_skip(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    loss: Array,
    grads: Any,
    carry: Any,
    metrics: Metrics,
) -> tuple[TrainState, Metrics]:
    """The state after one update, or with its step alone increased, and all metrics.

    An update that makes a finite entry of the parameters or of the optimizer's state non-finite is
    rejected even if the gradient is finite: the square of a gradient of 1e30 overflows in Adam, and
    that parameter would never move again.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    before, after = (state.params, state.opt_state), (params, opt_state)
    harmed = [~jnp.isfinite(leaf) for leaf in jax.tree.leaves((loss, grads))]
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    harmed += [jnp.isfinite(old) & ~jnp.isfinite(new) for old, new in pairs if _is_inexact(new)]
    accepted = ~_any(harmed)
    params, opt_state, carry = jax.tree.map(
        lambda old, new: jnp.where(accepted, new, old), (*before, state.carry), (*after, carry)
    )
    metrics = {**metrics, "loss": loss, "grad_norm": optax.tree.norm(grads), "skipped": ~accepted}
    return TrainState(state.step + 1, params, opt_state, state.key, carry), metrics


def _is_inexact(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def _any(masks: list[Array]) -> Array:
    """Whether any entry of any mask is True; masks of one kind are reduced together, since each
    reduction takes time to compile."""
    kinds: dict[Any, Array] = {}
    for mask in masks:
        kind = jax.typeof(mask)
        kinds[kind] = kinds[kind] | mask if kind in kinds else mask
    return jnp.any(jnp.stack([jnp.any(mask) for mask in kinds.values()]))


def _check_optimizer(optimizer: Any) -> None:
    """Refuse what is not an optax transformation."""
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}, expected an optax.GradientTransformation"
        )


def _check_loss(result: Any) -> None:
    """Refuse all but a scalar floating-point loss and a dict of metrics whose names are not those
    that the step adds."""
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        kinds = result if isinstance(result, tuple) else (result,)
        got = ", ".join(type(part).__name__ for part in kinds)
        raise TypeError(f"loss_fn returns ({got}), expected (loss, dict of metrics)")
    reserved = [name for name in ("loss", "grad_norm", "skipped") if name in result[1]]
    if reserved:
        raise ValueError(
            f"loss_fn returns the metrics {reserved}, expected other names than the step's"
        )
    loss = jnp.asarray(result[0])
    check_shape("loss", loss, ())
    check_floating("loss", loss)


def _check_carry_loss(result: Any, carry: Any) -> None:
    """Refuse all but (loss, (carry, metrics)) with a carry like the one given."""
    if not isinstance(result, tuple) or len(result) != 2:
        kind = type(result).__name__
        raise TypeError(f"loss_fn returns a {kind}, expected (loss, (carry, dict of metrics))")
    loss, aux = result
    if not isinstance(aux, tuple) or len(aux) != 2:
        kind = type(aux).__name__
        raise TypeError(f"loss_fn returns (loss, {kind}), expected (loss, (carry, metrics))")
    _check_loss((loss, aux[1]))
    before, after = (_describe_arrays(tree) for tree in (carry, aux[0]))
    if before != after:
        raise ValueError(f"loss_fn returns the carry {after}, expected as it was given, {before}")


def _describe_arrays(tree: Any) -> str:
    return str(jax.tree.map(lambda leaf: jax.typeof(leaf).str_short(), tree))

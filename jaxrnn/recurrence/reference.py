"""The definition of `unroll`: a plain scan of the step, with its mask and resets."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._checks import check_activation, check_flag, check_inputs, check_key, check_mask
from jaxrnn._types import Activation, Array, Key
from jaxrnn.cell import advance
from jaxrnn.params import Cell, RNNParams, cast_call, check_params, initial_unit_state, match_batch


class Steps(NamedTuple):
    """Consecutive time steps: xs [T, *B, D]; mask and resets [T, *B] or None; keys [T] of the
    noise, or None."""

    xs: Array
    mask: Array | None
    resets: Array | None
    keys: Array | None = None


def unroll_plain(
    params: RNNParams,
    h0: Array | None,
    xs: Array,
    *,
    activation: Activation = jnp.tanh,
    mask: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
    leak: float | Array | None = None,
    noise: float | Array | None = None,
    key: Key | None = None,
) -> tuple[Array, Array]:
    """The definition of `unroll`: ``lax.scan`` of `step`, differentiated by plain autodiff.

    Slower, and the reference that `unroll` must equal. Arguments and results are those of `unroll`.
    """
    options: Any = {"leak": leak, "noise": noise, "key": key}
    cell, h0, steps = prepare_unroll(params, h0, xs, mask, resets, activation, reverse, **options)
    initial = lax.broadcast_like(initial_unit_state(cell), h0)

    def body(h: Array, now: Steps) -> tuple[Array, Array]:
        before = restart(now.resets, initial, h)
        h_new = advance(cell, before, now.xs, activation, now.keys)
        return where_unmasked(now.mask, h_new, h), zero_masked(now.mask, h_new)

    return lax.scan(body, h0, steps, reverse=reverse)


def prepare_unroll(
    params: Any,
    h0: Any,
    xs: Any,
    mask: Any,
    resets: Any,
    activation: Any,
    reverse: Any,
    *,
    leak: Any = None,
    noise: Any = None,
    key: Any = None,
    parallel: Any = None,
) -> tuple[Cell, Array, Steps]:
    """The arguments of `unroll`, checked: arrays of one dtype, zero inputs where masked, the
    resets as `find_restarts` makes them, and a key for each step if there is noise to draw."""
    check_activation(activation)
    check_flag("reverse", reverse)
    params = check_params(params)
    xs = check_inputs("xs", xs, params.w_ih.shape[1], "[T, *B, D]")
    mask = check_mask("mask", mask, xs.shape[:-1])
    resets = check_mask("resets", resets, xs.shape[:-1])
    if key is not None:
        check_key("key", key)
    extras: Any = {"leak": leak, "noise": noise, "key": key}
    cell, h0, xs = cast_call(params, h0, xs, xs.shape[1:-1], activation, name="h0", **extras)
    h0 = match_batch(h0, xs, 1, xs.ndim - 2, (mask, resets))
    xs = zero_masked(mask, xs)
    return cell, h0, make_steps(cell, xs, mask, resets, reverse, key, parallel)


def make_steps(
    cell: Cell,
    xs: Array,
    mask: Array | None,
    resets: Array | None,
    reverse: bool,
    key: Key | None,
    parallel: Any = None,
) -> Steps:
    """The steps of checked inputs, with a key for the noise of each, if there is any. `parallel`
    may split time over devices, each of which has a part of the steps."""
    keys = None
    axis_name = None if parallel is None else parallel.axis_name
    if key is not None and cell.noise is not None:
        devices = 1 if axis_name is None else lax.axis_size(axis_name)
        keys = jax.random.split(key, devices * xs.shape[0])
        if axis_name is not None:
            here = lax.axis_index(axis_name)
            keys = keys.reshape(devices, xs.shape[0], *keys.shape[1:])[here]
    return Steps(xs, mask, find_restarts(resets, mask, reverse), keys)


def select(condition: Array, yes: Any, no: Any) -> Any:
    """`yes` where `condition` [*B] is True, else `no`: pytrees whose leaves begin with the axes *B.

    By selection, so that NaN in what is not selected does not survive."""

    def choose(yes: Array, no: Array) -> Array:
        axes = range(condition.ndim, no.ndim)
        return jnp.where(lax.expand_dims(condition, axes), lax.broadcast_like(yes, no), no)

    return jax.tree.map(choose, yes, no)


def where_unmasked(mask: Array | None, new: Any, old: Any) -> Any:
    """`new`, but `old` where `mask` [*B] is False."""
    return new if mask is None else select(mask, new, old)


def zero_masked(mask: Array | None, values: Any) -> Any:
    """`values`, but zeros where `mask` [*B] is False, so that no NaN there is read."""
    return values if mask is None else select(mask, values, jax.tree.map(jnp.zeros_like, values))


def restart(restarts: Array | None, initial: Any, state: Any) -> Any:
    """`state`, but the `initial` state where `restarts` [*B] is True."""
    return state if restarts is None else select(restarts, initial, state)


def find_restarts(resets: Array | None, mask: Array | None, reverse: bool) -> Array | None:
    """The steps [T, *B] before which the state becomes the initial state.

    Forward these are the unmasked steps with a reset. In reverse it is the last unmasked step of
    the preceding segment: the one whose next unmasked step has a reset."""
    if resets is None:
        return None
    unmasked = jnp.ones_like(resets) if mask is None else mask
    resets = resets & unmasked
    if not reverse or resets.shape[0] == 0:
        return resets

    def body(next_reset: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        reset, is_unmasked = now
        return jnp.where(is_unmasked, reset, next_reset), next_reset

    _, next_reset = lax.scan(body, jnp.zeros_like(resets[0]), (resets, unmasked), reverse=True)
    return next_reset & unmasked

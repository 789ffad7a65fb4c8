"""The layers that treat every step alike: dense, embedding, dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._checks import (
    as_array,
    check_batch_shape,
    check_bool,
    check_empty,
    check_floating,
    check_floating_dtype,
    check_fraction,
    check_key,
    check_shape,
    check_size,
    check_tokens,
)
from jaxrnn._products import product
from jaxrnn._types import Array, Initializer, Key, Params, Shape, State
from jaxrnn.cell import initialize
from jaxrnn.layers.contract import Layer, check_inputs, check_marked_inputs, select


class DenseParams(NamedTuple):
    """Parameters of a dense layer: w [O, D], b [O] or None."""

    w: Array
    b: Array | None = None


class DropoutState(NamedTuple):
    """The units that dropout shared over time keeps: keep [*B, D] and drawn [*B], both bool."""

    keep: Array
    drawn: Array


def dense(
    input_size: int,
    output_size: int,
    *,
    w_init: Initializer | None = None,
    use_bias: bool = True,
    dtype: Any = jnp.float32,
) -> Layer:
    """An affine map at every step, ``y_t = w x_t + b``.

    `w_init` is an initializer from ``jax.nn.initializers``, called with ``(D, O)``; the default has
    variance 1/D. Parameters: `DenseParams`. State: ().
    """
    input_size = check_size("input_size", input_size)
    output_size = check_size("output_size", output_size)
    dtype = check_floating_dtype("dtype", dtype)
    w_init = jax.nn.initializers.lecun_normal() if w_init is None else w_init

    def init(key: Key) -> DenseParams:
        check_key("key", key)
        w = initialize("w_init", w_init, key, (input_size, output_size), dtype)
        return DenseParams(w.T, jnp.zeros((output_size,), dtype) if use_bias else None)

    def apply(params: DenseParams, xs: Array, key: Key | None) -> Array:
        del key
        if not isinstance(params, DenseParams):
            raise TypeError(f"params is a {type(params).__name__}, expected DenseParams")
        w = as_array("params.w", params.w)
        check_floating("params.w", w)
        check_shape("params.w", w, (output_size, input_size))
        b = None if params.b is None else as_array("params.b", params.b)
        if b is not None:
            check_floating("params.b", b)
            check_shape("params.b", b, (output_size,))
        kept = jnp.result_type(w, xs) if jnp.issubdtype(xs.dtype, jnp.floating) else w.dtype
        ys = product(xs.astype(kept), w.astype(kept))
        if b is not None:
            ys = ys + jnp.broadcast_to(b.astype(ys.dtype), ys.shape)
        return ys.astype(kept)

    return _pointwise(input_size, output_size, init, apply)


def embedding(
    num_tokens: int,
    output_size: int,
    *,
    w_init: Initializer | None = None,
    dtype: Any = jnp.float32,
) -> Layer:
    """A vector for every token: the layer that reads integers, xs [T, *B].

    A token outside 0 ... num_tokens - 1 gives NaN, since a compiled program cannot raise. `w_init`
    is called with ``(num_tokens, output_size)``; the default is standard normal, as torch has it.
    Parameters: the table [num_tokens, output_size]. State: ().
    """
    num_tokens = check_size("num_tokens", num_tokens)
    output_size = check_size("output_size", output_size)
    dtype = check_floating_dtype("dtype", dtype)
    w_init = jax.nn.initializers.normal(1.0) if w_init is None else w_init

    def init(key: Key) -> Array:
        check_key("key", key)
        return initialize("w_init", w_init, key, (num_tokens, output_size), dtype)

    def apply(params: Array, xs: Array, key: Key | None) -> Array:
        del key
        table = as_array("params", params)
        check_floating("params", table)
        check_shape("params", table, (num_tokens, output_size))
        xs = xs if xs.dtype.itemsize >= 4 else xs.astype(jnp.int32)  # to hold num_tokens
        positions = jnp.where(xs < 0, num_tokens, xs)  # a negative index would count from the end
        return jnp.take(table, positions, axis=0, mode="fill", fill_value=jnp.nan)

    return _pointwise(num_tokens, output_size, init, apply, tokens=True)


def dropout(size: int, rate: float | Array, *, shared_over_time: bool = False) -> Layer:
    """Set features to zero with probability `rate` and scale the others by 1 / (1 - rate).

    It acts only where `unroll` is given a key. `rate` may be a traced scalar. With
    `shared_over_time` a sequence keeps the same units at all its steps, resets or not, and the
    state carries them, so that pieces of a sequence keep them too (Gal & Ghahramani 2016, "A
    theoretically grounded application of dropout in recurrent neural networks"). Parameters: ().
    State: (), or `DropoutState`.
    """
    size = check_size("size", size)
    rate = check_fraction("rate", rate)

    def init(key: Key) -> tuple[()]:
        del key
        return ()

    def drop(keep: Array, xs: Array) -> Array:
        return jnp.where(keep, xs / jnp.asarray(1 - rate, xs.dtype), jnp.zeros_like(xs))

    def apply(params: tuple[()], xs: Array, key: Key | None) -> Array:
        check_empty("params", params)
        check_floating("xs", xs)
        if key is not None:
            check_key("key", key)
        return xs if key is None else drop(jax.random.bernoulli(key, 1 - rate, xs.shape), xs)

    each_step = _pointwise(size, size, init, apply)
    if not shared_over_time:
        return each_step

    def initial_state(params: tuple[()], batch_shape: Shape = ()) -> DropoutState:
        del params
        check_batch_shape(batch_shape)
        return DropoutState(jnp.ones((*batch_shape, size), bool), jnp.zeros(batch_shape, bool))

    def layer_step(
        params: tuple[()], state: DropoutState | None, x: Array
    ) -> tuple[DropoutState, Array]:
        _, y = each_step.step(params, None, x)
        return initial_state(params, y.shape[:-1]) if state is None else state, y

    def layer_unroll(
        params: tuple[()],
        state: DropoutState | None,
        xs: Array,
        *,
        mask: Array | None = None,
        resets: Array | None = None,
        reverse: bool = False,
        key: Key | None = None,
    ) -> tuple[DropoutState, Array]:
        if key is not None:
            check_key("key", key)
        _, ys = each_step.unroll(params, None, xs, mask=mask, resets=resets, reverse=reverse)
        state = initial_state(params, ys.shape[1:-1]) if state is None else state
        state = _check_dropout_state(state, ys.shape[1:])
        if key is None:
            return state, ys
        fresh = jax.random.bernoulli(key, 1 - rate, ys.shape[1:])
        keep = jnp.where(state.drawn[..., None], state.keep, fresh)
        return DropoutState(keep, jnp.ones_like(state.drawn)), drop(keep[None], ys)

    return Layer(size, size, init, initial_state, layer_step, layer_unroll)


def _check_dropout_state(state: Any, shape: Shape) -> DropoutState:
    """The state of shared dropout for inputs of `shape` [*B, D] a step, as arrays."""
    if not isinstance(state, DropoutState):
        raise TypeError(f"state is a {type(state).__name__}, expected DropoutState")
    for name, expected in (("keep", shape), ("drawn", shape[:-1])):
        leaf = as_array(f"state.{name}", getattr(state, name))
        check_bool(f"state.{name}", leaf)
        check_shape(f"state.{name}", leaf, expected)
        state = state._replace(**{name: leaf})
    return state


def _pointwise(
    input_size: int,
    output_size: int,
    init: Callable[[Key], Params],
    apply: Any,
    *,
    tokens: bool = False,
) -> Layer:
    """A layer without state from ``apply(params, xs, key)``, the same for a step and a sequence."""

    def initial_state(params: Params, batch_shape: Shape = ()) -> tuple[()]:
        del params, batch_shape
        return ()

    def step(params: Params, state: State, x: Array) -> tuple[tuple[()], Array]:
        check_empty("state", state)
        x = check_tokens("x", x) if tokens else check_inputs("x", x, input_size, "[*B, D]")
        return (), apply(params, x, None)

    def unroll(
        params: Params,
        state: State,
        xs: Array,
        *,
        mask: Array | None = None,
        resets: Array | None = None,
        reverse: bool = False,
        key: Key | None = None,
    ) -> tuple[tuple[()], Array]:
        del reverse
        check_empty("state", state)
        xs, mask, resets = check_marked_inputs(xs, mask, resets, None if tokens else input_size)
        ys = apply(params, xs, key)
        return (), ys if mask is None else select(mask, ys, jnp.zeros_like(ys))

    return Layer(input_size, output_size, init, initial_state, step, unroll)

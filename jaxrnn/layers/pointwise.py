"""The layers that treat every time step alike: dense, embedding, dropout."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxrnn._checks import (
    as_array,
    check_floating,
    check_floating_dtype,
    check_fraction,
    check_shape,
    check_size,
)
from jaxrnn._products import product
from jaxrnn._types import Array, Initializer, Key, Shape
from jaxrnn.layers.contract import Inputs, Layer, make_layer
from jaxrnn.params import draw_weights
from jaxrnn.recurrence.reference import select


class DenseParams(NamedTuple):
    """Parameters of a dense layer: w [O, D], b [O] or None."""

    w: Array
    b: Array | None = None


class DropoutState(NamedTuple):
    """The units kept by dropout shared over time: keep [*B, D], drawn [*B], both bool."""

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
    dtype = check_floating_dtype("dtype", dtype)
    w_init = jax.nn.initializers.lecun_normal() if w_init is None else w_init

    def init(key: Key) -> DenseParams:
        w = draw_weights("w_init", w_init, key, (input_size, output_size), dtype)
        return DenseParams(w.T, jnp.zeros((output_size,), dtype) if use_bias else None)

    def initial_state(params: DenseParams, batch_shape: Shape) -> tuple[()]:
        if not isinstance(params, DenseParams):
            raise TypeError(f"params is a {type(params).__name__}, expected DenseParams")
        _check_weights("params.w", params.w, (output_size, input_size))
        if params.b is not None:
            _check_weights("params.b", params.b, (output_size,))
        return ()

    def run(params: DenseParams, state: Any, inputs: Inputs, key: Key | None) -> tuple[Any, Array]:
        xs, w = inputs.xs, jnp.asarray(params.w)
        dtype = jnp.result_type(w, xs) if jnp.issubdtype(xs.dtype, jnp.floating) else w.dtype
        ys = product(xs.astype(dtype), w.astype(dtype))
        if params.b is not None:
            ys = ys + lax.broadcast_like(jnp.asarray(params.b).astype(ys.dtype), ys)
        return state, ys.astype(dtype)

    return make_layer(input_size, output_size, init, initial_state, run)


def embedding(
    num_tokens: int,
    output_size: int,
    *,
    w_init: Initializer | None = None,
    dtype: Any = jnp.float32,
) -> Layer:
    """A vector for every token: the layer that reads integers, xs [T, *B].

    A token outside 0 ... num_tokens - 1 gives NaN, since a compiled program cannot raise. `w_init`
    is called with ``(num_tokens, output_size)``; the default is standard normal, as in torch.
    Parameters: the table [num_tokens, output_size]. State: ().
    """
    num_tokens = check_size("num_tokens", num_tokens)
    dtype = check_floating_dtype("dtype", dtype)
    w_init = jax.nn.initializers.normal(1.0) if w_init is None else w_init

    def init(key: Key) -> Array:
        return draw_weights("w_init", w_init, key, (num_tokens, output_size), dtype)

    def initial_state(params: Array, batch_shape: Shape) -> tuple[()]:
        _check_weights("params", params, (num_tokens, output_size))
        return ()

    def run(params: Array, state: Any, inputs: Inputs, key: Key | None) -> tuple[Any, Array]:
        xs = inputs.xs
        xs = xs if xs.dtype.itemsize >= 4 else xs.astype(jnp.int32)  # to hold num_tokens
        positions = jnp.where(xs < 0, num_tokens, xs)  # a negative index would count from the end
        spec = jax.typeof(xs).sharding.spec
        return state, jnp.asarray(params).at[positions].get(
            mode="fill", fill_value=jnp.nan, out_sharding=P(*spec, None) if any(spec) else None
        )

    return make_layer(num_tokens, output_size, init, initial_state, run, reads_tokens=True)


def dropout(size: int, rate: float | Array, *, shared_over_time: bool = False) -> Layer:
    """Set features to zero with probability `rate` and scale the others by 1 / (1 - rate).

    It acts only if `unroll` or `step` is given a key. `rate` may be a traced scalar. With
    `shared_over_time` a sequence keeps the same units at all its steps, resets or not, and the
    state carries them from one part of a sequence to the next (Gal & Ghahramani 2016, "A
    theoretically grounded application of dropout in recurrent neural networks"). Parameters: ().
    State: (), or `DropoutState`.
    """
    size = check_size("size", size)
    rate = check_fraction("rate", rate)

    def initial_state(params: tuple[()], batch_shape: Shape) -> DropoutState | tuple[()]:
        if not isinstance(params, tuple) or params:
            raise TypeError(f"params is a {type(params).__name__}, expected ()")
        if not shared_over_time:
            return ()
        return DropoutState(jnp.ones((*batch_shape, size), bool), jnp.zeros(batch_shape, bool))

    def run(params: tuple[()], state: Any, inputs: Inputs, key: Key | None) -> tuple[Any, Array]:
        xs = inputs.xs
        check_floating("xs", xs)
        if key is None:
            return state, xs
        whole = inputs.single or not shared_over_time
        shape = xs.shape if whole else xs.shape[1:]
        keep = jax.random.bernoulli(key, 1 - rate, shape)
        if shared_over_time:
            keep = select(state.drawn, state.keep, lax.broadcast_like(keep, state.keep))
            state = DropoutState(keep, jnp.ones_like(state.drawn))
        keep = lax.broadcast_like(keep, xs)
        return state, jnp.where(keep, xs / jnp.asarray(1 - rate, xs.dtype), jnp.zeros_like(xs))

    return make_layer(size, size, lambda key: (), initial_state, run)


def _check_weights(name: str, value: Any, shape: Shape) -> None:
    array = as_array(name, value)
    check_floating(name, array)
    check_shape(name, array, shape)

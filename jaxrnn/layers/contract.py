"""`Layer`, the contract that every layer keeps, and the layers that carry a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._checks import (
    as_array,
    check_activation,
    check_batch_shape,
    check_features,
    check_floating_dtype,
    check_function,
    check_marks,
    check_numeric,
    check_shape,
    check_size,
    check_tokens,
)
from jaxrnn._types import Activation, Array, Initializer, Key, Params, Shape, State
from jaxrnn.cell import RNNParams, check_params, init_rnn, step
from jaxrnn.recurrence import unroll
from jaxrnn.recurrence.chunks import replacement_marks


class Layer(NamedTuple):
    """A record of pure functions. Parameters and states are pytrees that belong to the caller.

    input_size, output_size: features in, features out.
    init: ``(key) -> params``.
    initial_state: ``(params, batch_shape=()) -> state``; every leaf starts with the batch axes.
    step: ``(params, state, x) -> (state, y)`` with x [*B, input_size] and y [*B, output_size];
      always deterministic.
    unroll: ``(params, state, xs, *, mask=None, resets=None, reverse=False, key=None) ->
      (state, ys)`` with xs [T, *B, input_size] and ys [T, *B, output_size]. `mask`, `resets` and
      `reverse` are those of `jaxrnn.unroll`; where the mask is False the output is 0. `key` draws
      the randomness of training; None means none.
    causal: whether y_t depends on x_1 ... x_t alone, so that the layer can be stepped, and its
      sequences cut.

    A `state` of None means the initial state. Stepping equals unrolling, and unrolling in pieces
    equals unrolling at once, for every causal layer. (Under `reverse` a piece is not told of a
    reset at the first step of the piece after it, so cut there only where no segment begins.)
    """

    input_size: int
    output_size: int
    init: Callable[[Key], Params]
    initial_state: Callable[..., State]
    step: Callable[[Params, State, Array], tuple[State, Array]]
    unroll: Callable[..., tuple[State, Array]]
    causal: bool = True


def vanilla_rnn(
    input_size: int,
    hidden_size: int,
    *,
    activation: Activation = jnp.tanh,
    w_ih_init: Initializer | None = None,
    w_hh_init: Initializer | None = None,
    use_bias: bool = True,
    learn_h0: bool = False,
    dtype: Any = jnp.float32,
    chunk_size: int | None = None,
    remat: bool = False,
) -> Layer:
    """The vanilla recurrent layer, ``h_t = f(W h_{t-1} + U x_t + b)``; its output is its state.

    The options are those of `init_rnn` and `jaxrnn.unroll`. Parameters: `RNNParams`. State: h
    [*B, hidden_size].
    """
    input_size = check_size("input_size", input_size)
    hidden_size = check_size("hidden_size", hidden_size)
    check_activation(activation)
    dtype = check_floating_dtype("dtype", dtype)
    if chunk_size is not None:
        check_size("chunk_size", chunk_size)

    def init(key: Key) -> RNNParams:
        return init_rnn(
            key,
            input_size,
            hidden_size,
            w_ih_init=w_ih_init,
            w_hh_init=w_hh_init,
            use_bias=use_bias,
            learn_h0=learn_h0,
            dtype=dtype,
        )

    def sized(params: Any) -> RNNParams:
        params = check_params(params)
        check_shape("params.w_ih", params.w_ih, (hidden_size, input_size))
        return params

    def initial_state(params: RNNParams, batch_shape: Shape = ()) -> Array:
        params = sized(params)
        check_batch_shape(batch_shape)
        h0 = jnp.zeros_like(params.w_hh[0]) if params.h0 is None else params.h0
        return jnp.broadcast_to(h0, (*batch_shape, hidden_size))

    def layer_step(params: RNNParams, h: Array | None, x: Array) -> tuple[Array, Array]:
        h = step(sized(params), h, x, activation=activation)
        return h, h

    def layer_unroll(
        params: RNNParams,
        h: Array | None,
        xs: Array,
        *,
        mask: Array | None = None,
        resets: Array | None = None,
        reverse: bool = False,
        key: Key | None = None,
    ) -> tuple[Array, Array]:
        del key
        return unroll(
            sized(params),
            h,
            xs,
            activation=activation,
            mask=mask,
            resets=resets,
            reverse=reverse,
            chunk_size=chunk_size,
            remat=remat,
        )

    return Layer(input_size, hidden_size, init, initial_state, layer_step, layer_unroll)


def scanned(
    input_size: int,
    output_size: int,
    init: Callable[[Key], Params],
    initial_state: Callable[..., State],
    step: Callable[[Params, State, Array], tuple[State, Array]],
) -> Layer:
    """A layer of any pure step, with the masks, resets and composition of every other layer.

    Args:
      input_size, output_size: features in, features out.
      init: ``(key) -> params``.
      initial_state: ``(params, batch_shape=()) -> state``; every leaf starts with the batch axes.
      step: ``(params, state, x) -> (state, y)`` for any number of batch axes; the state keeps its
        structure, shapes and dtypes. `unroll` is ``lax.scan`` of it, under plain autodiff.
    """
    input_size = check_size("input_size", input_size)
    output_size = check_size("output_size", output_size)
    check_function("init", init)
    check_function("initial_state", initial_state)
    check_function("step", step)

    def layer_step(params: Params, state: State, x: Array) -> tuple[State, Array]:
        x = check_inputs("x", x, input_size, "[*B, D]")
        initial = initial_state(params, x.shape[:-1])
        state = initial if state is None else state
        _check_state(state, initial)
        return step(params, state, x)

    def layer_unroll(
        params: Params,
        state: State,
        xs: Array,
        *,
        mask: Array | None = None,
        resets: Array | None = None,
        reverse: bool = False,
        key: Key | None = None,
    ) -> tuple[State, Array]:
        del key
        xs, mask, resets = check_marked_inputs(xs, mask, resets, input_size)
        initial = initial_state(params, xs.shape[1:-1])
        state = initial if state is None else state
        _check_state(state, initial)
        marks = None if resets is None else replacement_marks(resets, mask, reverse)
        _check_step(step, params, state, xs, output_size)

        def body(state: State, piece: Any) -> tuple[State, Array]:
            x, taken, marked = piece
            before = state if marked is None else select(marked, initial, state)
            after, y = step(params, before, x)
            if taken is None:
                return after, y
            return select(taken, after, state), select(taken, y, jnp.zeros_like(y))

        return lax.scan(body, state, (xs, mask, marks), reverse=reverse)

    return Layer(input_size, output_size, init, initial_state, layer_step, layer_unroll)


def select(marks: Array, where_true: State, where_false: State) -> State:
    """Choose between two states by `marks` [*B]; every leaf starts with the batch axes."""

    def choose(yes: Array, no: Array) -> Array:
        return jnp.where(marks.reshape(marks.shape + (1,) * (no.ndim - marks.ndim)), yes, no)

    return jax.tree.map(choose, where_true, where_false)


def check_inputs(name: str, xs: Any, input_size: int, axes: str) -> Array:
    """Inputs as a numeric array whose last axis is `input_size`."""
    xs = as_array(name, xs)
    check_numeric(name, xs)
    check_features(name, xs, input_size, axes)
    return xs


def check_marked_inputs(
    xs: Any, mask: Any, resets: Any, input_size: int | None
) -> tuple[Array, Array | None, Array | None]:
    """Inputs, mask and resets as arrays; masked inputs are zero from here on, NaN included.
    An `input_size` of None means integer tokens [T, *B]."""
    if input_size is None:
        xs, batch_rank = check_tokens("xs", xs, with_time=True), None
    else:
        xs, batch_rank = check_inputs("xs", xs, input_size, "[T, *B, D]"), -1
    mask = check_marks("mask", mask, xs.shape[:batch_rank])
    resets = check_marks("resets", resets, xs.shape[:batch_rank])
    if mask is not None:
        xs = select(mask, xs, jnp.zeros_like(xs))
    return xs, mask, resets


def _check_state(state: State, initial: State) -> None:
    """Refuse a state whose structure or shapes are not those of the initial state."""
    got, expected = (
        (jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (state, initial)
    )
    if got != expected:
        raise ValueError(f"state is of {got}, expected that of the initial state, {expected}")


def _check_step(step: Any, params: Params, state: State, xs: Array, output_size: int) -> None:
    """Refuse a step that changes its state's structure, shapes or dtypes, or its output's width."""
    x = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
    result = jax.eval_shape(step, params, state, x)
    if not isinstance(result, tuple) or len(result) != 2 or not hasattr(result[1], "shape"):
        raise TypeError(f"step returns {result}, expected (state, y) with an array y")
    after, y = result
    got, expected = (
        [(jax.tree.structure(s), [(a.shape, a.dtype) for a in jax.tree.leaves(s)])]
        for s in (after, jax.eval_shape(lambda: state))
    )
    if got != expected:
        raise ValueError(f"step returns a state of {got}, expected that of its input, {expected}")
    if y.shape != (*x.shape[:-1], output_size):
        raise ValueError(
            f"step returns an output of shape {y.shape}, expected {(*x.shape[:-1], output_size)}"
        )

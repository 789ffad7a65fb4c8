"""The layers that carry a state: the vanilla one, and one of any step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._checks import (
    check_activation,
    check_floating_dtype,
    check_function,
    check_per_unit,
    check_shape,
    check_size,
)
from jaxrnn._types import Activation, Array, Initializer, Key, Params, Shape, State
from jaxrnn.cell import advance, init_rnn
from jaxrnn.layers.contract import Inputs, Layer, make_layer
from jaxrnn.params import RNNParams, cast_call, check_params, initial_unit_state
from jaxrnn.recurrence.parallel import Parallel
from jaxrnn.recurrence.reference import (
    Steps,
    find_restarts,
    restart,
    split_steps,
    where_unmasked,
)
from jaxrnn.recurrence.rule import check_chunks, unroll_prepared


def vanilla_rnn(
    input_size: int,
    hidden_size: int,
    *,
    activation: Activation = jnp.tanh,
    w_ih_init: Initializer | None = None,
    w_hh_init: Initializer | None = None,
    use_bias: bool = True,
    learn_h0: bool = False,
    leak: float | Array | None = None,
    leak_init: float | Array | None = None,
    noise: float | Array | None = None,
    dtype: Any = jnp.float32,
    chunk_size: int | None = None,
    remat: bool = False,
    parallel: Parallel | None = None,
) -> Layer:
    """The vanilla recurrent layer, ``h_t = f(W h_{t-1} + U x_t + b)``; its output is its state.

    The options are those of `init_rnn` and `jaxrnn.unroll`: `leak` is a fixed one, `leak_init`
    begins one that is learned, and `noise` is drawn if there is a key. Parameters: `RNNParams`.
    State: h [*B, hidden_size].
    """
    hidden_size = check_size("hidden_size", hidden_size)
    check_activation(activation)
    check_chunks(chunk_size, remat, parallel)
    _check_leaks(hidden_size, leak, leak_init, noise)
    init = partial(
        init_rnn,
        input_size=input_size,
        hidden_size=hidden_size,
        w_ih_init=w_ih_init,
        w_hh_init=w_hh_init,
        use_bias=use_bias,
        learn_h0=learn_h0,
        leak_init=leak_init,
        dtype=check_floating_dtype("dtype", dtype),
    )

    def initial_state(params: RNNParams, batch_shape: Shape) -> Array:
        params = check_params(params)
        check_shape("params.w_ih", params.w_ih, (hidden_size, input_size))
        return jnp.broadcast_to(initial_unit_state(params), (*batch_shape, hidden_size))

    def run(params: RNNParams, h: Array, inputs: Inputs, key: Key | None) -> tuple[Array, Array]:
        xs, mask, resets, reverse, single = inputs
        drawn = None if key is None else noise
        cell, h, xs = cast_call(params, h, xs, h.shape[:-1], activation, leak=leak, noise=drawn)
        if single:
            h = advance(cell, h, xs, activation, key)
            return h, h
        keys = split_steps(cell, key, xs.shape[0])
        steps = Steps(xs, mask, find_restarts(resets, mask, reverse), keys)
        options = chunk_size, remat, parallel
        return unroll_prepared(cell, h, steps, activation, reverse, *options)

    return make_layer(input_size, hidden_size, init, initial_state, run)


def _check_leaks(units: int, leak: Any, leak_init: Any, noise: Any) -> None:
    if leak is not None and leak_init is not None:
        raise ValueError("leak is given beside leak_init, expected one of them")
    given = (
        ("leak", leak, "(0, 1]"),
        ("leak_init", leak_init, "(0, 1)"),
        ("noise", noise, "[0, inf)"),
    )
    for name, value, within in given:
        if value is not None:
            check_per_unit(name, value, units, within)


def scanned(
    input_size: int,
    output_size: int,
    init: Callable[[Key], Params],
    initial_state: Callable[[Params, Shape], State],
    step: Callable[[Params, State, Array], tuple[State, Array]],
) -> Layer:
    """A layer of any pure step, with the masks, resets and composition of every other layer.

    Args:
      input_size, output_size: features in, features out.
      init: ``(key) -> params``.
      initial_state: ``(params, batch_shape) -> state``; every leaf begins with the batch axes.
      step: ``(params, state, x) -> (state, y)`` for any number of batch axes; the state keeps its
        structure, shapes and dtypes. `unroll` is ``lax.scan`` of it, under plain autodiff.
    """
    check_function("step", step)

    def run(params: Params, state: State, inputs: Inputs, key: Key | None) -> tuple[State, Array]:
        del key
        if inputs.single:
            return step(params, state, inputs.xs)
        xs, mask, resets, reverse, _ = inputs
        initial = None if resets is None else initial_state(params, xs.shape[1:-1])

        def body(state: State, now: Steps) -> tuple[State, Array]:
            result = step(params, restart(now.resets, initial, state), now.xs)
            _check_step(result, state, (*now.xs.shape[:-1], output_size))
            return where_unmasked(now.mask, result[0], state), result[1]

        steps = Steps(xs, mask, find_restarts(resets, mask, reverse))
        return lax.scan(body, state, steps, reverse=reverse)

    return make_layer(input_size, output_size, init, initial_state, run)


def _check_step(result: Any, state: State, shape: Shape) -> None:
    """Refuse a step that changes its state's structure, shapes or dtypes, or returns an output that
    is not of `shape`."""
    if not isinstance(result, tuple) or len(result) != 2 or not hasattr(result[1], "shape"):
        raise TypeError(f"step returns {result}, expected (state, y) with an array y")
    got, expected = (
        (jax.tree.structure(tree), [jax.typeof(leaf).str_short() for leaf in jax.tree.leaves(tree)])
        for tree in (result[0], state)
    )
    if got != expected:
        raise ValueError(f"step returns a state of {got}, expected that of its input, {expected}")
    if result[1].shape != shape:
        raise ValueError(f"step returns an output of shape {result[1].shape}, expected {shape}")

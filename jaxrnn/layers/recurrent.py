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
    check_flag,
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
    make_steps,
    restart,
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
    check_chunks(chunk_size, remat, parallel)
    hidden_size = _check_cell(hidden_size, activation, leak, leak_init, noise)
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
        extras: Any = {"leak": leak, "noise": noise, "key": key}
        cell, h, xs = cast_call(params, h, xs, h.shape[:-1], activation, **extras)
        if single:
            h = advance(cell, h, xs, activation, key)
            return h, h
        steps = make_steps(cell, xs, mask, resets, reverse, key, parallel)
        options = chunk_size, remat, parallel
        return unroll_prepared(cell, h, steps, activation, reverse, *options)

    return make_layer(input_size, hidden_size, init, initial_state, run)


def _check_cell(units: Any, activation: Any, leak: Any, leak_init: Any, noise: Any) -> int:
    units = check_size("hidden_size", units)
    check_activation(activation)
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
    return units


def scanned(
    input_size: int,
    output_size: int,
    init: Callable[[Key], Params],
    initial_state: Callable[[Params, Shape], State],
    step: Callable[..., tuple[State, Array]],
    *,
    keyed: bool = False,
    reads_tokens: bool = False,
) -> Layer:
    """A layer of any pure step, with the masks, resets and composition of every other layer.

    Args:
      input_size, output_size: features in, features out. An input_size of 0 makes an autonomous
        system: inputs [T, *B, 0] only say how long it runs.
      init: ``(key) -> params``.
      initial_state: ``(params, batch_shape) -> state``; every leaf begins with the batch axes.
      step: ``(params, state, x) -> (state, y)`` for any number of batch axes; the state keeps its
        structure, shapes and dtypes. `unroll` is ``lax.scan`` of it, under plain autodiff.
      keyed: whether the step is ``(params, state, x, key)``: every time step gets a key of its own,
        or None where the layer gets none.
      reads_tokens: whether x are integers [*B] below input_size.

    The other leaky network of the field, whose leak is on the argument of f, is

        def init(key):
            return jaxrnn.init_rnn(key, 3, 64)

        def initial_state(params, batch_shape):
            return jnp.zeros((*batch_shape, 64))

        def step(params, a, x):
            a = 0.8 * a + 0.2 * jaxrnn.step(
                params, jnp.tanh(a), x, activation=jax.nn.identity
            )
            return a, jnp.tanh(a)

        rates = jaxrnn.scanned(3, 64, init, initial_state, step)

    `jaxrnn.step` multiplies in the fast way. By hand, ``h @ W.T`` is fast for a batch; for a single
    sequence ``W @ h`` is, and the other takes three times as long on a CPU.
    """
    check_function("step", step)
    check_flag("keyed", keyed)
    check_flag("reads_tokens", reads_tokens)

    def call(params: Params, state: State, x: Array, key: Key | None) -> tuple[State, Array]:
        result = step(params, state, x, key) if keyed else step(params, state, x)
        _check_step(result, state, (*(x.shape if reads_tokens else x.shape[:-1]), output_size))
        return result

    def run(params: Params, state: State, inputs: Inputs, key: Key | None) -> tuple[State, Array]:
        if inputs.single:
            return call(params, state, inputs.xs, key)
        xs, mask, resets, reverse, _ = inputs
        batch = xs.shape[1:] if reads_tokens else xs.shape[1:-1]
        initial = None if resets is None else initial_state(params, batch)

        def body(state: State, now: Steps) -> tuple[State, Array]:
            after, y = call(params, restart(now.resets, initial, state), now.xs, now.keys)
            return where_unmasked(now.mask, after, state), y

        keys = jax.random.split(key, xs.shape[0]) if keyed and key is not None else None
        steps = Steps(xs, mask, find_restarts(resets, mask, reverse), keys)
        return lax.scan(body, state, steps, reverse=reverse)

    sizes = input_size, output_size
    return make_layer(*sizes, init, initial_state, run, reads_tokens=reads_tokens)


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

"""The definition: the parameters of the vanilla (Elman) network, and its one step."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn import initializers
from jaxrnn._checks import (
    check_activation,
    check_floating_dtype,
    check_function,
    check_inputs,
    check_key,
    check_per_unit,
    check_size,
)
from jaxrnn._products import product
from jaxrnn._types import Activation, Array, Initializer, Key
from jaxrnn.matrices import recurrent_product
from jaxrnn.params import (
    Cell,
    RNNParams,
    cast_call,
    check_params,
    draw_weights,
)


def init_rnn(
    key: Key,
    input_size: int,
    hidden_size: int,
    *,
    w_ih_init: Initializer | None = None,
    w_hh_init: Initializer | None = None,
    use_bias: bool = True,
    learn_h0: bool = False,
    leak_init: float | Array | None = None,
    dtype: Any = jnp.float32,
) -> RNNParams:
    """Draw the parameters of one vanilla layer.

    Args:
      key: random key.
      input_size, hidden_size: D, which may be 0 for a network without inputs, and H. With both 1
        and `use_bias` False this is the textbook's univariate network of two weights.
      w_ih_init: initializer from ``jax.nn.initializers``, called with the shape ``(D, H)`` and
        transposed. Default: variance 1/D (LeCun et al. 1998, "Efficient BackProp", section 4.6).
      w_hh_init: initializer called with the shape ``(H, H)``. Default: orthogonal (Saxe et al.
        2014). Both defaults are flax's.
      use_bias, learn_h0: whether a bias and the initial state are parameters; they start at zero.
      leak_init: for a leak that is learned (see `step`), its first value a, a number between 0 and
        1 for all units, or [H]; None for none.
      dtype: floating-point dtype of every parameter.

    Raises:
      TypeError, ValueError: an argument is not as described.
    """
    input_size = check_size("input_size", input_size, at_least=0)
    hidden_size = check_size("hidden_size", hidden_size)
    dtype = check_floating_dtype("dtype", dtype)
    w_ih_init = jax.nn.initializers.lecun_normal() if w_ih_init is None else w_ih_init
    w_hh_init = initializers.orthogonal() if w_hh_init is None else w_hh_init
    check_function("w_ih_init", w_ih_init)
    check_function("w_hh_init", w_hh_init)
    check_key("key", key)
    key_ih, key_hh = jax.random.split(key)
    w_hh = draw_weights("w_hh_init", w_hh_init, key_hh, (hidden_size, hidden_size), dtype)
    w_ih = jnp.zeros((0, hidden_size), dtype)
    if input_size > 0:
        w_ih = draw_weights("w_ih_init", w_ih_init, key_ih, (input_size, hidden_size), dtype)
    zeros = jnp.zeros((hidden_size,), dtype)
    leak = None
    if leak_init is not None:
        a = check_per_unit("leak_init", leak_init, hidden_size, "(0, 1)")
        log, log1p = (jnp.log, jnp.log1p) if isinstance(a, jax.Array) else (np.log, np.log1p)
        leak = jnp.asarray(log(a) - log1p(-a), dtype)
    b, h0 = (zeros if wanted else None for wanted in (use_bias, learn_h0))
    return RNNParams(w_ih.T, w_hh, b, h0, leak)


def step(
    params: RNNParams,
    h: Array | None,
    x: Array,
    *,
    activation: Activation = jnp.tanh,
    leak: float | Array | None = None,
    noise: float | Array | None = None,
    key: Key | None = None,
) -> Array:
    """One step of the network, ``h_t = f(W h_{t-1} + U x_t + b)``.

    With a leak a, ``h_t = (1 - a) h_{t-1} + a f(W h_{t-1} + U x_t + b)``: an exponentially weighted
    moving average of f, or Euler's method with steps of dt for units of time constant tau, where
    a = dt / tau.

    Args:
      params: RNNParams with sizes D and H. A learned leak is ``sigmoid(params.leak)``.
      h: the previous state, [*B, H]; None means the initial state.
      x: the input, [*B, D], floating-point, integer or bool.
      activation: any elementwise function f.
      leak: a fixed leak a, above 0 and at most 1, for all units or [H]; None is 1.
      noise: sigma, for all units or [H]: with a key, ``sqrt(2 / a) sigma xi_t`` with independent
        standard normal xi_t is added inside f (Yang et al. 2019, "Task representations in neural
        networks trained to perform many cognitive tasks", equation 6). The state of a unit without
        other input then fluctuates by about sigma for small a.
      key: draws the noise; without it there is none.

    Returns:
      The new state, [*B, H], in the result type of `params` and `x`. Products of bfloat16 and
      float16 accumulate in float32.

    Raises:
      TypeError, ValueError: an argument does not fit the parameters, or both leaks are given.

    Source: Elman 1990, "Finding structure in time".
    """
    check_activation(activation)
    params = check_params(params)
    x = check_inputs("x", x, params.w_ih.shape[1], "[*B, D]")
    if key is not None:
        check_key("key", key)
    extras: Any = {"leak": leak, "noise": noise, "key": key}
    cell, h, x = cast_call(params, h, x, x.shape[:-1], activation, name="h", **extras)
    return advance(cell, h, x, activation, key)


def advance(
    cell: Cell, h: Array, x: Array, activation: Activation, key: Key | None = None
) -> Array:
    """`step` of what `cast_call` returned."""
    a = recurrent_product(cell.w_hh, h) + input_product(cell, x)
    return move(cell, h, activation(add_noise(cell, a, key)))


def move(cell: Cell, h: Array, f: Array) -> Array:
    """The state after `h`, from the activation's output."""
    if cell.leak is None:
        return f.astype(h.dtype)
    a = jnp.broadcast_to(cell.leak.astype(f.dtype), f.shape)
    return ((1 - a) * h.astype(f.dtype) + a * f).astype(h.dtype)


def input_product(cell: Cell, x: Array) -> Array:
    """``U x + b`` for `x` [..., D]: all of the step that does not depend on the state."""
    return add_bias(cell, product(x, cell.w_ih))


def add_bias(cell: Cell, z: Array) -> Array:
    """``z + b`` for `z` [..., H]."""
    return z if cell.b is None else z + jnp.broadcast_to(cell.b.astype(z.dtype), z.shape)


def add_noise(cell: Cell, z: Array, key: Key | None) -> Array:
    """`z` [*B, H] with the noise of one step."""
    if key is None or cell.noise is None:
        return z
    return add_noises(cell, z[None], key[None])[0]


def add_noises(cell: Cell, zs: Array, keys: Array | None) -> Array:
    """`zs` [T, *B, H] with the noise of every step, whose keys are [T]."""
    if keys is None or cell.noise is None:
        return zs
    scale = jnp.broadcast_to(cell.noise.astype(zs.dtype), zs.shape)
    return zs + scale * draw_noises(keys, zs)


def draw_noises(keys: Array | None, like: Array) -> Array:
    """Standard normal numbers like an array [T, *B, H]; each step's follow from its key alone."""
    assert keys is not None

    def draw(key: Key) -> Array:
        return jax.random.normal(key, like.shape[1:], like.dtype)

    # Under vmap the other generators draw all steps from the first key.
    each = jax.vmap(draw) if "fry" in str(jax.random.key_impl(keys)) else partial(lax.map, draw)
    return lax.broadcast_like(each(keys), like)

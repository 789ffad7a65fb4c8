"""The definition: the parameters of the vanilla (Elman) network, and its one step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import initializers
from jaxrnn._checks import (
    check_activation,
    check_floating_dtype,
    check_function,
    check_inputs,
    check_key,
    check_size,
)
from jaxrnn._products import product
from jaxrnn._types import Activation, Array, Initializer, Key
from jaxrnn.params import RNNParams, cast_call, check_params, draw_weights


def init_rnn(
    key: Key,
    input_size: int,
    hidden_size: int,
    *,
    w_ih_init: Initializer | None = None,
    w_hh_init: Initializer | None = None,
    use_bias: bool = True,
    learn_h0: bool = False,
    dtype: Any = jnp.float32,
) -> RNNParams:
    """Draw the parameters of one vanilla layer.

    Args:
      key: random key.
      input_size, hidden_size: D and H. With both 1 and `use_bias` False this is the textbook's
        univariate network of two weights.
      w_ih_init: initializer from ``jax.nn.initializers``, called with the shape ``(D, H)`` and
        transposed. Default: variance 1/D (LeCun et al. 1998, "Efficient BackProp", section 4.6).
      w_hh_init: initializer called with the shape ``(H, H)``. Default: orthogonal (Saxe et al.
        2014). Both defaults are flax's.
      use_bias, learn_h0: whether a bias and the initial state are parameters; they start at zero.
      dtype: floating-point dtype of every parameter.

    Raises:
      TypeError, ValueError: an argument is not as described.
    """
    input_size = check_size("input_size", input_size)
    hidden_size = check_size("hidden_size", hidden_size)
    dtype = check_floating_dtype("dtype", dtype)
    w_ih_init = jax.nn.initializers.lecun_normal() if w_ih_init is None else w_ih_init
    w_hh_init = initializers.orthogonal() if w_hh_init is None else w_hh_init
    check_function("w_ih_init", w_ih_init)
    check_function("w_hh_init", w_hh_init)
    check_key("key", key)
    key_ih, key_hh = jax.random.split(key)
    w_ih = draw_weights("w_ih_init", w_ih_init, key_ih, (input_size, hidden_size), dtype)
    w_hh = draw_weights("w_hh_init", w_hh_init, key_hh, (hidden_size, hidden_size), dtype)
    zeros = jnp.zeros((hidden_size,), dtype)
    return RNNParams(w_ih.T, w_hh, zeros if use_bias else None, zeros if learn_h0 else None)


def step(
    params: RNNParams, h: Array | None, x: Array, *, activation: Activation = jnp.tanh
) -> Array:
    """One step of the network, ``h_t = f(W h_{t-1} + U x_t + b)``.

    Args:
      params: RNNParams with sizes D and H.
      h: the previous state, [*B, H]; None means the initial state.
      x: the input, [*B, D], floating-point, integer or bool.
      activation: any elementwise function f.

    Returns:
      The new state, [*B, H], in the result type of `params` and `x`. Products of bfloat16 and
      float16 accumulate in float32.

    Raises:
      TypeError, ValueError: an argument does not fit the parameters.

    Source: Elman 1990, "Finding structure in time".
    """
    check_activation(activation)
    params = check_params(params)
    x = check_inputs("x", x, params.w_ih.shape[1], "[*B, D]")
    return advance(*cast_call(params, h, x, x.shape[:-1], activation, name="h"), activation)


def advance(params: RNNParams, h: Array, x: Array, activation: Activation) -> Array:
    """`step` of arguments that `cast_call` returned."""
    return activation(product(h, params.w_hh) + input_product(params, x)).astype(h.dtype)


def input_product(params: RNNParams, x: Array) -> Array:
    """``U x + b`` for `x` [..., D]: all of the step that does not depend on the state."""
    return add_bias(params, product(x, params.w_ih))


def add_bias(params: RNNParams, z: Array) -> Array:
    """``z + b`` for `z` [..., H]."""
    return z if params.b is None else z + jnp.broadcast_to(params.b.astype(z.dtype), z.shape)

"""The definition: parameters of the vanilla (Elman) network, and its one step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import initializers
from jaxrnn._checks import (
    as_array,
    check_activation,
    check_elementwise,
    check_features,
    check_floating,
    check_floating_dtype,
    check_function,
    check_key,
    check_numeric,
    check_shape,
    check_size,
)
from jaxrnn._products import product
from jaxrnn._types import Activation, Array, Initializer, Key, Shape, accumulation_dtype


class RNNParams(NamedTuple):
    """Parameters of one layer, stored as in the formula ``h = f(W h + U x + b)``.

    w_ih: U [H, D], input to hidden.
    w_hh: W [H, H], hidden to hidden.
    b:    [H] or None, which leaves the bias out.
    h0:   [H] or None, the learned initial state; None means zeros.
    """

    w_ih: Array
    w_hh: Array
    b: Array | None = None
    h0: Array | None = None


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
      input_size: D. hidden_size: H. With both 1 and `use_bias` False this is the textbook's
        univariate network of two weights.
      w_ih_init: initializer from ``jax.nn.initializers``, called with the shape ``(D, H)`` that it
        expects and transposed into place. Default: variance 1/D (LeCun et al. 1998, "Efficient
        BackProp", section 4.6), as flax has it.
      w_hh_init: initializer called with the shape ``(H, H)``. Default: orthogonal (Saxe et al.
        2014), as flax and Keras have it.
      use_bias: whether there is a bias; it starts at zero.
      learn_h0: whether the initial state is a parameter; it starts at zero.
      dtype: floating-point dtype of every parameter.

    Returns:
      RNNParams of `dtype`.

    Raises:
      TypeError, ValueError: a size, dtype or initializer is not as described.
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
    w_ih = initialize("w_ih_init", w_ih_init, key_ih, (input_size, hidden_size), dtype)
    w_hh = initialize("w_hh_init", w_hh_init, key_hh, (hidden_size, hidden_size), dtype)
    zeros = jnp.zeros((hidden_size,), dtype)
    return RNNParams(w_ih.T, w_hh, zeros if use_bias else None, zeros if learn_h0 else None)


def step(
    params: RNNParams, h: Array | None, x: Array, *, activation: Activation = jnp.tanh
) -> Array:
    """One step of the network, ``h_t = f(W h_{t-1} + U x_t + b)``.

    Args:
      params: RNNParams.
      h: the state before, [*B, H]; None means the initial state.
      x: the input, [*B, D], floating-point, integer or bool.
      activation: any elementwise function f.

    Returns:
      The state after, [*B, H], in the result type of `params` and `x`. Products of bfloat16 and
      float16 accumulate in float32.

    Raises:
      TypeError, ValueError: an argument does not fit the parameters.

    Source: Elman 1990, "Finding structure in time".
    """
    check_activation(activation)
    params = check_params(params)
    x = as_array("x", x)
    check_numeric("x", x)
    hidden_size, input_size = params.w_ih.shape
    check_features("x", x, input_size, "[*B, D]")
    shape = (*x.shape[:-1], hidden_size)
    dtype = result_dtype(params, x)
    h = check_state("h", h, shape, dtype)
    check_elementwise(activation, shape, accumulation_dtype(dtype))
    params = cast_params(params, dtype)
    h = initial_or_given(params, h, x.shape[:-1], dtype)
    pre_activation = product(h, params.w_hh) + input_product(params, x.astype(dtype))
    return activation(pre_activation).astype(dtype)


def input_product(params: RNNParams, x: Array) -> Array:
    """``U x + b`` for `x` [..., D]: all of the step that does not depend on the state."""
    return add_bias(params, product(x, params.w_ih))


def add_bias(params: RNNParams, z: Array) -> Array:
    """``z + b`` for `z` [..., H]."""
    return z if params.b is None else z + jnp.broadcast_to(params.b.astype(z.dtype), z.shape)


def check_params(params: Any) -> RNNParams:
    """Return `params` with its leaves as arrays; refuse parameters that do not fit together."""
    if not isinstance(params, RNNParams):
        raise TypeError(f"params is a {type(params).__name__}, expected RNNParams")
    for name, leaf in params._asdict().items():
        if leaf is not None or name.startswith("w_"):
            params = params._replace(**{name: as_array(f"params.{name}", leaf)})
            check_floating(f"params.{name}", getattr(params, name))
    if params.w_ih.ndim != 2:
        raise ValueError(f"params.w_ih has shape {params.w_ih.shape}, expected [H, D]")
    hidden_size = params.w_ih.shape[0]
    check_shape("params.w_hh", params.w_hh, (hidden_size, hidden_size))
    if params.b is not None:
        check_shape("params.b", params.b, (hidden_size,))
    if params.h0 is not None:
        check_shape("params.h0", params.h0, (hidden_size,))
    return params


def result_dtype(params: RNNParams, x: Array) -> Any:
    """The result type of the parameters and, where it is floating-point, the input."""
    arrays = [leaf for leaf in params if leaf is not None]
    if jnp.issubdtype(x.dtype, jnp.floating):
        arrays.append(x)
    return jnp.result_type(*arrays)


def cast_params(params: RNNParams, dtype: Any) -> RNNParams:
    """Cast every parameter to `dtype`."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def check_state(name: str, h: Any, shape: Shape, dtype: Any) -> Array | None:
    """A given state as an array; refuse one of another shape or that `dtype` cannot hold."""
    if h is None:
        return None
    h = as_array(name, h)
    check_floating(name, h)
    check_shape(name, h, shape)
    if h.dtype != dtype and jnp.finfo(h.dtype).bits >= jnp.finfo(dtype).bits:
        raise ValueError(
            f"{name} has dtype {h.dtype}, expected {dtype}, the result type of params and inputs"
        )
    return h


def initial_or_given(params: RNNParams, h: Array | None, batch_shape: Shape, dtype: Any) -> Array:
    """The checked state `h` cast to `dtype`, or for None the initial state [*B, H]."""
    if h is not None:
        return h.astype(dtype)
    return jnp.broadcast_to(initial_unit_state(params, dtype), (*batch_shape, params.w_hh.shape[0]))


def initial_unit_state(params: RNNParams, dtype: Any) -> Array:
    """The initial state of one sequence, [H]: the learned one, or zeros."""
    return jnp.zeros(params.w_hh.shape[:1], dtype) if params.h0 is None else params.h0.astype(dtype)


def initialize(name: str, init: Initializer, key: Key, shape: Shape, dtype: Any) -> Array:
    """What an initializer returns, checked."""
    check_function(name, init)
    value = as_array(f"the result of {name}", init(key, shape, dtype))
    check_shape(f"the result of {name}", value, shape)
    return value.astype(dtype)

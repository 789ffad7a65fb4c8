"""Networks with the initial parameters of a reservoir."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import initializers
from jaxrnn._checks import check_positive
from jaxrnn._types import Activation, Array, Initializer, Key
from jaxrnn.layers.contract import Layer
from jaxrnn.layers.recurrent import vanilla_rnn
from jaxrnn.params import RNNParams
from jaxrnn.recurrence.parallel import Parallel


def echo_state_network(
    input_size: int,
    hidden_size: int,
    *,
    radius: float | Array = 0.9,
    leak: float | Array | None = None,
    input_scale: float | Array = 1.0,
    bias_scale: float | Array = 0.1,
    fan_in: int | None = None,
    w_hh_init: Initializer | None = None,
    activation: Activation = jnp.tanh,
    dtype: Any = jnp.float32,
    parallel: Parallel | None = None,
) -> Layer:
    """A `jaxrnn.vanilla_rnn` with the initial parameters of a reservoir.

    Args:
      input_size, hidden_size: D and H.
      radius: the spectral radius of W; above 0.
      leak: see `jaxrnn.step`.
      input_scale, bias_scale: U and b are uniform between minus and plus these; above 0.
      fan_in: for large H, how many inputs from other units each unit has (`jaxrnn.FixedFanIn`).
        None is a dense matrix of normal numbers.
      w_hh_init: draws W before it is scaled, in place of `fan_in`: `jaxrnn.initializers.ring`,
        ``sparse(0.1, normal())``.
      activation, dtype, parallel: as in `jaxrnn.vanilla_rnn`.

    Radius, leak and scales may be traced scalars.
    """
    radius = check_positive("radius", radius)
    input_scale = check_positive("input_scale", input_scale)
    bias_scale = check_positive("bias_scale", bias_scale)
    if fan_in is not None and w_hh_init is not None:
        raise ValueError(f"fan_in is {fan_in} beside w_hh_init, expected one of them")
    if fan_in is not None:
        w_hh_init = initializers.fixed_fan_in(fan_in)
    elif w_hh_init is None:
        w_hh_init = initializers.normal()
    layer = vanilla_rnn(
        input_size,
        hidden_size,
        activation=activation,
        w_ih_init=initializers.uniform(input_scale),
        w_hh_init=initializers.with_spectral_radius(radius, w_hh_init),
        leak=leak,
        dtype=dtype,
        parallel=parallel,
    )

    def init(key: Key) -> RNNParams:
        key_weights, key_bias = jax.random.split(key)
        params = layer.init(key_weights)
        draw = initializers.uniform(bias_scale)
        return params._replace(b=draw(key_bias, (hidden_size,), params.w_ih.dtype))

    return layer._replace(init=init)

"""The parts of a step's tangent, ``dh_t = f'(a_t) (dz_t + W dh_{t-1})``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxrnn._products import product
from jaxrnn._types import Activation, Array, accumulation_dtype
from jaxrnn.cell import input_product
from jaxrnn.params import RNNParams

SLOPES: dict[Activation, Activation] = {
    jnp.tanh: lambda h: 1 - h * h,
    jax.nn.relu: lambda h: (h > 0).astype(h.dtype),
    jax.nn.identity: jnp.ones_like,
    jax.nn.sigmoid: lambda h: h * (1 - h),
    jax.nn.softplus: lambda h: -jnp.expm1(-h),
}
"""f'(a) as a function of the output f(a), for the activations that have one."""


def pre_activations(params: RNNParams, xs: Array, before: Array) -> Array:
    """a_t of all steps, from the states before them."""
    return input_product(params, xs) + product(before, params.w_hh)


def input_tangent(
    params: RNNParams, d_params: RNNParams, before: Array, xs: Array, d_xs: Array | None
) -> Array:
    """The part of each step's tangent that does not depend on dh, ``U dx + dU x + dW h + db``."""
    dtype = accumulation_dtype(before.dtype)
    dz = jnp.zeros_like(before, dtype) if d_xs is None else product(d_xs, params.w_ih)
    if not isinstance(d_params.w_ih, SymbolicZero):
        dz = dz + product(xs, d_params.w_ih)
    if not isinstance(d_params.w_hh, SymbolicZero):
        dz = dz + product(before, d_params.w_hh)
    if d_params.b is not None and not isinstance(d_params.b, SymbolicZero):
        dz = dz + jnp.broadcast_to(d_params.b.astype(dtype), dz.shape)
    return dz


def instantiate(tangent: Any, primal: Array) -> Array:
    """A tangent as an array."""
    return jnp.zeros_like(primal) if isinstance(tangent, SymbolicZero) else tangent


def slope_at(activation: Activation, a: Array) -> Array:
    """f'(a) of an elementwise f."""
    return jax.jvp(activation, (a,), (jnp.ones_like(a),))[1]

"""The parts of a step's tangent, ``dh_t = f'(a_t) (dz_t + W dh_{t-1})``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxrnn._products import product
from jaxrnn._types import Activation, Array, accumulation_dtype
from jaxrnn.cell import add_noises, draw_noises, input_product
from jaxrnn.matrices import is_structured, recurrent_product
from jaxrnn.params import Cell
from jaxrnn.recurrence.reference import Steps

SLOPES: dict[Activation, Activation] = {
    jnp.tanh: lambda h: 1 - h * h,
    jax.nn.relu: lambda h: (h > 0).astype(h.dtype),
    jax.nn.identity: jnp.ones_like,
    jax.nn.sigmoid: lambda h: h * (1 - h),
    jax.nn.softplus: lambda h: -jnp.expm1(-h),
}
"""f'(a) as a function of the output f(a), for the activations that have one."""


def pre_activations(cell: Cell, steps: Steps, before: Array) -> Array:
    """a_t of all steps, from the states before them."""
    inputs = add_noises(cell, input_product(cell, steps.xs), steps.keys)
    return inputs + recurrent_product(cell.w_hh, before)


def input_tangent(
    cell: Cell, d_cell: Cell, before: Array, steps: Steps, d_xs: Array | None
) -> Array:
    """The part of each step's tangent that does not depend on dh, ``U dx + dU x + dW h + db``."""
    dtype = accumulation_dtype(before.dtype)
    dz = jnp.zeros_like(before, dtype) if d_xs is None else product(d_xs, cell.w_ih)
    if not isinstance(d_cell.w_ih, SymbolicZero):
        dz = dz + product(steps.xs, d_cell.w_ih)
    if is_structured(cell.w_hh):
        if not all(isinstance(leaf, SymbolicZero) for leaf in d_cell.w_hh):
            dz = dz + cell.w_hh.push(jax.tree.map(instantiate, d_cell.w_hh, cell.w_hh), before)
    elif not isinstance(d_cell.w_hh, SymbolicZero):
        dz = dz + product(before, d_cell.w_hh)
    if d_cell.b is not None and not isinstance(d_cell.b, SymbolicZero):
        dz = dz + jnp.broadcast_to(d_cell.b.astype(dtype), dz.shape)
    if d_cell.noise is not None and not isinstance(d_cell.noise, SymbolicZero):
        d_noise = jnp.broadcast_to(d_cell.noise.astype(dtype), dz.shape)
        dz = dz + d_noise * draw_noises(steps.keys, dz)
    return dz


def leak_tangent(d_cell: Cell, f: Array, before: Array) -> Array:
    """The part of each step's tangent that a learned leak adds, ``da (f(a_t) - h_{t-1})``."""
    dtype = accumulation_dtype(before.dtype)
    assert d_cell.leak is not None
    d_leak = jnp.broadcast_to(d_cell.leak.astype(dtype), before.shape)
    return d_leak * (f.astype(dtype) - before.astype(dtype))


def instantiate(tangent: Any, primal: Array) -> Array:
    """A tangent as an array."""
    return jnp.zeros_like(primal) if isinstance(tangent, SymbolicZero) else tangent


def slope_at(activation: Activation, a: Array) -> Array:
    """f'(a) of an elementwise f."""
    return jax.jvp(activation, (a,), (jnp.ones_like(a),))[1]

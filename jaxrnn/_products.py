"""Products with a matrix of weights, which accumulate in float32 at least."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxrnn._types import Array, accumulation_dtype


def product(x: Array, w: Array, *, axis: int = 1) -> Array:
    """Contract the last axis of `x` [..., D] with an axis of `w`: [H, D], or [D, H] if axis=0."""
    return _contract(x, w, x.ndim - 1, axis)


def column_product(x: Array, w: Array) -> Array:
    """`product` of `x` [..., D] with `w` [H, D], computed with `w` on the left."""
    # Without the barrier XLA moves `w` back to the right.
    return jnp.moveaxis(lax.optimization_barrier(_contract(w, x, 1, x.ndim - 1)), 0, -1)


def column_product_of(x: Array, w_t: Array) -> Array:
    """`product` of `x` [..., D] with `w_t` [D, H], whose transpose, a function of the product's
    cotangent, is a `column_product` with `w_t`."""
    columns = lax.optimization_barrier(jnp.moveaxis(x, -1, 0))
    return jnp.moveaxis(_contract(w_t, columns, 0, 0), 0, -1)


def _contract(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    dims = (((x_axis,), (y_axis,)), ((), ()))
    return lax.dot_general(x, y, dims, preferred_element_type=accumulation_dtype(x.dtype))

"""Products with a matrix of weights, and which of their forms is fast where."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.export import is_symbolic_dim

from jaxrnn._types import Array, accumulation_dtype

_FEW_UNITS, _MANY_UNITS = 64, 256
_FEW_NUMBERS, _MANY_NUMBERS = 256, 2048


class Products(NamedTuple):
    """How a recurrence multiplies.

    inputs: "before" all steps, as one large product; "inside" each step; or "joined" with the
      state, as one product of each step.
    columns: whether the states are columns, ``(W h^T)^T``, and not rows, ``h W^T``."""

    inputs: Literal["before", "inside", "joined"]
    columns: bool


def choose_products(h0: Array, input_size: int) -> Products:
    """The products that were measured to be fast for states h0 [*B, H] and inputs of a size.

    On a CPU what is multiplied before all steps is written to memory and read again: where a step's
    own arithmetic is small beside that, inside reads less, and joined starts fewer products.
    And XLA's products copy their right-hand side at each call: where W is much larger than the
    states, it belongs on the left."""
    units, numbers = h0.shape[-1], h0.size
    if jax.default_backend() != "cpu":
        return Products("before", False)
    unknown = is_symbolic_dim(numbers)  # ``jax.export`` compares no size with it
    if units > _FEW_UNITS:
        if unknown or numbers < _MANY_NUMBERS:
            return Products("before", False)
        columns = units >= _MANY_UNITS and 8 * numbers <= units**2
        joined = units <= _MANY_UNITS and 2 * input_size <= units and not columns
        return Products("joined" if joined else "before", columns)
    if input_size > units:
        return Products("before", False)
    if unknown or numbers >= _MANY_NUMBERS:
        return Products("inside", False)
    alone = numbers <= _FEW_NUMBERS and units > _FEW_UNITS // 2
    return Products("before" if alone else "joined", False)


def product(x: Array, w: Array, *, axis: int = 1) -> Array:
    """Contract the last axis of `x` [..., D] with an axis of the matrix `w`: [H, D], or [D, H] with
    `axis` 0. The product accumulates, and is returned, in float32 at least."""
    return _contract(x, w, x.ndim - 1, axis)


def column_product(x: Array, w: Array) -> Array:
    """`product` of `x` [..., D] with `w` [H, D], which stands on the left."""
    # Without the barrier XLA turns the product round again.
    return jnp.moveaxis(lax.optimization_barrier(_contract(w, x, 1, x.ndim - 1)), 0, -1)


def column_product_of(x: Array, w_t: Array) -> Array:
    """`product` of `x` [..., D] with `w_t` [D, H], whose transpose, a function of the product's
    cotangent, is a `column_product` with `w_t`."""
    columns = lax.optimization_barrier(jnp.moveaxis(x, -1, 0))
    return jnp.moveaxis(_contract(w_t, columns, 0, 0), 0, -1)


def _contract(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    dims = (((x_axis,), (y_axis,)), ((), ()))
    return lax.dot_general(x, y, dims, preferred_element_type=accumulation_dtype(x.dtype))

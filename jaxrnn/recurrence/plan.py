"""The plan of a recurrence: in which form it multiplies, and in what chunks of time.

Chosen in one place, from shapes and the platform alone. The thresholds were measured: ``python -m
experiments bench`` sweeps strategies and chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from jaxrnn._products import column_product, column_product_of, product
from jaxrnn._types import Array
from jaxrnn.cell import add_bias, add_noises, input_product
from jaxrnn.matrices import is_structured, recurrent_product
from jaxrnn.params import Cell
from jaxrnn.recurrence.reference import Steps

Strategy = Literal["before", "columns", "inside", "joined"]
"""How a recurrence multiplies.

before: the inputs of all steps of a chunk in one large product, then ``h W^T`` at each step.
columns: the same with states as columns, ``(W h^T)^T``.
inside: inputs and state at each step, as two products.
joined: inputs and state at each step, as one product.
"""

Prepare = Callable[[Steps], Array]
Combine = Callable[[Array, Array], Array]

_LANES = 16
_FEW_UNITS, _SOME_UNITS, _MANY_UNITS = 64, 128, 256
_MANY_NUMBERS = 2048
# Since jax 0.12 a second product per step of one sequence costs less than one before all steps.
_TWO_PRODUCTS_ARE_FAST = jax.__version_info__ >= (0, 12)
_WHOLE_BYTES = 4 * 2**20
_CHUNK_BYTES = 3 * 2**19


class Plan(NamedTuple):
    """How a recurrence runs."""

    strategy: Strategy
    chunk_size: int
    """Time steps per chunk of what is computed for many steps at once: inputs before the forward
    scan, tangents and weight gradients."""

    flat: bool = False
    """Whether the forward scan holds states as rows [B * H]: on a CPU XLA vectorises along the last
    axis alone, and a few units leave much of a register idle."""


def make_plan(
    cell: Cell, h0: Array, num_steps: int, chunk_size: int | None = None, remat: bool = False
) -> Plan:
    """The plan for T steps of a cell with states h0 [*B, H], on JAX's default backend.

    A program exported for several platforms has, on all of them, the plan for the one that it was
    traced on; its results do not depend on the plan."""
    on_cpu = jax.default_backend() == "cpu"
    simple = cell.noise is None and not is_structured(cell.w_hh)
    strategy = _choose_strategy(h0, cell.w_ih.shape[1]) if on_cpu and simple else "before"
    size = _choose_chunk_size(h0, num_steps, chunk_size, remat, on_cpu)
    return Plan(strategy, size, on_cpu and _is_flat(h0))


def _choose_strategy(h0: Array, input_size: int) -> Strategy:
    """What is multiplied before all steps is written to memory and read again: where the arithmetic
    of a step is small beside that, joined and inside do without. And XLA's products copy their
    right-hand side at each call: a W much larger than the states belongs on the left."""
    units, numbers = h0.shape[-1], h0.size
    if h0.ndim == 1 and units <= _SOME_UNITS:
        return _choose_for_vector(units, input_size)
    if units <= _FEW_UNITS:
        return "joined" if input_size <= units else "before"
    many = not is_symbolic_dim(numbers) and numbers >= _MANY_NUMBERS  # symbols have no order
    if many and units >= _MANY_UNITS and 32 * numbers <= units**2:
        return "columns"
    return "joined" if h0.ndim > 1 and 4 * input_size <= units <= _MANY_UNITS else "before"


def _choose_for_vector(units: int, input_size: int) -> Strategy:
    """The strategy for one sequence of few units. XLA multiplies a vector by a transposed matrix
    slowly where the rows of that do not fill whole registers."""
    if units % _LANES:
        return "columns"
    if input_size > units:
        return "before"
    if _TWO_PRODUCTS_ARE_FAST:
        return "inside"
    return "joined" if units <= 2 * _LANES else "before"


def _choose_chunk_size(
    h0: Array, num_steps: int, chunk_size: int | None, remat: bool, on_cpu: bool
) -> int:
    """Time steps per chunk, as `jaxrnn.unroll` documents them."""
    if is_symbolic_dim(num_steps):
        return num_steps  # type: ignore[return-value]
    whole = max(num_steps, 1)
    if chunk_size is not None:
        return min(chunk_size, whole)
    if remat:
        return _divide_evenly(whole, math.isqrt(whole))
    step_bytes = h0.size * h0.dtype.itemsize
    if not on_cpu or is_symbolic_dim(step_bytes) or step_bytes * num_steps <= _WHOLE_BYTES:
        return whole
    return _divide_evenly(whole, max(_CHUNK_BYTES // step_bytes, 1))


def _divide_evenly(num_steps: int, target: int) -> int:
    """The largest divisor of `num_steps` in (target / 2, target], or else `target`: a chunk that
    divides avoids the copy that appends a shorter last one."""
    divisors = (size for size in range(target, target // 2, -1) if num_steps % size == 0)
    return next(divisors, target)


def _is_flat(h0: Array) -> bool:
    """A mesh that splits the first axis of [*B, H] splits rows [B * H] as well; of others it would
    make slices that do not lie side by side."""
    units = h0.shape[-1]
    if h0.ndim == 1 or not 0 < units <= _FEW_UNITS or units % (_LANES // 2):
        return False
    return all(name is None for name in jax.typeof(h0).sharding.spec[1:])


def make_products(
    strategy: Strategy, cell: Cell, row: int | None = None
) -> tuple[Prepare | None, Combine]:
    """``(prepare, combine)``: `prepare` makes of a chunk's steps what each of them reads (None: the
    inputs themselves), and `combine` makes of that and h [*B, H] the pre-activation: a row of `row`
    numbers, or [*B, H] if that is None.

    Weights are transposed here, outside every loop: the product of row-major states with a
    transposed matrix is the fast one."""
    tiled = cell._replace(b=tile_units(cell.b, row))

    def form(z: Array) -> Array:
        return z if row is None else z.reshape(row)

    def prepare(steps: Steps) -> Array:
        z = add_noises(cell, input_product(cell, steps.xs), steps.keys)
        return z if row is None else z.reshape(z.shape[0], row)

    if is_structured(cell.w_hh):
        return prepare, lambda z, h: z + form(recurrent_product(cell.w_hh, h))
    if strategy == "columns":
        w = cell.w_hh
        return prepare, lambda z, h: z + form(column_product(h, w))
    if strategy == "joined":
        both_t = jnp.concatenate([cell.w_ih, cell.w_hh], axis=1).T

        def combine(x: Array, h: Array) -> Array:
            joined = jnp.concatenate([x, h], axis=-1)
            return add_bias(tiled, form(product(joined, both_t, axis=0)))

        return None, combine
    w_t = cell.w_hh.T
    if strategy == "before":
        return prepare, lambda z, h: z + form(product(h, w_t, axis=0))
    u_t = cell.w_ih.T

    def add_products(x: Array, h: Array) -> Array:
        z = add_bias(tiled, form(product(x, u_t, axis=0)))
        return z + form(product(h, w_t, axis=0))

    return None, add_products


def tile_units(leaf: Array | None, row: int | None) -> Array | None:
    """What a row of `row` numbers [B * H] needs of a value per unit, [H], or for all, []."""
    if leaf is None or row is None or leaf.ndim == 0:
        return leaf
    return jnp.tile(leaf, row // leaf.size)


def make_push(strategy: Strategy, w: Any) -> Callable[[Array], Array]:
    """``dh -> W dh``, in the form whose transpose is fast where the strategy's products are."""
    if is_structured(w):
        return partial(recurrent_product, w)
    if strategy == "columns":
        w_t = w.T
        return lambda dh: column_product_of(dh, w_t)
    return lambda dh: product(dh, w)

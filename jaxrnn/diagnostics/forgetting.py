"""How long a network remembers, and whether its time can run in parallel."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._types import Activation, Array, Params, State, accumulation_dtype
from jaxrnn.diagnostics.flat_state import FlatState, flatten_step
from jaxrnn.layers.contract import Layer
from jaxrnn.params import RNNParams, initial_unit_state, vary_with
from jaxrnn.recurrence.parallel import (
    Parallel,
    check_parallel,
    choose_num_chunks,
    make_setting,
    recur_side_by_side,
)
from jaxrnn.recurrence.reference import prepare_unroll
from jaxrnn.recurrence.side_by_side import ParallelReport


def memory_length(layer: Layer, params: Params, state: State, xs: Array) -> Array:
    """The number of time steps until two runs from different states agree, under the same inputs.

    The second run starts one unit away from the first in every entry of the state, up or down by
    turns. They agree where they differ by at most 32 times the machine epsilon, relative to the
    largest entry of the state so far.

    Args:
      layer: a causal layer.
      params: its parameters.
      state: the state before the first step; None means the initial state.
      xs: inputs [T, D], or tokens [T] for a layer that reads tokens.

    Returns:
      An int32 scalar; T + 1 if the runs never agree.
    """
    flat = flatten_step(layer, params, state, xs)
    start = flat.start.vector
    tolerance = 32 * float(jnp.finfo(accumulation_dtype(start.dtype)).eps)

    def body(carry: tuple[FlatState, Array, Array], x: Array) -> Any:
        at, other, largest = carry
        after = flat.outputs(at, x, other)[0]
        at = flat.advance(at, x)[0]
        largest = jnp.maximum(largest, jnp.max(jnp.abs(at.vector)))
        apart = ~(jnp.max(jnp.abs(at.vector - after)) <= tolerance * largest)
        return (at, after, largest), apart

    signs = jnp.where(jnp.arange(start.size) % 2, -1, 1).astype(start.dtype)
    carry = flat.start, start + signs, vary_with(jnp.zeros((), start.dtype), start)
    apart = lax.scan(body, carry, flat.inputs)[1]
    steps = jnp.arange(2, apart.shape[0] + 2, dtype=jnp.int32)
    return jnp.max(jnp.where(apart, steps, 1), initial=1)


def recommend_parallel(layer: Layer, params: Params, state: State, xs: Array) -> Parallel | None:
    """The `jaxrnn.Parallel` with which such a sequence runs fastest; None if in order.

    It pays where the network forgets within a quarter of a chunk. Of a concrete network and
    sequence, outside ``jit``. Arguments are those of `memory_length`, of a vanilla layer."""
    length = int(memory_length(layer, params, state, xs))
    one = jax.ShapeDtypeStruct((layer.output_size,), jnp.float32)
    most = choose_num_chunks(Parallel(), len(xs), one)
    num_chunks = min(most, len(xs) // (4 * length))
    return Parallel(num_chunks) if num_chunks >= 4 else None


def parallel_report(
    params: RNNParams,
    h0: Array | None,
    xs: Array,
    *,
    parallel: Parallel,
    activation: Activation = jnp.tanh,
    mask: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
    leak: float | Array | None = None,
) -> ParallelReport:
    """What it takes to run a sequence with `parallel`: sweeps, residuals, and whether it pays.

    Arguments are those of `jaxrnn.unroll`."""
    check_parallel(parallel)
    cell, h0, steps = prepare_unroll(params, h0, xs, mask, resets, activation, reverse, leak=leak)
    setting = make_setting(cell, h0, steps, activation, reverse, parallel)
    cell = cell._replace(h0=lax.broadcast_like(initial_unit_state(cell), h0))
    return recur_side_by_side(setting, cell, h0, steps)[2]

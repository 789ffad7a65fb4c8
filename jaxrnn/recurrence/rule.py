"""`unroll`, and the one rule by which the recurrence is differentiated.

Forward mode is the rule as it stands. Reverse mode is JAX's own transpose of it, which is
back-propagation through time in its best form: the backward scan carries only the state's
cotangent, each weight gradient is one product over the steps of a chunk, and only the states are
stored, once. The rule is ordinary JAX, and so can be differentiated, mapped and transposed again.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.export import is_symbolic_dim

from jaxrnn._checks import check_flag, check_size
from jaxrnn._types import Activation, Array, Key
from jaxrnn.cell import move
from jaxrnn.params import Cell, RNNParams, initial_unit_state
from jaxrnn.recurrence.chunks import scan_chunks, states_before, states_before_chunks
from jaxrnn.recurrence.parallel import (
    Parallel,
    check_parallel,
    make_setting,
    recur_side_by_side,
)
from jaxrnn.recurrence.plan import Plan, make_plan, make_products, make_push, tile_units
from jaxrnn.recurrence.reference import Steps, prepare_unroll, restart, where_unmasked, zero_masked
from jaxrnn.recurrence.tangents import (
    SLOPES,
    input_tangent,
    instantiate,
    leak_tangent,
    pre_activations,
    slope_at,
)


def unroll(
    params: RNNParams,
    h0: Array | None,
    xs: Array,
    *,
    activation: Activation = jnp.tanh,
    mask: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
    chunk_size: int | None = None,
    remat: bool = False,
    parallel: Parallel | None = None,
    leak: float | Array | None = None,
    noise: float | Array | None = None,
    key: Key | None = None,
) -> tuple[Array, Array]:
    """Run the network over a sequence: `step` at every time step, as ``lax.scan`` of it would.

    Args:
      params: RNNParams with sizes D and H.
      h0: the state before the first step, [*B, H]; None means the initial state.
      xs: inputs, [T, *B, D], floating-point, integer or bool. T and any of B may be 0.
      activation: any elementwise function. It must be hashable and close over no traced value.
        Define it once, so that it is compiled once.
      mask: [T, *B] bool. Where it is False the step is skipped: the state is held, the output is 0,
        and the input is never read, NaN included.
      resets: [T, *B] bool. A reset marks the first step of a segment in input order: the state
        before it is the initial state. With `reverse`, a segment's last step starts from the
        initial state. A reset at a masked step has no effect.
      reverse: run from the last step to the first. Outputs remain in input order.
      chunk_size: time steps per chunk. Affects memory traffic, never the result. Default: one
        chunk, but on a CPU, where states take more than 4 MiB, chunks of about 1.5 MiB. A symbolic
        T (``jax.export``) is always one chunk.
      remat: recompute a chunk's states in the backward pass, so that only the states between chunks
        are stored. The default chunk then has about sqrt(T) steps, which stores least.
      parallel: run chunks side by side, as a batch (see `jaxrnn.Parallel`). A symbolic T runs in
        order.
      leak, noise, key: as in `jaxrnn.step`; each step's noise has a key of its own, and depends
        neither on chunks nor on `remat`.

    Returns:
      (h_last [*B, H], hs [T, *B, H]) in the result type of params and inputs.

    Raises:
      TypeError, ValueError: an argument is not as described.
    """
    check_chunks(chunk_size, remat, parallel)
    extras: Any = {"leak": leak, "noise": noise, "key": key, "parallel": parallel}
    cell, h0, steps = prepare_unroll(params, h0, xs, mask, resets, activation, reverse, **extras)
    options = chunk_size, remat, parallel
    h_last, states = unroll_prepared(cell, h0, steps, activation, reverse, *options)
    return h_last, zero_masked(steps.mask, states)


def check_chunks(chunk_size: Any, remat: Any, parallel: Any) -> None:
    """Refuse bad options of the chunks."""
    check_flag("remat", remat)
    if chunk_size is not None:
        check_size("chunk_size", chunk_size)
    if parallel is not None:
        check_parallel(parallel)
        if remat or chunk_size is not None:
            raise ValueError(
                f"parallel is given with remat={remat} and chunk_size={chunk_size}, "
                "expected neither: its chunks are those of parallel"
            )


def unroll_prepared(
    cell: Cell,
    h0: Array,
    steps: Steps,
    activation: Activation,
    reverse: bool,
    chunk_size: int | None,
    remat: bool,
    parallel: Parallel | None,
) -> tuple[Array, Array]:
    """`unroll` of what `prepare_unroll` returned: (h_last, states), held where masked."""
    shape, num_steps = h0.shape, steps.xs.shape[0]
    if all(size == 1 for size in shape[:-1]):  # such axes only make XLA copy between layouts
        h0 = h0.reshape(shape[-1])
        flat = (None if leaf is None else leaf.reshape(num_steps) for leaf in steps[1:])
        steps = Steps(steps.xs.reshape(num_steps, steps.xs.shape[-1]), *flat)
    # Broadcast outside every loop, so that its cotangent is summed over the batch only once.
    cell = cell._replace(h0=lax.broadcast_like(initial_unit_state(cell), h0))
    if parallel is not None and not is_symbolic_dim(num_steps) and 0 not in (num_steps, *shape):
        setting = make_setting(cell, h0, steps, activation, reverse, parallel)
        if setting.num_chunks > 1 or parallel.axis_name is not None:
            h_last, states, _ = recur_side_by_side(setting, cell, h0, steps)
            return h_last.reshape(shape), states.reshape(num_steps, *shape)
    plan = make_plan(cell, h0, num_steps, chunk_size, remat)
    setting_in_order = Setting(activation, reverse, plan)

    def run(h: Array, chunk: tuple[Steps, Any]) -> tuple[Array, Array]:
        h_last, states, _ = recur(setting_in_order, cell, h, chunk[0])
        return h_last, states

    if remat:
        h_last, states = scan_chunks(run, h0, steps, plan.chunk_size, reverse, remat=True)
    else:
        h_last, states = run(h0, (steps, ()))
    return h_last.reshape(shape), states.reshape(num_steps, *shape)


class Setting(NamedTuple):
    """What is static in a recurrence."""

    activation: Activation
    reverse: bool
    plan: Plan


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def recur(
    setting: Setting, cell: Cell, h0: Array, steps: Steps
) -> tuple[Array, Array, Array | None]:
    """``h_t = f(U x_t + b + W h_{t-1})``: (h_last [*B, H], states [T, *B, H] held where masked,
    outputs of f [T, *B, H] if they are not the states and f' is a function of them).

    The initial state is ``cell.h0`` [*B, H], and the resets are those of `find_restarts`."""
    plan, shape, num_steps = setting.plan, h0.shape, steps.xs.shape[0]
    # What is not known to be elementwise may depend on the unit, and be given states [*B, H] alone.
    row = h0.size if plan.flat and setting.activation in SLOPES else None
    held = shape if row is None else (row,)
    prepare, combine = make_products(plan.strategy, cell, row)
    tiled = cell._replace(leak=tile_units(cell.leak, row))
    apart = cell.leak is not None and setting.activation in SLOPES

    def run(h: Array, chunk: tuple[Steps, Any]) -> tuple[Array, Any]:
        steps = chunk[0]
        if prepare is not None:
            steps = steps._replace(xs=prepare(steps), keys=None)
        return lax.scan(body, h, steps, reverse=setting.reverse)

    def body(h: Array, now: Steps) -> tuple[Array, Any]:
        h = h.reshape(shape)
        before = restart(now.resets, cell.h0, h)
        f = setting.activation(combine(now.xs, before))
        after = move(tiled, before.reshape(held), f).reshape(shape)
        h = where_unmasked(now.mask, after, h).reshape(held)
        return h, (h, f.astype(h.dtype) if apart else None)

    # Chunks keep in cache what is computed before the scan; without such there is nothing to cut.
    size = num_steps if prepare is None else plan.chunk_size
    h_last, outs = scan_chunks(run, h0.reshape(held), steps, size, setting.reverse)
    states, outputs = jax.tree.map(lambda leaf: leaf.reshape(num_steps, *shape), outs)
    return h_last.reshape(shape), states, outputs


def _recur_jvp(setting: Setting, primals: Any, tangents: Any) -> Any:
    cell, h0, steps = primals
    d_cell, d_h0, d_steps = tangents
    h_last, states, outputs = recur(setting, *primals)
    d_initial = instantiate(d_cell.h0, cell.h0)
    d_xs = None if isinstance(d_steps.xs, SymbolicZero) else d_steps.xs
    slope = SLOPES.get(setting.activation)
    push = make_push(setting.plan.strategy, cell.w_hh)

    # The rule stands outside the chunks, so that their states are stored once, as outputs, and not
    # again for the backward pass; what a chunk computes from them is recomputed there.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def run(dh: Array, chunk: Any) -> tuple[Array, Any]:
        (states, outputs, d_xs, steps), start = chunk
        before = restart(steps.resets, cell.h0, states_before(states, start, setting.reverse))
        at = states if outputs is None else outputs
        if slope is None:
            at = pre_activations(cell, steps, before)
        dz = input_tangent(cell, d_cell, before, steps, d_xs)
        drift = None
        if cell.leak is not None and not isinstance(d_cell.leak, SymbolicZero):
            f = setting.activation(at) if outputs is None else outputs
            drift = leak_tangent(d_cell, f, before)
        return lax.scan(
            body, dh, (at, dz, drift, steps.mask, steps.resets), reverse=setting.reverse
        )

    # Without the checkpoint, f' would be stored beside the states; it is cheaper to recompute.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def tangent_step(
        dh: Array, at: Array, dz: Array, drift: Any, mask: Any, restarts: Any
    ) -> tuple[Array, Array | None]:
        d_before = restart(restarts, d_initial, dh)
        da = dz + push(d_before)
        at = at.astype(da.dtype)
        f_slope = slope_at(setting.activation, at) if slope is None else slope(at)
        df = f_slope * da
        moved = move(cell, d_before, df)
        moved = moved if drift is None else moved + drift.astype(dh.dtype)
        return where_unmasked(mask, moved, dh), None if outputs is None else df.astype(dh.dtype)

    def body(dh: Array, now: Any) -> tuple[Array, Any]:
        dh, df = tangent_step(dh, *now)
        return dh, (dh, df)

    size, reverse = setting.plan.chunk_size, setting.reverse
    starts = states_before_chunks(h0, states, size, reverse)
    arrays = (states, outputs, d_xs, steps)
    d_last, d_out = scan_chunks(run, instantiate(d_h0, h0), arrays, size, reverse, starts=starts)
    return (h_last, states, outputs), (d_last, *d_out)


recur.defjvp(_recur_jvp, symbolic_zeros=True)

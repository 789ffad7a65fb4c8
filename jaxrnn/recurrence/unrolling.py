"""`unroll`: the recurrence over a sequence."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxrnn._checks import check_flag, check_size
from jaxrnn._types import Activation, Array
from jaxrnn.params import RNNParams, initial_unit_state
from jaxrnn.recurrence.chunks import scan_chunks
from jaxrnn.recurrence.plan import make_plan
from jaxrnn.recurrence.reference import Steps, prepare_unroll, zero_masked
from jaxrnn.recurrence.rule import Setting, Weights, recur


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

    Returns:
      (h_last [*B, H], hs [T, *B, H]) in the result type of params and inputs.

    Raises:
      TypeError, ValueError: an argument is not as described.
    """
    check_chunks(chunk_size, remat)
    params, h0, steps = prepare_unroll(params, h0, xs, mask, resets, activation, reverse)
    h_last, states = unroll_prepared(params, h0, steps, activation, reverse, chunk_size, remat)
    return h_last, zero_masked(steps.mask, states)


def check_chunks(chunk_size: Any, remat: Any) -> None:
    """Refuse bad options of the chunks."""
    check_flag("remat", remat)
    if chunk_size is not None:
        check_size("chunk_size", chunk_size)


def unroll_prepared(
    params: RNNParams,
    h0: Array,
    steps: Steps,
    activation: Activation,
    reverse: bool,
    chunk_size: int | None,
    remat: bool,
) -> tuple[Array, Array]:
    """`unroll` of what `prepare_unroll` returned: (h_last, states), held where masked."""
    shape, num_steps = h0.shape, steps.xs.shape[0]
    if all(size == 1 for size in shape[:-1]):  # such axes only make XLA copy between layouts
        h0 = h0.reshape(shape[-1])
        flat = (None if leaf is None else leaf.reshape(num_steps) for leaf in steps[1:])
        steps = Steps(steps.xs.reshape(num_steps, steps.xs.shape[-1]), *flat)
    # Broadcast outside every loop, so that its cotangent is summed over the batch only once.
    initial = jnp.broadcast_to(initial_unit_state(params), h0.shape)
    weights = Weights(params._replace(h0=None), initial)
    plan = make_plan(h0, steps.xs.shape[-1], num_steps, chunk_size, remat)
    setting = Setting(activation, reverse, plan)
    if remat:

        def run(h: Array, chunk: tuple[Steps, Any]) -> tuple[Array, Array]:
            return recur(setting, weights, h, chunk[0])

        size = plan.chunk_size
        h_last, states = scan_chunks(run, h0, steps, size, reverse=reverse, remat=True)
    else:
        h_last, states = recur(setting, weights, h0, steps)
    return h_last.reshape(shape), states.reshape(num_steps, *shape)

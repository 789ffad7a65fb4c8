"""What unrolling any layer needs: where states are replaced, and chunks of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.export import is_symbolic_dim

from jaxrnn._types import Array

_WHOLE_BYTES = 4 * 2**20
_CHUNK_BYTES = 3 * 2**19


def replacement_marks(resets: Array, mask: Array | None, reverse: bool) -> Array:
    """The steps [T, *B] before which the state is replaced by the initial state.

    Forward these are the marks on steps that are taken. Backward the state is replaced at the last
    step of the segment before: the step whose next taken step is marked."""
    taken = jnp.ones_like(resets) if mask is None else mask
    marks = resets & taken
    if not reverse or resets.shape[0] == 0:
        return marks

    def body(next_marked: Array, step_marks: tuple[Array, Array]) -> tuple[Array, Array]:
        marked, is_taken = step_marks
        return jnp.where(is_taken, marked, next_marked), next_marked

    _, next_marked = lax.scan(body, jnp.zeros_like(marks[0]), (marks, taken), reverse=True)
    return next_marked & taken


def choose_chunk_size(h0: Array, num_steps: int, chunk_size: int | None, remat: bool) -> int:
    """Steps a chunk of an unrolled sequence, as `jaxrnn.unroll` documents them; h0 [*B, H]."""
    unknown = is_symbolic_dim(num_steps)  # ``jax.export`` compares no size with it
    if unknown:
        return num_steps
    whole = max(num_steps, 1)
    if chunk_size is not None:
        return min(chunk_size, whole)
    if remat:
        return _even_chunk(whole, math.isqrt(whole))
    step_bytes = h0.size * h0.dtype.itemsize
    unknown = is_symbolic_dim(step_bytes)  # the batch
    if jax.default_backend() != "cpu" or unknown or step_bytes * num_steps <= _WHOLE_BYTES:
        return whole
    return _even_chunk(whole, max(_CHUNK_BYTES // step_bytes, 1))


def _even_chunk(num_steps: int, target: int) -> int:
    """The largest divisor of `num_steps` in (target / 2, target], or else `target`: a chunk that
    divides spares the copy that joins a shorter last one."""
    for size in range(min(target, num_steps), target // 2, -1):
        if num_steps % size == 0:
            return size
    return max(min(target, num_steps), 1)


def scan_chunks(
    run: Callable[[Any, Any], tuple[Any, Array]],
    state: Any,
    pieces: Any,
    size: int,
    *,
    reverse: bool,
    starts: Any = (),
    remat: bool = False,
) -> tuple[Any, Array]:
    """``run(state, (chunk, start)) -> (state, ys)`` over chunks of `size` steps, the last shorter.

    `pieces` is a pytree of arrays [T, ...], cut along T, and `starts` one of arrays [chunks, ...];
    the outputs are joined again. With `remat` a chunk is recomputed in the backward pass."""
    num_steps = jax.tree.leaves(pieces)[0].shape[0]
    alone = jax.checkpoint(run) if remat else run
    if num_steps <= size:
        return alone(state, (pieces, jax.tree.map(lambda leaf: leaf[0], starts)))
    # Inside a scan nothing can be merged across the checkpoint, so no barrier is needed.
    body = jax.checkpoint(run, prevent_cse=False) if remat else run
    count, tail = divmod(num_steps, size)
    main = jax.tree.map(
        lambda leaf: leaf[: count * size].reshape(count, size, *leaf.shape[1:]), pieces
    )
    main_starts = jax.tree.map(lambda leaf: leaf[:count], starts)
    rest = jax.tree.map(lambda leaf: leaf[count * size :], pieces)
    rest_start = jax.tree.map(lambda leaf: leaf[-1], starts)

    def run_main(state: Any) -> tuple[Any, Array]:
        state, ys = lax.scan(body, state, (main, main_starts), reverse=reverse)
        return state, ys.reshape(count * size, *ys.shape[2:])

    if not tail:
        return run_main(state)
    if reverse:
        state, rest_ys = alone(state, (rest, rest_start))
        state, main_ys = run_main(state)
    else:
        state, main_ys = run_main(state)
        state, rest_ys = alone(state, (rest, rest_start))
    return state, jnp.concatenate([main_ys, rest_ys])


def states_before_chunks(h0: Array, states: Array, size: int, *, reverse: bool) -> Array:
    """The state [chunks, *B, H] before the first step taken of each chunk of states [T, *B, H]."""
    if states.shape[0] <= size:
        return h0[None]
    if reverse:
        return jnp.concatenate([states[size::size], h0[None]])
    return jnp.concatenate([h0[None], states[size - 1 : -1 : size]])

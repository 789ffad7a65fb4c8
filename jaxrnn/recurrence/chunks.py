"""Chunks of time: a scan over them, each of which handles several time steps at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.export import is_symbolic_dim

from jaxrnn._types import Array


def scan_chunks(
    run: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    steps: Any,
    size: int,
    reverse: bool,
    *,
    starts: Any = (),
    remat: bool = False,
) -> tuple[Any, Any]:
    """``run(state, (chunk, start)) -> (state, ys)`` over chunks of `size` steps, the last shorter.

    `steps` is a pytree of arrays [T, ...], cut along T, and `starts` one of arrays [chunks, ...];
    the outputs, a pytree, are concatenated. With `remat` a chunk is recomputed in the backward
    pass."""
    num_steps = jax.tree.leaves(steps)[0].shape[0]
    alone = jax.checkpoint(run) if remat else run
    if num_steps <= size:
        return alone(state, (steps, jax.tree.map(lambda leaf: leaf[0], starts)))
    # Inside a scan nothing can be merged across the checkpoint, so no barrier is needed.
    body = jax.checkpoint(run, prevent_cse=False) if remat else run
    count, tail = divmod(num_steps, size)
    whole = jax.tree.map(
        lambda leaf: leaf[: count * size].reshape(count, size, *leaf.shape[1:]), steps
    )
    chunks = (whole, jax.tree.map(lambda leaf: leaf[:count], starts))
    rest = jax.tree.map(lambda leaf: leaf[count * size :], steps)
    last_chunk = (rest, jax.tree.map(lambda leaf: leaf[-1], starts))
    if tail and reverse:
        state, last_ys = alone(state, last_chunk)
    state, ys = lax.scan(body, state, chunks, reverse=reverse)
    ys = jax.tree.map(lambda leaf: leaf.reshape(count * size, *leaf.shape[2:]), ys)
    if tail and not reverse:
        state, last_ys = alone(state, last_chunk)
    if tail:
        ys = jax.tree.map(lambda *parts: jnp.concatenate(parts), ys, last_ys)
    return state, ys


def states_before(states: Array, start: Array, reverse: bool) -> Array:
    """What stood before each of `states` along the first axis; before the first one, `start`."""
    if not is_symbolic_dim(states.shape[0]) and states.shape[0] == 0:
        return states
    parts = [states[1:], start[None]] if reverse else [start[None], states[:-1]]
    return jnp.concatenate(parts)


def states_before_chunks(h0: Array, states: Array, size: int, reverse: bool) -> Array:
    """The state [chunks, *B, H] before the first step that each chunk of `states` computes."""
    if states.shape[0] <= size:
        return h0[None]
    if reverse:
        return jnp.concatenate([states[size::size], h0[None]])
    return jnp.concatenate([h0[None], states[size - 1 : -1 : size]])

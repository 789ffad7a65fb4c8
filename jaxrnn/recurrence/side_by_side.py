"""Chunks of one sequence that run side by side, as a batch.

A time step of one sequence multiplies W by a vector; P chunks at once multiply it by a matrix,
which costs little more. All chunks but the first start from a guess. Where a network forgets, each
finds the right states after some steps, so that only its beginning is wrong. The beginnings are run
again, each from the last state of the chunk before, until they agree with the first run. What never
agrees is run in order.
"""

# Without `from __future__ import annotations`, for which pdoc cannot show the fields of NamedTuples
# (https://github.com/mitmproxy/pdoc/issues/765).
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._types import Array, accumulation_dtype
from jaxrnn.params import vary_with
from jaxrnn.recurrence.chunks import states_before
from jaxrnn.recurrence.reference import select

Step = Callable[[Array, Any], Array]

_SWEEPS = 3
_PROBED_SHARE = 40


class ParallelReport(NamedTuple):
    """What it took to run chunks side by side."""

    forgets: Array
    """Whether a probe found that different states come to agree under the same inputs: bool."""

    sweeps: Array
    """Runs over all chunks, of which the last may have stopped early: int32."""

    mended: Array
    """Steps that the last run took until it agreed with the one before: int32."""

    agreed: Array
    """Whether both agreed, so that nothing was run in order: bool."""

    residuals: Array
    """The difference between both runs where the last one stopped, relative to the largest entry of
    any state of the sequence: [P]. Where they agreed, it is at most the tolerance."""


class Chunks(NamedTuple):
    """A sequence cut into chunks, and the step that runs over it."""

    step: Step
    arrays: Any
    """A pytree of arrays [P, S, ...]: P chunks of S time steps."""

    padding: int
    """Steps before the first one, which hold the state."""

    reverse: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(P, S)."""
        count, size = jax.tree.leaves(self.arrays)[0].shape[:2]
        return count, size

    def place(self, t: Array) -> Array:
        """Where step t of every chunk stands."""
        return self.shape[1] - 1 - t if self.reverse else t

    def advance(self, h: Array, t: Array) -> Array:
        """Step t of every chunk: h [P, *B, H]."""
        at = self.place(t)
        new = self.step(h, jax.tree.map(lambda leaf: _take(leaf, at, 1), self.arrays))
        if not self.padding:
            return new
        count = self.shape[0]
        first = jnp.arange(count) == (count - 1 if self.reverse else 0)
        return select(first & (t < self.padding), h, new)

    def put(self, states: Array, h: Array, t: Array) -> Array:
        """`states` [P, S, *B, H] with `h` as the states after step t."""
        return lax.dynamic_update_index_in_dim(states, h[:, None], self.place(t), 1)

    def starts(self, h0: Array, ends: Array) -> Array:
        """The states [P, *B, H] before the chunks, from those behind them."""
        return states_before(ends, h0, self.reverse)

    def last(self, ends: Array) -> Array:
        """The state behind the last chunk."""
        return ends[0] if self.reverse else ends[-1]


class Devices(NamedTuple):
    """The devices along which time is split, or one alone."""

    axis_name: str | None
    reverse: bool

    def combine(self, reduce: Callable[..., Array], value: Array) -> Array:
        """A value of all devices, by ``jax.lax.pmax`` or the like."""
        return value if self.axis_name is None else reduce(value, self.axis_name)

    def before(self, h0: Array, end: Array) -> Array:
        """`end` of the device before; `h0` on the first one."""
        if self.axis_name is None:
            return h0
        pairs = [(i, i + 1) for i in range(lax.axis_size(self.axis_name) - 1)]
        pairs = [pair[::-1] for pair in pairs] if self.reverse else pairs
        return self.choose(0, h0, lax.ppermute(end, self.axis_name, pairs))

    def choose(self, position: int, here: Array, elsewhere: Array) -> Array:
        """`here` on the first (0) or the last (-1) device, and `elsewhere` on all others."""
        assert self.axis_name is not None
        at_end = (position == -1) != self.reverse
        device = lax.axis_size(self.axis_name) - 1 if at_end else 0
        return jnp.where(lax.axis_index(self.axis_name) == device, here, elsewhere)

    def last(self, end: Array) -> Array:
        """`end` of the last device."""
        if self.axis_name is None:
            return end
        return lax.psum(self.choose(-1, end, jnp.zeros_like(end)), self.axis_name)


def run_side_by_side(
    step: Step,
    h0: Array,
    steps: Any,
    num_chunks: int,
    *,
    step_in_order: Step,
    tolerance: float | None = None,
    axis_name: str | None = None,
    reverse: bool = False,
    forgets: Array | None = None,
) -> tuple[Array, Array, ParallelReport]:
    """``h = step(h, now)`` over the time steps of `steps`, a pytree of arrays [T, ...].

    `step` works with an axis of chunks in front, and `step_in_order` is the same without. `forgets`
    says whether the chunks will agree; a probe finds out if it is None.

    Returns (the last state, of all devices; the states [T, *B, H], of this one; the report)."""
    devices = Devices(axis_name, reverse)
    chunks, num_steps = _cut(step, steps, num_chunks, reverse)
    if tolerance is None:
        tolerance = 32 * float(jnp.finfo(accumulation_dtype(h0.dtype)).eps)
    if forgets is None:
        forgets = _probe(chunks, h0, tolerance)
    forgets = vary_with(devices.combine(lax.pmin, forgets.astype(jnp.int32)) > 0, h0)

    ends, states, scale = _sweep(chunks, devices, h0, forgets)
    ends, states, report = _mend(chunks, devices, h0, forgets, (ends, states), tolerance * scale)
    in_order = chunks._replace(step=step_in_order)
    end, states = _run_in_order(in_order, devices, h0, (ends, states), report)
    report = report._replace(
        residuals=jnp.max(report.residuals / jnp.where(scale > 0, scale, 1), range(1, h0.ndim + 1))
    )
    padded = states.reshape(num_steps + chunks.padding, *h0.shape)
    states = padded[:num_steps] if reverse else padded[chunks.padding :]
    return devices.last(end), states, report


def _cut(step: Step, steps: Any, count: int, reverse: bool) -> tuple[Chunks, int]:
    """The chunks, and the number of time steps without padding."""
    num_steps = jax.tree.leaves(steps)[0].shape[0]
    size = -(-num_steps // count)
    padding = size * count - num_steps

    def cut(leaf: Array) -> Array:
        if padding:
            widths = (0, padding) if reverse else (padding, 0)
            leaf = jnp.pad(leaf, [widths, *[(0, 0)] * (leaf.ndim - 1)])
        return leaf.reshape(count, size, *leaf.shape[1:])

    return Chunks(step, jax.tree.map(cut, steps), padding, reverse), num_steps


def _probe(chunks: Chunks, h0: Array, tolerance: float) -> Array:
    """Whether two runs from different states agree soon: after at most half a chunk and a fortieth
    of the steps, which two runs at once make a twentieth of the work. They begin with a chunk in
    the middle."""
    count, size = chunks.shape
    middle = jax.tree.map(lambda leaf: jnp.stack([leaf[count // 2]] * 2), chunks.arrays)
    probed = chunks._replace(arrays=middle, padding=0)
    most = max(min(size // 2, count * size // _PROBED_SHARE), 1)

    def apart(carry: Any) -> Array:
        t, pair = carry
        scale = jnp.max(jnp.abs(pair[0]), -1, keepdims=True)
        gap = jnp.max(jnp.abs(pair[0] - pair[1]), -1, keepdims=True)
        return (t < most) & ~jnp.all(gap <= tolerance * scale)

    def body(carry: Any) -> Any:
        t, pair = carry
        return t + 1, probed.advance(pair, t)

    signs = jnp.where(jnp.arange(h0.shape[-1]) % 2, -1, 1).astype(h0.dtype)
    pair = jnp.stack([h0, h0 + jnp.broadcast_to(signs, h0.shape)])
    t, pair = lax.while_loop(apart, body, (vary_with(jnp.int32(0), h0), pair))
    return ~apart((t * 0, pair))


def _sweep(
    chunks: Chunks, devices: Devices, h0: Array, forgets: Array
) -> tuple[Array, Array, Array]:
    """One run over all chunks, from zeros but for the first.

    Returns ends [P, *B, H], states [P, S, *B, H], and each sequence's largest entry [1, *B, 1]."""
    count, size = chunks.shape
    zeros = jnp.broadcast_to(jnp.zeros_like(h0), (count, *h0.shape))
    guess = chunks.starts(devices.before(h0, jnp.zeros_like(h0)), zeros)
    states = jnp.broadcast_to(jnp.zeros_like(h0), (count, size, *h0.shape))

    def body(t: Array, carry: Any) -> Any:
        h, largest, states = carry
        h = chunks.advance(h, t)
        return h, jnp.maximum(largest, jnp.abs(h)), chunks.put(states, h, t)

    start = guess, jnp.abs(guess), states
    num_steps = jnp.where(forgets, size, 0)
    ends, largest, states = lax.fori_loop(jnp.zeros_like(num_steps), num_steps, body, start)
    scale = devices.combine(lax.pmax, jnp.max(largest, axis=(0, -1)))
    return ends, states, vary_with(scale, h0)[None, ..., None]


def _mend(
    chunks: Chunks,
    devices: Devices,
    h0: Array,
    forgets: Array,
    run: tuple[Array, Array],
    limit: Array,
) -> tuple[Array, Array, ParallelReport]:
    """Run all chunks again, each from where the one before ended, until that agrees with the run
    before: (ends, states, report). The k-th run makes the first k chunks right in any case."""

    def again(carry: Any) -> Any:
        ends, states, report = carry
        starts = chunks.starts(devices.before(h0, chunks.last(ends)), ends)
        t, h, states, gap = _run_until_agreed(chunks, starts, states, limit)
        agreed = jnp.all(gap <= limit)
        ends = jnp.where(agreed, ends, h)
        everywhere = vary_with(devices.combine(lax.pmin, agreed.astype(jnp.int32)) > 0, h0)
        return ends, states, ParallelReport(forgets, report.sweeps + 1, t, everywhere, gap)

    def unfinished(carry: Any) -> Array:
        report = carry[2]
        return report.forgets & ~report.agreed & (report.sweeps < _SWEEPS)

    ends, states = run
    once, never = forgets.astype(jnp.int32), forgets & False
    report = ParallelReport(forgets, once, once * 0, never, jnp.zeros_like(ends[..., :1]))
    return lax.while_loop(unfinished, again, (ends, states, report))


def _run_until_agreed(
    chunks: Chunks, starts: Array, states: Array, limit: Array
) -> tuple[Array, Array, Array, Array]:
    """Run all chunks over `states` of the run before, until both differ by at most `limit`:
    (steps, h, states, the last difference [P, *B, 1])."""

    def apart(carry: Any) -> Array:
        t, _, _, gap = carry
        return (t < chunks.shape[1]) & ~jnp.all(gap <= limit)

    def body(carry: Any) -> Any:
        t, h, states, _ = carry
        h = chunks.advance(h, t)
        gap = jnp.max(jnp.abs(h - _take(states, chunks.place(t), 1)), -1, keepdims=True)
        # By depending on the gap, states are read before they are overwritten: otherwise XLA copies
        # all of them at every step.
        states = chunks.put(states, h, t + jnp.any(gap < 0).astype(t.dtype))
        return t + 1, h, states, gap

    start = jnp.int32(0), jnp.full_like(starts[..., :1], jnp.inf)
    t, infinite = vary_with(start, starts)
    return lax.while_loop(apart, body, (t, starts, states, infinite))


def _run_in_order(
    chunks: Chunks, devices: Devices, h0: Array, run: tuple[Array, Array], report: ParallelReport
) -> tuple[Array, Array]:
    """Run in order what is not yet right: (the state behind the last step, states)."""
    ends, states = run
    count, size = chunks.shape
    steps = jax.tree.map(lambda leaf: leaf.reshape(count * size, *leaf.shape[2:]), chunks.arrays)
    alone = devices.axis_name is None
    # On one device the chunks that were run right stand. Several take turns.
    done = report.sweeps if alone else report.sweeps * 0
    rounds = 1 if devices.axis_name is None else lax.axis_size(devices.axis_name)
    at = jnp.maximum(done - 1, 0)
    end = jnp.where(done > 0, _take(ends, count - 1 - at if chunks.reverse else at, 0), h0)
    first = jnp.where(report.agreed, count * size, jnp.maximum(done * size, chunks.padding))

    def body(t: Array, carry: Any) -> Any:
        h, states = carry
        t = count * size - 1 - t if chunks.reverse else t
        h = chunks.step(h, jax.tree.map(lambda leaf: _take(leaf, t, 0), steps))
        return h, lax.dynamic_update_index_in_dim(states, h, t, 0)

    def turn(_: Any, carry: Any) -> Any:
        h, states = carry
        h = h if alone else devices.before(h0, h)
        return lax.fori_loop(first, jnp.full_like(first, count * size), body, (h, states))

    flat = states.reshape(count * size, *h0.shape)
    turns = jnp.where(report.agreed, 0, rounds)
    end, flat = lax.fori_loop(jnp.zeros_like(turns), turns, turn, (end, flat))
    return jnp.where(report.agreed, chunks.last(ends), end), flat.reshape(states.shape)


def _take(leaf: Array, index: Array, axis: int) -> Array:
    return lax.dynamic_index_in_dim(leaf, index, axis, keepdims=False)

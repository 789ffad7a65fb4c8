"""Time in parallel: the recurrence with its chunks side by side, and its linearisation.

The tangent of a recurrence is a linear system, ``dh_t - J_t dh_{t-1} = b_t``, and so is its
transpose; both are run side by side like the recurrence itself. ``jax.lax.custom_linear_solve`` has
the derivatives of a solution, of any order and in any direction: they are those of the solution and
not of the runs by which it was found.
"""

# Without `from __future__ import annotations`, for which pdoc cannot show the fields of NamedTuples
# (https://github.com/mitmproxy/pdoc/issues/765).
import functools
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero, zero_from_primal

from jaxrnn._checks import check_positive, check_size
from jaxrnn._types import Activation, Array, accumulation_dtype
from jaxrnn.cell import move
from jaxrnn.params import Cell
from jaxrnn.recurrence.chunks import states_before
from jaxrnn.recurrence.plan import Combine, Strategy, make_plan, make_products, make_push
from jaxrnn.recurrence.reference import Steps, restart, where_unmasked, zero_masked
from jaxrnn.recurrence.side_by_side import Devices, ParallelReport, run_side_by_side
from jaxrnn.recurrence.tangents import (
    SLOPES,
    input_tangent,
    leak_tangent,
    pre_activations,
    slope_at,
)

_FEWEST_STEPS = 64
_CHUNKS = 16
_LARGE_BATCH, _FEW_UNITS, _MANY_UNITS = 4, 64, 512
_STEPS_ON_GPU = 256

Push = Callable[[Array], Array]


class Parallel(NamedTuple):
    """An option of `unroll` and `vanilla_rnn`: one long sequence runs as fast as many short ones.

    The sequence is cut into chunks that run side by side, as a batch. All but the first start from
    a guess; their beginnings are run again, from the last state of the chunk before, until both
    runs agree. This is fast where the network forgets within a fraction of a chunk: where its
    largest Lyapunov exponent is well below 0 (Gonzalez et al. 2025, "Predictability enables
    parallelization of nonlinear state space models"). Elsewhere a probe finds out, for at most a
    twentieth of the work, and the steps run in order, as those of any chunk that never agrees do.

    Results are those of the steps in order, up to `tolerance`; so are derivatives of any order,
    which are of the result and not of the runs that found it. Of a gradient, what is smaller than
    `tolerance` times its largest entry may be lost. Under ``vmap``, if one sequence has to run in
    order, all do, and the number of chunks is chosen as for one. ``jax.linear_transpose``, which
    asks no rule for derivatives, does not apply; ``jax.vjp`` does.

        rnn = jaxrnn.vanilla_rnn(8, 256, parallel=jaxrnn.Parallel())
        params, xs = rnn.init(jax.random.key(0)), jnp.ones((9600, 8))
        h, hs = jax.jit(rnn.unroll)(params, None, xs)

    Over devices, time is split by ``jax.shard_map`` (P is ``jax.P``):

        def run(params, xs):
            return jaxrnn.unroll(params, None, xs, parallel=jaxrnn.Parallel(axis_name="time"))

        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((jax.device_count(),), ("time",), axis_types=auto)
        specs = dict(in_specs=(P(), P("time")), out_specs=(P(), P("time")))
        h, hs = jax.jit(jax.shard_map(run, mesh=mesh, **specs))(params, xs)

    num_chunks: the number of chunks, per device; None chooses it, and chooses 1, in order, where
      chunks would not pay: on a CPU at up to 64 units, and for more than one sequence, or than
      four of at least 512 units.
    tolerance: states agree that differ by at most this, relative to the largest entry of any state
      of their sequence. None means 32 times the machine epsilon.
    axis_name: the axis of ``jax.shard_map`` along which time is split: each device has its part of
      the sequence, in the order of the devices, and all parts are equally long.
    """

    num_chunks: int | None = None
    tolerance: float | None = None
    axis_name: str | None = None


def check_parallel(parallel: Any) -> None:
    """Refuse what is not a `Parallel`, or one with bad options."""
    if not isinstance(parallel, Parallel):
        raise TypeError(f"parallel is {parallel!r:.60}, expected a jaxrnn.Parallel")
    num_chunks: Any = parallel.num_chunks
    tolerance: Any = parallel.tolerance
    axis_name: Any = parallel.axis_name
    if num_chunks is not None:
        check_size("parallel.num_chunks", num_chunks)
    if tolerance is not None:
        if not isinstance(tolerance, numbers.Real):  # an array is not hashable
            raise TypeError(f"parallel.tolerance is {tolerance!r:.60}, expected a number")
        check_positive("parallel.tolerance", tolerance)
    if axis_name is not None and not isinstance(axis_name, str):
        raise TypeError(f"parallel.axis_name is {axis_name!r}, expected the name of a mesh axis")


def choose_num_chunks(parallel: Parallel, num_steps: int, h0: Array | jax.ShapeDtypeStruct) -> int:
    """P for states h0 [*B, H], as `parallel` says, or else near what was measured to be fastest
    (``python -m experiments parallel``), a divisor of T.

    On a CPU reading W takes most of the time for one sequence, if W is not small, and for several
    if it is large; else P is 1, in order. On a GPU a step takes as long for one sequence as for
    many."""
    if parallel.num_chunks is not None:
        return max(min(parallel.num_chunks, num_steps), 1)
    if jax.default_backend() != "cpu":
        target = num_steps // _STEPS_ON_GPU
    else:
        batch, units = h0.size // h0.shape[-1], h0.shape[-1]
        pays = units > _FEW_UNITS and batch == 1
        pays |= units >= _MANY_UNITS and batch <= _LARGE_BATCH
        target = min(_CHUNKS, num_steps // _FEWEST_STEPS) if pays else 1
    divisors = (count for count in range(target, target // 2, -1) if num_steps % count == 0)
    return next(divisors, max(target, 1))


class Setting(NamedTuple):
    """What is static in a recurrence whose chunks run side by side."""

    activation: Activation
    reverse: bool
    strategy: Strategy
    strategy_in_order: Strategy
    num_chunks: int
    parallel: Parallel


def make_setting(
    cell: Cell, h0: Array, steps: Steps, activation: Activation, reverse: bool, parallel: Parallel
) -> Setting:
    """The setting for states h0 [*B, H]."""
    num_steps = steps.xs.shape[0]
    small = cell.w_ih.shape[1] <= h0.shape[-1] and cell.noise is None
    strategy: Strategy = "joined" if small else "before"
    columns = make_plan(cell, h0, num_steps).strategy == "columns"
    in_order: Strategy = "columns" if columns else strategy
    num_chunks = choose_num_chunks(parallel, num_steps, h0)
    return Setting(activation, reverse, strategy, in_order, num_chunks, parallel)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def recur_side_by_side(
    setting: Setting, cell: Cell, h0: Array, steps: Steps
) -> tuple[Array, Array, ParallelReport]:
    """The states of `recur` in chunks side by side, and what it took."""
    prepare, combine = make_products(setting.strategy, cell)
    each, combine_in_order = make_products(setting.strategy_in_order, cell)

    def advance(combine: Combine, z: Array, h: Array, now: Steps) -> Array:
        before = restart(now.resets, cell.h0, h)
        after = move(cell, before, setting.activation(combine(z, before)))
        return where_unmasked(now.mask, after, h)

    def step(h: Array, now: tuple[Steps, Array]) -> Array:
        return advance(combine, now[1], h, now[0])

    def step_in_order(h: Array, now: tuple[Steps, Array]) -> Array:
        steps, z = now
        if prepare is None and each is not None:
            z = each(steps)
        return advance(combine_in_order, z, h, steps)

    return run_side_by_side(
        step,
        h0,
        (steps._replace(keys=None), steps.xs if prepare is None else prepare(steps)),
        setting.num_chunks,
        step_in_order=step_in_order,
        tolerance=setting.parallel.tolerance,
        axis_name=setting.parallel.axis_name,
        reverse=setting.reverse,
    )


def _jvp(setting: Setting, primals: Any, tangents: Any) -> Any:
    cell, h0, steps = primals
    d_cell, d_h0, d_steps = tangents
    h_last, states, report = recur_side_by_side(setting, *primals)
    devices = Devices(setting.parallel.axis_name, setting.reverse)

    before = restart(steps.resets, cell.h0, _before_each(devices, h0, states))
    slope = SLOPES.get(setting.activation)
    if slope is not None and cell.leak is None:
        slopes = slope(states.astype(accumulation_dtype(states.dtype)))
    else:
        at = pre_activations(cell, steps, before)
        slopes = slope_at(setting.activation, at)
    jacobians = Jacobians(slopes, steps.mask, steps.resets)
    d_xs = None if isinstance(d_steps.xs, SymbolicZero) else d_steps.xs
    dz = input_tangent(cell, d_cell, before, steps, d_xs)
    d_before = jnp.zeros_like(states)
    if steps.resets is not None and not isinstance(d_cell.h0, SymbolicZero):
        d_before = restart(steps.resets, d_cell.h0, d_before)
        dz = dz + make_push(setting.strategy, cell.w_hh)(d_before)
    source = move(cell, d_before, slopes * dz)
    if cell.leak is not None and not isinstance(d_cell.leak, SymbolicZero):
        drift = leak_tangent(d_cell, setting.activation(at), before)
        source = source + drift.astype(source.dtype)
    source = zero_masked(steps.mask, source)
    if not isinstance(d_h0, SymbolicZero):
        first = -1 if setting.reverse else 0
        push = make_push(setting.strategy, cell.w_hh)
        step = jax.tree.map(lambda leaf: leaf[first], jacobians)
        entering = step.apply(cell, push, d_h0)
        source = source.at[first].add(devices.before(entering, jnp.zeros_like(entering)))
    d_states = _solve(setting, cell, jacobians, source, report.agreed)
    d_last = devices.last(d_states[0 if setting.reverse else -1])
    no_tangent = jax.tree.map(zero_from_primal, report)
    return (h_last, states, report), (d_last, d_states, no_tangent)


recur_side_by_side.defjvp(_jvp, symbolic_zeros=True)


class Jacobians(NamedTuple):
    """J_t, the derivative of the state by the one before it, of consecutive steps or of one."""

    slopes: Array
    """f'(a_t)."""

    mask: Array | None
    restarts: Array | None

    def apply(self, cell: Cell, push: Push, dh: Array) -> Array:
        """``J_t dh``; `push` is that of `make_push`."""
        before = restart(self.restarts, jnp.zeros_like(dh), dh)
        return where_unmasked(self.mask, move(cell, before, self.slopes * push(before)), dh)

    def apply_transposed(self, cell: Cell, push: Push, ct: Array) -> Array:
        """``J_t^T ct``."""
        ct_h, ct_f = jnp.zeros_like(ct), ct.astype(self.slopes.dtype)
        if cell.leak is not None:
            ct_h, ct_f = jax.linear_transpose(lambda h, f: move(cell, h, f), ct, ct_f)(ct)
        ct_h = ct_h + jax.linear_transpose(push, ct)(self.slopes * ct_f)[0]
        ct_h = restart(self.restarts, jnp.zeros_like(ct_h), ct_h)
        return where_unmasked(self.mask, ct_h, ct)


def _solve(
    setting: Setting, cell: Cell, jacobians: Jacobians, source: Array, forgets: Array
) -> Array:
    """``x_t = J_t x_{t-1} + source_t``, from zero: [T, *B, H]."""
    zero = jnp.zeros_like(source[0])

    devices = Devices(setting.parallel.axis_name, setting.reverse)
    back = devices._replace(reverse=not setting.reverse)
    pushes = [  # made here, outside of every loop
        make_push(strategy, cell.w_hh) for strategy in (setting.strategy, setting.strategy_in_order)
    ]

    def run(make_step: Callable[[Push], Any], given: Array, reverse: bool) -> Array:
        step, step_in_order = map(make_step, pushes)
        return run_side_by_side(
            step,
            zero,
            (given, jacobians),
            setting.num_chunks,
            step_in_order=step_in_order,
            tolerance=setting.parallel.tolerance,
            axis_name=setting.parallel.axis_name,
            reverse=reverse,
            forgets=forgets,
        )[1]

    def apply(x: Array) -> Array:
        return x - jacobians.apply(cell, pushes[0], _before_each(devices, zero, x))

    def solve(_: Any, source: Array) -> Array:
        def make_step(push: Push) -> Any:
            return lambda x, now: now[0] + now[1].apply(cell, push, x)

        return run(make_step, source, devices.reverse)

    def solve_transposed(_: Any, ct: Array) -> Array:
        def make_step(push: Push) -> Any:
            return lambda passed, now: now[1].apply_transposed(cell, push, now[0] + passed)

        return ct + _before_each(back, zero, run(make_step, ct, back.reverse))

    return lax.custom_linear_solve(apply, source, solve, solve_transposed)


def _before_each(devices: Devices, first: Array, states: Array) -> Array:
    """The state before each step [T, *B, H], in the order in which they are run."""
    last = states[0 if devices.reverse else -1]
    return states_before(states, devices.before(first, last), devices.reverse)

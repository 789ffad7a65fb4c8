"""How compile time, time per step and memory depend on the length of a sequence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import jax

from experiments.bench.cases import (
    Case,
    Pass,
    Shape4,
    compare_gradients,
    make_workload,
    mean_square,
)
from experiments.bench.entrants import compile_program, interleave
from experiments.bench.library import BUILDERS, compile_pass
from experiments.shared.findings import Data
from experiments.shared.timing import Call, time_once
from jaxrnn import Array, Params, chunked, deep_rnn, dense, unroll_plain

NAMES = ("jaxrnn", "plain scan")
_REPEATS = 3
_SMALL = (32, 8, 32)  # B, D, H of the network that is compiled at every length
_ONE = (1, 8)  # B, D of those that run over every length
_OUTPUT_BYTES = (4, 32, 480, 2048)  # per step; jaxlib 0.11.1 is quadratic in T below about 480
_FLOAT_BYTES = 4
_ROUNDS = 3  # of the network whose memory is measured; each takes many seconds
_GROWTH = 3.0  # of the time per step from one length to the next, at which measuring stops


def measure_compiling(cases: Sequence[Case], lengths: Sequence[int], repeats: int) -> list[Data]:
    """Seconds to compile the gradient and the training step of each single layer and of the deep
    network, and the gradient of a small layer at each of `lengths`; medians of interleaved repeats,
    from shapes alone."""
    measured = [(case, False) for case in cases if case.kind in ("shape", "deep")]
    scaled = [(Case("shape", (length, *_SMALL)), True) for length in lengths]
    rows = []
    for case, is_scaled in [*measured, *scaled]:
        passes: tuple[Pass, ...] = ("gradient",) if is_scaled else ("gradient", "train")
        pairs = [(what, name) for what in passes for name in NAMES]
        times: dict[tuple[Pass, str], list[float]] = {pair: [] for pair in pairs}
        for _ in range(repeats):
            for what, name in pairs:
                times[what, name].append(compile_pass(case, name, what).seconds)
        row: Data = {"case": case.name, "steps": case.shape[0], "scaled": is_scaled}
        for what in passes:
            row[what] = {name: statistics.median(times[what, name]) for name in NAMES}
        rows.append(row)
    return rows


def measure_lengths(lengths: Sequence[int], seed: int, seconds: float, least_rounds: int) -> Data:
    """Microseconds per step of the gradient of one sequence, by the bytes of an output and the
    length.

    If the time per step grows threefold from one length to the next, the time is quadratic in T and
    longer sequences are left out: 100,000 steps would take minutes."""
    rows: list[Data] = []
    stopped: dict[int, int] = {}
    for size in _OUTPUT_BYTES:
        calls: dict[int, Call] = {}
        first: dict[int, float] = {}
        for length in sorted(lengths):
            workload = make_workload(Case("shape", (length, *_ONE, size // _FLOAT_BYTES)), seed)
            call = BUILDERS["jaxrnn"](workload, "gradient").call
            call()
            before = list(first.values())
            first[length] = min(time_once(call) for _ in range(_REPEATS)) / length
            if before and first[length] > _GROWTH * before[-1]:
                stopped[size] = length
                break
            calls[length] = call
        times = interleave(calls, seconds, least_rounds)
        medians = {length: statistics.median(values) / length for length, values in times.items()}
        rows += [
            {"bytes": size, "length": length, "microseconds_per_step": 1e6 * value}
            for length, value in (first | medians).items()
        ]
    return {"rows": rows, "stopped": stopped}


def measure_memory(shape: Shape4, layers: int, seed: int) -> Data:
    """Temporary megabytes and seconds of the gradient of a deep network with a readout, by plain
    scans and by the library in `chunked` with remat, and how far the two gradients differ."""
    steps, batch, inputs, units = shape
    network, readout = deep_rnn((inputs, *[units] * layers, 1)), dense(units, 1)
    cut = chunked(network, math.isqrt(steps), remat=True)

    def ours(params: Params, xs: Array) -> Array:
        return mean_square(cut.unroll(params, None, xs)[1], None)

    def plain(params: Params, xs: Array) -> Array:
        for layer in params[:-1]:
            _, xs = unroll_plain(layer, None, xs)
        return mean_square(readout.unroll(params[-1], None, xs)[1], None)

    key_params, key_xs = jax.random.split(jax.random.key(seed))
    params = network.init(key_params)
    xs = jax.random.normal(key_xs, (steps, batch, inputs))
    programs = {
        name: compile_program(jax.grad(loss), params, xs)
        for name, loss in zip(NAMES, (ours, plain), strict=True)
    }
    got, expected = (programs[name].run(params, xs) for name in NAMES)
    difference, allowed = compare_gradients(got, expected, steps * batch)

    def call_of(name: str) -> Call:
        return lambda: jax.block_until_ready(programs[name].run(params, xs))

    times = interleave({name: call_of(name) for name in NAMES}, 0.0, _ROUNDS)
    return {
        "case": Case("deep", shape, layers).name,
        "difference": difference,
        "allowed": allowed,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "megabytes": {name: programs[name].temporary / 2**20 for name in NAMES},
    }

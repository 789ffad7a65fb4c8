"""How the benchmark times: compiled beforehand, interleaved, until the output is ready.

A turn lasts at least 20 ms. A contender that is faster than that first runs once untimed and then
repeatedly, so that it does not pay for what the previous one left behind (cold caches, threads that
are still spinning). Each round has a new random order.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp

from experiments.shared.timing import Call, time_once

Name = TypeVar("Name")

_TURN_SECONDS = 0.02
_WIDTH = 2048


class Program(NamedTuple):
    """A compiled program, the seconds that compiling took, and its temporary memory in bytes."""

    run: Any
    seconds: float
    temporary: int


class Entrant(NamedTuple):
    """One contender in one pass.

    call: runs it once, until the output is ready. read: runs it once and returns the result in
    NumPy; used before the first `call`. program: None if nothing is compiled.
    """

    call: Call
    read: Call
    program: Program | None = None


class Unavailable(Exception):
    """A contender cannot take part; the message says why."""


def compile_program(function: Any, *arguments: Any, donate: tuple[int, ...] = ()) -> Program:
    """Trace and compile; `arguments` may be ShapeDtypeStructs."""
    start = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = cast(Any, compiled.memory_analysis())
    return Program(compiled, seconds, memory.temp_size_in_bytes)


def matrix_product() -> tuple[Call, float]:
    """A product of two large matrices on all cores, and its number of floating-point operations."""
    matrix = jax.random.normal(jax.random.key(0), (_WIDTH, _WIDTH))
    program = compile_program(jnp.dot, matrix, matrix)
    return lambda: jax.block_until_ready(program.run(matrix, matrix)), 2.0 * _WIDTH**3


def interleave(
    calls: dict[Name, Call], seconds: float, least_rounds: int
) -> dict[Name, list[float]]:
    """Seconds per run of each call: one median per turn, after a warm-up round."""
    order = random.Random(0)
    names = list(calls)
    latest = {name: _take_turn(calls[name], 0.0) for name in names}
    times: dict[Name, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least_rounds or time.perf_counter() < end:
        order.shuffle(names)
        for name in names:
            latest[name] = _take_turn(calls[name], latest[name])
            times[name].append(latest[name])
        rounds += 1
    return times


def _take_turn(call: Call, expected: float) -> float:
    if expected < _TURN_SECONDS:
        call()
    end = time.perf_counter() + _TURN_SECONDS
    times = [time_once(call)]
    while time.perf_counter() < end:
        times.append(time_once(call))
    return statistics.median(times)

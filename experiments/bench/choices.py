"""Whether the chunk size and the strategy that `unroll` chooses are about the best there are."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, get_args
from unittest import mock

import jax

from experiments.bench.cases import Case, compare_gradients, make_workload
from experiments.bench.entrants import Entrant, interleave
from experiments.bench.library import build_library, library_outputs
from experiments.shared.devices import largest_divisor
from experiments.shared.findings import Data
from jaxrnn.recurrence.plan import Plan, Strategy, make_plan

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
_OWN = "own"
_SHORTEST_CHUNK = 8


def measure_chunks(
    cases: Sequence[Case], seed: int, seconds: float, least_rounds: int
) -> list[Data]:
    """Milliseconds of the gradient of each single layer with the chunk size that `unroll` chooses,
    and with chunks of about T, T/2, T/4, ... steps, each a divisor of T."""
    rows = []
    for case in _single_layers(cases):
        workload, steps = make_workload(case, seed), case.shape[0]
        sizes = {
            largest_divisor(steps, steps >> halvings) for halvings in range(steps.bit_length())
        }
        swept = [size for size in sorted(sizes) if size >= min(_SHORTEST_CHUNK, steps)]
        entrants = {_OWN: build_library(workload, "gradient")} | {
            f"{size} steps": build_library(workload, "gradient", size) for size in swept
        }
        times = _time(entrants, seconds, least_rounds)
        rows.append({"case": case.name, "own": times.pop(_OWN), "swept": times})
    return rows


def measure_strategies(
    cases: Sequence[Case], seed: int, seconds: float, least_rounds: int
) -> list[Data]:
    """Milliseconds of the gradient of each single layer with each of the four strategies, which one
    `unroll` chooses, and how far the other gradients differ from that of its choice."""
    rows = []
    for case in _single_layers(cases):
        workload = make_workload(case, seed)
        with force_strategy(None) as used:
            jax.eval_shape(library_outputs(case), workload.params, (workload.xs, None))
        chosen = used.pop()
        entrants: dict[str, Entrant] = {}
        for name in STRATEGIES:
            with force_strategy(name):
                entrants[name] = build_library(workload, "gradient")
        gradients = {name: entrant.read() for name, entrant in entrants.items()}
        steps, batch = case.shape[:2]
        compared = {
            name: compare_gradients(gradients[name], gradients[chosen], steps * batch)
            for name in STRATEGIES
        }
        times = _time(entrants, seconds, least_rounds)
        rows.append(
            {
                "case": case.name,
                "chosen": chosen,
                "differences": {name: difference for name, (difference, _) in compared.items()},
                "allowed": max(allowed for _, allowed in compared.values()),
                "own": times[chosen],
                "swept": times,
            }
        )
    return rows


@contextlib.contextmanager
def force_strategy(name: Strategy | None) -> Iterator[set[str]]:
    """Within it `unroll` uses the strategy of this name, or its own choice if None.

    Yields the set of names of the strategies used so far."""
    used = set[str]()

    def choose_or_force(*arguments: Any) -> Plan:
        plan = make_plan(*arguments)
        plan = plan if name is None else plan._replace(strategy=name)
        used.add(plan.strategy)
        return plan

    with mock.patch("jaxrnn.recurrence.rule.make_plan", choose_or_force):
        yield used


def _single_layers(cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if case.kind == "shape"]


def _time(entrants: dict[str, Entrant], seconds: float, least_rounds: int) -> dict[str, float]:
    """Median milliseconds of each entrant."""
    calls = {name: entrant.call for name, entrant in entrants.items()}
    times = interleave(calls, seconds, least_rounds)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}

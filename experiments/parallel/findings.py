"""What the measurements of `parallel` say about each claim."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from experiments.shared.findings import Data, Finding

IN_ORDER, IN_CHUNKS, OVER_DEVICES = "in order", "in chunks", "over devices"
PASSES = ("forward", "gradient")
_EPS = float(np.finfo(np.float32).eps)
_WIDE = 128
_WANTED = {IN_CHUNKS: (2.8, 2.6), OVER_DEVICES: (3.4, 3.2)}
_WANTED_ON_GPU = 30.0
_NARROW, _LONG = 64, 100_000
_COST = 1.15


def judge(data: Data) -> list[Finding]:
    """One finding per claim."""
    orthogonal = [row for row in data["rows"] if row["kind"] == "orthogonal"]
    findings = [_judge_agreement(orthogonal), _judge_seams(data["exponents"])]
    if data["platform"] == "cpu":
        findings += [_judge_speed(orthogonal, way) for way in _timed_ways(orthogonal)]
    else:
        findings.append(_judge_gpu(orthogonal))
    findings.append(_judge_slowest(orthogonal))
    findings.append(_judge_cost([row for row in data["rows"] if row["kind"] != "orthogonal"]))
    return findings


def speedups(row: Data, way: str) -> list[float]:
    """Times as fast as in order: forward and gradient."""
    seconds = [row[what]["seconds"] for what in PASSES]
    return [each[IN_ORDER] / each[way] for each in seconds]


def name_row(row: Data) -> str:
    """Its shape T,B,H, and its kind if it is not orthogonal."""
    shape = ",".join(map(str, row["shape"]))
    return shape if row["kind"] == "orthogonal" else f"{shape} {row['kind']}"


def write_table(data: Data) -> str:
    """One line per case: milliseconds in order, and times as fast in each other way."""
    lines = ["T,B,H: milliseconds in order, times as fast in chunks and over devices"]
    for row in data["rows"]:
        cells = []
        for what in PASSES:
            seconds = row[what]["seconds"]
            ratios = [
                seconds[IN_ORDER] / value for way, value in seconds.items() if way != IN_ORDER
            ]
            listed = " ".join(f"{ratio:.2f}" for ratio in ratios)
            cells.append(f"{what} {1e3 * seconds[IN_ORDER]:.4g} ms, {listed}")
        lines.append(f"{name_row(row)}: " + "; ".join(cells))
    lines.append(
        "radius: exponent (nats per step), memory (steps), sweeps, residual, times as fast"
    )
    for row in data["exponents"]:
        forward, gradient = speedups(row, IN_CHUNKS)
        lines.append(
            f"{row['radius']:g}: {row['exponent']:+.3f}, {row['memory']}, {row['sweeps']}, "
            f"{row['residual']:.0e}, forward {forward:.2f}, gradient {gradient:.2f}"
        )
    lines.append(f"{data['devices']} devices ({data['device']}), jax {data['jax']}")
    return "\n".join(lines)


def _timed_ways(rows: list[Data]) -> list[str]:
    return [way for way in _WANTED if any(way in row["forward"]["seconds"] for row in rows)]


def _judge_agreement(rows: list[Data]) -> Finding:
    shares = {}
    for row in rows:
        steps, batch, units = row["shape"]
        for what, terms in (("forward", units), ("gradient", steps * batch)):
            allowed = 32 * _EPS * math.sqrt(max(terms, units))
            worst = max(
                row[what]["differences"].values(),
                key=lambda gap: math.inf if math.isnan(gap) else gap,
            )
            shares[f"{name_row(row)} {what}"] = worst / allowed
    worst_name = max(shares, key=lambda name: np.nan_to_num(shares[name], nan=np.inf))
    return Finding(
        "same",
        "Results are those of the steps in order, whatever the way.",
        "they differ by at most 32 eps sqrt(terms)",
        f"at most {shares[worst_name]:.2g} of what is allowed ({worst_name})",
        all(share <= 1 for share in shares.values()),
        required=True,
    )


def _judge_seams(rows: list[Data]) -> Finding:
    agreed = [row for row in rows if row["agreed"]]
    worst = max((row["residual"] / row["tolerance"] for row in agreed), default=0.0)
    chosen = f"{len(agreed)} of {len(rows)} networks ran in chunks"
    if agreed:
        chosen += f", up to an exponent of {max(row['exponent'] for row in agreed):+.3f}"
    return Finding(
        "seams",
        "No network runs on with states that have not converged.",
        "at every seam of what ran in chunks the residual is within the tolerance",
        f"{chosen}; the largest residual is {worst:.2g} of the tolerance",
        all(row["residual"] <= row["tolerance"] for row in agreed),
        required=True,
    )


def _judge_speed(rows: list[Data], way: str) -> Finding:
    wanted = _WANTED[way]
    ratios = {
        name_row(row): speedups(row, way)
        for row in rows
        if row["shape"][1] == 1 and row["shape"][2] >= _WIDE
    }
    means = np.exp(np.mean(np.log(list(ratios.values())), axis=0)) if ratios else (0.0, 0.0)
    return Finding(
        "speed",
        f"One sequence of a network of {_WIDE} units or more runs faster {way}.",
        f"forward {wanted[0]} and gradient {wanted[1]} times as fast in the geometric mean",
        f"{means[0]:.2f} and {means[1]:.2f}: {_list(ratios)}",
        bool(np.all(np.asarray(means) >= wanted)),
    )


def _judge_gpu(rows: list[Data]) -> Finding:
    ratios = {name_row(row): speedups(row, IN_CHUNKS) for row in rows}
    wanted = {
        name: pair
        for (name, pair), row in zip(ratios.items(), rows, strict=True)
        if row["shape"] == (_LONG, 1, _NARROW)
    }
    return Finding(
        "speed",
        f"On a GPU one sequence of {_LONG:,} steps of {_NARROW} units runs faster in chunks.",
        f"forward and gradient {_WANTED_ON_GPU:g} times as fast",
        _list(ratios),
        bool(wanted) and all(min(pair) >= _WANTED_ON_GPU for pair in wanted.values()),
    )


def _judge_slowest(rows: list[Data]) -> Finding:
    ratios = {name_row(row): speedups(row, IN_CHUNKS) for row in rows}
    return Finding(
        "slowest",
        "With the number of chunks that the library chooses it is never slower.",
        "1.0 times as fast at least everywhere, 1.3 with one sequence of 64 units",
        _list(ratios),
        all(
            min(pair) >= (1.3 if row["shape"][1:] == (1, _NARROW) else 1.0)
            for pair, row in zip(ratios.values(), rows, strict=True)
        ),
    )


def _judge_cost(rows: list[Data]) -> Finding:
    costs = {name_row(row): [1 / ratio for ratio in speedups(row, IN_CHUNKS)] for row in rows}
    return Finding(
        "cost",
        "A network that does not forget costs little more than without.",
        f"at most {_COST} times the time, forward and gradient",
        _list(costs),
        all(max(pair) <= _COST for pair in costs.values()),
    )


def _list(pairs: dict[str, Any]) -> str:
    return ", ".join(f"{name} {pair[0]:.2f} and {pair[1]:.2f}" for name, pair in pairs.items())

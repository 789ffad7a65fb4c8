"""The gradient of one layer against autodiff of the plain scan, at six shapes.

Claim: `jaxrnn.unroll` gives the gradient with respect to all parameters, of a sum over all
outputs, at least as fast as JAX's autodiff of ``lax.scan`` over the step at every shape, and 1.3
times as fast at the median shape. Refuted where a ratio of median times is below 1, or their median
below 1.3. Both programs are compiled beforehand and their gradients compared; then they run in
turn, each timed until its output is ready.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments._figures import BLUE, GREY, saved_figure, say
from experiments._report import Data, Finding, Result, RunConfig, Tick
from jaxrnn import Array, RNNParams, init_rnn, unroll, unroll_plain

Shape4 = tuple[int, int, int, int]
_MEDIAN = 1.3


@dataclass(frozen=True)
class Config(RunConfig):
    """The options of the benchmark."""

    shapes: tuple[Shape4, ...] = (
        (100, 32, 8, 32),
        (256, 64, 128, 256),
        (512, 32, 512, 512),
        (100, 1024, 8, 32),
        (10000, 1, 8, 64),
        (1000, 128, 1, 128),
    )
    """T, B, D, H of each layer."""
    seconds: float = 6.0
    """Time for each shape, after compiling and warming up; at least 7 rounds are run."""


def run(config: Config, progress: Tick) -> Result:
    """Time both gradients at every shape."""
    rows = []
    for number, shape in enumerate(config.shapes):
        progress(number / len(config.shapes), f"T, B, D, H = {shape}")
        rows.append(_measure(shape, config.seed, config.seconds))
    device = jax.devices()[0].device_kind
    data: Data = {"rows": rows, "jax": jax.__version__, "device": device}
    return Result(data, [*(_judge(row) for row in rows), _judge_median(rows)])


def plot(data: Data, folder: Path) -> None:
    """Draw the ratio at each shape."""
    ratios = [row["ratio"] for row in data["rows"]]
    with saved_figure(folder / "bench.png") as figure:
        axes = figure.subplots()
        bars = axes.barh([str(tuple(row["shape"])) for row in data["rows"]], ratios, color=BLUE)
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.axvline(1, color=GREY, linestyle="--", label="plain scan")
        axes.invert_yaxis()
        axes.set_xlabel("time of the plain scan's gradient over that of unroll's (times)")
        axes.set_ylabel("T, B, D, H")
        axes.legend(loc="lower right")
        say(
            figure,
            f"The gradient is {min(ratios):.2f} to {max(ratios):.1f} times as fast as autodiff of "
            "the plain scan",
            f"medians of interleaved runs, float32, jax {data['jax']}, {data['device']}",
        )


def _measure(shape: Shape4, seed: int, seconds: float) -> Data:
    steps, batch, inputs, units = shape
    keys = jax.random.split(jax.random.key(seed), 2)
    params = init_rnn(keys[0], inputs, units)
    xs = jax.random.normal(keys[1], (steps, batch, inputs))
    compiled, compile_seconds = {}, {}
    for name, function in {"plain": unroll_plain, "unroll": unroll}.items():
        start = time.perf_counter()
        compiled[name] = jax.jit(_gradient(function)).lower(params, xs).compile()
        compile_seconds[name] = time.perf_counter() - start
    times = _interleave({n: _caller(c, params, xs) for n, c in compiled.items()}, seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    quartiles = {name: np.quantile(values, [0.25, 0.75]) for name, values in times.items()}
    return {
        "shape": shape,
        "milliseconds": {name: 1e3 * value for name, value in medians.items()},
        "quartiles": {name: 1e3 * value for name, value in quartiles.items()},
        "ratio": medians["plain"] / medians["unroll"],
        "rounds": len(times["plain"]),
        "compile_seconds": compile_seconds,
        "temporary_megabytes": {
            name: cast(Any, program.memory_analysis()).temp_size_in_bytes / 2**20
            for name, program in compiled.items()
        },
        "difference": _difference(*(program(params, xs) for program in compiled.values())),
    }


def _gradient(function: Callable[..., tuple[Array, Array]]) -> Callable[[RNNParams, Array], Any]:
    def total(params: RNNParams, xs: Array) -> Array:
        return jnp.sum(function(params, None, xs)[1])

    return jax.grad(total)


def _caller(program: Any, *arguments: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(program(*arguments))


def _interleave(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Seconds of every call, in turn, after two rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end, rounds = time.perf_counter() + seconds, -2
    while rounds < 7 or time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if rounds >= 0:
                times[name].append(time.perf_counter() - start)
        rounds += 1
    return times


def _difference(one: RNNParams, other: RNNParams) -> float:
    """The largest difference between two gradients over the largest entry of its leaf."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)


def _judge(row: Data) -> Finding:
    steps, batch, inputs, units = row["shape"]
    bound = 32 * float(jnp.finfo(jnp.float32).eps) * (steps * batch) ** 0.5
    plain, ours = row["milliseconds"]["plain"], row["milliseconds"]["unroll"]
    memory = row["temporary_megabytes"]
    return Finding(
        f"{steps},{batch},{inputs},{units}",
        "The same gradient at least as fast.",
        f"ratio >= 1, and gradients within {bound:.0e} = 32 eps sqrt(T B)",
        f"{row['ratio']:.2f} times: {ours:.3g} ms against {plain:.3g} ms; temporary memory "
        f"{memory['unroll']:.1f} MB against {memory['plain']:.1f}; difference "
        f"{row['difference']:.0e}",
        row["ratio"] >= 1 and row["difference"] <= bound,
    )


def _judge_median(rows: list[Data]) -> Finding:
    ratio = statistics.median(row["ratio"] for row in rows)
    return Finding(
        "median",
        "Well faster at the median shape.",
        f"median ratio >= {_MEDIAN}",
        f"{ratio:.2f} times",
        ratio >= _MEDIAN,
    )

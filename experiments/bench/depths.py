"""How compiling and running a deep network of equal layers depend on its depth."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax

from experiments.bench.cases import Shape4, mean_square
from experiments.bench.entrants import compile_program, interleave
from experiments.shared.findings import Data, Finding
from jaxrnn import Array, Params, repeated, stack, unroll_plain, vanilla_rnn

STACKED, REPEATED, PLAIN = NAMES = ("stack", "repeated", "plain scans")


def measure_depths(
    shape: Shape4, depths: Sequence[int], seed: int, seconds: float, least_rounds: int
) -> list[Data]:
    """Seconds to compile the gradient of so many equal layers, medians of interleaved repeats, and
    milliseconds that it takes; `shape` is T, B, D, H, with D = H."""
    rows = []
    key_params, key_xs = jax.random.split(jax.random.key(seed))
    xs = jax.random.normal(key_xs, shape[:3])
    for depth in depths:
        compiled: dict[str, list[Any]] = {}
        several = repeated(vanilla_rnn(*shape[2:]), depth).init(key_params)
        one_by_one = tuple(jax.tree.map(lambda leaf, at=n: leaf[at], several) for n in range(depth))
        arguments = {name: (several if name == REPEATED else one_by_one, xs) for name in NAMES}
        for _ in range(3 if least_rounds > 1 else 1):
            for name, those in arguments.items():
                loss = _losses(shape, depth)[name]
                compiled.setdefault(name, []).append(compile_program(jax.grad(loss), *those))
        calls = {
            name: _call(programs[-1].run, *arguments[name]) for name, programs in compiled.items()
        }
        times = interleave(calls, seconds, least_rounds)
        rows.append(
            {
                "depth": depth,
                "compile_seconds": {
                    name: statistics.median(program.seconds for program in programs)
                    for name, programs in compiled.items()
                },
                "milliseconds": {
                    name: 1e3 * statistics.median(values) for name, values in times.items()
                },
            }
        )
    return rows


def _losses(shape: Shape4, depth: int) -> dict[str, Callable[[Params, Array], Array]]:
    layer = vanilla_rnn(*shape[2:])

    def plain(params: Params, xs: Array) -> Array:
        for one in params:
            xs = unroll_plain(one, None, xs)[1]
        return mean_square(xs, None)

    networks = {STACKED: stack(*[layer] * depth), REPEATED: repeated(layer, depth)}

    def loss_of(network: Any) -> Callable[[Params, Array], Array]:
        return lambda params, xs: mean_square(network.unroll(params, None, xs)[1], None)

    losses = {name: loss_of(network) for name, network in networks.items()}
    return losses | {PLAIN: plain}


def _call(run: Any, *arguments: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(run(*arguments))


def judge_depths(rows: list[Data]) -> Finding:
    """Whether compile time grows with depth no faster than the plain scans'."""
    first, last = rows[0], rows[-1]
    seconds = {name: [row["compile_seconds"][name] for row in rows] for name in NAMES}
    growth = {name: values[-1] / values[0] for name, values in seconds.items()}
    ratio = last["milliseconds"][REPEATED] / last["milliseconds"][STACKED]
    listed = "; ".join(
        f"{name} {', '.join(f'{value:.2f}' for value in values)} s"
        for name, values in seconds.items()
    )
    return Finding(
        "depth",
        f"From {first['depth']} to {last['depth']} equal layers compile time grows no faster than "
        "the plain scans'; with `repeated` it does not grow.",
        "at most 1.1 times the plain scans' growth; `repeated` within 1.25 times, and run in 1.05 "
        "times the time of `stack` at most",
        f"growth {growth[STACKED]:.2f}, plain scans {growth[PLAIN]:.2f}, repeated "
        f"{growth[REPEATED]:.2f} times; {listed}; repeated runs in {ratio:.2f} times the time",
        growth[STACKED] <= 1.1 * growth[PLAIN] and growth[REPEATED] <= 1.25 and ratio <= 1.05,
    )

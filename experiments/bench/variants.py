"""What the cell's options cost: leak, noise, Dale's law, a matrix of low rank."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.bench.cases import Case, mean_square
from experiments.bench.entrants import compile_program, interleave
from experiments.shared.findings import Data, Finding
from experiments.shared.timing import Call
from jaxrnn import Array, Layer, RNNParams, constrained, vanilla_rnn
from jaxrnn.constraints import dale, low_rank

VANILLA, LEAKY, PLAIN = "vanilla", "leaky", "leaky plain scan"
_LEAK, _NOISE = 0.2, 0.1
_WIDE, _RANK = (100, 32, 16, 1024), 16


def measure_variants(
    cases: Sequence[Case], seed: int, seconds: float, least_rounds: int, *, quick: bool = False
) -> list[Data]:
    """Median milliseconds of the gradient of each single layer with each option; and, without a
    gradient too, of a wide layer with a dense W and one of low rank."""
    rows = []
    for case in cases:
        if case.kind == "shape":
            programs = {name: _gradient(build) for name, build in _variants(case.shape).items()}
            rows.append(_time(case.shape, "gradient", programs, seed, seconds, least_rounds))
    wide = (20, 8, 16, 128) if quick else _WIDE
    dense = vanilla_rnn(*wide[2:])
    both = {"dense": dense, "low rank": constrained(dense, low_rank(_RANK))}
    forward: dict[str, Variant] = {
        name: (layer.init, _outputs(layer)) for name, layer in both.items()
    }
    gradient = {name: _gradient(variant) for name, variant in forward.items()}
    for what, programs in (("forward", forward), ("gradient", gradient)):
        rows.append(_time(wide, what, programs, seed, seconds, least_rounds))
    return rows


def judge_variants(rows: list[Data]) -> list[Finding]:
    """What the options cost beside `vanilla_rnn`."""
    shapes = [row for row in rows if LEAKY in row["milliseconds"]]
    wide = [row for row in rows if LEAKY not in row["milliseconds"]]
    leaky, plain = _ratios(shapes, LEAKY, VANILLA), _ratios(shapes, PLAIN, LEAKY)
    learned = _ratios(shapes, "learned leak", VANILLA)
    thin = _ratios(wide, "dense", "low rank")
    costs = {name: _ratios(shapes, name, VANILLA) for name in ("leak and noise", "Dale")}
    noted = "; ".join(f"{name} {_mean(costs[name]):.2f}" for name in costs)
    return [
        Finding(
            "leak",
            "A leak costs little, in the gradient.",
            "at most 1.15 times vanilla_rnn's time in the geometric mean, 1.25 at every shape; and "
            "the plain scan of the same formula takes 1.3 times as long in the mean",
            f"{_mean(leaky):.2f}, at most {max(leaky):.2f}; the plain scan {_mean(plain):.2f}; "
            f"beside vanilla_rnn, learned {_mean(learned):.2f}; {noted}",
            _mean(leaky) <= 1.15 and max(leaky) <= 1.25 and _mean(plain) >= 1.3,
        ),
        Finding(
            "low rank",
            f"With {wide[0]['shape'][3]} units a W of rank {_RANK} is faster than a dense one.",
            "twice as fast, forward and in the gradient",
            ", ".join(f"{row['pass']} {ratio:.2f}" for row, ratio in zip(wide, thin, strict=True)),
            min(thin) >= 2,
        ),
    ]


Variant = tuple[Callable[[Array], Any], Callable[[Any, Array, Array], Any]]


def _variants(shape: tuple[int, ...]) -> dict[str, Variant]:
    """By name, what draws the parameters, and the outputs of parameters, inputs and a key."""
    inputs, units = shape[2:]
    rnn = vanilla_rnn(inputs, units)
    leaky = vanilla_rnn(inputs, units, leak=_LEAK)
    learned = vanilla_rnn(inputs, units, leak_init=_LEAK)
    noisy = vanilla_rnn(inputs, units, leak=_LEAK, noise=_NOISE)
    signed = constrained(rnn, dale(jnp.where(jnp.arange(units) < 0.8 * units, 1, -1)))

    def plain(params: RNNParams, xs: Array, key: Array) -> Array:
        del key
        b = jnp.zeros(units) if params.b is None else params.b

        def body(h: Array, x: Array) -> tuple[Array, Array]:
            a = x @ params.w_ih.T + h @ params.w_hh.T + jnp.broadcast_to(b, h.shape)
            h = (1 - _LEAK) * h + _LEAK * jnp.tanh(a)
            return h, h

        return lax.scan(body, jnp.zeros((xs.shape[1], units)), xs)[1]

    layers = {VANILLA: rnn, LEAKY: leaky, "learned leak": learned, "leak and noise": noisy}
    variants: dict[str, Variant] = {
        name: (layer.init, _outputs(layer)) for name, layer in (layers | {"Dale": signed}).items()
    }
    return variants | {PLAIN: (rnn.init, plain)}


def _outputs(layer: Layer) -> Callable[[Any, Array, Array], Any]:
    return lambda params, xs, key: layer.unroll(params, None, xs, key=key)[1]


def _gradient(variant: Variant) -> Variant:
    init, outputs = variant
    return init, jax.grad(lambda params, xs, key: mean_square(outputs(params, xs, key), None))


def _time(
    shape: tuple[int, ...],
    what: str,
    programs: dict[str, Variant],
    seed: int,
    seconds: float,
    least_rounds: int,
) -> Data:
    steps, batch, inputs, _ = shape
    key = jax.random.key(seed)
    xs = jax.random.normal(key, (steps, batch, inputs))
    calls: dict[str, Call] = {}
    for name, (init, function) in programs.items():
        arguments = (jax.jit(init)(key), xs, key)
        program = compile_program(function, *arguments)

        def call(program: Any = program, arguments: Any = arguments) -> Any:
            return jax.block_until_ready(program.run(*arguments))

        calls[name] = call
    times = interleave(calls, seconds, least_rounds)
    milliseconds = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    return {"shape": shape, "pass": what, "milliseconds": milliseconds}


def _ratios(rows: list[Data], name: str, other: str) -> list[float]:
    return [row["milliseconds"][name] / row["milliseconds"][other] for row in rows]


def _mean(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))

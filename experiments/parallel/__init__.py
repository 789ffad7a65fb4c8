"""One long sequence in parallel: how much faster, for which networks, and how exact.

Claims: `jaxrnn.Parallel` makes `unroll` and its gradient faster at every length, width and batch,
on one device and with time split over all; results are those of the steps in order, to rounding;
and a network that does not forget costs little more than without it. What decides is the largest
Lyapunov exponent: well below 0 the chunks of a sequence soon agree, and elsewhere a probe finds out
and the steps run in order.

Networks are orthogonal, as `init_rnn` draws them, with inputs of variance 1; those that do not
forget are a Gaussian matrix of spectral radius 1.5 and the identity under relu. All contenders of a
case run in turn, compiled and warmed up, until the output is ready; tables show medians.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.parallel.findings import IN_CHUNKS, IN_ORDER, OVER_DEVICES, judge, write_table
from experiments.shared.findings import Data, Result
from experiments.shared.options import Positive, RunConfig
from experiments.shared.output import Tick
from experiments.shared.timing import time_in_turn
from jaxrnn import (
    Activation,
    Array,
    Parallel,
    RNNParams,
    diagnostics,
    init_rnn,
    initializers,
    unroll,
    vanilla_rnn,
)
from jaxrnn.host import keep_memory

Shape3 = tuple[Positive, Positive, Positive]

_INPUTS = 8
_AXIS = "time"
_EPS = float(np.finfo(np.float32).eps)
_SMALL_INPUTS = 0.1  # of the networks whose matrix alone decides whether they forget


@dataclass(frozen=True)
class Config(RunConfig):
    """The options of `parallel`."""

    shapes: tuple[Shape3, ...] = (
        *((9600, 1, units) for units in (64, 128, 256, 512)),
        *((9600, 4, units) for units in (64, 128, 256, 512)),
        *((100_000, 1, units) for units in (64, 128, 256, 512)),
    )
    """T, B, H of each timed network."""
    remembering: tuple[Shape3, ...] = ((9600, 1, 64), (9600, 1, 128), (9600, 1, 256))
    """T, B, H of the networks that do not forget."""
    exponents: Shape3 = (9600, 1, 256)
    """T, B, H of the networks of growing Lyapunov exponent."""
    radii: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.35, 1.8, 2.5)
    """Spectral radius of each of these."""
    repeats: Positive = 7
    """Rounds of timing of each case."""
    devices: Positive | None = None
    """Devices that time is split over; by default all (a CPU's are its cores)."""


def run(config: Config, progress: Tick) -> Result:
    """Time every case."""
    keep_memory()
    cases = [*((shape, "orthogonal") for shape in config.shapes)]
    cases += [(shape, kind) for shape in config.remembering for kind in ("radius 1.5", "relu")]
    rows = []
    for number, (shape, kind) in enumerate(cases):
        progress(0.8 * number / len(cases), f"{kind} {shape}")
        rows.append(_time_case(config, shape, kind))
    exponents = []
    for number, radius in enumerate(config.radii):
        progress(0.8 + 0.2 * number / len(config.radii), f"spectral radius {radius:g}")
        exponents.append(_measure_exponent(config, radius))
    data = {
        "rows": rows,
        "exponents": exponents,
        "exponents_shape": config.exponents,
        "devices": len(jax.devices()[: config.devices]),
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "jax": jax.__version__,
    }
    return Result(data, judge(data), write_table(data))


class DrawnNetwork(NamedTuple):
    """A network, its inputs, and a cotangent of its states."""

    activation: Activation
    params: RNNParams
    h0: Array
    xs: Array
    ct: Array


def _draw(config: Config, shape: Shape3, kind: str | float) -> DrawnNetwork:
    """A network of a kind, or a Gaussian one of a spectral radius."""
    steps, batch, units = shape
    keys = jax.random.split(jax.random.key(config.seed), 4)
    params = init_rnn(keys[0], _INPUTS, units)
    xs = jax.random.normal(keys[1], (steps, batch, _INPUTS))
    ct = jax.random.normal(keys[2], (steps, batch, units))
    if kind != "orthogonal":
        xs = _SMALL_INPUTS * xs
        radius = 1.5 if isinstance(kind, str) else kind
        start = initializers.identity()
        if kind != "relu":
            start = initializers.scaled_spectral_radius(radius)
        params = params._replace(w_hh=start(keys[3], (units, units), jnp.float32))
    activation = jax.nn.relu if kind == "relu" else jnp.tanh
    return DrawnNetwork(activation, params, jnp.zeros((batch, units)), xs, ct)


def _time_case(config: Config, shape: Shape3, kind: str | float) -> Data:
    """Seconds of both passes in each way, and how far results differ from those in order."""
    network = _draw(config, shape, kind)
    row: Data = {"shape": shape, "kind": kind}
    for what, passed in (("forward", _forward), ("gradient", _gradient)):
        ways = _compile(config, functools.partial(passed, network.activation), network, what)
        results = {name: jax.device_get(call()) for name, call in ways.items()}
        row[what] = {
            "differences": {
                name: _compare(result, results[IN_ORDER]) for name, result in results.items()
            },
            "seconds": dict(
                zip(ways, time_in_turn(*ways.values(), repeats=config.repeats), strict=True)
            ),
        }
    return row


def _forward(activation: Activation, network: Any, parallel: Parallel | None) -> Array:
    params, h0, xs, _ = network
    return unroll(params, h0, xs, activation=activation, parallel=parallel)[1]


def _gradient(activation: Activation, network: Any, parallel: Parallel | None) -> Any:
    """The gradient by parameters and inputs, of the states weighted by the cotangent."""
    params, h0, xs, ct = network

    def of(params: RNNParams, xs: Array) -> Array:
        return _forward(activation, (params, h0, xs, ct), parallel)

    return jax.vjp(of, params, xs)[1](ct)


def _compile(
    config: Config, passed: Callable[..., Any], network: DrawnNetwork, what: str
) -> dict[str, Callable[[], Any]]:
    """A pass in order, in chunks on one device, and with time split over all of them."""
    arguments = network[1:]
    ways: dict[str, Callable[[], Any]] = {}
    for name, parallel in ((IN_ORDER, None), (IN_CHUNKS, Parallel())):
        ways[name] = functools.partial(
            jax.jit(functools.partial(passed, parallel=parallel)), arguments
        )
    devices = jax.devices()[: config.devices]
    steps = len(network.xs)
    if len(devices) > 1 and steps % len(devices) == 0:
        mesh = jax.make_mesh(
            (len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices
        )
        whole, split = PartitionSpec(), PartitionSpec(_AXIS)
        specs = whole, whole, split, split
        mapped = jax.shard_map(
            functools.partial(passed, parallel=Parallel(axis_name=_AXIS)),
            mesh=mesh,
            in_specs=(specs,),
            out_specs=split if what == "forward" else (whole, split),
        )
        placed = tuple(
            jax.device_put(leaf, NamedSharding(mesh, spec))
            for leaf, spec in zip(arguments, specs, strict=True)
        )
        ways[OVER_DEVICES] = functools.partial(jax.jit(mapped), placed)
    return ways


def _compare(got: Any, expected: Any) -> float:
    """The largest difference, relative to the largest entry of its array."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    with np.errstate(over="ignore", invalid="ignore"):  # where a gradient explodes
        gaps = [np.max(np.abs(one - other)) / np.max(np.abs(other)) for one, other in pairs]
    return float(max(gaps, key=lambda gap: np.inf if np.isnan(gap) else gap))


def _measure_exponent(config: Config, radius: float) -> Data:
    """The largest Lyapunov exponent of a network, what it takes to run it, and how fast that is."""
    network = _draw(config, config.exponents, radius)
    layer = vanilla_rnn(_INPUTS, config.exponents[2])
    one = network.xs[:, 0]
    exponent = jax.jit(
        lambda params, xs: diagnostics.lyapunov_spectrum(
            layer, params, None, xs, num_exponents=1, discard=len(xs) // 4
        )
    )(network.params, one[: len(one) // 4])
    report = jax.jit(functools.partial(diagnostics.parallel_report, parallel=Parallel()))(
        network.params, network.h0, network.xs
    )
    return {
        **_time_case(config, config.exponents, radius),
        "radius": radius,
        "exponent": float(exponent[0]),
        "memory": int(
            jax.jit(functools.partial(diagnostics.memory_length, layer))(network.params, None, one)
        ),
        "agreed": bool(report.agreed),
        "sweeps": int(report.sweeps),
        "residual": float(jnp.max(report.residuals)),
        "tolerance": 32 * _EPS,
    }

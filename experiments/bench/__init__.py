"""How fast the library is, beside the plain scan, flax, haiku, Keras, torch and onnxruntime.

Claims: a training step is faster than in every other framework, a forward pass as fast as the
fastest, a gradient faster than autodiff of the plain scan, and large networks run at the rate of
one large matrix product; `unroll` chooses its chunk size and its strategy well; many small networks
run faster under one `vmap` than one after another; compiling takes no longer, with depth too, time
per step does not grow with T, and memory need not; the whole loop of training is faster, and scales
to two devices and processes; a leak costs little, and a matrix of low rank saves time. Each row of
the table states its threshold; a measurement beyond it refutes the claim.

Forward pass, gradient and training step (gradient and Adam), float32, at six shapes, for a deep
network, for a ragged batch and for many networks at once. All contenders have the same weights, and
their outputs, gradients and updates are compared before anything is timed. They run interleaved,
compiled and warmed up, each with every core, until the output is ready. The tables show medians,
and the rate relative to that of a large matrix product interleaved with them. "One device" is the
JAX program as it stands, whose products use all cores too; "all devices" makes each core a device
and splits the batch. The process keeps freed memory, for all contenders alike. The extra `peers`
installs the other frameworks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated, Any

import jax
import numpy as np
from pydantic import Field

from experiments.bench import library, many_networks, peers
from experiments.bench.cases import (
    Case,
    Pass,
    Reference,
    Shape4,
    Workload,
    compare,
    count_flops,
    make_workload,
    solve,
)
from experiments.bench.choices import measure_chunks, measure_strategies
from experiments.bench.contenders import Builder
from experiments.bench.depths import judge_depths, measure_depths
from experiments.bench.entrants import Entrant, Unavailable, interleave, matrix_product
from experiments.bench.findings import judge
from experiments.bench.reservoirs import judge_reservoirs, measure_reservoirs
from experiments.bench.scaling import measure_compiling, measure_lengths, measure_memory
from experiments.bench.tables import write_tables
from experiments.bench.variants import judge_variants, measure_variants
from experiments.bench.weak_scaling import judge_weak_scaling, measure_weak_scaling
from experiments.bench.whole_loops import judge_loops, measure_loops
from experiments.shared.findings import Data, Result
from experiments.shared.options import NotNegative, Positive, RunConfig
from experiments.shared.output import Tick, within
from experiments.shared.timing import Call
from jaxrnn.host import count_cores, keep_memory, use_cpu_devices

_PACKAGES = (
    *("jax", "jaxlib", "optax"),
    *("flax", "dm-haiku", "keras", "torch", "onnxruntime", "reservoirpy"),
)
_RESERVOIRS = (100, 1000)  # units
_PRODUCT = "matrix product"


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
    """T, B, D, H of each single layer."""
    deep: Shape4 = (200, 64, 256, 256)
    """T, B, D, H of the deep network."""
    layers: Positive = 3
    """Layers of the deep network."""
    ragged: Shape4 = (256, 64, 128, 256)
    """T, B, D, H of the ragged batch; half of it is padding."""
    small: tuple[Shape4, ...] = ((100, 8, 8, 16), (100, 1, 8, 16))
    """T, B, D, H of each of many networks."""
    networks: Positive = 1024
    """Number of these networks."""
    lengths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1000, 10_000, 100_000)
    """T at which compile time and time per step (B, D = 1, 8) are measured."""
    depths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (2, 4, 8, 16)
    """Numbers of equal layers whose compile time is measured."""
    equal: Shape4 = (100, 32, 64, 64)
    """T, B, D, H of each of these layers."""
    loop: Shape4 = (100, 32, 8, 32)
    """T, B, D, H of the network whose whole loop of training is timed."""
    swept: Positive = 256
    """Number of such networks in a sweep."""
    scaled: Shape4 = (256, 32, 128, 256)
    """T, B, D, H of the layer that each device trains on a batch of its own."""
    long: Shape4 = (65_536, 8, 128, 128)
    """T, B, D, H of the network whose memory is measured; it has as many layers as the deep one."""
    passes: Annotated[tuple[Pass, ...], Field(min_length=1)] = ("forward", "gradient", "train")
    """Which passes are timed; a training step is the gradient and Adam."""
    seconds: NotNegative = 5.0
    """Seconds for each case and pass, after compiling."""
    rounds: Positive = 7
    """Minimum number of rounds of each case and pass."""
    keep_memory: bool = True
    """Whether the process keeps freed memory for every contender (`jaxrnn.host.keep_memory`)."""
    peers: bool = True
    """Whether the other frameworks take part, if installed."""
    quick: bool = False
    """Two small shapes, a small deep network, few networks, and less time for each."""


def run(config: Config, progress: Tick) -> Result:
    """Time every case."""
    if config.quick:
        config = _shorten(config)
    kept = config.keep_memory and keep_memory()
    _present_cores()
    builders = library.BUILDERS | (peers.BUILDERS if config.peers else {})
    product, product_flops = matrix_product()
    cases = _list_cases(config)
    rows: list[Data] = []
    for number, case in enumerate(cases):
        part = within(
            progress, 0.6 * number / len(cases), 0.6 * (number + 1) / len(cases), case.name
        )
        rows += _time_case(config, case, builders, product, product_flops, part)
    data: Data = {"rows": rows, "memory_kept": kept, **_describe_machine()}
    others = _list_others(config, cases)
    for number, (name, measure) in enumerate(others.items()):
        progress(0.6 + 0.4 * number / len(others), name.replace("_", " "))
        data[name] = measure()
    findings = [*judge(data), judge_depths(data["depths"]), *judge_loops(data["loops"])]
    findings += [judge_weak_scaling(data["weak_scaling"]), *judge_variants(data["variants"])]
    findings += judge_reservoirs(data["reservoirs"])
    return Result(data, findings, write_tables(data))


def _list_others(config: Config, cases: list[Case]) -> dict[str, Callable[[], Any]]:
    """What is measured beside the cases, by name."""
    effort = (config.seed, config.seconds, config.rounds)
    whole: Data = {"peers": config.peers, "quick": config.quick}
    repeats = 1 if config.quick else min(config.rounds, 3)
    return {
        "chunks": lambda: measure_chunks(cases, *effort),
        "strategies": lambda: measure_strategies(cases, *effort),
        "compiling": lambda: measure_compiling(cases, config.lengths, repeats),
        "depths": lambda: measure_depths(config.equal, config.depths, *effort),
        "lengths": lambda: measure_lengths(config.lengths, *effort),
        "memory": lambda: measure_memory(config.long, config.layers, config.seed),
        "variants": lambda: measure_variants(cases, *effort, quick=config.quick),
        "loops": lambda: measure_loops(config.loop, config.swept, *effort, **whole),
        "weak_scaling": lambda: measure_weak_scaling(config.scaled, config.rounds),
        "reservoirs": lambda: measure_reservoirs(_RESERVOIRS, repeats, **whole),
    }


def _shorten(config: Config) -> Config:
    return dataclasses.replace(
        config,
        shapes=((100, 32, 8, 32), (1000, 1, 8, 64)),
        deep=(50, 16, 32, 32),
        ragged=(100, 32, 8, 32),
        small=((100, 8, 8, 16),),
        networks=64,
        lengths=(1000, 10_000),
        long=(4096, 8, 32, 32),
        depths=(2, 4),
        swept=8,
        scaled=(20, 8, 8, 32),
        seconds=min(config.seconds, 0.3),
        rounds=3,
    )


def _present_cores() -> None:
    with contextlib.suppress(RuntimeError):  # JAX has started: its devices are fixed
        use_cpu_devices()


def _list_cases(config: Config) -> list[Case]:
    return [
        *(Case("shape", shape) for shape in config.shapes),
        Case("deep", config.deep, config.layers),
        Case("ragged", config.ragged),
        *(Case("networks", shape, networks=config.networks) for shape in config.small),
    ]


def _time_case(
    config: Config,
    case: Case,
    builders: dict[str, Builder],
    product: Call,
    product_flops: float,
    progress: Tick,
) -> list[Data]:
    """The rows of a case, one per pass and contender."""
    if case.networks:
        builders = many_networks.BUILDERS
    workload = make_workload(case, config.seed)
    reference = solve(workload)
    rows = []
    for number, what in enumerate(config.passes):
        progress(number / len(config.passes), what)
        entered, calls = [], {_PRODUCT: product}
        for name, build in builders.items():
            row, entrant = _enter(name, build, workload, what, reference)
            entered.append(row)
            if entrant is not None:
                calls[name] = entrant.call
        times = interleave(calls, config.seconds, config.rounds)
        rate = product_flops / statistics.median(times[_PRODUCT])
        for row in entered:
            if row["contender"] in calls:
                row.update(_summarise(times[row["contender"]]))
                row["product_gigaflops"] = rate / 1e9
                row["fraction"] = row["flops"] / row["milliseconds"] * 1e3 / rate
        rows += entered
    return rows


def _enter(
    name: str,
    build: Builder,
    workload: Workload,
    what: Pass,
    reference: Reference,
) -> tuple[Data, Entrant | None]:
    """A contender's row before it is timed; the entrant is None if it will not be timed."""
    case = workload.case
    row: Data = {**case._asdict(), "case": case.name, "pass": what, "contender": name}
    row |= {"status": "timed", "flops": count_flops(workload, what)}
    try:
        entrant = build(workload, what)
        difference, allowed = compare(what, entrant.read(), reference, workload)
    except Unavailable as error:
        return {**row, "status": str(error)}, None
    except Exception as error:  # another version of a peer may fail; the others go on
        if name not in peers.BUILDERS:
            raise
        return {**row, "status": f"fails: {type(error).__name__}: {error}"}, None
    row |= {"difference": difference, "allowed": allowed}
    if entrant.program is not None:
        row["compile_seconds"] = entrant.program.seconds
        row["temporary_megabytes"] = entrant.program.temporary / 2**20
    if not difference <= allowed:  # NaN too
        return {**row, "status": f"differs by {difference:.0e}, {allowed:.0e} allowed"}, None
    return row, entrant


def _summarise(times: list[float]) -> Data:
    return {
        "milliseconds": 1e3 * statistics.median(times),
        "quartiles": 1e3 * np.quantile(times, [0.25, 0.75]),
        "rounds": len(times),
    }


def _describe_machine() -> Data:
    return {
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "cores": count_cores(),
        "versions": _list_versions(),
    }


def _list_versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions

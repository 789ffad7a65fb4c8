"""Weak scaling: each device, or each process, brings a batch of its own.

Every run is a process, or two, of its own, bound to as many cores as it has devices; each device
trains on the same number of sequences. The bytes that a step exchanges are those of the all-reduces
in its compiled program.
"""

from __future__ import annotations

import os
import re
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench.cases import LEARNING_RATE, Shape4
from experiments.bench.findings import Unmeasured
from experiments.shared.findings import Data, Finding
from experiments.shared.timing import time_once
from jaxrnn import Array, Key, Params, init_train_state, make_train_step, vanilla_rnn
from jaxrnn.host import count_cores, keep_memory, use_cpu_devices
from jaxrnn.sharding import data_mesh, replicate, shard_batch, shard_train_step

_RUNS = ((1, 1), (1, 2), (2, 1))  # processes, and devices of each
_PATIENCE = 300  # seconds
_WARM_UP = 3
_SIZES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1}
_REDUCED = re.compile(r"= (.*?) all-reduce(?:-start)?\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def measure_weak_scaling(shape: Shape4, rounds: int) -> list[Data]:
    """Milliseconds per training step, and bytes that it exchanges, over one device and two, in one
    process and two; `shape` is T, B, D, H of each device. Each run's is the median over `rounds`
    steps."""
    rows = []
    for processes, devices in _RUNS:
        if processes * devices > count_cores() or jax.default_backend() != "cpu":
            continue
        with _start(processes, devices, shape, rounds) as workers:
            printed = [worker.communicate(timeout=_PATIENCE) for worker in workers]
        for worker, (_, said) in zip(workers, printed, strict=True):
            if worker.returncode:
                raise RuntimeError(f"weak scaling: a process ended: {said[-2000:]}")
        milliseconds, size = printed[0][0].split()[-2:]
        rows.append(
            {
                "processes": processes,
                "devices": processes * devices,
                "milliseconds": float(milliseconds),
                "bytes": int(size),
            }
        )
    return rows


def judge_weak_scaling(rows: list[Data]) -> Finding:
    """How much longer a step takes on two devices that have twice the batch."""
    claim = "Twice the devices train on twice the batch in about the same time."
    criterion = "at most 1.25 times the time of one device on one core, in one process or two"
    if len(rows) < 2:
        return Unmeasured("scaling", claim, criterion, "fewer than two cores", False)
    one, *others = rows
    ratios = [row["milliseconds"] / one["milliseconds"] for row in others]
    listed = ", ".join(
        f"{row['devices']} devices in {row['processes']} process(es) {ratio:.2f}"
        for row, ratio in zip(others, ratios, strict=True)
    )
    measured = f"{listed}; {others[0]['bytes']:,} bytes are exchanged per step and device"
    return Finding("scaling", claim, criterion, measured, max(ratios) <= 1.25)


def count_exchanged(program: str) -> int:
    """The bytes of all results of all-reduces in the text of a compiled program."""
    total = 0
    for results in _REDUCED.findall(program):
        for kind, sizes in _ARRAY.findall(results):
            total += _SIZES[kind] * int(np.prod([int(n) for n in sizes.split(",") if n]))
    return total


@contextmanager
def _start(
    processes: int, devices: int, shape: Shape4, rounds: int
) -> Iterator[list[subprocess.Popen[str]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {n: v for n, v in os.environ.items() if "_proxy" not in n.lower()}
    kept.pop("XLA_FLAGS", None)
    arguments = [str(number) for number in (port, processes, devices, rounds, *shape)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(rank), *arguments],
            env=kept | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()


def _train(rank: int, port: int, processes: int, devices: int, rounds: int, *shape: int) -> None:
    """One process of a run: print the median milliseconds of a step, and the bytes exchanged."""
    if hasattr(os, "sched_setaffinity"):  # not on every system
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[rank * devices : (rank + 1) * devices])
    keep_memory()
    use_cpu_devices(devices)
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank)
    steps, batch, inputs, units = shape
    layer, optimizer, mesh = vanilla_rnn(inputs, units), optax.adam(LEARNING_RATE), data_mesh()

    def loss_fn(params: Params, xs: Array, key: Key) -> tuple[Array, dict[str, Array]]:
        del key
        return jnp.mean(layer.unroll(params, None, xs)[1] ** 2), {}

    train_step: Any = make_train_step(loss_fn, optimizer)
    if mesh.size > 1:
        train_step = shard_train_step(train_step, mesh)
    params = layer.init(jax.random.key(0))
    state = replicate(init_train_state(params, optimizer, jax.random.key(1)), mesh)
    rng = np.random.default_rng(rank)
    own = rng.standard_normal((steps, batch * devices, inputs), np.float32)
    xs = shard_batch(own, mesh)
    program = jax.jit(train_step).lower(state, xs).compile()
    times = []
    for _ in range(_WARM_UP + rounds):
        times.append(time_once(lambda: program(state, xs)))
    text = program.as_text() or ""
    print(1e3 * statistics.median(times[_WARM_UP:]), count_exchanged(text))


if __name__ == "__main__":
    _train(*map(int, sys.argv[1:]))

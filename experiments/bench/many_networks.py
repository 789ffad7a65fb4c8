"""Many networks at once: under ``vmap``, split over all devices, and one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments.bench.cases import Pass, Workload
from experiments.bench.contenders import (
    Builder,
    Network,
    Outputs,
    Training,
    enter,
    on_device,
    train_with_optax,
)
from experiments.bench.entrants import Entrant, compile_program
from experiments.bench.library import (
    library_outputs,
    loss_of,
    plain_outputs,
    split_evenly,
    train_with_library,
)
from jaxrnn import Array

_BLOCK = 16  # networks at a time on one device


def build_mapped_library(workload: Workload, what: Pass) -> Entrant:
    """Many networks of the library under ``vmap``."""
    outputs = library_outputs(workload.case)
    return _enter_mapped(workload, outputs, train_with_library(loss_of(outputs)), what)


def build_mapped_sharded(workload: Workload, what: Pass) -> Entrant:
    """Many networks of the library split over all devices; each runs so few at a time under
    ``vmap`` that their states stay in its cache."""
    mesh = split_evenly(workload.case.networks, "{} networks")
    part = PartitionSpec(mesh.axis_names)

    def over_networks(function: Any) -> Any:
        def in_blocks(*arguments: Any) -> Any:
            return jax.lax.map(lambda one: function(*one), arguments, batch_size=_BLOCK)

        return jax.shard_map(in_blocks, mesh=mesh, in_specs=part, out_specs=part, check_vma=False)

    outputs = library_outputs(workload.case)
    training = train_with_library(loss_of(outputs))
    return _enter_mapped(workload, outputs, training, what, over_networks)


def build_mapped_plain(workload: Workload, what: Pass) -> Entrant:
    """Many plain scans under ``vmap``."""

    def outputs(weights: Any, batch: Any) -> Array:
        return plain_outputs(weights, batch[0])

    return _enter_mapped(workload, outputs, train_with_optax(loss_of(outputs)), what)


def build_loop(workload: Workload, what: Pass) -> Entrant:
    """Many networks of the library, one after another, each a call of the same program."""
    data = on_device((workload.params, workload.xs))
    one_by_one = [
        jax.tree.map(lambda leaf, n=number: leaf[n], data)
        for number in range(workload.case.networks)
    ]
    outputs = library_outputs(workload.case)
    loss = loss_of(outputs)
    function: Any = outputs if what == "forward" else jax.value_and_grad(loss)
    training = train_with_library(loss)
    if what == "train":
        function = training.step
        one_by_one = [(training.start(params), xs) for params, xs in one_by_one]
    first, xs = one_by_one[0]
    program = compile_program(function, first, (xs, None), donate=(0,) if what == "train" else ())

    def call() -> Any:
        results = [program.run(state, (xs, None)) for state, xs in one_by_one]
        if what == "train":
            one_by_one[:] = [
                (result[0], xs) for result, (_, xs) in zip(results, one_by_one, strict=True)
            ]
        return jax.block_until_ready(results)

    def read() -> Any:
        results = call()
        if what != "forward":
            pick = (lambda r: r[1]) if what == "gradient" else (lambda r: r[0].params)
            results = [pick(result) for result in results]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *results)

    return Entrant(call, read, program)


def _enter_mapped(
    workload: Workload,
    outputs: Outputs,
    training: Training,
    what: Pass,
    over_networks: Callable[[Any], Any] = jax.vmap,
) -> Entrant:
    gradient = over_networks(jax.value_and_grad(loss_of(outputs)))
    training = Training(
        jax.jit(over_networks(training.start)), over_networks(training.step), training.weights
    )
    identity = jax.jit(over_networks(lambda weights, batch: (weights, batch)))  # places the arrays
    weights, batch = identity(on_device(workload.params), (jnp.asarray(workload.xs), None))
    return enter(Network(weights, batch, over_networks(outputs), gradient, training), what)


BUILDERS: dict[str, Builder] = {
    "jaxrnn": build_mapped_library,
    "jaxrnn, all devices": build_mapped_sharded,
    "plain scan": build_mapped_plain,
    "jaxrnn, loop": build_loop,
}

"""The library on one device and on all of them, and the plain scan."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from experiments.bench.cases import LEARNING_RATE, Case, Pass, Workload, mean_square
from experiments.bench.contenders import (
    Builder,
    Loss,
    Network,
    Outputs,
    Training,
    enter,
    on_device,
    run_over_padding,
    train_with_optax,
)
from experiments.bench.entrants import Entrant, Program, Unavailable, compile_program
from experiments.shared.devices import largest_divisor
from jaxrnn import (
    Array,
    RNNParams,
    TrainState,
    init_train_state,
    make_train_step,
    stack,
    unroll_plain,
    vanilla_rnn,
)
from jaxrnn.sharding import data_mesh, replicate, shard_batch, shard_train_step


def build_plain(workload: Workload, what: Pass) -> Entrant:
    """Autodiff of ``lax.scan`` over the step."""
    return enter(run_over_padding(plain_outputs, on_device(workload.params), workload), what)


def build_library(workload: Workload, what: Pass, chunk_size: int | None = None) -> Entrant:
    """The library on one device, with its mask and its training step."""
    outputs = library_outputs(workload.case, chunk_size)
    loss = loss_of(outputs)
    gradient = jax.value_and_grad(loss)
    batch = on_device((workload.xs, workload.mask))
    training = train_with_library(loss)
    return enter(Network(on_device(workload.params), batch, outputs, gradient, training), what)


def build_sharded(workload: Workload, what: Pass) -> Entrant:
    """The library with the batch split evenly over as many devices as divide it."""
    mesh = split_evenly(workload.case.shape[1], "a batch of {}")
    outputs = library_outputs(workload.case)
    whole, split = PartitionSpec(), PartitionSpec(None, mesh.axis_names)

    def shard(function: Any, out_specs: Any) -> Any:
        return jax.shard_map(
            function, mesh=mesh, in_specs=(whole, split), out_specs=out_specs, check_vma=False
        )

    def weight(batch: Any) -> Array:
        xs, mask = batch
        return jnp.asarray(xs[..., 0].size if mask is None else jnp.sum(mask), jnp.float32)

    def average(weights: Any, batch: Any) -> Any:
        part = weight(batch)
        value = jax.value_and_grad(loss_of(outputs))(weights, batch)
        share = (part, jax.tree.map(lambda leaf: part * leaf, value))
        total, summed = jax.lax.psum(share, mesh.axis_names)
        return jax.tree.map(lambda leaf: leaf / total, summed)

    step = make_train_step(_with_key(loss_of(outputs)), optax.adam(LEARNING_RATE))
    step = shard_train_step(step, mesh, weight_fn=weight)
    network = Network(
        replicate(workload.params, mesh),
        shard_batch((workload.xs, workload.mask), mesh),
        shard(outputs, split),
        shard(average, whole),
        Training(
            lambda weights: replicate(_start(weights), mesh), step, lambda state: state.params
        ),
    )
    return enter(network, what)


def compile_pass(case: Case, name: str, what: Pass) -> Program:
    """A gradient or a training step of ``"jaxrnn"`` or of the plain scan, compiled from shapes
    alone."""
    steps, batch, inputs, units = case.shape
    params = tuple(
        RNNParams(_shape(units, width), _shape(units, units), _shape(units), None)
        for width in [inputs] + [units] * (case.layers - 1)
    )
    library = library_outputs(case)

    def outputs(weights: Any, batch: Any) -> Array:
        return library(weights, batch) if name == "jaxrnn" else plain_outputs(weights, batch[0])

    data, loss = (_shape(steps, batch, inputs), None), loss_of(outputs)
    if what == "train":
        training = train_with_library(loss) if name == "jaxrnn" else train_with_optax(loss)
        state = jax.eval_shape(training.start, params)
        return compile_program(training.step, state, data, donate=(0,))
    return compile_program(jax.value_and_grad(loss), params, data)


def library_outputs(case: Case, chunk_size: int | None = None) -> Outputs:
    """``(weights, (xs, mask)) -> ys`` of the library's layers."""
    inputs, units = case.shape[2:]
    widths = [inputs] + [units] * (case.layers - 1)
    network = stack(*(vanilla_rnn(width, units, chunk_size=chunk_size) for width in widths))

    def outputs(weights: Any, batch: Any) -> Array:
        xs, mask = batch
        return network.unroll(weights, None, xs, mask=mask)[1]

    return outputs


def plain_outputs(weights: Any, xs: Array) -> Array:
    """The outputs of the plain scan, layer by layer."""
    for layer in weights:
        _, xs = unroll_plain(layer, None, xs)
    return xs


def loss_of(outputs: Outputs) -> Loss:
    """The loss as a function of weights and batch."""
    return lambda weights, batch: mean_square(outputs(weights, batch), batch[1])


def train_with_library(loss: Loss) -> Training:
    """The library's `make_train_step`."""
    step = make_train_step(_with_key(loss), optax.adam(LEARNING_RATE))
    return Training(_start, step, lambda state: state.params)


def split_evenly(number: int, things: str) -> Mesh:
    """As many devices as divide `number`.

    Raises:
      Unavailable: that is one device.
    """
    devices = jax.devices()
    count = largest_divisor(number, len(devices))
    if count == 1:
        raise Unavailable(f"{len(devices)} device(s) for {things.format(number)}")
    return data_mesh(devices[:count])


def _with_key(loss: Loss) -> Any:
    return lambda weights, batch, key: (loss(weights, batch), {})


def _start(weights: Any) -> TrainState:
    copy = jax.tree.map(jnp.copy, weights)
    return init_train_state(copy, optax.adam(LEARNING_RATE), jax.random.key(0))


def _shape(*sizes: int) -> Any:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


BUILDERS: dict[str, Builder] = {
    "jaxrnn": build_library,
    "jaxrnn, all devices": build_sharded,
    "plain scan": build_plain,
}

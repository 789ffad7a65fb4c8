"""The contenders written in JAX: the library on one device and on all, and the plain scan.

A contender is a `Network`; `enter` makes its three passes. Every gradient is with respect to the
parameters, with the value of the loss; every training step passes its state on and donates it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from experiments.bench.cases import LEARNING_RATE, Case, Pass, Problem, mean_square
from experiments.bench.timing import Entrant, Program, Unavailable, compile_program
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

Outputs = Callable[[Any, Any], Array]
Loss = Callable[[Any, Any], Array]

_BLOCK = 16  # networks at a time on one device


class Training(NamedTuple):
    """start: weights -> state. step: (state, batch) -> (state, loss). weights: state -> weights."""

    start: Callable[[Any], Any]
    step: Callable[[Any, Any], Any]
    weights: Callable[[Any], Any]


class Network(NamedTuple):
    """A network in JAX with its data.

    batch: (xs, mask or None). outputs: (weights, batch) -> ys. gradient: (weights, batch) ->
    (loss, gradients). to_params: weights, or their gradients, as one RNNParams a layer.
    batch_major: ys are [B, T, H]."""

    weights: Any
    batch: Any
    outputs: Outputs
    gradient: Callable[[Any, Any], Any]
    training: Training
    to_params: Callable[[Any], tuple[RNNParams, ...]] = tuple
    batch_major: bool = False


def enter(network: Network, what: Pass) -> Entrant:
    """Compile one pass of a network."""
    if what == "train":
        state = network.training.start(network.weights)
        program = compile_program(network.training.step, state, network.batch, donate=(0,))
        loop = _Loop(program, state, network.batch)
        weights = network.training.weights
        return Entrant(loop, lambda: as_numpy(network.to_params(weights(loop()))), program)
    function = network.outputs if what == "forward" else network.gradient
    program = compile_program(function, network.weights, network.batch)

    def call() -> Any:
        return jax.block_until_ready(program.run(network.weights, network.batch))

    def read() -> Any:
        if what == "gradient":
            return as_numpy(network.to_params(call()[1]))
        ys = np.asarray(call())
        return np.swapaxes(ys, 0, 1) if network.batch_major else ys

    return Entrant(call, read, program)


class _Loop:
    """A training run: each call is its next step."""

    def __init__(self, program: Program, state: Any, batch: Any) -> None:
        self._program, self._state, self._batch = program, state, batch

    def __call__(self) -> Any:
        self._state, loss = self._program.run(self._state, self._batch)
        jax.block_until_ready((self._state, loss))
        return self._state


def as_numpy(tree: Any) -> Any:
    """Copies of all leaves."""
    return jax.tree.map(np.array, tree)


def train_with_optax(loss: Loss) -> Training:
    """A training step in three lines: the gradient and optax's Adam."""
    adam = optax.adam(LEARNING_RATE)

    def start(weights: Any) -> Any:
        return jax.tree.map(jnp.copy, (weights, adam.init(weights)))

    def step(state: Any, batch: Any) -> Any:
        weights, adam_state = state
        value, gradient = jax.value_and_grad(loss)(weights, batch)
        updates, adam_state = adam.update(gradient, adam_state, weights)
        return (optax.apply_updates(weights, updates), adam_state), value

    return Training(start, step, lambda state: state[0])


def train_with_library(loss: Loss) -> Training:
    """The library's `make_train_step`."""
    step = make_train_step(_with_key(loss), optax.adam(LEARNING_RATE))
    return Training(_start_library, step, lambda state: state.params)


def run_over_padding(
    outputs: Callable[[Any, Any], Array],
    weights: Any,
    problem: Problem,
    to_params: Callable[[Any], tuple[RNNParams, ...]] = tuple,
    *,
    batch_major: bool = False,
) -> Network:
    """A network of ``outputs(weights, xs)`` that knows no padding.

    Padding stands at the end, so that it does not reach the steps before it; the loss leaves it
    out. That is the least work a framework can do on a ragged batch without packing it."""
    mask = problem.mask
    batch = (problem.xs, mask)
    if batch_major:
        batch = (np.swapaxes(problem.xs, 0, 1), None if mask is None else mask.T)

    def loss(weights: Any, batch: Any) -> Array:
        xs, mask = batch
        ys = outputs(weights, xs)
        return mean_square(ys if mask is None else jnp.where(mask[..., None], ys, 0), mask)

    return Network(
        weights,
        _device(batch),
        lambda weights, batch: outputs(weights, batch[0]),
        jax.value_and_grad(loss),
        train_with_optax(loss),
        to_params,
        batch_major,
    )


def build_plain(problem: Problem, what: Pass) -> Entrant:
    """Autodiff of ``lax.scan`` over the step."""
    return enter(run_over_padding(_plain_outputs, _device(problem.params), problem), what)


def build_library(problem: Problem, what: Pass, chunk_size: int | None = None) -> Entrant:
    """The library on one device, with its mask and its training step."""
    outputs = _library_outputs(problem.case, chunk_size)
    loss = _loss_of(outputs)
    gradient = jax.value_and_grad(loss)
    batch = _device((problem.xs, problem.mask))
    training = train_with_library(loss)
    return enter(Network(_device(problem.params), batch, outputs, gradient, training), what)


def build_sharded(problem: Problem, what: Pass) -> Entrant:
    """The library with the batch split evenly over as many devices as divide it."""
    mesh = _split_evenly(problem.case.shape[1], "a batch of {}")
    outputs = _library_outputs(problem.case)
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
        value = jax.value_and_grad(_loss_of(outputs))(weights, batch)
        share = (part, jax.tree.map(lambda leaf: part * leaf, value))
        total, summed = jax.lax.psum(share, mesh.axis_names)
        return jax.tree.map(lambda leaf: leaf / total, summed)

    step = make_train_step(_with_key(_loss_of(outputs)), optax.adam(LEARNING_RATE))
    step = shard_train_step(step, mesh, weight_fn=weight)
    network = Network(
        replicate(problem.params, mesh),
        shard_batch((problem.xs, problem.mask), mesh),
        shard(outputs, split),
        shard(average, whole),
        Training(
            lambda weights: replicate(_start_library(weights), mesh),
            step,
            lambda state: state.params,
        ),
    )
    return enter(network, what)


def gradient_program(case: Case, name: str) -> Program:
    """The gradient of ``"jaxrnn"`` or of the plain scan, compiled from shapes alone."""
    steps, batch, inputs, units = case.shape
    params = tuple(
        RNNParams(_shape(units, width), _shape(units, units), _shape(units), None)
        for width in [inputs] + [units] * (case.layers - 1)
    )
    library = _library_outputs(case)

    def outputs(weights: Any, batch: Any) -> Array:
        return library(weights, batch) if name == "jaxrnn" else _plain_outputs(weights, batch[0])

    data = (_shape(steps, batch, inputs), None)
    return compile_program(jax.value_and_grad(_loss_of(outputs)), params, data)


def build_mapped_library(problem: Problem, what: Pass) -> Entrant:
    """Many networks of the library under ``vmap``."""
    outputs = _library_outputs(problem.case)
    return _enter_mapped(problem, outputs, train_with_library(_loss_of(outputs)), what)


def build_mapped_sharded(problem: Problem, what: Pass) -> Entrant:
    """Many networks of the library split over all devices, and on each so few at a time under
    ``vmap`` that their states stay in its cache."""
    mesh = _split_evenly(problem.case.networks, "{} networks")
    part = PartitionSpec(mesh.axis_names)

    def over_networks(function: Any) -> Any:
        def in_blocks(*arguments: Any) -> Any:
            return jax.lax.map(lambda one: function(*one), arguments, batch_size=_BLOCK)

        return jax.shard_map(in_blocks, mesh=mesh, in_specs=part, out_specs=part, check_vma=False)

    outputs = _library_outputs(problem.case)
    training = train_with_library(_loss_of(outputs))
    return _enter_mapped(problem, outputs, training, what, over_networks)


def build_mapped_plain(problem: Problem, what: Pass) -> Entrant:
    """Many plain scans under ``vmap``."""

    def outputs(weights: Any, batch: Any) -> Array:
        return _plain_outputs(weights, batch[0])

    return _enter_mapped(problem, outputs, train_with_optax(_loss_of(outputs)), what)


def build_loop(problem: Problem, what: Pass) -> Entrant:
    """Many networks of the library, one call each of the program for one of them."""
    data = _device((problem.params, problem.xs))
    one_by_one = [
        jax.tree.map(lambda leaf, n=number: leaf[n], data)
        for number in range(problem.case.networks)
    ]
    outputs = _library_outputs(problem.case)
    loss = _loss_of(outputs)
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
    problem: Problem,
    outputs: Outputs,
    training: Training,
    what: Pass,
    over_networks: Callable[[Any], Any] = jax.vmap,
) -> Entrant:
    gradient = over_networks(jax.value_and_grad(_loss_of(outputs)))
    training = Training(
        jax.jit(over_networks(training.start)), over_networks(training.step), training.weights
    )
    identity = jax.jit(over_networks(lambda weights, batch: (weights, batch)))  # places them
    weights, batch = identity(_device(problem.params), (jnp.asarray(problem.xs), None))
    return enter(Network(weights, batch, over_networks(outputs), gradient, training), what)


def _split_evenly(number: int, things: str) -> Mesh:
    """As many devices as divide `number`."""
    devices = jax.devices()
    count = largest_divisor(number, len(devices))
    if count == 1:
        raise Unavailable(f"{len(devices)} device(s) for {things.format(number)}")
    return data_mesh(devices[:count])


def _library_outputs(case: Case, chunk_size: int | None = None) -> Outputs:
    inputs, units = case.shape[2:]
    widths = [inputs] + [units] * (case.layers - 1)
    network = stack(*(vanilla_rnn(width, units, chunk_size=chunk_size) for width in widths))

    def outputs(weights: Any, batch: Any) -> Array:
        xs, mask = batch
        return network.unroll(weights, None, xs, mask=mask)[1]

    return outputs


def _plain_outputs(weights: Any, xs: Array) -> Array:
    for layer in weights:
        _, xs = unroll_plain(layer, None, xs)
    return xs


def _loss_of(outputs: Outputs) -> Loss:
    return lambda weights, batch: mean_square(outputs(weights, batch), batch[1])


def _with_key(loss: Loss) -> Any:
    return lambda weights, batch, key: (loss(weights, batch), {})


def _start_library(weights: Any) -> TrainState:
    copy = jax.tree.map(jnp.copy, weights)
    return init_train_state(copy, optax.adam(LEARNING_RATE), jax.random.key(0))


def _device(tree: Any) -> Any:
    """The arrays on the device, copied: what is donated must be nobody else's."""
    return jax.tree.map(jnp.array, tree)


def _shape(*sizes: int) -> Any:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


BUILDERS: dict[str, Callable[[Problem, Pass], Entrant]] = {
    "jaxrnn": build_library,
    "jaxrnn, all devices": build_sharded,
    "plain scan": build_plain,
}
NETWORK_BUILDERS: dict[str, Callable[[Problem, Pass], Entrant]] = {
    "jaxrnn": build_mapped_library,
    "jaxrnn, all devices": build_mapped_sharded,
    "plain scan": build_mapped_plain,
    "jaxrnn, loop": build_loop,
}

"""What every contender written in JAX is: a network with its data, compiled for one pass.

A contender is a `Network`; `enter` compiles its three passes. Every gradient is with respect to the
parameters and comes with the value of the loss; every training step returns its next state and
donates the old one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench.cases import LEARNING_RATE, Pass, Workload, mean_square
from experiments.bench.entrants import Entrant, Program, compile_program
from jaxrnn import Array, RNNParams

Builder = Callable[[Workload, Pass], Entrant]
Outputs = Callable[[Any, Any], Array]
Loss = Callable[[Any, Any], Array]


class Training(NamedTuple):
    """start: weights -> state. step: (state, batch) -> (state, loss). weights: state -> weights."""

    start: Callable[[Any], Any]
    step: Callable[[Any, Any], Any]
    weights: Callable[[Any], Any]


class Network(NamedTuple):
    """A network in JAX with its data.

    batch: (xs, mask or None). outputs: (weights, batch) -> ys. gradient: (weights, batch) ->
    (loss, gradients). to_params: weights, or their gradients, as one RNNParams per layer.
    batch_major: True if ys are [B, T, H].
    """

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
    """Copies of all leaves, in NumPy."""
    return jax.tree.map(np.array, tree)


def on_device(tree: Any) -> Any:
    """Copies of all leaves on the device: a donated array must have no other user."""
    return jax.tree.map(jnp.array, tree)


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


def run_over_padding(
    outputs: Callable[[Any, Any], Array],
    weights: Any,
    workload: Workload,
    to_params: Callable[[Any], tuple[RNNParams, ...]] = tuple,
    *,
    batch_major: bool = False,
) -> Network:
    """A network of ``outputs(weights, xs)`` that has no mask.

    Padding comes last, so it does not affect the steps before it, and the loss leaves it out. This
    is the least work that a framework can do on a ragged batch without packing it."""
    mask = workload.mask
    batch = (workload.xs, mask)
    if batch_major:
        batch = (np.swapaxes(workload.xs, 0, 1), None if mask is None else mask.T)

    def loss(weights: Any, batch: Any) -> Array:
        xs, mask = batch
        ys = outputs(weights, xs)
        return mean_square(ys if mask is None else jnp.where(mask[..., None], ys, 0), mask)

    return Network(
        weights,
        on_device(batch),
        lambda weights, batch: outputs(weights, batch[0]),
        jax.value_and_grad(loss),
        train_with_optax(loss),
        to_params,
        batch_major,
    )

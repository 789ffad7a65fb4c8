"""Seconds per step of a gradient forward in time, beside back-propagation and braintrace."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.bench.entrants import Unavailable
from experiments.bench.peers import load
from experiments.online.learners import Learner, square_loss, with_readout
from experiments.online.streams import Signals
from experiments.shared.findings import Data
from experiments.shared.timing import Call, time_in_turn
from jaxrnn import Array, Layer, Params, online

RTRL, SNAP1, RFLO = "RTRL", "SnAp-1", "RFLO"
THROUGH_TIME, PEER = "BPTT, whole", "braintrace"

_INPUTS = 2
_WORK = 2e9  # multiplications of RTRL in one call, which sets how many steps it has


def measure_costs(sizes: Sequence[int], repeats: int) -> list[Data]:
    """Microseconds per step of the gradient of a whole stream, at each number of units: of a
    vanilla network of two inputs and one output."""
    rows = []
    for units in sizes:
        steps = int(np.clip(_WORK / (units**3 * (units + _INPUTS + 1)), 20, 2000))
        rng = np.random.default_rng(0)
        stream = Signals(
            jnp.asarray(rng.normal(size=(steps, _INPUTS)), jnp.float32),
            jnp.asarray(rng.normal(size=(steps, 1)), jnp.float32),
        )
        calls = _make_calls(units, stream)
        with contextlib.suppress(Unavailable):
            calls[PEER] = _make_peer(units, stream)
        seconds = time_in_turn(*calls.values(), repeats=repeats)
        micro = {name: 1e6 * s / steps for name, s in zip(calls, seconds, strict=True)}
        rows.append({"units": units, "steps": steps, "microseconds": micro})
    return rows


def time_learners(learners: Sequence[Learner], stream: Signals, repeats: int) -> dict[str, float]:
    """Microseconds per step of each learner, of one stream."""
    calls: list[Call] = []
    for learner in learners:
        calls.append(functools.partial(jax.jit(learner.learn), jax.random.key(0), stream, 1e-3))
    seconds = time_in_turn(*calls, repeats=repeats)
    micro = 1e6 / len(stream.xs)
    return {one.name: micro * s for one, s in zip(learners, seconds, strict=True)}


def _make_calls(units: int, stream: Signals) -> dict[str, Call]:
    makers = {RTRL: online.rtrl, SNAP1: online.snap1, RFLO: online.rflo}
    layers = {name: make(_INPUTS, units) for name, make in makers.items()}
    calls: dict[str, Call] = {name: _forward(layer, stream) for name, layer in layers.items()}
    network = with_readout(jaxrnn.vanilla_rnn(_INPUTS, units))

    def loss(params: Params, stream: Signals) -> Array:
        _, ys = network.unroll(params, None, stream.xs)
        return jnp.mean((ys - stream.targets) ** 2)

    params = network.init(jax.random.key(0))
    return calls | {THROUGH_TIME: functools.partial(jax.jit(jax.grad(loss)), params, stream)}


def _forward(layer: Layer, stream: Signals) -> Call:
    network = with_readout(layer)
    params = network.init(jax.random.key(0))
    mean_loss = online.mean_over_time(square_loss(network))

    @jax.jit
    def gradient(params: Params, stream: Signals) -> Params:
        state = network.initial_state(params)
        return jax.grad(mean_loss, has_aux=True)(params, state, stream, None)[0]

    return functools.partial(gradient, params, stream)


def _make_peer(units: int, stream: Signals) -> Call:
    """braintrace's SnAp with n = 2, which with a full W is exact RTRL, on its own vanilla cell."""
    brainstate, braintrace = load("brainstate"), load("braintrace")

    class Network(brainstate.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.cell = braintrace.nn.ValinaRNNCell(_INPUTS, units, activation="tanh")
            self.readout = braintrace.nn.Linear(units, 1)

        def update(self, x: Any) -> Any:
            return self.readout(self.cell(x))

    with warnings.catch_warnings():  # that it cannot see that W is full, and takes it to be so
        warnings.simplefilter("ignore")
        learner = braintrace.compile(Network(), braintrace.SnAp, stream.xs[0], n=2)

    def step_loss(x: Any, target: Any) -> Any:
        return jnp.mean((learner(x) - target) ** 2)

    call: Callable[..., Any] = brainstate.transform.jit(
        lambda xs, targets: learner.etrace_grad(xs, targets, step_fn=step_loss)
    )

    def gradient() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call(stream.xs, stream.targets)

    return gradient

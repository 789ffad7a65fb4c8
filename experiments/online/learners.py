"""What learns from a stream: gradients forward in time, and truncated back-propagation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

import jaxrnn
from experiments.online.streams import Signals
from jaxrnn import Array, Key, Layer, online

_CLIP = 1.0
_LEAK = 0.5  # of the network that RFLO trains: without one it sees nothing of the past

FEW = ("RTRL, every 8", "BPTT(4)", "BPTT(8; 8)", "BPTT(32; 32)")
"""Names of those that are compared at growing delays."""


class Learner(NamedTuple):
    """A way to learn from a stream: ``learn(key, stream, rate) -> the squared errors [T]``, each
    made before its target was learned from. `window`: how many steps back its gradient reaches;
    None for all."""

    name: str
    learn: Callable[[Key, Signals, Any], Array]
    window: int | None = None


def make_learners(units: int) -> list[Learner]:
    """All that the experiment compares."""
    leaky = online.rflo(1, units, leak=_LEAK)
    return [
        _forward("RTRL", online.rtrl(1, units), 1),
        _forward("RTRL, every 8", online.rtrl(1, units), 8),
        _forward("SnAp-1, every 8", online.snap1(1, units), 8),
        _forward("RFLO, every 8", leaky, 8),
        through_steps(units, 4),
        through_steps(units, 8),
        through_windows(units, 8),
        through_windows(units, 32),
    ]


def square_loss(network: Layer) -> Callable[..., Any]:
    """The loss of one step of a network, as `jaxrnn.make_train_step` takes it."""

    def loss_fn(params: Any, state: Any, now: Signals, key: Key) -> Any:
        state, y = network.step(params, state, now.xs)
        return jnp.mean((y - now.targets) ** 2), (state, {})

    return loss_fn


def _forward(name: str, layer: Layer, every: int) -> Learner:
    """Gradients of the present output, and an update every few steps."""
    network = with_readout(layer)
    mean_loss = online.mean_over_time(square_loss(network))
    return Learner(name, _learn(network, mean_loss, network.initial_state, every))


def through_steps(units: int, window: int) -> Learner:
    """Back-propagation of each error through the last `window` steps, and an update at each step
    (Williams & Peng 1990, BPTT(h))."""
    network = with_readout(jaxrnn.vanilla_rnn(1, units))

    def loss_fn(params: Any, carry: Any, batch: Signals, key: Key) -> Any:
        state, last = carry
        last = jnp.concatenate([last[1:], batch.xs])
        _, ys = network.unroll(params, state, last)
        state, _ = network.step(params, state, last[0])
        return jnp.mean((ys[-1:] - batch.targets) ** 2), ((state, last), {})

    def begin(params: Any) -> Any:
        return network.initial_state(params), jnp.zeros((window, 1))

    return Learner(f"BPTT({window})", _learn(network, loss_fn, begin, 1), window)


def through_windows(units: int, window: int) -> Learner:
    """Back-propagation through windows one after the other, and an update at the end of each
    (Williams & Peng 1990, BPTT(h; h))."""
    network = with_readout(jaxrnn.vanilla_rnn(1, units))

    def loss_fn(params: Any, state: Any, batch: Signals, key: Key) -> Any:
        state, ys = network.unroll(params, state, batch.xs)
        return jnp.mean((ys - batch.targets) ** 2), (state, {})

    learn = _learn(network, loss_fn, network.initial_state, window)
    return Learner(f"BPTT({window}; {window})", learn, window)


def with_readout(layer: Layer) -> Layer:
    """The layer and a dense output of one number."""
    return jaxrnn.stack(layer, jaxrnn.dense(layer.output_size, 1))


def _learn(
    network: Layer, loss_fn: Any, begin: Callable[[Any], Any], every: int
) -> Callable[[Key, Signals, Any], Array]:
    """Adam, an update every few steps. Errors are means over the steps of an update, repeated."""

    def learn(key: Key, stream: Signals, rate: Any) -> Array:
        chain = optax.chain(optax.clip_by_global_norm(_CLIP), optax.adam(rate))
        optimizer = optax.flatten(chain)  # one vector: an update takes few operations
        update = jaxrnn.make_train_step(loss_fn, optimizer, has_carry=True)
        params = network.init(key)
        state = jaxrnn.init_train_state(params, optimizer, key, carry=begin(params))
        _, metrics = jaxrnn.truncate_train_step(update, every)(state, stream)
        return jnp.repeat(metrics["loss"], every)[: len(stream.xs)]

    return learn

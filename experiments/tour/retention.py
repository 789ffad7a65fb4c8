"""Short-term memory only: what a vanilla network keeps, and how far its gradient reaches.

Claim 7: a vanilla network remembers over few steps and forgets over many, because the gradient of
its state with respect to an earlier one vanishes with the number of steps between them. The task:
output the sign of the first input, +1 or -1, after k steps of Gaussian noise. Refuted if networks
trained for the longest k still answer well, if they fail at the shortest, or if the gradient norm
before training does not fall with k.

The gradient norm is ``||d h_T / d h_{T-k}||``, the Frobenius norm divided by sqrt(n), where n is
the size of the state of all layers: the root mean square of the singular values, 1 for a rotation.
It is computed exactly, as a product of step Jacobians; its logarithm is accumulated, so that
nothing underflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments.shared.findings import Data, Finding, count_layers
from experiments.shared.output import Tick
from jaxrnn import (
    Array,
    Key,
    Layer,
    Params,
    deep_rnn,
    init_train_state,
    make_train_step,
    train_steps,
)

REMEMBERS, _GUESSES, _VANISHED = 0.9, 0.6, 1e-3
LN10 = math.log(10)


@dataclass(frozen=True)
class Config:
    """Claim 7."""

    lags: tuple[int, ...] = (1, 2, 4, 8, 12, 18, 30, 55, 100)
    """Steps of noise k; a network is trained for each."""
    depths: tuple[int, int] = (1, 3)
    """Vanilla layers of the shallow and the deep network."""
    hidden_size: int = 32
    """Hidden units of each layer."""
    seeds: int = 10
    """Networks for each depth and lag."""
    train_steps: int = 400
    """Training steps for each lag."""
    batch_size: int = 32
    """Sequences per training step."""
    learning_rate: float = 0.001
    """Adam's learning rate."""
    noise: float = 1.0
    """Standard deviation of the noise."""
    test_sequences: int = 1000
    """Fresh sequences that the accuracy is measured on."""
    gradient_sequences: int = 4
    """Fresh sequences that the logarithm of the gradient norm is averaged over."""


def measure(config: Config, seed: int, tick: Tick) -> Data:
    """Train a network for every depth, lag and seed; measure accuracy and gradient norms."""
    groups = _group(config.lags)
    networks: Data = {}
    for number, depth in enumerate(config.depths):
        parts = []
        for part, lags in enumerate(groups):
            done = (number + part / len(groups)) / len(config.depths)
            tick(done, f"{depth} layers, lags {lags[0]} to {lags[-1]}")
            key = jax.random.fold_in(jax.random.key(seed), 100 * number + part)
            parts.append(_measure_group(config, depth, lags, key))
        networks[str(depth)] = {
            name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]
        }  # each [lags, seeds]
    budget = f"{config.train_steps} steps of Adam on {config.batch_size} sequences"
    return {
        "lags": [lag for lags in groups for lag in lags],
        "networks": networks,
        "budget": budget,
    }


def judge(data: Data) -> list[Finding]:
    """The findings of claim 7."""
    lags, networks = data["lags"], data["networks"]
    accuracy = {depth: np.mean(net["accuracy"], axis=1) for depth, net in networks.items()}
    before, after = (
        {depth: np.mean(net[f"log_norm_{when}"], axis=1) / LN10 for depth, net in networks.items()}
        for when in ("before", "after")
    )
    return [
        Finding(
            "7",
            "A vanilla network has a short-term memory only.",
            f"mean accuracy is at least {REMEMBERS} after {lags[0]} step and at most {_GUESSES} "
            f"after {lags[-1]}, for every depth",
            "; ".join(
                f"{count_layers(depth)}: at least {REMEMBERS:.0%} up to "
                f"{find_reach(lags, row)} steps, {row[-1]:.0%} after {lags[-1]}"
                for depth, row in accuracy.items()
            ),
            all(row[0] >= REMEMBERS and row[-1] <= _GUESSES for row in accuracy.values()),
        ),
        Finding(
            "7 gradient",
            "The gradient of the state with respect to one k steps earlier vanishes with k.",
            f"before training its norm falls from each k to the next, to below {_VANISHED} at "
            f"{lags[-1]}, for every depth",
            "; ".join(
                f"{count_layers(depth)}: 10^{row[0]:.1f} at {lags[0]}, "
                f"10^{row[-1]:.0f} at {lags[-1]} "
                f"(trained: 10^{after[depth][0]:.1f}, 10^{after[depth][-1]:.0f})"
                for depth, row in before.items()
            ),
            all(
                bool(np.all(np.diff(row) < 0)) and row[-1] < math.log10(_VANISHED)
                for row in before.values()
            ),
        ),
    ]


def find_reach(lags: Sequence[int], accuracy: np.ndarray) -> int:
    """The longest lag up to which every lag is remembered; 0 where none is."""
    good = np.asarray(accuracy) >= REMEMBERS
    return 0 if not good[0] else int(lags[int(np.argmin(good)) - 1 if not good.all() else -1])


def _group(lags: Sequence[int]) -> list[list[int]]:
    """Lags within a factor of four of each other, which share one compiled program."""
    groups: list[list[int]] = []
    for lag in sorted(lags, reverse=True):
        if groups and 4 * lag >= groups[-1][0]:
            groups[-1].append(lag)
        else:
            groups.append([lag])
    return [group[::-1] for group in groups[::-1]]


def _measure_group(config: Config, depth: int, lags: list[int], key: Key) -> Data:
    """Train and test all networks of some lags in one call: a dict of [lags, seeds]."""
    network = deep_rnn((1, *[config.hidden_size] * depth, 1))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))
    length = max(lags) + 1

    def answer(params: Params, batch: _Batch) -> Array:
        _, ys = network.unroll(params, None, batch.xs)
        return ys[batch.lag, :, 0]

    def loss_fn(params: Params, batch: _Batch, key: Key) -> tuple[Array, Data]:
        del key
        labels = (batch.signs + 1) / 2
        return jnp.mean(optax.sigmoid_binary_cross_entropy(answer(params, batch), labels)), {}

    def train(lag: Array, before: Params, key: Key) -> Data:
        key_run, key_test = jax.random.split(key)

        def make_batch(key: Key, step: Array) -> _Batch:
            del step
            return _draw(config, key, lag, length, config.batch_size)

        state = init_train_state(before, optimizer, key_run)
        train_step = make_train_step(loss_fn, optimizer)
        state, _ = train_steps(train_step, state, make_batch, config.train_steps)
        test = _draw(config, key_test, lag, length, config.test_sequences)
        return {
            "accuracy": jnp.mean(jnp.sign(answer(state.params, test)) == test.signs),
            "log_norm_before": _log_gradient_norm(config, network, before, test),
            "log_norm_after": _log_gradient_norm(config, network, state.params, test),
        }

    keys = jax.random.split(key, (2, config.seeds))
    before = jax.jit(jax.vmap(network.init))(keys[0])
    over_seeds = jax.vmap(train, in_axes=(None, 0, 0))
    over_lags = jax.vmap(over_seeds, in_axes=(0, None, None))
    return jax.jit(over_lags)(jnp.asarray(lags), before, keys[1])


class _Batch(NamedTuple):
    """xs [T, B, 1], the number of noise steps before the answer, and the signs [B]."""

    xs: Array
    lag: Array
    signs: Array


def _draw(config: Config, key: Key, lag: Array, length: int, batch_size: int) -> _Batch:
    """Fresh sequences of `length` steps: a sign, then noise. Steps after the lag play no part."""
    key_signs, key_noise = jax.random.split(key)
    signs = jax.random.rademacher(key_signs, (batch_size,), jnp.float32)
    xs = config.noise * jax.random.normal(key_noise, (length, batch_size, 1))
    return _Batch(xs.at[0, :, 0].set(signs), lag, signs)


def _log_gradient_norm(config: Config, network: Layer, params: Params, batch: _Batch) -> Array:
    """log ||d h_T / d h_{T-k}||_F / sqrt(n), the mean over some sequences."""
    unravel: Callable[[Array], Any]
    initial, unravel = ravel_pytree(network.initial_state(params))

    def advance(h: Array, x: Array) -> Array:
        state, _ = network.step(params, unravel(h), x)
        return ravel_pytree(state)[0]

    def body(carry: Any, step: tuple[Array, Array]) -> tuple[Any, None]:
        h, tangents, log_norm = carry  # tangents [n, n], of norm 1
        x, number = step
        h_next, push_forward = jax.linearize(lambda h: advance(h, x), h)
        pushed = jax.vmap(push_forward)(tangents)
        norm = jnp.maximum(jnp.linalg.norm(pushed), jnp.finfo(pushed.dtype).tiny)
        advanced = (h_next, pushed / norm, log_norm + jnp.log(norm))
        counts = number <= batch.lag
        return jax.tree.map(lambda new, old: jnp.where(counts, new, old), advanced, carry), None

    def one(xs: Array) -> Array:
        start = jnp.eye(initial.size) / math.sqrt(initial.size)
        carry = (advance(initial, xs[0]), start, jnp.zeros(()))
        (_, _, log_norm), _ = jax.lax.scan(body, carry, (xs[1:], jnp.arange(1, len(xs))))
        return log_norm

    return jnp.mean(jax.vmap(one, in_axes=1)(batch.xs[:, : config.gradient_sequences]))

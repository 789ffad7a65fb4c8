"""Short-term memory only: what a vanilla network keeps, and how far its gradient reaches.

Claim 7: a vanilla network remembers over few steps and forgets over many, because the gradient of
its state with respect to an earlier one vanishes with the number of steps between. The task: the
sign of the first input, +1 or -1, after k steps of Gaussian noise. Refuted where networks trained
for the longest k still answer well, where they fail at the shortest, or where the gradient norm
before training does not fall with k.

The gradient norm is ``||d h_T / d h_{T-k}||``, the Frobenius norm over sqrt(n), n the size of the
state of all layers: the root mean square of the singular values, 1 for a rotation. It is computed
exactly as a product of step Jacobians, its size kept as a logarithm, so that nothing underflows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from matplotlib.axes import Axes

from experiments.shared.figures import BLUE, GREY, VERMILION, mark_steps, saved_figure, say
from experiments.shared.networks import count_layers, init_networks
from experiments.shared.output import Data, Finding, Tick
from jaxrnn import (
    Array,
    Key,
    Layer,
    Params,
    dense,
    fit,
    init_train_state,
    make_train_step,
    stack,
    vanilla_rnn,
)

_REMEMBERS, _GUESSES, _VANISHED = 0.9, 0.6, 1e-3
_COLOURS = (BLUE, VERMILION)
_LN10 = math.log(10)


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
    """Sequences a step."""
    learning_rate: float = 0.001
    """Adam's learning rate."""
    noise: float = 1.0
    """Standard deviation of the noise."""
    test_sequences: int = 1000
    """Fresh sequences that the accuracy is measured on."""
    gradient_sequences: int = 4
    """Fresh sequences over which the logarithm of the gradient norm is averaged."""


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
        {depth: np.mean(net[f"log_norm_{when}"], axis=1) / _LN10 for depth, net in networks.items()}
        for when in ("before", "after")
    )
    return [
        Finding(
            "7",
            "A vanilla network has a short-term memory only.",
            f"mean accuracy is at least {_REMEMBERS} after {lags[0]} step and at most {_GUESSES} "
            f"after {lags[-1]}, for every depth",
            "; ".join(
                f"{count_layers(depth)}: at least {_REMEMBERS:.0%} up to "
                f"{_reach(lags, row)} steps, {row[-1]:.0%} after {lags[-1]}"
                for depth, row in accuracy.items()
            ),
            all(row[0] >= _REMEMBERS and row[-1] <= _GUESSES for row in accuracy.values()),
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


def _reach(lags: Sequence[int], accuracy: np.ndarray) -> int:
    """The longest lag up to which every lag is remembered; 0 where none is."""
    good = np.asarray(accuracy) >= _REMEMBERS
    return 0 if not good[0] else int(lags[int(np.argmin(good)) - 1 if not good.all() else -1])


def plot(data: Data, folder: Path) -> None:
    """Draw memory.png: accuracy and gradient norm against the number of steps."""
    lags, networks = data["lags"], data["networks"]
    with saved_figure(folder / "memory.png", (8.0, 6.5)) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True)
        for (depth, network), colour in zip(networks.items(), _COLOURS, strict=True):
            accuracy = 100 * np.asarray(network["accuracy"])
            _band(top, lags, accuracy, (0, 100), color=colour, label=count_layers(depth))
            for when, style in (("before", "-"), ("after", "--")):
                logs = np.asarray(network[f"log_norm_{when}"]) / _LN10
                label = f"{count_layers(depth)}, {when} training"
                _band(bottom, lags, logs, (-np.inf, np.inf), color=colour, ls=style, label=label)
        top.axhline(50, color=GREY, lw=1, ls=":")
        top.annotate("guessing", (lags[0], 50), (0, 3), textcoords="offset points", fontsize=9)
        top.set(ylabel="correct answers (%)", ylim=(35, 104))
        mark_steps(bottom, list(lags))
        bottom.set(xlabel="steps of noise k after the sign", ylabel="gradient norm (power of ten)")
        top.legend(loc="center left")
        bottom.legend(loc="lower left")
        means = [np.mean(net["accuracy"], axis=1) for net in networks.values()]
        reach = [
            f"{_reach(lags, row)} steps with {count_layers(depth)}"
            for depth, row in zip(networks, means, strict=True)
        ]
        seeds = len(next(iter(networks.values()))["accuracy"][0])
        shallow = np.mean(next(iter(networks.values()))["log_norm_before"], axis=1)[-1] / _LN10
        say(
            figure,
            f"The memory lasts {' and '.join(reach)}:\n"
            f"over {lags[-1]} steps the gradient falls to $\\mathbf{{10^{{{shallow:.0f}}}}}$",
            f"memory: {_REMEMBERS:.0%} correct or more; mean ± std over {seeds} seeds; trained for "
            f"each k apart: {data['budget']}",
        )


def _band(
    axes: Axes, lags: Sequence[int], values: np.ndarray, limits: tuple[float, float], **style: Any
) -> None:
    """The mean of `values` [lags, seeds] as a line, a standard deviation around it as a band."""
    mean, spread = values.mean(axis=1), values.std(axis=1, ddof=1)
    low, high = np.clip(mean - spread, *limits), np.clip(mean + spread, *limits)
    axes.fill_between(lags, low, high, color=style["color"], alpha=0.2, lw=0)
    axes.plot(lags, mean, marker="o", ms=4, **style)


def _group(lags: Sequence[int]) -> list[list[int]]:
    """Lags that share one compiled program, padded to the longest: within a factor of four."""
    groups: list[list[int]] = []
    for lag in sorted(lags, reverse=True):
        if groups and 4 * lag >= groups[-1][0]:
            groups[-1].append(lag)
        else:
            groups.append([lag])
    return [group[::-1] for group in groups[::-1]]


def _measure_group(config: Config, depth: int, lags: list[int], key: Key) -> Data:
    """Train and test all networks of some lags in one call: a dict of [lags, seeds]."""
    rnn, readout = _network(config, depth)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))
    length = max(lags) + 1

    def logits(params: Params, batch: _Batch) -> Array:
        states, _ = rnn.unroll(params[0], None, batch.xs, mask=batch.mask)
        return readout.step(params[1], (), states[-1])[1][:, 0]

    def loss_fn(params: Params, batch: _Batch, key: Key) -> tuple[Array, Data]:
        del key
        labels = (batch.signs + 1) / 2
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits(params, batch), labels)), {}

    def train(lag: Array, before: Params, key: Key) -> Data:
        key_run, key_test = jax.random.split(key)

        def make_batch(key: Key, step: Array) -> _Batch:
            del step
            return _draw(config, key, lag, length, config.batch_size)

        state = init_train_state(before, optimizer, key_run)
        train_step = make_train_step(loss_fn, optimizer)
        state, _ = fit(train_step, state, make_batch, config.train_steps)
        test = _draw(config, key_test, lag, length, config.test_sequences)
        return {
            "accuracy": jnp.mean(jnp.sign(logits(state.params, test)) == test.signs),
            "log_norm_before": _log_gradient_norm(config, rnn, before[0], test),
            "log_norm_after": _log_gradient_norm(config, rnn, state.params[0], test),
        }

    keys = jax.random.split(key, (3, config.seeds))
    before = (init_networks(rnn, keys[0]), init_networks(readout, keys[1]))
    over_seeds = jax.vmap(train, in_axes=(None, 0, 0))
    over_lags = jax.vmap(over_seeds, in_axes=(0, None, None))
    return jax.jit(over_lags)(jnp.asarray(lags), before, keys[2])


def _network(config: Config, depth: int) -> tuple[Layer, Layer]:
    """The lecture's default network, and the readout of its last state."""
    sizes = [1] + [config.hidden_size] * depth
    rnn = stack(*(vanilla_rnn(below, above) for below, above in itertools.pairwise(sizes)))
    return rnn, dense(config.hidden_size, 1)


class _Batch(NamedTuple):
    """xs [T, B, 1] and mask [T, B], True up to the lag, and the first inputs, signs [B]."""

    xs: Array
    mask: Array
    signs: Array


def _draw(config: Config, key: Key, lag: Array, length: int, batch_size: int) -> _Batch:
    """Fresh sequences: a sign, `lag` steps of noise, and masked steps up to `length`."""
    key_signs, key_noise = jax.random.split(key)
    signs = jax.random.rademacher(key_signs, (batch_size,), jnp.float32)
    xs = config.noise * jax.random.normal(key_noise, (length, batch_size, 1))
    mask = jnp.broadcast_to(jnp.arange(length)[:, None] <= lag, (length, batch_size))
    return _Batch(xs.at[0, :, 0].set(signs), mask, signs)


def _log_gradient_norm(config: Config, rnn: Layer, params: Params, batch: _Batch) -> Array:
    """log ||d h_T / d h_{T-k}||_F / sqrt(n), the mean over some sequences."""
    unravel: Callable[[Array], Any]
    initial, unravel = ravel_pytree(rnn.initial_state(params))

    def advance(h: Array, x: Array) -> Array:
        state, _ = rnn.step(params, unravel(h), x)
        return ravel_pytree(state)[0]

    def body(carry: Any, piece: tuple[Array, Array]) -> tuple[Any, None]:
        h, tangents, log_norm = carry  # tangents [n, n] of norm 1
        x, taken = piece
        after, push = jax.linearize(lambda h: advance(h, x), h)
        moved = jax.vmap(push)(tangents)
        norm = jnp.maximum(jnp.linalg.norm(moved), jnp.finfo(moved.dtype).tiny)
        moved = (after, moved / norm, log_norm + jnp.log(norm))
        return jax.tree.map(lambda new, old: jnp.where(taken, new, old), moved, carry), None

    def one(xs: Array, mask: Array) -> Array:
        start = jnp.eye(initial.size) / math.sqrt(initial.size)
        carry = (advance(initial, xs[0]), start, jnp.zeros(()))
        (_, _, log_norm), _ = jax.lax.scan(body, carry, (xs[1:], mask[1:]))
        return log_norm

    some = slice(0, config.gradient_sequences)
    return jnp.mean(jax.vmap(one, in_axes=1)(batch.xs[:, some], batch.mask[:, some]))

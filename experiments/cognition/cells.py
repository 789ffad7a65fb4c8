"""The networks of `cognition`, how they are trained, and how they are tested."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.cognition.trials import (
    INPUTS,
    OUTPUTS,
    Scene,
    Trials,
    add_input_noise,
    draw_scenes,
    make_trials,
    score,
    wanted_outputs,
)
from experiments.shared.findings import Data
from jaxrnn import (
    Array,
    Key,
    Layer,
    Params,
    constrained,
    dense,
    initializers,
    stack,
    vanilla_rnn,
)
from jaxrnn.constraints import Constraint, dale

EXCITATORY = 0.8
_SMALL = 0.001  # standard deviation of the free weights that start near zero; at zero |w| is flat
_VALIDATION = 512  # trials of each task


class CognitiveCell(NamedTuple):
    """A network without its constraint, its recurrent layer, and the constraint or None."""

    plain: Layer
    rnn: Layer
    constraint: Constraint | None

    @property
    def network(self) -> Layer:
        """The layer that is trained."""
        return self.plain if self.constraint is None else constrained(self.plain, self.constraint)

    def params(self, free: Params) -> Params:
        """The parameters of `plain`."""
        return free if self.constraint is None else self.constraint.apply(free)


def make_cell(
    units: int, *, leak: float | None, noise: float | None, signed: bool
) -> CognitiveCell:
    """A vanilla layer of rectified units with a dense readout; `signed` obeys Dale's law, which
    concerns W alone.

    W starts at the identity: what a rectified unit reads it keeps (Le, Jaitly & Hinton 2015), so
    that the gradient reaches back over a delay from the first step on. Under Dale's law only units
    that excite can start so."""
    keeping = initializers.identity()
    rnn = vanilla_rnn(
        INPUTS, units, activation=jax.nn.relu, leak=leak, noise=noise, w_hh_init=keeping
    )
    plain = stack(rnn, dense(units, OUTPUTS))
    return CognitiveCell(plain, rnn, _keeping_dale(units) if signed else None)


def _keeping_dale(units: int) -> Constraint:
    """Dale's law; units that excite start by keeping their state, and all other weights small."""
    signs = signs_of(units)

    def init(key: Key, params: Params) -> Params:
        small = _SMALL * jnp.abs(jax.random.normal(key, (units, units)))
        return (params[0]._replace(w_hh=small + jnp.diag(jnp.maximum(signs, 0.0))), *params[1:])

    return dale(signs)._replace(init=init)


def signs_of(units: int) -> np.ndarray:
    """The first units excite, and the others inhibit: [H]."""
    return np.where(np.arange(units) < round(EXCITATORY * units), 1.0, -1.0)


def draw_all(tasks: tuple[str, ...], key: Key, size: int) -> Trials:
    """`size` noisy trials of each task, side by side."""
    key_scenes, key_noise = jax.random.split(key)
    scenes = draw_scenes(key_scenes, size * len(tasks))
    each = [
        make_trials(task, jax.tree.map(lambda leaf, at=at: leaf[at : at + size], scenes))
        for at, task in zip(range(0, size * len(tasks), size), tasks, strict=True)
    ]
    return add_input_noise(jax.tree.map(_join, *each), key_noise)


def loss_of_trials(network: Layer, params: Params, trials: Trials, key: Key | None) -> Array:
    """The weighted mean square of the outputs' errors; fixation counts twice."""
    wanted, weights = wanted_outputs(trials)
    ys = network.unroll(params, None, trials.xs, key=key)[1]
    squares = (ys - wanted) ** 2
    errors = 2 * squares[..., 0] + jnp.mean(squares[..., 1:], axis=-1)
    return jnp.sum(weights * errors) / jnp.sum(weights)


def validate(network: Layer, tasks: tuple[str, ...], key: Key, params: Params) -> Array:
    """The share of wrong trials, of those where an ideal observer is right at least 99 times of
    100; with the network's noise."""
    trials = draw_all(tasks, key, _VALIDATION // len(tasks))
    ys = network.unroll(params, None, trials.xs, key=key)[1]
    clear = trials.ideal >= 0.99
    return 1 - jnp.sum(score(trials, ys)[0] & clear) / jnp.sum(clear)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def measure_accuracy(
    network: Layer, tasks: tuple[str, ...], params: Params, size: int, key: Key
) -> tuple[Array, Array, Array]:
    """Of each network [S, tasks]: the share of right trials, that among those where an ideal
    observer is right at least 99 times of 100, and the ideal observer's share."""

    trials = draw_all(tasks, key, size)
    apart = jax.tree.map(lambda leaf: _split_tasks(leaf, len(tasks)), trials)

    def one(params: Params) -> tuple[Array, Array, Array]:
        def measure(trials: Trials) -> tuple[Array, Array, Array]:
            right = score(trials, network.unroll(params, None, trials.xs, key=key)[1])[0]
            clear = trials.ideal >= 0.99
            share = jnp.sum(right & clear) / jnp.sum(clear)
            return jnp.mean(right), share, jnp.mean(trials.ideal)

        return lax.map(measure, apart)

    return lax.map(one, params)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def measure_choices(
    network: Layer, task: str, params: Params, size: int, levels: Array, key: Key
) -> Array:
    """How often the network [S] decides for the first choice at each signed coherence: [S, L]."""

    def one(params: Params) -> Array:
        def at(level: Array) -> Array:
            trials = add_input_noise(make_trials(task, decide_scene(key, size, level)), key)
            _, response = score(trials, network.unroll(params, None, trials.xs, key=key)[1])
            first = jnp.where(level > 0, trials.direction, trials.direction + jnp.pi)
            return jnp.mean(jnp.cos(response - first) > 0)

        return lax.map(at, levels)

    return lax.map(one, params)


def decide_scene(key: Key, size: int, level: Array) -> Scene:
    """Scenes with one signed coherence."""
    signs, sizes = (jnp.full((size,), f(level)) for f in (jnp.sign, jnp.abs))
    return draw_scenes(key, size)._replace(sign=signs, coherence=sizes)


def make_optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Adam with a rate that falls along a cosine, and clipped gradients."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(100, steps // 4), steps, learning_rate / 20
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def first_reached(curves: Data, share: float) -> np.ndarray:
    """The training steps [S] after which each network first had this share of trials right; NaN
    for one that never had."""
    reached = 1 - np.asarray(curves["validation"]) >= share
    steps = np.asarray(curves["steps"], float)
    return np.where(reached.any(axis=0), steps[np.argmax(reached, axis=0)], np.nan)


def _split_tasks(leaf: Array, count: int) -> Array:
    """[T, tasks * B, ...] or [tasks * B] with the tasks in front."""
    if leaf.ndim == 1:
        return leaf.reshape(count, -1)
    return jnp.moveaxis(leaf.reshape(leaf.shape[0], count, -1, leaf.shape[-1]), 1, 0)


def _join(*parts: Any) -> Array:
    return jnp.concatenate(parts, axis=1 if parts[0].ndim > 1 else 0)

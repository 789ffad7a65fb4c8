"""The networks of `cognition`, how they are trained, and how they are tested."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.cognition.tasks import (
    INPUTS,
    OUTPUTS,
    Scene,
    Trials,
    add_input_noise,
    draw_trials,
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
    concerns W alone."""
    scaled = initializers.with_spectral_radius(0.8, initializers.orthogonal())
    rnn = vanilla_rnn(
        INPUTS, units, activation=jax.nn.relu, leak=leak, noise=noise, w_hh_init=scaled
    )
    signs = signs_of(units)
    return CognitiveCell(stack(rnn, dense(units, OUTPUTS)), rnn, dale(signs) if signed else None)


def signs_of(units: int) -> np.ndarray:
    """The first units excite, and the others inhibit: [H]."""
    return np.where(np.arange(units) < round(EXCITATORY * units), 1.0, -1.0)


def draw_all(tasks: tuple[str, ...], key: Key, size: int) -> Trials:
    """`size` noisy trials of each task, side by side."""
    keys = jax.random.split(key, (len(tasks), 2))
    each = [
        add_input_noise(draw_trials(task, one, size), other)
        for task, (one, other) in zip(tasks, keys, strict=True)
    ]
    return jax.tree.map(_join, *each)


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

    def one(params: Params) -> tuple[Array, Array, Array]:
        shares = []
        for task, k in zip(tasks, jax.random.split(key, len(tasks)), strict=True):
            trials = draw_all((task,), k, size)
            right = score(trials, network.unroll(params, None, trials.xs, key=k)[1])[0]
            clear = trials.ideal >= 0.99
            share = jnp.sum(right & clear) / jnp.sum(clear)
            shares.append((jnp.mean(right), share, jnp.mean(trials.ideal)))
        return jax.tree.map(lambda *parts: jnp.stack(parts), *shares)

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
    key_angle, key_other, key_go = jax.random.split(key, 3)
    other = jax.random.uniform(key_other, (size,), minval=-0.2, maxval=0.2)
    return Scene(
        jax.random.uniform(key_angle, (size,), maxval=2 * jnp.pi),
        jnp.full((size,), jnp.sign(level)),
        jnp.full((size,), jnp.abs(level)),
        other,
        jax.random.randint(key_go, (size,), 80, 86),
        jnp.full((size,), 30),
    )


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


def _join(*parts: Any) -> Array:
    return jnp.concatenate(parts, axis=1 if parts[0].ndim > 1 else 0)

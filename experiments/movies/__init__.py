"""Videos of bouncing balls: predict the next frame, and continue without further frames.

Claim: a deep vanilla network predicts the next frame of a video of three bouncing balls with a
squared error, summed over the 900 pixels, below 1.0 when trained on fresh videos and below 1.5 when
trained on 4,000 fixed ones, whereas repeating the last frame has 11.8 and linear extrapolation 6.8.
Refuted by the mean error over frames 2 to 100 of 200 test videos that nothing was chosen on. The
second frame alone, whose motion no model can know, contributes 0.13 to that mean.

The videos are those of Sutskever, Hinton & Taylor 2008 (`experiments.data.bouncing_balls`).
Training is by truncated back-propagation: one update per window of frames, with the state carried
through the video.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from pydantic import Field

from experiments.data.bouncing_balls import PIXELS, SIDE, draw_tracks, render
from experiments.shared.findings import Data, Finding, Result, describe_seeds
from experiments.shared.model_files import load_networks, read_inputs, save_networks
from experiments.shared.options import InputError, Positive, PositiveFloat, TrainConfig
from experiments.shared.output import Tick, within
from experiments.shared.training import (
    Task,
    choose_best,
    record,
    start_networks,
    train,
    warm_up_and_cool_down,
)
from jaxrnn import (
    Array,
    Key,
    Layer,
    Params,
    TrainState,
    deep_rnn,
    generate,
    make_train_step,
    truncate_train_step,
)

_ALONE_FROM = 20  # after this frame the network sees its own predictions
_TARGETS = {"fresh": 1.0, "fixed": 1.5}


@dataclass(frozen=True)
class Config(TrainConfig):
    """The options of `movies`."""

    with_source: ClassVar[frozenset[str]] = frozenset(("test_videos", "frames"))

    hidden_size: Positive = 400
    """Hidden units of each layer."""
    layers: Positive = 2
    """Vanilla layers."""
    videos: Positive = 4000
    """Training videos of the network that is trained on a fixed set."""
    test_videos: Positive = 200
    """Test videos; there are as many validation videos."""
    frames: Annotated[int, Field(ge=22)] = 100
    """Frames per video."""
    batch_size: Positive = 32
    """Videos per training step."""
    window: Positive = 11
    """Frames per window of truncated back-propagation; each window is one update."""
    learning_rate: PositiveFloat = 0.002
    """Adam's peak learning rate; it warms up and then falls along a cosine."""
    steps: Positive = 2500
    """Maximum number of training steps; validation may stop a network earlier."""
    eval_every: Positive = 50
    """Training steps from one validation to the next, all in one compiled call."""
    patience: Positive = 20
    """Validations without a new best after which a network stops."""


@dataclass(frozen=True)
class FrameInputs:
    """What the networks read: the pixels of a square frame, row by row, from 0 to 1."""

    side: int


def run(config: Config, progress: Tick) -> Result:
    """Train on fresh and on fixed videos, and test both on the same ones."""
    network = _network(config)
    if config.source is not None:
        return _use(config, config.source, network, progress)
    trained = {
        videos: train(*_make_task(config, network, videos), config, within(progress, *part, videos))
        for videos, part in {"fresh": (0.0, 0.49), "fixed": (0.49, 0.98)}.items()
    }
    kept = {name: (network, result.params, result.validation) for name, result in trained.items()}
    save_networks(config, "movies", FrameInputs(SIDE), kept)
    progress(0.98, "testing")
    params = {name: result.params for name, result in trained.items()}
    data = _test(config, network, params, choose_best(trained["fresh"]))
    for name, result in trained.items():
        data["networks"][name] |= record(result)
    return Result(data, _judge(data))


def _use(config: Config, source: Path, network: Layer, progress: Tick) -> Result:
    """Test the networks of another run on videos of this one's seed."""
    side = read_inputs(source, FrameInputs).side
    if side != SIDE:
        raise InputError(f"{source}: the networks read frames of side {side}, expected {SIDE}")
    params = {name: load_networks(source, name, network) for name in _TARGETS}
    progress(0.5, "testing")
    best = jax.tree.map(lambda leaf: leaf[0], params["fresh"])
    data = _test(config, network, params, best)
    return Result(data, _judge(data))


def _test(config: Config, network: Layer, params: dict[str, Params], best: Params) -> Data:
    """The errors of each network on the test videos, and of what needs none; a film of the best."""
    frames = render(_draw(config, "test", config.test_videos))
    return {
        "networks": {
            name: {
                "parts": _measure(network, several, frames),  # [S, frames - 1]
                "alone": _measure_alone(network, several, frames),  # [S, frames - 20]
            }
            for name, several in params.items()
        },
        "baselines": _measure_baselines(frames),
        "alone_from": _ALONE_FROM,
        "movie": _film(network, best, frames),
    }


def _network(config: Config) -> Layer:
    return deep_rnn((PIXELS, *[config.hidden_size] * config.layers, PIXELS))


def _draw(config: Config, use: str, num_videos: int) -> Array:
    """The tracks of the videos of one use; no two uses share a key."""
    uses = ("train", "fixed", "validation", "test")
    key = jax.random.fold_in(jax.random.key(config.seed), uses.index(use))
    return jax.jit(draw_tracks, static_argnums=(1, 2))(key, config.frames, num_videos)


def _predict(network: Layer, params: Params, state: Any, frames: Array) -> tuple[Any, Array]:
    """The state, and the prediction [T, B, PIXELS] of the frame after each."""
    state, logits = network.unroll(params, state, frames)
    return state, jax.nn.sigmoid(logits)


def _error(predicted: Array, frames: Array) -> Array:
    """The squared error of each frame [T, B], summed over its pixels."""
    return jnp.sum((predicted - frames) ** 2, axis=-1)


def _make_task(config: Config, network: Layer, videos: str) -> tuple[Task, TrainState]:
    fixed = _draw(config, "fixed", config.videos) if videos == "fixed" else None
    validation = _draw(config, "validation", config.test_videos)

    def loss_of_window(
        params: Params, state: Any, batch: Any, key: Key
    ) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        del key
        frames, following, begins = batch
        state = jax.tree.map(lambda leaf: jnp.where(begins[0], 0.0, leaf), state)
        state, predicted = _predict(network, params, state, frames)
        return jnp.mean(_error(predicted, following)), (state, {})

    def make_batch(key: Key, step: Array) -> Any:
        del step
        if fixed is None:
            tracks = draw_tracks(key, config.frames, config.batch_size)
        else:
            tracks = fixed[:, jax.random.randint(key, (config.batch_size,), 0, config.videos)]
        frames = render(tracks)
        return frames[:-1], frames[1:], jnp.arange(config.frames - 1) == 0

    def validate(params: Params) -> Array:
        return jnp.mean(_measure_one(network, params, render(validation)))

    updates = config.steps * -(-(config.frames - 1) // config.window)
    rate = warm_up_and_cool_down(config.learning_rate, updates)
    optimizer = optax.chain(optax.clip_by_global_norm(100.0), optax.adam(rate, b2=0.99))
    step = make_train_step(loss_of_window, optimizer, has_carry=True)
    step = truncate_train_step(step, config.window)
    data, batch_axes = (fixed, validation), (1, 1, None)
    task = Task(videos, step, make_batch, validate, data, config.batch_size, batch_axes)
    return task, start_networks(network, optimizer, config, (config.batch_size,))


# Measurements


def _measure_one(network: Layer, params: Params, frames: Array) -> Array:
    """The mean error [T - 1] over videos of each frame from the second on."""
    predicted = _predict(network, params, None, frames[:-1])[1]
    return jnp.mean(_error(predicted, frames[1:]), axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _measure(network: Layer, params: Params, frames: Array) -> Array:
    return lax.map(lambda params: _measure_one(network, params, frames), params)


@functools.partial(jax.jit, static_argnums=0)
def _measure_alone(network: Layer, params: Params, frames: Array) -> Array:
    """The mean error [S, T - 20] of the frames that networks predict from their predictions."""

    def one(params: Params) -> Array:
        alone = _continue(network, params, frames[:_ALONE_FROM], len(frames) - _ALONE_FROM)
        return jnp.mean(_error(alone, frames[_ALONE_FROM:]), axis=1)

    return lax.map(one, params)


def _continue(network: Layer, params: Params, frames: Array, num_frames: int) -> Array:
    """The next frames [num_frames, B, PIXELS] as a network predicts them, each fed back to it."""

    def feed(logits: Array, key: Key | None) -> Array:
        del key
        return jax.nn.sigmoid(logits)

    state, predicted = _predict(network, params, None, frames)
    first = predicted[-1]
    rest = generate(network, params, state, first, num_frames - 1, feed=feed)[1][0]
    return jnp.concatenate([first[None], rest])


def _measure_baselines(frames: Array) -> Data:
    """The mean error, over all frames they can predict, of two predictors without a network."""
    last = frames[:-1]
    moved = jnp.clip(2 * frames[1:-1] - frames[:-2], 0.0, 1.0)
    return {
        "last frame": float(jnp.mean(_error(last, frames[1:]))),
        "linear extrapolation": float(jnp.mean(_error(moved, frames[2:]))),
    }


def _film(network: Layer, params: Params, frames: Array) -> Data:
    """One test video: truth, one-step predictions, and the network alone; 8 bits per pixel."""
    video = frames[:, :1]
    predicted = _predict(network, params, None, video[:-1])[1]
    alone = _continue(network, params, video[:_ALONE_FROM], len(video) - _ALONE_FROM)
    parts = {
        "truth": video,
        "one step ahead": jnp.concatenate([video[:1], predicted]),
        "alone": jnp.concatenate([video[:1], predicted[: _ALONE_FROM - 1], alone]),
    }
    return {
        name: np.asarray(jnp.round(255 * part[:, 0])).astype(np.uint8).reshape(-1, SIDE, SIDE)
        for name, part in parts.items()
    }


# The table


def _judge(data: Data) -> list[Finding]:
    baselines = ", ".join(f"{name} {error:.2f}" for name, error in data["baselines"].items())
    findings = []
    for name, target in _TARGETS.items():
        network = data["networks"][name]
        errors, trained = np.mean(network["parts"], axis=1), "validation" in network
        findings.append(
            Finding(
                name,
                f"The next frame is predicted, trained on {name} videos.",
                f"the mean squared error of a test frame is below {target}",
                f"{describe_seeds(errors)}; {baselines}"
                + (f"; on validation {describe_seeds(network['validation'])}" if trained else ""),
                bool(errors.mean() < target),
            )
        )
    return findings

"""Videos of bouncing balls: predict the next frame, and go on alone.

Claim: a deep vanilla network predicts the next frame of a video of three bouncing balls with a
squared error, summed over the 900 pixels, below 1.0 when it is trained on videos drawn afresh and
below 1.5 when trained on 4,000 fixed ones, where showing the last frame again has 11.8 and moving
on linearly 6.8. Refuted by the mean error over frames 2 to 100 of 200 test videos that nothing was
chosen on. The second frame alone, whose motion no model can know, costs 0.13 of that mean.

The videos are those of Sutskever, Hinton & Taylor 2008 (`experiments.data.bouncing_balls`).
Training is by truncated back-propagation: one update a window of frames, the state carried through
the video.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from matplotlib.animation import PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from pydantic import Field

from experiments.data.bouncing_balls import PIXELS, SIDE, draw_tracks, render
from experiments.shared.figures import BLACK, GREY, SERIES, saved_figure, say
from experiments.shared.output import Data, Finding, Result, Tick, within
from experiments.shared.training import (
    Positive,
    PositiveFloat,
    Task,
    TrainConfig,
    Trained,
    describe_seeds,
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
    dense,
    make_truncated_train_step,
    stack,
    vanilla_rnn,
)
from jaxrnn.sharding import make_sharded_truncated_train_step
from jaxrnn.training import TrainStep

_ALONE_FROM = 20  # the frame from which on the network sees its own predictions
_MARKS = {"fresh": 1.0, "fixed": 1.5}


@dataclass(frozen=True)
class Config(TrainConfig):
    """The options of `movies`."""

    hidden_size: Positive = 400
    """Hidden units of each layer."""
    layers: Positive = 2
    """Vanilla layers."""
    videos: Positive = 4000
    """Training videos of the network that sees the same ones again."""
    test_videos: Positive = 200
    """Videos to test on, and as many others to validate on."""
    frames: Annotated[int, Field(ge=22)] = 100
    """Frames of a video."""
    batch_size: Positive = 32
    """Videos of a training step."""
    window: Positive = 11
    """Frames of truncated back-propagation, each window one update."""
    learning_rate: PositiveFloat = 0.002
    """Adam's highest learning rate; it warms up and then falls along a cosine."""
    steps: Positive = 2500
    """Training steps at most, of a batch of videos each; validation may stop a network before."""
    eval_every: Positive = 50
    """Training steps from one validation to the next, in one compiled call."""
    patience: Positive = 20
    """Validations without a new best after which a network has stopped."""


def run(config: Config, progress: Tick) -> Result:
    """Train on fresh and on fixed videos, and test both on the same ones."""
    network = _network(config)
    trained = {
        videos: train(*_make_task(config, network, videos), config, within(progress, *part, videos))
        for videos, part in {"fresh": (0.0, 0.49), "fixed": (0.49, 0.98)}.items()
    }
    progress(0.98, "testing")
    frames = render(_draw(config, "test", config.test_videos))
    best = _choose_best(trained["fresh"])
    data: Data = {
        "networks": {
            name: {
                **record(result),
                "parts": _measure(network, result.params, frames),  # [S, frames - 1]
                "alone": _measure_alone(network, result.params, frames),  # [S, frames - 20]
            }
            for name, result in trained.items()
        },
        "baselines": _measure_baselines(frames),
        "alone_from": _ALONE_FROM,
        "movie": _film(network, best, frames),
    }
    return Result(data, _judge(data))


def _network(config: Config) -> Layer:
    sizes = [PIXELS] + [config.hidden_size] * config.layers
    layers = [vanilla_rnn(before, after) for before, after in itertools.pairwise(sizes)]
    return stack(*layers, dense(config.hidden_size, PIXELS))


def _draw(config: Config, use: str, num_videos: int) -> Array:
    """The tracks of the videos of one use, which share no key with another's."""
    uses = ("train", "fixed", "validation", "test")
    key = jax.random.fold_in(jax.random.key(config.seed), uses.index(use))
    return jax.jit(draw_tracks, static_argnums=(1, 2))(key, config.frames, num_videos)


def _predict(network: Layer, params: Params, state: Any, frames: Array) -> tuple[Any, Array]:
    """The state, and for each frame [T, B, PIXELS] what is expected to come next."""
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
    step = make_truncated_train_step(loss_of_window, optimizer, config.window)

    def shard(mesh: Mesh) -> TrainStep:
        return make_sharded_truncated_train_step(
            loss_of_window, optimizer, mesh, config.window, batch_axes=(1, 1, None)
        )

    task = Task(videos, step, make_batch, validate, (fixed, validation), config.batch_size, shard)
    return task, start_networks(network, optimizer, config, (config.batch_size,))


# Measurements


def _measure_one(network: Layer, params: Params, frames: Array) -> Array:
    """The mean error [T - 1] of each predicted frame, from the second on, over videos."""
    predicted = _predict(network, params, None, frames[:-1])[1]
    return jnp.mean(_error(predicted, frames[1:]), axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _measure(network: Layer, params: Params, frames: Array) -> Array:
    return lax.map(lambda params: _measure_one(network, params, frames), params)


@functools.partial(jax.jit, static_argnums=0)
def _measure_alone(network: Layer, params: Params, frames: Array) -> Array:
    """The mean error [S, T - 20] of frames that networks predict from their own predictions."""

    def one(params: Params) -> Array:
        alone = _continue(network, params, frames[:_ALONE_FROM], len(frames) - _ALONE_FROM)
        return jnp.mean(_error(alone, frames[_ALONE_FROM:]), axis=1)

    return lax.map(one, params)


def _continue(network: Layer, params: Params, frames: Array, num_frames: int) -> Array:
    """The frames [num_frames, B, PIXELS] that a network expects to follow, fed back to it."""
    state, predicted = _predict(network, params, None, frames)

    def feed_back(carry: tuple[Any, Array], _: None) -> tuple[tuple[Any, Array], Array]:
        state, frame = carry
        state, logits = network.step(params, state, frame)
        return (state, jax.nn.sigmoid(logits)), frame

    return lax.scan(feed_back, (state, predicted[-1]), length=num_frames)[1]


def _measure_baselines(frames: Array) -> Data:
    """The mean error of frames 2 and on, of the last frame and of linear extrapolation."""
    last = frames[:-1]
    moved = jnp.clip(2 * frames[1:-1] - frames[:-2], 0.0, 1.0)
    return {
        "last frame": float(jnp.mean(_error(last, frames[1:]))),
        "linear extrapolation": float(jnp.mean(_error(moved, frames[2:]))),
    }


def _film(network: Layer, params: Params, frames: Array) -> Data:
    """One test video: truth, one-step predictions, and the network alone; 8 bits a pixel."""
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


def _choose_best(trained: Trained) -> Params:
    """The network with the best validation."""
    return jax.tree.map(lambda leaf: leaf[np.argmin(trained.validation)], trained.params)


# The table, the figure and the film


def _judge(data: Data) -> list[Finding]:
    baselines = ", ".join(f"{name} {error:.2f}" for name, error in data["baselines"].items())
    findings = []
    for name, mark in _MARKS.items():
        network = data["networks"][name]
        errors = np.mean(network["parts"], axis=1)
        findings.append(
            Finding(
                name,
                f"The next frame is predicted, trained on {name} videos.",
                f"the mean squared error of a test frame is below {mark}",
                f"{describe_seeds(errors)}; {baselines}; on validation "
                f"{describe_seeds(network['validation'])}",
                bool(errors.mean() < mark),
            )
        )
    return findings


def plot(data: Data, folder: Path) -> None:
    """Draw the errors frame by frame, the training, and the film as a GIF."""
    _plot_errors(data, folder / "movies.png")
    _plot_film(data["movie"], data["alone_from"], folder / "movies.gif")


def _plot_errors(data: Data, path: Path) -> None:
    with saved_figure(path, (8.0, 6.5)) as figure:
        top, bottom = figure.subplots(2, 1)
        for (name, network), colour in zip(data["networks"].items(), SERIES, strict=False):
            parts, alone = np.asarray(network["parts"]), np.asarray(network["alone"])
            shown = np.arange(2, 2 + parts.shape[1])
            top.plot(shown, parts.mean(axis=0), color=colour, label=f"{name} videos")
            shown = data["alone_from"] + 1 + np.arange(alone.shape[1])
            top.plot(shown, alone.mean(axis=0), color=colour, ls=":", label=f"{name}, alone")
            curves = network["curves"]
            bottom.plot(curves["steps"], curves["validation"], color=colour, lw=1)
            bottom.plot(curves["steps"], curves["train"], color=colour, lw=1, alpha=0.4)
        for (name, error), colour in zip(data["baselines"].items(), (GREY, BLACK), strict=True):
            top.axhline(error, color=colour, lw=1, ls="--", label=name)
        top.set(xlabel="frame", ylabel="squared error a frame", yscale="log")
        top.legend(ncols=3, loc="upper right", bbox_to_anchor=(1.0, 0.86))  # between the lines
        bottom.set(xlabel="training step", ylabel="validation (training pale)", yscale="log")
        errors = {name: np.mean(network["parts"]) for name, network in data["networks"].items()}
        say(
            figure,
            f"Next frame: error {errors['fresh']:.2f} trained on fresh videos, "
            f"{errors['fixed']:.2f} on fixed ones",
            "squared error summed over 900 pixels, mean over test videos; dotted: the network sees "
            f"only\nits own predictions from frame {data['alone_from']} on",
        )


def _plot_film(movie: Data, alone_from: int, path: Path) -> None:
    """Truth, prediction and the network alone, side by side, ten frames a second."""
    writer = PillowWriter(fps=10)
    figure, images = _begin_film(movie)
    with writer.saving(figure, path, dpi=72):
        for number in range(len(movie["truth"])):
            for (name, frames), image in zip(movie.items(), images, strict=True):
                image.set_data(frames[number])
                seeing = name != "alone" or number < alone_from
                image.axes.set_xlabel("" if seeing else "sees only itself", color=SERIES[1])
            images[0].axes.set_xlabel(f"frame {number + 1}", color=BLACK)
            writer.grab_frame()


def _begin_film(movie: Data) -> tuple[Figure, list[AxesImage]]:
    figure = Figure(figsize=(7.5, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    images = []
    for axes, (name, frames) in zip(figure.subplots(1, len(movie)), movie.items(), strict=True):
        images.append(axes.imshow(frames[0], cmap="gray", vmin=0, vmax=255))
        axes.set(title=name, xticks=[], yticks=[], xlabel=" ")
    return figure, images

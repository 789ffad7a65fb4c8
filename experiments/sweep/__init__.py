"""A sweep in one call: the learning rate against the spectral radius of the initial matrix.

Claims: a grid of networks, each with a learning rate and an initial spectral radius of its own, is
trained by one compiled, vmapped call in less time than the same networks one after another; and
either setting matters: over it the loss differs by more than between seeds. Refuted by the two
times and by the losses.

The task is the adding problem (Hochreiter & Schmidhuber 1997): of T pairs of a number drawn from
[0, 1] and a mark, add the two numbers that are marked, one in each half. To answer 1 always loses
the variance of the sum, 1/6. Every training batch is drawn afresh. The validation sequences choose
the cell of the grid; that cell is tested on others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.colors import LogNorm
from pydantic import Field

from experiments.shared.figures import SERIES, saved_figure, say
from experiments.shared.output import Data, Finding, Result, Tick, within
from experiments.shared.tasks import Batch, draw_adding
from experiments.shared.training import (
    Positive,
    PositiveFloat,
    Task,
    TrainConfig,
    describe_seeds,
    record,
    train,
)
from jaxrnn import (
    Array,
    Key,
    Layer,
    Params,
    TrainState,
    dense,
    fit,
    init_train_state,
    initializers,
    make_train_step,
    stack,
    vanilla_rnn,
)

_VARIANCE = 1 / 6  # of the sum of two numbers from [0, 1]: the loss of answering 1
_TIMED_STEPS = 10


@dataclass(frozen=True)
class Config(TrainConfig):
    """The options of `sweep`."""

    learning_rates: tuple[PositiveFloat, ...] = (1e-4, 3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 32e-3)
    """Adam's learning rates."""
    radii: tuple[PositiveFloat, ...] = (0.1, 0.4, 0.7, 0.9, 1.0, 1.1, 1.3, 1.6)
    """Spectral radii of the initial recurrent matrices."""
    hidden_size: Positive = 16
    """Hidden units."""
    length: Annotated[int, Field(ge=2)] = 30
    """T, the length of the sequences."""
    batch_size: Positive = 8
    """Sequences of a training step."""
    test_sequences: Positive = 1024
    """Sequences to test on, and as many others to validate on."""
    repeats: Positive = 5
    """Timings of each; the median counts."""
    seeds: Positive = 2
    """Networks of each cell of the grid."""
    steps: Positive = 8000
    """Training steps."""
    eval_every: Positive = 200
    """Training steps from one validation to the next, in one compiled call."""
    patience: Positive = 40
    """Validations without a new best after which a network has stopped."""


def run(config: Config, progress: Tick) -> Result:
    """Time the call against a loop, train the grid, and test its best cell."""
    network = _network(config)
    task, start = _make_task(config, network)
    progress(0.0, "one call against a loop")
    seconds = _measure_speed(config, task, start)
    trained = train(task, start, config, within(progress, 0.1, 1.0, ""))
    grid = (config.seeds, len(config.learning_rates), len(config.radii))
    losses = trained.validation.reshape(grid)
    best = np.unravel_index(np.argmin(losses.mean(axis=0)), grid[1:])
    data: Data = {
        "learning_rates": config.learning_rates,
        "radii": config.radii,
        "networks": record(trained),
        "losses": losses,  # [S, learning rates, radii]
        "best": [int(place) for place in best],
        "test": _test(config, network, _take(trained.params, grid, best)),  # [S]
        "seconds": seconds,
    }
    return Result(data, _judge(data))


def _network(config: Config, radius: float | Array = 1.0) -> Layer:
    """The network; the spectral radius is that of its initial recurrent matrix."""
    w_hh_init = initializers.scaled_spectral_radius(radius)
    rnn = vanilla_rnn(2, config.hidden_size, w_hh_init=w_hh_init)
    return stack(rnn, dense(config.hidden_size, 1))


def _loss(network: Layer, params: Params, batch: Batch) -> Array:
    answers = network.unroll(params, None, batch.xs)[1][-1, :, 0]
    return jnp.mean((answers - batch.targets) ** 2)


def _make_task(config: Config, network: Layer) -> tuple[Task, TrainState]:
    """The networks [S * learning rates * radii]; each has its learning rate in its own state."""
    key_grid, key_validation = _split(config)[:2]
    validation = draw_adding(key_validation, config.length, config.test_sequences)

    def loss_of(params: Params, batch: Any, key: Key) -> tuple[Array, dict[str, Array]]:
        del key
        return _loss(network, params, batch), {}

    def make_batch(key: Key, step: Array) -> Any:
        del step
        return draw_adding(key, config.length, config.batch_size)

    def make_optimizer(learning_rate: Any) -> Any:
        return optax.inject_hyperparams(_clipped_adam)(learning_rate=learning_rate)

    def start(key: Key, learning_rate: Array, radius: Array) -> TrainState:
        key_params, key_run = jax.random.split(key)
        params = _network(config, radius).init(key_params)
        return init_train_state(params, make_optimizer(learning_rate), key_run)

    over_radii = jax.vmap(start, in_axes=(None, None, 0))
    over_rates = jax.vmap(over_radii, in_axes=(None, 0, None))
    over_seeds = jax.jit(jax.vmap(over_rates, in_axes=(0, None, None)))
    keys = jax.random.split(key_grid, config.seeds)
    rates, radii = (
        jnp.asarray(values, jnp.float32) for values in (config.learning_rates, config.radii)
    )
    states = over_seeds(keys, rates, radii)
    states = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[3:]), states)
    step = make_train_step(loss_of, make_optimizer(0.0))
    return Task("grid", step, make_batch, lambda params: _loss(network, params, validation), ()), (
        states
    )


def _clipped_adam(learning_rate: Any) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))


def _split(config: Config) -> Key:
    """The keys of the grid, of the validation and of the test sequences."""
    return jax.random.split(jax.random.key(config.seed), 3)


def _take(params: Params, grid: tuple[int, ...], cell: Any) -> Params:
    """The parameters [S, ...] of one cell."""
    return jax.tree.map(
        lambda leaf: leaf.reshape(*grid, *leaf.shape[1:])[:, cell[0], cell[1]], params
    )


def _test(config: Config, network: Layer, params: Params) -> Array:
    """The losses [S] on sequences that nothing was chosen on."""
    batch = draw_adding(_split(config)[2], config.length, config.test_sequences)
    return jax.vmap(lambda params: _loss(network, params, batch))(params)


# One call against a loop


def _measure_speed(config: Config, task: Task, states: TrainState) -> Data:
    """Median seconds of some steps of all networks, in one call and one after another."""

    def some_steps(state: TrainState) -> TrainState:
        return fit(task.train_step, state, task.make_batch, _TIMED_STEPS)[0]

    one, many = jax.jit(some_steps), jax.jit(jax.vmap(some_steps))
    count = states.step.shape[0]
    # Cut outside the clock: the loop is charged for its calls alone.
    cut = [jax.tree.map(lambda leaf, at=at: leaf[at], states) for at in range(count)]

    def loop() -> Any:
        return jax.block_until_ready([one(state) for state in cut])

    def mapped() -> Any:
        return jax.block_until_ready(many(states))

    loop(), mapped()
    times = np.array([(_clock(loop), _clock(mapped)) for _ in range(config.repeats)])
    looped, together = np.median(times, axis=0).tolist()
    return {"networks": count, "steps": _TIMED_STEPS, "loop": looped, "vmap": together}


def _clock(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# The table and the figure


def _judge(data: Data) -> list[Finding]:
    seconds, losses = data["seconds"], np.asarray(data["losses"])
    speedup = seconds["loop"] / seconds["vmap"]
    row, column = data["best"]
    findings = [
        Finding(
            "speed",
            f"One call trains {seconds['networks']} networks faster than a loop does.",
            "its median time is lower",
            f"{speedup:.1f} times as fast: a step of all takes "
            f"{1e3 * seconds['vmap'] / seconds['steps']:.1f} ms, one after another "
            f"{1e3 * seconds['loop'] / seconds['steps']:.1f}",
            speedup > 1,
        ),
        Finding(
            "best",
            "The best cell solves the adding problem.",
            f"its test loss is below a tenth of {_VARIANCE:.3f}, what answering 1 always loses",
            f"{describe_seeds(data['test'], 4)}, with a learning rate of "
            f"{data['learning_rates'][row]:g} and a radius of {data['radii'][column]:g}",
            bool(np.mean(data["test"]) < _VARIANCE / 10),
        ),
    ]
    if len(losses) < 2:
        return findings
    rates, radii, seeds = _measure_spread(losses)
    for name, spread in (("learning rate", rates), ("initial spectral radius", radii)):
        findings.append(
            Finding(
                name,
                f"The {name} matters.",
                "log10 of the loss varies more over it than over seeds",
                f"standard deviation {spread:.2f}, over seeds {seeds:.2f}",
                spread > seeds,
            )
        )
    return findings


def _measure_spread(losses: np.ndarray) -> tuple[float, float, float]:
    """Standard deviations of log10 of the loss [S, rates, radii], over each of its axes but the
    first of the means over the others; and over seeds inside a cell."""
    logs = np.log10(losses)
    cells = logs.mean(axis=0)
    over_rates, over_radii = (float(cells.mean(axis=axis).std()) for axis in (1, 0))
    return over_rates, over_radii, float(np.sqrt(logs.var(axis=0, ddof=1).mean()))


def plot(data: Data, folder: Path) -> None:
    """Draw the heat map of the losses, and the loss of each network as it was trained."""
    losses = np.asarray(data["losses"]).mean(axis=0)
    with saved_figure(folder / "sweep.png", (8.0, 4.8)) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        image = left.imshow(losses, norm=LogNorm(), cmap="viridis_r", origin="lower", aspect="auto")
        left.set_xticks(range(len(data["radii"])), [f"{radius:g}" for radius in data["radii"]])
        left.set_yticks(
            range(len(data["learning_rates"])), [f"{rate:g}" for rate in data["learning_rates"]]
        )
        left.set(xlabel="initial spectral radius", ylabel="learning rate")
        left.grid(visible=False)
        row, column = data["best"]
        left.plot(column, row, marker="*", ms=14, color=SERIES[1], ls="")
        figure.colorbar(image, ax=left, label="best validation loss, mean over seeds")
        curves = data["networks"]["curves"]
        right.plot(curves["steps"], curves["validation"], color=SERIES[0], lw=0.5, alpha=0.4)
        right.axhline(_VARIANCE, color=SERIES[1], ls="--", lw=1, label="answering 1")
        right.set(xlabel="training step", ylabel="validation loss", yscale="log")
        right.legend()
        seconds = data["seconds"]
        say(
            figure,
            f"{seconds['networks']} networks in one call, "
            f"{seconds['loop'] / seconds['vmap']:.1f} times as fast as one after another",
            "the adding problem; the star is the cell that validation chose",
        )

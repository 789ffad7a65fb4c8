"""A sweep in one call: the learning rate against the spectral radius of the initial matrix.

Claims: a grid of networks, each with its own learning rate and initial spectral radius, trains in
less time in one compiled, vmapped call than one network after another; and both settings matter:
the loss varies more over either of them than over seeds. Refuted by the two times and by the
losses.

The task is the adding problem (Hochreiter & Schmidhuber 1997): given T pairs of a number from
[0, 1) and a marker, add the two marked numbers, one in each half. Always answering 1 has a squared
error of 1/6, the variance of the sum. Every training batch is drawn afresh. Validation sequences
choose the cell of the grid, which is then tested on other sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pydantic import Field

from experiments.shared.findings import Data, Finding, Result, describe_seeds
from experiments.shared.model_files import load_networks, read_inputs, save_networks
from experiments.shared.options import Positive, PositiveFloat, TrainConfig
from experiments.shared.output import Tick, within
from experiments.shared.tasks import Batch, draw_adding
from experiments.shared.timing import time_in_turn
from experiments.shared.training import Task, record, train
from jaxrnn import (
    Array,
    Key,
    Layer,
    Params,
    TrainState,
    deep_rnn,
    init_train_state,
    initializers,
    make_train_step,
    train_steps,
)

VARIANCE = 1 / 6  # of the sum of two numbers from [0, 1): the loss of always answering 1
_TIMED_STEPS = 10


@dataclass(frozen=True)
class Config(TrainConfig):
    """The options of `sweep`."""

    with_source: ClassVar[frozenset[str]] = frozenset(("test_sequences",))

    learning_rates: tuple[PositiveFloat, ...] = (1e-4, 3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 32e-3)
    """Adam's learning rates."""
    radii: tuple[PositiveFloat, ...] = (0.1, 0.4, 0.7, 0.9, 1.0, 1.1, 1.3, 1.6)
    """Spectral radii of the initial recurrent matrices."""
    hidden_size: Positive = 16
    """Hidden units."""
    length: Annotated[int, Field(ge=2)] = 30
    """T, the length of the sequences."""
    batch_size: Positive = 8
    """Sequences per training step."""
    test_sequences: Positive = 1024
    """Test sequences; there are as many validation sequences."""
    repeats: Positive = 5
    """Timings of the call and of the loop; the medians are compared."""
    seeds: Positive = 2
    """Networks per cell of the grid."""
    steps: Positive = 8000
    """Training steps."""
    eval_every: Positive = 200
    """Training steps from one validation to the next, all in one compiled call."""
    patience: Positive = 40
    """Validations without a new best after which a network stops."""


@dataclass(frozen=True)
class AddingInputs:
    """What the networks read: numbers beside a 1 at the two to add, over `length` steps."""

    length: int


def run(config: Config, progress: Tick) -> Result:
    """Time the call against a loop, train the grid, and test its best cell."""
    network = _network(config)
    if config.source is not None:
        length = read_inputs(config.source, AddingInputs).length
        params = load_networks(config.source, "network", network)
        test = _test(config, network, params)
        said = f"loss on fresh sequences of {length} steps: {describe_seeds(test, 4)}"
        return Result({"test": test}, [], said)
    task, start = _make_task(config, network)
    progress(0.0, "one call against a loop")
    seconds = _measure_speed(config, task, start)
    trained = train(task, start, config, within(progress, 0.1, 1.0, ""))
    grid = (config.seeds, len(config.learning_rates), len(config.radii))
    losses = trained.validation.reshape(grid)
    best = np.unravel_index(np.argmin(losses.mean(axis=0)), grid[1:])
    chosen = _select_cell(trained.params, grid, best)
    kept = {"network": (network, chosen, losses[:, best[0], best[1]])}
    save_networks(config, "sweep", AddingInputs(config.length), kept)
    data: Data = {
        "learning_rates": config.learning_rates,
        "radii": config.radii,
        "networks": record(trained),
        "losses": losses,  # [S, learning rates, radii]
        "best": [int(place) for place in best],
        "test": _test(config, network, chosen),  # [S]
        "seconds": seconds,
    }
    return Result(data, _judge(data))


def _network(config: Config, radius: float | Array = 1.0) -> Layer:
    """The network; the spectral radius is that of its initial recurrent matrix."""
    recurrent = initializers.scaled_spectral_radius(radius)
    return deep_rnn((2, config.hidden_size, 1), w_hh_init=recurrent)


def _loss(network: Layer, params: Params, batch: Batch) -> Array:
    answers = network.unroll(params, None, batch.xs)[1][-1, :, 0]
    return jnp.mean((answers - batch.targets) ** 2)


def _make_task(config: Config, network: Layer) -> tuple[Task, TrainState]:
    """The networks [S * learning rates * radii], each with its learning rate in its state."""
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
    task = Task("grid", step, make_batch, lambda params: _loss(network, params, validation), ())
    return task, states


def _clipped_adam(learning_rate: Any) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))


def _split(config: Config) -> Key:
    """The keys of the grid, of the validation sequences and of the test sequences."""
    return jax.random.split(jax.random.key(config.seed), 3)


def _select_cell(params: Params, grid: tuple[int, ...], cell: Any) -> Params:
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
    """Median seconds of a few steps of all networks, in one call and one after another."""

    def some_steps(state: TrainState) -> TrainState:
        return train_steps(task.train_step, state, task.make_batch, _TIMED_STEPS)[0]

    one, many = jax.jit(some_steps), jax.jit(jax.vmap(some_steps))
    count = states.step.shape[0]
    # Cut beforehand, so that the loop is timed for its calls alone.
    cut = [jax.tree.map(lambda leaf, at=at: leaf[at], states) for at in range(count)]

    looped, together = time_in_turn(
        lambda: [one(state) for state in cut], lambda: many(states), repeats=config.repeats
    )
    return {"networks": count, "steps": _TIMED_STEPS, "loop": looped, "vmap": together}


# The table


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
            f"its test loss is below a tenth of {VARIANCE:.3f}, the loss of always answering 1",
            f"{describe_seeds(data['test'], 4)}, with a learning rate of "
            f"{data['learning_rates'][row]:g} and a radius of {data['radii'][column]:g}",
            bool(np.mean(data["test"]) < VARIANCE / 10),
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
    """Standard deviations of log10 of the loss [S, rates, radii]: over learning rates, of the means
    over the rest; over radii, likewise; and over the seeds of a cell."""
    logs = np.log10(losses)
    cells = logs.mean(axis=0)
    over_rates, over_radii = (float(cells.mean(axis=axis).std()) for axis in (1, 0))
    return over_rates, over_radii, float(np.sqrt(logs.var(axis=0, ddof=1).mean()))

"""Leaky networks with noise and with signs learn what animals are taught.

Claims: one vanilla network with a leak and noise learns ten tasks of cognitive neuroscience, told
which by a rule input; its choices follow the evidence; its units fall into groups that serve the
same tasks; and its fixed points say how it decides. Networks of excitatory and inhibitory units
learn single tasks, and keep their signs exactly. Refuted by fewer than 95 % right where an ideal
observer is nearly always right, by psychometric curves that fall, by task variances that cluster no
better than shuffled ones, by a state that comes to rest at no fixed point, or by one weight of the
wrong sign.

Source: Yang, Joglekar, Song, Newsome & Wang 2019, "Task representations in neural networks trained
to perform many cognitive tasks"; Song, Yang & Wang 2016, "Training excitatory-inhibitory recurrent
neural networks for cognitive tasks". Tasks are in `experiments.cognition.trials`; time steps are
20 ms, and a leak of 0.2 is a time constant of 100 ms. The small networks are also trained without
Dale's law, without noise, and without a leak, to see what each costs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from experiments.cognition.analysis import cluster_units, find_points, measure_variances
from experiments.cognition.cells import (
    CognitiveCell,
    draw_all,
    first_reached,
    loss_of_trials,
    make_cell,
    make_optimizer,
    measure_accuracy,
    measure_choices,
    signs_of,
    validate,
)
from experiments.cognition.findings import judge
from experiments.cognition.trials import COHERENCES, INPUTS, OUTPUTS, TASKS, Trials
from experiments.shared.findings import Data, Result
from experiments.shared.model_files import load_networks, read_inputs, save_networks
from experiments.shared.options import (
    NotNegative,
    Positive,
    PositiveFloat,
    TrainConfig,
)
from experiments.shared.output import Tick, within
from experiments.shared.training import Task, Trained, choose_best, start_networks, train
from jaxrnn import Array, Key, Params, TrainState, make_train_step

_SMALL_TASKS = ("go", "decision", "context 1", "comparison", "match to sample")
_CURVES = ("decision", "context 1", "context 2", "integration", "comparison")
_ALL = tuple(TASKS)
_DRAWN = (*_ALL, "interval", "interval")  # the hardest; Yang et al. draw two tasks more often too
_BATCH_AXES: Any = Trials._make([1, 0, 0, 0, 0])


@dataclass(frozen=True)
class Config(TrainConfig):
    """The options of `cognition`."""

    with_source: ClassVar[frozenset[str]] = frozenset(("trials",))

    hidden_size: Positive = 256
    """Units of the network that learns all tasks."""
    small_size: Positive = 100
    """Units of each network that learns a single task."""
    small_seeds: Positive = 5
    """Small networks of each kind and task, trained in one vmapped call."""
    leak: Annotated[PositiveFloat, Field(le=1)] = 0.2
    """The leak: 20 ms over the time constant."""
    noise: NotNegative = 0.05
    """Standard deviation of the noise inside the rectification, as `jaxrnn.step` has it."""
    learning_rate: PositiveFloat = 0.002
    """Adam's peak learning rate; it warms up and then falls along a cosine."""
    batch_size: Positive = 8
    """Trials of each task in a training step of the large network; of the interval task thrice."""
    small_batch: Positive = 48
    """Trials in a training step of a small network."""
    steps: Positive = 4000
    """Maximum number of training steps of the large network; validation may stop it earlier."""
    small_steps: Positive = 1500
    """Maximum number of training steps of the small networks."""
    eval_every: Positive = 100
    """Training steps between validations, in one compiled call."""
    patience: Positive = 30
    """Validations without a new best after which a network stops."""
    trials: Positive = 1000
    """Trials of each task, and of each coherence, that are tested."""
    quick: bool = False
    """Fewer steps and seeds, and two small tasks."""


@dataclass(frozen=True)
class TrialInputs:
    """What the networks read and put out, by the number of units, and the tasks in the order of
    their rules."""

    inputs: int
    outputs: int
    rules: list[str]


def run(config: Config, progress: Tick) -> Result:
    """Train the networks of each kind, test them, and look into one."""
    large = make_cell(config.hidden_size, leak=config.leak, noise=config.noise, signed=False)
    if config.source is not None:
        described = read_inputs(config.source, TrialInputs)
        params = load_networks(config.source, "large", large.network)
        tasks = tuple(described.rules)
        data = _look(config, large, params, within(progress, 0.0, 1.0, "testing"))
        return Result({"tasks": tasks, "small": {}, **data}, judge({"small": {}, **data}))
    if config.quick:
        config = dataclasses.replace(
            config, steps=min(config.steps, 600), small_steps=300, small_seeds=2, trials=200
        )
    part = within(progress, 0.0, 0.4, "one network, all tasks")
    start = _start(config, large, "large", config.seeds)
    trained = _train(config, large, "large", _DRAWN, config.batch_size, start, part)
    small = _train_small(config, within(progress, 0.4, 0.9, ""))
    kept = {"large": (large.network, trained.params, trained.validation), **small.pop("networks")}
    save_networks(config, "cognition", TrialInputs(INPUTS, OUTPUTS, list(_ALL)), kept)
    data = _look(config, large, trained.params, within(progress, 0.9, 1.0, "testing"))
    data |= {"tasks": list(_ALL), "small": small, "curves": trained.curves}
    return Result(data, judge(data))


def _train(
    config: Config,
    cell: CognitiveCell,
    name: str,
    tasks: tuple[str, ...],
    batch_size: int,
    start: TrainState,
    tick: Tick,
) -> Trained:
    """Networks [S, ...] that learn the tasks, from the state `start`."""
    network = cell.network
    steps = _count_steps(config, name)

    def make_batch(key: Key, step: Array) -> Trials:
        del step
        return draw_all(tasks, key, batch_size)

    def loss_fn(params: Params, trials: Trials, key: Key) -> tuple[Array, dict[str, Array]]:
        return loss_of_trials(network, params, trials, key), {}

    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    optimizer = make_optimizer(config.learning_rate, steps)
    task = Task(
        name,
        make_train_step(loss_fn, optimizer),
        make_batch,
        lambda params: validate(network, tasks, key, params),
        [len(tasks), batch_size],
        batch_size * len(tasks),
        _BATCH_AXES,
    )
    return train(task, start, config, tick, steps=steps)


def _start(config: Config, cell: CognitiveCell, name: str, seeds: int) -> TrainState:
    optimizer = make_optimizer(config.learning_rate, _count_steps(config, name))
    return start_networks(cell.network, optimizer, dataclasses.replace(config, seeds=seeds))


def _count_steps(config: Config, name: str) -> int:
    return config.steps if name == "large" else config.small_steps


def _train_small(config: Config, progress: Tick) -> Data:
    """The small networks of each kind, each for one task."""
    kinds = {
        "Dale": make_cell(config.small_size, leak=config.leak, noise=config.noise, signed=True),
        "no Dale": make_cell(config.small_size, leak=config.leak, noise=config.noise, signed=False),
        "no noise": make_cell(config.small_size, leak=config.leak, noise=None, signed=True),
        "no leak": make_cell(config.small_size, leak=None, noise=config.noise, signed=True),
    }
    tasks = _SMALL_TASKS[1:3] if config.quick else _SMALL_TASKS
    variants: Data = {name: {} for name in kinds}
    kept: dict[str, Any] = {}
    wrong = weights = 0
    connectivity: Data = {}
    done = 0
    for name, cell in kinds.items():
        start = _start(config, cell, name, config.small_seeds)
        for task in tasks:
            label = f"{name} {task}".replace(" ", "-")
            part = within(
                progress,
                done / (len(kinds) * len(tasks)),
                (done + 1) / (len(kinds) * len(tasks)),
                f"{name}, {task}",
            )
            trained = _train(config, cell, label, (task,), config.small_batch, start, part)
            done += 1
            variants[name][task] = _test(config, cell, trained, task)
            kept[label] = (cell.network, trained.params, trained.validation)
            if cell.constraint is not None:
                w = np.asarray(jax.vmap(cell.params)(trained.params)[0].w_hh)
                wrong += int(np.sum(w * signs_of(config.small_size) < 0))
                weights += w.size
                connectivity = connectivity or _show_weights(config, cell, trained, task)
    return {
        "variants": variants,
        "wrong_signs": wrong,
        "weights": weights,
        "connectivity": connectivity,
        "networks": kept,
    }


def _show_weights(config: Config, cell: CognitiveCell, trained: Trained, task: str) -> Data:
    first = cell.params(cell.network.init(jax.random.key(config.seed)))
    last = cell.params(choose_best(trained))
    return {"task": task, "before": first[0].w_hh, "after": last[0].w_hh}


def _test(config: Config, cell: CognitiveCell, trained: Trained, task: str) -> Data:
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    right, clear, _ = measure_accuracy(cell.network, (task,), trained.params, config.trials, key)
    reached = first_reached(trained.curves, 0.9)
    return {"right": right[:, 0], "clear": clear[:, 0], "reached": reached}


def _look(config: Config, cell: CognitiveCell, params: Params, progress: Tick) -> Data:
    """Tests of networks [S, ...] that learned all tasks, and a look into the first."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    measured = measure_accuracy(cell.network, _ALL, params, config.trials, key)
    shares = [dict(zip(_ALL, np.asarray(values).T, strict=True)) for values in measured]
    progress(0.3, "psychometric curves")
    levels = jnp.asarray([-c for c in COHERENCES[::-1]] + list(COHERENCES))
    curves = {
        task: measure_choices(cell.network, task, params, config.trials, levels, key)
        for task in _CURVES
    }
    one = jax.tree.map(lambda leaf: leaf[0], params)
    plain = make_cell(config.hidden_size, leak=config.leak, noise=None, signed=False).rnn
    progress(0.6, "task variance")
    variances = np.asarray(measure_variances(plain, _ALL, one[0]))
    progress(0.7, "fixed points")
    return {
        "large": dict(zip(("right", "clear", "ideal"), shares, strict=True)),
        "psychometric": {"levels": levels, "shares": curves, "trials": config.trials},
        "clusters": cluster_units(variances, config.seed),
        "points": find_points(plain, one[0], "decision"),
    }

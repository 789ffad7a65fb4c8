"""Train networks side by side, stop each by its validation, save, and go on where a run was cut."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from pydantic import Field

from experiments.shared.networks import init_networks
from experiments.shared.output import CHECKPOINTS, Data, InputError, RunConfig, Tick, write_config
from jaxrnn import Array, Key, Layer, Params, TrainState, fit, init_train_state
from jaxrnn.sharding import data_mesh, replicate
from jaxrnn.training import MakeBatch, TrainStep

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveFraction = Annotated[float, Field(gt=0, lt=0.5)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclasses.dataclass(frozen=True)
class TrainConfig(RunConfig):
    """The options of every experiment that trains."""

    resume: Path | None = None
    """Folder of a run that was cut: go on from its last save, with the options it had."""
    seeds: Positive = 1
    """Networks to train side by side in one vmapped call; tables give their mean and spread."""
    steps: Positive = 1000
    """Training steps at most; validation may stop a network before."""
    eval_every: Positive = 50
    """Training steps from one validation to the next, all in one compiled call."""
    patience: Positive = 10
    """Validations without a new best after which a network has stopped."""
    devices: Positive | None = None
    """Devices to train on (a CPU's are its cores), each with some of the networks: by default as
    many as divide these evenly. Where a number is given that divides no networks, the batches are
    split instead. Results differ in rounding."""
    save_seconds: NotNegative = 30.0
    """Save at the first validation that is this many seconds after the last save; 0: at each."""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is trained: pure functions of one network; `train` maps them over many.

    name: of its checkpoints. validate: parameters to a scalar, the lower the better. inputs: arrays
    that all of it follows from besides the options; a run is resumed with the same ones only.
    batch_size, shard_step: where a batch can be split, its size, and the step over devices.
    """

    name: str
    train_step: TrainStep
    make_batch: MakeBatch
    validate: Callable[[Params], Array]
    inputs: Any
    batch_size: int = 1
    shard_step: Callable[[Mesh], TrainStep] | None = None


class _Placed(NamedTuple):
    """A task on devices: all of them whole, or each with its part of the networks."""

    task: Task
    mesh: Mesh
    networks_split: bool


class Trained(NamedTuple):
    """The networks [S, ...] as they were at their best validation, and how that went.

    steps, validation: [S], of the best. curves: steps [E], train [E, S], validation [E, S]; NaN
    after a network had stopped.
    """

    params: Params
    steps: np.ndarray
    validation: np.ndarray
    curves: Data


class _Run(NamedTuple):
    """All that the rest of a run depends on; what is saved."""

    state: TrainState  # [S, ...]
    best: Params  # [S, ...]
    best_validation: Any  # [S]
    best_evaluation: Any  # [S] int, the evaluation of the best, from 1
    train: Any  # [E, S], the mean loss before each evaluation
    validation: Any  # [E, S]
    evaluations: Any  # () int
    inputs: Any  # [32] uint8, the digest of the task's inputs


def start_networks(
    network: Layer,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    batch_shape: tuple[int, ...] | None = None,
) -> TrainState:
    """The states [S, ...] before training; with a `batch_shape` they carry the recurrent states of
    so many streams."""
    keys = jax.random.split(jax.random.key(config.seed), (2, config.seeds))

    def start(params: Params, key: Key) -> TrainState:
        carry = None if batch_shape is None else network.initial_state(params, batch_shape)
        return init_train_state(params, optimizer, key, carry=carry)

    return jax.vmap(start)(init_networks(network, keys[0]), keys[1])


def warm_up_and_cool_down(learning_rate: float, updates: int) -> optax.Schedule:
    """A rate that rises for 100 updates and falls along a cosine to a hundredth."""
    return optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(100, updates // 4), updates, learning_rate / 100
    )


def train(
    task: Task, start: TrainState, config: TrainConfig, tick: Tick, *, steps: int | None = None
) -> Trained:
    """Train the networks [S, ...] of `start` until each has stopped, after `steps` at most, which
    are by default those of `config`.

    Saves into `config.folder` where there is one, and goes on from what `config.resume` holds.
    Whether and when a run is cut does not change a bit of what it returns.
    """
    folder = config.resume or config.folder
    if folder is not None:
        write_config(folder, config)
    config = dataclasses.replace(config, steps=steps or config.steps)
    placed = _place(task, len(start.step), config.devices)
    run = _begin(task, replicate(start, placed.mesh), config)
    if folder is None:
        return _finish(_advance_to_the_end(placed, run, config, tick, _keep_nothing), config)
    with _open_checkpoints(folder / CHECKPOINTS / task.name) as manager:
        if manager.latest_step() is not None:
            run = _restore(manager, run, folder)
        last = time.monotonic()

        def save(run: _Run, ended: bool) -> None:
            nonlocal last
            if ended or time.monotonic() - last >= config.save_seconds:
                saved = run._replace(state=_gather(run.state), best=_gather(run.best))
                manager.save(int(run.evaluations), args=ocp.args.StandardSave(saved))
                last = time.monotonic()

        return _finish(_advance_to_the_end(placed, run, config, tick, save), config)


def _place(task: Task, networks: int, devices: int | None) -> _Placed:
    """The task on as many devices as divide its networks evenly, or else, if asked, its batch."""
    there = jax.devices()
    if devices is not None and devices > len(there):
        raise InputError(f"--devices is {devices}, but there are {len(there)}")
    most = devices or len(there)
    over_networks = largest_divisor(networks, most)
    if over_networks > 1 or devices is None or task.shard_step is None:
        return _Placed(task, data_mesh(there[:over_networks]), networks_split=True)
    mesh = data_mesh(there[: largest_divisor(task.batch_size, most)])
    if mesh.size > 1:
        task = dataclasses.replace(task, train_step=task.shard_step(mesh))
    return _Placed(task, mesh, networks_split=False)


def _gather(tree: Any) -> Any:
    """On one device, so that what is saved can be read where there are fewer."""
    return jax.device_put(tree, jax.devices()[0])


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is `most` at most."""
    return max(divisor for divisor in range(1, most + 1) if number % divisor == 0)


def _advance_to_the_end(
    placed: _Placed, run: _Run, config: TrainConfig, tick: Tick, save: Callable[[_Run, bool], None]
) -> _Run:
    last = math.ceil(config.steps / config.eval_every)
    while int(run.evaluations) < last and np.any(_running(run, config)):
        size = min(config.eval_every, config.steps - int(run.evaluations) * config.eval_every)
        state, losses, validation = _train_and_validate(placed, size, run.state)
        run = _record(run._replace(state=state), np.asarray(losses), np.asarray(validation), config)
        ended = int(run.evaluations) == last or not np.any(_running(run, config))
        save(run, ended)
        tick(int(run.evaluations) / last, _describe(run, config))
    if not np.isfinite(run.best_validation).any():
        raise InputError("no validation of any network was finite; try a lower learning rate")
    return run


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train_and_validate(
    placed: _Placed, num_steps: int, state: TrainState
) -> tuple[TrainState, Array, Array]:
    task, mesh, networks_split = placed

    def one(state: TrainState) -> tuple[TrainState, Array, Array]:
        state, history = fit(task.train_step, state, task.make_batch, num_steps)
        return state, jnp.mean(history["loss"]), task.validate(state.params)

    many = jax.vmap(one)
    if networks_split:
        part = PartitionSpec(mesh.axis_names)
        many = jax.shard_map(many, mesh=mesh, in_specs=part, out_specs=part, check_vma=False)
    # As it came, whole on every device: then the next call is the same program.
    return jax.lax.with_sharding_constraint(many(state), NamedSharding(mesh, PartitionSpec()))


def _record(run: _Run, losses: np.ndarray, validation: np.ndarray, config: TrainConfig) -> _Run:
    """The run with one more evaluation; a network that has stopped changes no more."""
    running = _running(run, config)
    better = running & (validation < run.best_validation)
    row = int(run.evaluations)
    curves = [np.array(run.train), np.array(run.validation)]
    for curve, values in zip(curves, (losses, validation), strict=True):
        curve[row] = np.where(running, values, np.nan)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return run._replace(
        best=jax.tree.map(choose, run.state.params, run.best),
        best_validation=np.where(better, validation, run.best_validation),
        best_evaluation=np.where(better, row + 1, run.best_evaluation),
        train=curves[0],
        validation=curves[1],
        evaluations=np.asarray(row + 1),
    )


def _running(run: _Run, config: TrainConfig) -> np.ndarray:
    return np.asarray(run.evaluations - run.best_evaluation < config.patience)


def _begin(task: Task, start: TrainState, config: TrainConfig) -> _Run:
    seeds, rows = start.step.shape[0], math.ceil(config.steps / config.eval_every)
    return _Run(
        start,
        start.params,
        np.full(seeds, np.inf),
        np.zeros(seeds, np.int64),
        np.full((rows, seeds), np.nan),
        np.full((rows, seeds), np.nan),
        np.asarray(0),
        _digest(task.inputs),
    )


def _finish(run: _Run, config: TrainConfig) -> Trained:
    done = int(run.evaluations)
    steps = np.minimum(np.arange(1, done + 1) * config.eval_every, config.steps)
    curves = {"steps": steps, "train": run.train[:done], "validation": run.validation[:done]}
    best_steps = np.minimum(run.best_evaluation * config.eval_every, config.steps)
    return Trained(_gather(run.best), best_steps, np.asarray(run.best_validation), curves)


def _describe(run: _Run, config: TrainConfig) -> str:
    """What the progress bar says: means over the networks that still run."""
    row = int(run.evaluations) - 1
    step = min((row + 1) * config.eval_every, config.steps)
    loss, validation = (
        values[row][np.isfinite(values[row])].mean() if np.isfinite(values[row]).any() else np.nan
        for values in (run.train, run.validation)
    )
    return f"step {step} of {config.steps}, loss {loss:.4g}, validation {validation:.4g}"


def _keep_nothing(run: _Run, ended: bool) -> None:
    del run, ended


# Folders


def _open_checkpoints(path: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(path.resolve(), options=options)


def _restore(manager: ocp.CheckpointManager, run: _Run, folder: Path) -> _Run:
    """The run as it was saved last."""
    try:
        restored = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(run))
    except Exception as error:  # orbax and tensorstore document no classes
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder / CHECKPOINTS} cannot be read: {reason}") from error
    if not np.array_equal(restored.inputs, run.inputs):
        raise InputError(f"{folder} was trained on other data than those that it now reads")
    return restored


def _digest(inputs: Any) -> np.ndarray:
    """SHA-256 [32] of the arrays of a pytree and of its structure."""
    leaves, structure = jax.tree.flatten(inputs)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


# What tables and files say of it


def describe_seeds(values: Any, digits: int = 3) -> str:
    """Mean and spread over seeds: 1.234 ± 0.005 (5 seeds), or the value of one."""
    values = np.asarray(values)
    if values.size == 1:
        return f"{values.mean():.{digits}f}"
    spread = values.std(ddof=1)
    return f"{values.mean():.{digits}f} ± {spread:.{digits}f} ({values.size} seeds)"


def record(trained: Trained) -> Mapping[str, Any]:
    """What the data of an experiment keep of a training."""
    return {"steps": trained.steps, "validation": trained.validation, "curves": trained.curves}

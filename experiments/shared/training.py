"""Train networks side by side, stop each by its validation, save, and resume interrupted runs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from experiments.shared.devices import Placement, place_networks
from experiments.shared.findings import Data
from experiments.shared.options import InputError, TrainConfig, write_config
from experiments.shared.output import CHECKPOINTS, Tick
from jaxrnn import Array, Key, Params, TrainState, init_train_state, train_steps
from jaxrnn.sharding import replicate, shard_train_step
from jaxrnn.training import MakeBatch, TrainStep


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is trained: pure functions of one network; `train` maps them over many.

    name: the folder of its checkpoints. validate: parameters to a scalar, lower is better. inputs:
    the arrays that, with the options, determine it; a run resumes only with the same ones.
    batch_size, batch_axes, weight_fn: the sequences of a batch that can be split over devices, and
    how (see `shard_train_step`).
    """

    name: str
    train_step: TrainStep
    make_batch: MakeBatch
    validate: Callable[[Params], Array]
    inputs: Any
    batch_size: int = 1
    batch_axes: Any = 1
    weight_fn: Callable[[Any], Array] | None = None


class Trained(NamedTuple):
    """The networks [S, ...] at their best validation, and the curves of the training.

    steps, validation: [S], at the best. curves: steps [E], train [E, S], validation [E, S]; NaN
    once a network has stopped.
    """

    params: Params
    steps: np.ndarray
    validation: np.ndarray
    curves: Data


class _Run(NamedTuple):
    """Everything that the rest of a run depends on, and that a checkpoint holds."""

    state: TrainState  # [S, ...]
    best: Params  # [S, ...]
    best_validation: Any  # [S]
    best_evaluation: Any  # [S] int, the evaluation of the best, from 1
    train: Any  # [E, S], the mean loss before each evaluation
    validation: Any  # [E, S]
    evaluations: Any  # () int
    inputs: Any  # [32] uint8, the digest of the task's inputs


def start_networks(
    network: Any,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    batch_shape: tuple[int, ...] | None = None,
) -> TrainState:
    """The states [S, ...] before training of a `Layer`, or of anything with an `init`; with a
    `batch_shape` they carry the layer's states of that batch shape."""
    keys = jax.random.split(jax.random.key(config.seed), (2, config.seeds))

    def start(key_params: Key, key_run: Key) -> TrainState:
        params = network.init(key_params)
        carry = None if batch_shape is None else network.initial_state(params, batch_shape)
        return init_train_state(params, optimizer, key_run, carry=carry)

    return jax.jit(jax.vmap(start))(*keys)


def warm_up_and_cool_down(learning_rate: float, updates: int) -> optax.Schedule:
    """A rate that rises for 100 updates, then falls along a cosine to a hundredth of its peak."""
    return optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(100, updates // 4), updates, learning_rate / 100
    )


def train(
    task: Task, start: TrainState, config: TrainConfig, tick: Tick, *, steps: int | None = None
) -> Trained:
    """Train the networks [S, ...] of `start` until each has stopped, for at most `steps` steps (by
    default `config.steps`).

    Saves into `config.folder`, if there is one, and continues from the checkpoints in
    `config.resume`. Interrupting and resuming a run does not change a bit of its result.
    """
    folder = config.resume or config.folder
    if folder is not None:
        write_config(folder, config)
    config = dataclasses.replace(config, steps=steps or config.steps)
    placement = place_networks(len(start.step), task.batch_size, config.devices)
    mesh = placement.mesh
    if not placement.networks_split and mesh.size > 1:
        step = shard_train_step(
            task.train_step, mesh, batch_axes=task.batch_axes, weight_fn=task.weight_fn
        )
        task = dataclasses.replace(task, train_step=step)
    run = _begin(task, replicate(start, mesh), config)
    advance = functools.partial(_train_to_the_end, task, placement, config=config, tick=tick)
    if folder is None:
        return _finish(advance(run, save=_save_nothing), config)
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

        return _finish(advance(run, save=save), config)


def _gather(tree: Any) -> Any:
    """On one device, so that a checkpoint can be read on a machine with fewer devices."""
    return jax.device_put(tree, jax.devices()[0])


def _train_to_the_end(
    task: Task,
    placement: Placement,
    run: _Run,
    config: TrainConfig,
    tick: Tick,
    save: Callable[[_Run, bool], None],
) -> _Run:
    last = math.ceil(config.steps / config.eval_every)
    while int(run.evaluations) < last and np.any(_running(run, config)):
        size = min(config.eval_every, config.steps - int(run.evaluations) * config.eval_every)
        state, losses, validation = _train_and_validate(task, placement, size, run.state)
        run = _record(run._replace(state=state), np.asarray(losses), np.asarray(validation), config)
        ended = int(run.evaluations) == last or not np.any(_running(run, config))
        save(run, ended)
        tick(int(run.evaluations) / last, _describe(run, config))
    if not np.isfinite(run.best_validation).any():
        raise InputError("no validation of any network was finite; try a lower learning rate")
    return run


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _train_and_validate(
    task: Task, placement: Placement, num_steps: int, state: TrainState
) -> tuple[TrainState, Array, Array]:
    mesh, networks_split = placement

    def one(state: TrainState) -> tuple[TrainState, Array, Array]:
        state, history = train_steps(task.train_step, state, task.make_batch, num_steps)
        return state, jnp.mean(history["loss"]), task.validate(state.params)

    many = jax.vmap(one)
    if networks_split:
        part = PartitionSpec(mesh.axis_names)
        many = jax.shard_map(many, mesh=mesh, in_specs=part, out_specs=part, check_vma=False)
    # Replicated, as the inputs are: the next call then needs no other program.
    return jax.lax.with_sharding_constraint(many(state), NamedSharding(mesh, PartitionSpec()))


def _record(run: _Run, losses: np.ndarray, validation: np.ndarray, config: TrainConfig) -> _Run:
    """The run with one more evaluation; a network that has stopped no longer changes."""
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
    """What the progress bar says: means over the networks that have not stopped."""
    row = int(run.evaluations) - 1
    step = min((row + 1) * config.eval_every, config.steps)
    loss, validation = (
        values[row][np.isfinite(values[row])].mean() if np.isfinite(values[row]).any() else np.nan
        for values in (run.train, run.validation)
    )
    return f"step {step} of {config.steps}, loss {loss:.4g}, validation {validation:.4g}"


def _save_nothing(run: _Run, ended: bool) -> None:
    del run, ended


# Checkpoints


def _open_checkpoints(path: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(path.resolve(), options=options)


def _restore(manager: ocp.CheckpointManager, run: _Run, folder: Path) -> _Run:
    """The run as of its last checkpoint."""
    try:
        restored = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(run))
    except Exception as error:  # orbax and tensorstore document no classes
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder / CHECKPOINTS} cannot be read: {reason}") from error
    if not np.array_equal(restored.inputs, run.inputs):
        raise InputError(f"{folder} was trained on other data than the data it is resumed with")
    return restored


def _digest(inputs: Any) -> np.ndarray:
    """SHA-256 [32] of a pytree's arrays and structure."""
    leaves, structure = jax.tree.flatten(inputs)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def choose_best(trained: Trained) -> Params:
    """The parameters of the network with the best validation."""
    return jax.tree.map(lambda leaf: leaf[np.argmin(trained.validation)], trained.params)


def record(trained: Trained) -> Mapping[str, Any]:
    """The part of a training that an experiment's data hold."""
    return {"steps": trained.steps, "validation": trained.validation, "curves": trained.curves}

"""How long a vanilla network remembers, why it forgets, and how far that can be taken.

Claims: the lecture's default network learns to remember over a few dozen steps at most, because the
gradient that reaches back decays. Its initialisation and training limit it, not the cell: vanilla
networks h_t = f(W h_{t-1} + U x_t + b) of 128 units, all started and trained in one way, hold a
sign for 10,000 steps, keep the order of two signals over 1,000, add two of 1,000 numbers and copy
ten symbols over 2,000. The claims are refuted by the lengths that five networks of each recipe
solve, on freshly drawn sequences.

Each recipe climbs the lengths of each problem, five networks in one vmapped call, until fewer than
half of them solve a length. `experiments.shared.tasks` states the problems and their sources,
`experiments.memory.recipes` the recipes and `experiments.memory.blocks` the one for all problems.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from pydantic import Field

from experiments.memory.climbing import Effort, climb, evaluate
from experiments.memory.findings import judge
from experiments.memory.kept import describe_kept, keep_networks, use_networks
from experiments.memory.recipes import DEFAULT, RECIPES
from experiments.shared.findings import Data, Result
from experiments.shared.options import InputError, Positive, RunConfig, write_config
from experiments.shared.output import CHECKPOINTS, Tick, write_json
from experiments.shared.tasks import PROBLEMS
from jaxrnn import (
    Key,
    Params,
    deep_rnn,
    diagnostics,
    fit,
    init_train_state,
    initializers,
    make_train_step,
)

_LENGTHS = {
    "latch": (10, 20, 50, 100, 200, 500, 1000, 3000, 10000),
    "order": (20, 35, 50, 100, 150, 200, 500, 1000),
    "adding": (25, 50, 100, 200, 400, 600, 1000),
    "copy": (10, 20, 50, 100, 200, 500, 1000, 2000),
}
_STEPS = {
    "latch": (1000, 600_000),
    "order": (2500, 1_200_000),
    "adding": (2000, 1_600_000),
    "copy": (1000, 400_000),
}
_QUICK_LENGTHS = {"latch": (10, 20, 50, 200), "order": (20, 50, 200), "copy": (10, 20, 200)}
_QUICK_STEPS = {"latch": (300, 60_000), "order": (1000, 160_000), "copy": (200, 40_000)}
_QUICK_RECIPES = {"latch": "growing", "order": "blocks", "copy": "blocks"}
_FAR = {"order": (200, 2000)}  # networks trained up to the first length are tested at the second
_EXPLODING_LENGTH = 600
_Job = Callable[[], Data]


@dataclass(frozen=True)
class Config(RunConfig):
    """The options of `memory`."""

    with_source: ClassVar[frozenset[str]] = frozenset(("test_sequences",))

    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Folder of a finished run: test its networks, at longer lengths too, without training."""
    resume: Path | None = None
    """Folder of an interrupted run: continue with what is missing, with the same options."""
    quick: bool = False
    """Three problems, short lengths, and one recipe for each besides the lecture's."""
    problems: tuple[str, ...] = tuple(PROBLEMS)
    """Problems to climb: latch, order, adding, copy."""
    recipes: tuple[str, ...] = tuple(RECIPES)
    """Recipes to compare, by name; the lecture's must be among them."""
    seeds: Annotated[int, Field(ge=2)] = 5
    """Networks of each recipe."""
    batch_size: Positive = 32
    """Sequences per training step."""
    test_sequences: Positive = 1000
    """Sequences per test and per validation."""
    workers: Positive = 2
    """Recipes to train at the same time, each in its own process; 1: in this process."""


def run(config: Config, progress: Tick) -> Result:
    """Climb every problem with every recipe, and follow one explosion."""
    if config.source is not None:
        keys = jax.random.split(_split(config)[1], config.seeds)  # other sequences than the run's
        return use_networks(config.source, config.test_sequences, keys, progress)
    jobs: dict[str, _Job] = {
        "-".join(pair): functools.partial(_climb_pair, config, *pair)
        for pair in _choose_pairs(config)
    }
    if not config.quick:
        jobs = {"explosion": functools.partial(_explode, config)} | jobs
    results = _run_side_by_side(jobs, config, progress)
    explosion = results.pop("explosion", None)
    climbs = list(results.values())
    if config.folder is not None:
        describe_kept(config, config.folder, climbs)
    for entry in climbs:
        del entry["kept"]  # safetensors writes its metadata in any order: other bytes in each run
    data: Data = {"seeds": config.seeds, "explosion": explosion, "climbs": climbs}
    return Result(data, judge(data))


def _choose_pairs(config: Config) -> list[tuple[str, str]]:
    """The problems and recipes to climb; refuses options that leave none, or no default."""
    _check_names("problems", config.problems, PROBLEMS)
    _check_names("recipes", config.recipes, RECIPES)
    if DEFAULT not in config.recipes:
        raise InputError(f"--recipes lacks {DEFAULT}, which the others are compared with")
    lengths = _QUICK_LENGTHS if config.quick else _LENGTHS
    pairs = [
        (problem, recipe)
        for problem in dict.fromkeys(config.problems)
        if problem in lengths
        for recipe in dict.fromkeys(config.recipes)
        if not config.quick or recipe in (DEFAULT, _QUICK_RECIPES.get(problem))
    ]
    if not pairs:
        expected = f"expected some of {', '.join(lengths)} with --quick"
        raise InputError(f"--problems is {', '.join(config.problems)}, {expected}")
    return pairs


def _check_names(option: str, names: Sequence[str], known: Any) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"--{option} is {name!r}, expected some of {', '.join(known)}")
    if not names:
        raise InputError(f"--{option} names nothing, expected some of {', '.join(known)}")


def _run_side_by_side(jobs: dict[str, _Job], config: Config, progress: Tick) -> dict[str, Data]:
    """The results of all jobs by name. Each is saved when it is ready, and read back if an
    interrupted run has saved it. Processes, because threads that compile in parallel can crash
    (jaxlib 0.10.2)."""
    folder = config.resume or config.folder
    results = {} if folder is None else _open(folder, config, list(jobs))
    missing = [name for name in jobs if name not in results]

    def keep(name: str, result: Data) -> None:
        if folder is not None:
            write_json(_path(folder, name), result)
        results[name] = result
        progress(len(results) / len(jobs), f"{len(results)} of {len(jobs)}, the last: {name}")

    if config.workers == 1:
        for name in missing:
            keep(name, jobs[name]())
        return {name: results[name] for name in jobs}
    while missing:
        _run_in_processes({name: jobs[name] for name in missing}, config.workers, keep)
        before, missing = missing, [name for name in jobs if name not in results]
        if missing == before:
            raise RuntimeError(f"no process got to the end of a climb; missing: {missing}")
    return {name: results[name] for name in jobs}


def _run_in_processes(
    jobs: dict[str, _Job], workers: int, keep: Callable[[str, Data], None]
) -> None:
    """Keep the results of all jobs, or of those that are ready when a process ends unexpectedly.

    A process for each job: every compiled program keeps pages mapped, of which Linux allows 65,530
    per process, and beyond them LLVM fails and the process crashes."""
    with ProcessPoolExecutor(workers, get_context("spawn"), max_tasks_per_child=1) as pool:
        names = {pool.submit(job): name for name, job in jobs.items()}
        try:
            for future in as_completed(names):
                keep(names[future], future.result())
        except BrokenProcessPool:
            return
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _open(folder: Path, config: Config, names: list[str]) -> dict[str, Data]:
    """Create the folder of a run, or read the results saved there."""
    write_config(folder, config)
    (folder / CHECKPOINTS).mkdir(exist_ok=True)
    saved = {}
    for name in names:
        path = _path(folder, name)
        try:
            if path.exists():
                saved[name] = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}") from None
    return saved


def _path(folder: Path, name: str) -> Path:
    return folder / CHECKPOINTS / f"{name.replace(' ', '_')}.json"


def _split(config: Config) -> Key:
    """The keys of the climbs and of the explosion."""
    return jax.random.split(jax.random.key(config.seed))


def _climb_pair(config: Config, problem: str, recipe: str) -> Data:
    """The results of one recipe on one problem, length by length."""
    lengths = (_QUICK_LENGTHS if config.quick else _LENGTHS)[problem]
    steps = (_QUICK_STEPS if config.quick else _STEPS)[problem]
    keys = jax.random.split(_split(config)[0], config.seeds)
    far_from, far_to = _FAR.get(problem, (0, 0))
    rungs: list[Data] = []
    kept: Data | None = None
    how = (PROBLEMS[problem], RECIPES[recipe])
    effort = Effort(*steps, config.batch_size, config.test_sequences)
    for rung in climb(*how, lengths, effort, keys):
        params: Params = rung.pop("params")
        if rung["length"] == far_from:
            _, right = evaluate(*how, far_to, config.test_sequences, params, keys)
            rung["far"] = {"length": far_to, "right": right}
        if config.folder is not None and np.mean(rung["solved"]) >= 0.5:
            kept = keep_networks(config.folder, problem, recipe, params, rung)
        rungs.append(rung)
    return {"problem": problem, "recipe": recipe, "rungs": rungs, "kept": kept}


def _explode(config: Config) -> Data:
    """Train one relu network, initialised at the identity, on long adding problems with optax's own
    clipping, until its loss is not finite or for 600 steps; the metrics of each step."""
    problem = PROBLEMS["adding"]
    network = deep_rnn((2, 64, 1), activation=jax.nn.relu, w_hh_init=initializers.identity())
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    key_params, key_run = jax.random.split(_split(config)[1])

    def make_batch(key: Key, step: Any) -> Any:
        del step
        return problem.draw(key, _EXPLODING_LENGTH, config.batch_size)

    def loss_fn(params: Params, batch: Any, key: Key) -> Any:
        del key
        (state, _), ys = network.unroll(params, None, batch.xs)
        return problem.loss(ys[-1], batch.targets), {
            "radius": diagnostics.spectral_radius(params[0].w_hh),
            "state": jnp.max(jnp.abs(state)),
        }

    state = init_train_state(network.init(key_params), optimizer, key_run)
    train_step = make_train_step(loss_fn, optimizer)
    history: list[Data] = []
    while len(history) < 60 and (not history or np.isfinite(history[-1]["loss"]).all()):
        state, metrics = fit(train_step, state, make_batch, 10)
        history.append(metrics)
    curves = {name: np.concatenate([part[name] for part in history]) for name in history[0]}
    return {"length": _EXPLODING_LENGTH, **curves}

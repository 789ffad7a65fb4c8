"""How long a vanilla network remembers, why it forgets, and how far that can be taken.

Claims: the lecture's default network learns to remember over a few dozen steps at most, because the
gradient that reaches back decays; and it is the way it is started and trained that limits it, not
the cell: vanilla networks h_t = f(W h_{t-1} + U x_t + b) of 64 units (128 to copy) keep the order
of two signals over 1,000 steps, add numbers 600 steps apart, copy ten symbols over hundreds of
steps, and hold a sign for thousands. Refuted by the lengths that five networks of each recipe
solve, on sequences drawn afresh.

Each recipe climbs the lengths of each problem, five networks in one vmapped call, until fewer than
half of them solve a length. `experiments._problems` states the problems and their sources,
`experiments._remedies` the recipes.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pydantic import Field

from experiments import _memory_figures
from experiments._climbing import Effort, climb, evaluate
from experiments._memory_figures import find_best, reach
from experiments._problems import PROBLEMS
from experiments._remedies import RECIPES
from experiments._report import Data, Finding, InputError, Result, RunConfig, Tick
from experiments._training import Positive
from jaxrnn import (
    Key,
    Params,
    dense,
    diagnostics,
    fit,
    init_train_state,
    initializers,
    make_train_step,
    stack,
    vanilla_rnn,
)

_LENGTHS = {
    "latch": (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000),
    "order": (20, 30, 50, 75, 100, 150, 200, 300, 450, 700, 1000),
    "adding": (25, 50, 100, 200, 400, 600),
    "copy": (10, 20, 50, 100, 200, 500, 1000, 2000),
}
_QUICK_LENGTHS = {"latch": (10, 20, 50, 200, 1000), "order": (20, 30, 50), "copy": (10, 50, 200)}
_STEPS = {"latch": 1000, "order": 3000, "adding": 3000, "copy": 500}
_QUICK_STEPS = {"latch": 300, "order": 600, "copy": 200}
_QUICK_RECIPES = ("lecture", "growing", "relu growing", "small states")
_FAR = {"order": (200, 2000)}  # networks trained up to the one length are tested at the other
_EXPLODING_LENGTH = 600
_DEFAULT = "lecture"
_WORDS = {
    "latch": "To hold a sign through noise",
    "order": "To tell the order of two signals",
    "adding": "To add two marked numbers",
    "copy": "To copy ten symbols",
}


@dataclass(frozen=True)
class Config(RunConfig):
    """The options of `memory`."""

    quick: bool = False
    """Three problems, short lengths and four recipes: a few minutes."""
    problems: tuple[str, ...] = tuple(PROBLEMS)
    """Problems to climb: latch, order, adding, copy."""
    recipes: tuple[str, ...] = tuple(RECIPES)
    """Recipes to compare, by name."""
    seeds: Annotated[int, Field(ge=2)] = 5
    """Networks of each recipe."""
    batch_size: Positive = 32
    """Sequences of a training step."""
    test_sequences: Positive = 1000
    """Sequences of a test, and of each validation."""
    workers: Positive = 2
    """Recipes in training at the same time."""


def run(config: Config, progress: Tick) -> Result:
    """Climb every problem with every recipe, and follow one explosion."""
    _check_names("problems", config.problems, PROBLEMS)
    _check_names("recipes", config.recipes, RECIPES)
    key_climbs, key_explosion = jax.random.split(jax.random.key(config.seed))
    lengths = _QUICK_LENGTHS if config.quick else _LENGTHS
    pairs = [
        (problem, recipe)
        for problem in config.problems
        for recipe in config.recipes
        if problem in lengths and (not config.quick or recipe in _QUICK_RECIPES)
    ]
    jobs: list[Callable[[], Data]] = [
        functools.partial(_climb_pair, config, *pair, key_climbs) for pair in pairs
    ]
    if not config.quick:
        jobs.insert(0, functools.partial(_explode, config, key_explosion))
    results = _run_side_by_side(jobs, config.workers, progress)
    data: Data = {
        "seeds": config.seeds,
        "explosion": None if config.quick else results[0],
        "climbs": results[-len(pairs) :],
    }
    return Result(data, _judge(data))


def plot(data: Data, folder: Path) -> None:
    """Draw memory.png, and one figure of losses a problem."""
    _memory_figures.plot(data, folder)


def _check_names(option: str, names: Sequence[str], known: Any) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"--{option} is {name!r}, expected some of {', '.join(known)}")
    if not names:
        raise InputError(f"--{option} names nothing, expected some of {', '.join(known)}")


def _run_side_by_side(jobs: list[Callable[[], Data]], workers: int, progress: Tick) -> list[Data]:
    """The results of all jobs, in their order; XLA computes outside Python's lock."""
    done, lock = 0, threading.Lock()

    def work(job: Callable[[], Data]) -> Data:
        nonlocal done
        result = job()
        with lock:
            done += 1
            progress(done / len(jobs), f"{done} of {len(jobs)} recipes climbed")
        return result

    with ThreadPoolExecutor(workers) as pool:
        try:
            return list(pool.map(work, jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _climb_pair(config: Config, problem: str, recipe: str, key: Key) -> Data:
    """The rungs of one recipe on one problem."""
    lengths = (_QUICK_LENGTHS if config.quick else _LENGTHS)[problem]
    steps = (_QUICK_STEPS if config.quick else _STEPS)[problem]
    keys = jax.random.split(key, config.seeds)
    far_from, far_to = _FAR.get(problem, (0, 0))
    rungs = []
    how = (PROBLEMS[problem], RECIPES[recipe])
    for rung in climb(*how, lengths, Effort(steps, config.batch_size, config.test_sequences), keys):
        params: Params = rung.pop("params")
        if rung["length"] == far_from:
            _, right = evaluate(*how, far_to, config.test_sequences, params, keys)
            rung["far"] = {"length": far_to, "right": right}
        rungs.append(rung)
    return {"problem": problem, "recipe": recipe, "rungs": rungs}


def _explode(config: Config, key: Key) -> Data:
    """Follow one relu network, started at the identity, on long adding problems until it breaks,
    with optax's own clipping and nothing that leaves out a step."""
    problem = PROBLEMS["adding"]
    network = stack(
        vanilla_rnn(2, 64, activation=jax.nn.relu, w_hh_init=initializers.identity()), dense(64, 1)
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    key_params, key_run = jax.random.split(key)

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
    return {name: np.concatenate([part[name] for part in history]) for name in history[0]}


# The table


def _judge(data: Data) -> list[Finding]:
    climbs = data["climbs"]
    problems = list(dict.fromkeys(entry["problem"] for entry in climbs))
    findings = [_judge_reach(data, problem) for problem in problems]
    if "order" in problems and data["explosion"]:
        findings += _judge_order(climbs)
    if "adding" in problems and data["explosion"]:
        findings += _judge_adding(climbs, data["explosion"])
    return [*findings, _judge_gradient(climbs)]


def _of(climbs: list[Data], problem: str) -> dict[str, Data]:
    return {entry["recipe"]: entry for entry in climbs if entry["problem"] == problem}


def _judge_reach(data: Data, problem: str) -> Finding:
    """The lecture's network against the best vanilla one."""
    reaches = {name: reach(entry) for name, entry in _of(data["climbs"], problem).items()}
    vanilla = {name: each for name, each in reaches.items() if RECIPES[name].vanilla}
    best = find_best(_of(data["climbs"], problem))
    default, longest = (float(np.median(vanilla[name])) for name in (_DEFAULT, best))
    shortest = PROBLEMS[problem].shortest
    others = ", ".join(
        f"{name} {np.median(each):.0f}"
        for name, each in reaches.items()
        if name not in (_DEFAULT, best)
    )
    return Finding(
        problem,
        f"{_WORDS[problem]}: the cell is vanilla, and remembers ten times as long as the lecture's "
        "default network.",
        "the longest length solved, the median of the networks, is at least ten times as long",
        f"{_DEFAULT} {default:.0f}, {best} {longest:.0f} ({longest / max(default, shortest):.0f} "
        f"times; the worst of {len(vanilla[best])} networks {vanilla[best].min()}); {others}",
        longest >= 10 * max(default, shortest),
    )


def _judge_order(climbs: list[Data]) -> list[Finding]:
    entries = _of(climbs, "order")
    vanilla = [entry for name, entry in entries.items() if RECIPES[name].vanilla]
    wanted = (50, 100, 150, 200)
    all_right = {
        entry["recipe"]: [
            rung["length"] for rung in entry["rungs"] if np.all(np.asarray(rung["right"]) == 1)
        ]
        for entry in vanilla
    }
    best = max(all_right, key=lambda name: len(set(all_right[name]) & set(wanted)))
    far = {
        entry["recipe"]: np.asarray(rung["far"]["right"])
        for entry in vanilla
        for rung in entry["rungs"]
        if "far" in rung
    }
    farthest = max(far, key=lambda name: far[name].min(), default=None)
    trained = {name: max(lengths, default=0) for name, lengths in all_right.items()}
    longest = max(trained, key=lambda name: trained[name])
    return [
        Finding(
            "order, all right",
            "A vanilla network of 64 units tells the order of two signals without an error.",
            f"every network right on every test sequence at T = {', '.join(map(str, wanted))}",
            f"{best}: all right at T = {', '.join(map(str, all_right[best])) or 'none'}",
            set(wanted) <= set(all_right[best]),
        ),
        Finding(
            "order, further",
            "Networks trained on lengths up to 200 are still right at T = 2,000.",
            "at least 99 % of the test sequences right, for every network of a recipe",
            "; ".join(f"{name}: {_percents(right)}" for name, right in far.items())
            or "no recipe was trained at T = 200",
            farthest is not None and bool(far[farthest].min() >= 0.99),
        ),
        Finding(
            "order, trained",
            "Networks can be trained at T = 1,000.",
            "every network of a recipe right on every test sequence at T = 1,000",
            f"{longest}: all right at T = {trained[longest]}",
            trained[longest] >= 1000,
        ),
    ]


def _judge_adding(climbs: list[Data], explosion: Data) -> list[Finding]:
    losses = {
        (name, rung["length"]): np.asarray(rung["loss"])
        for name, entry in _of(climbs, "adding").items()
        for rung in entry["rungs"]
        if RECIPES[name].vanilla
    }
    findings = []
    for length in (400, 600):
        those = {name: each for (name, at), each in losses.items() if at == length}
        best = min(those, key=lambda name: those[name].max(), default=None)
        findings.append(
            Finding(
                f"adding, {length}",
                f"Two numbers among {length} are added.",
                "squared error at most 0.01 for every network of a recipe (answering 1: 0.167)",
                "no recipe got so far"
                if best is None
                else f"{best}: {those[best].mean():.4f}, the worst {those[best].max():.4f}",
                best is not None and bool(those[best].max() <= 0.01),
            )
        )
    loss, radius, state = (np.asarray(explosion[name]) for name in ("loss", "radius", "state"))
    broken = np.flatnonzero(~np.isfinite(loss))
    at = int(broken[0]) if len(broken) else len(loss) - 1
    last = max(at - 1, 0)
    return [
        *findings,
        Finding(
            "adding, NaN",
            f"At T = {_EXPLODING_LENGTH} a relu network breaks in its forward pass, where clipping "
            "the gradient does not reach.",
            "its loss stops being finite while its recurrent matrix has a spectral radius above 1",
            f"step {at}: loss {loss[last]:.2g}, then {loss[at]:.2g}; spectral radius "
            f"{radius[0]:.3f} at the start, {radius[last]:.3f} then, largest state "
            f"{state[last]:.2g}; {radius[last]:.3f}^{_EXPLODING_LENGTH} = 10^"
            f"{_EXPLODING_LENGTH * np.log10(radius[last]):.0f}",
            bool(len(broken)) and bool(radius[last] > 1),
        ),
    ]


def _judge_gradient(climbs: list[Data]) -> Finding:
    """Where a recipe's networks fail, against the gradient that reached them."""
    rows = []
    for entry in climbs:
        last = entry["rungs"][-1]
        decay = np.mean(np.asarray(last["norms_before"])[:, -1]) / np.log(10)
        rows.append((decay, bool(np.mean(last["solved"]) < 0.5), entry))
    failed = [decay for decay, fails, _ in rows if fails]
    lecture = [
        f"{entry['problem']} 10^{decay:.1f} over {entry['rungs'][-1]['length']}"
        for decay, _, entry in rows
        if entry["recipe"] == _DEFAULT
    ]
    kept = [decay for decay, fails, _ in rows if not fails]
    return Finding(
        "gradient",
        "Networks fail where the gradient no longer reaches back.",
        "before training on its last length, the gradient's norm over that length is below 0.01 "
        "for the median of the recipes that fail there, and higher for those that never fail",
        f"fail: 10^{np.median(failed) if failed else np.nan:.1f}; never fail: "
        f"10^{np.median(kept) if kept else np.nan:.1f}; {_DEFAULT}: {', '.join(lecture)}",
        bool(failed and kept and np.median(failed) < min(-2.0, np.median(kept))),
    )


def _percents(parts: np.ndarray) -> str:
    return f"{100 * parts.min():.1f} to {100 * parts.max():.1f} %"

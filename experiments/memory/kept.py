"""The networks that `memory` leaves behind, and their use without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.memory.climbing import evaluate
from experiments.memory.recipes import RECIPES
from experiments.shared.findings import Data, Finding, Result
from experiments.shared.model_files import (
    describe_networks,
    load_networks,
    read_inputs,
    write_networks,
)
from experiments.shared.options import InputError, RunConfig
from experiments.shared.output import Tick
from experiments.shared.tasks import PROBLEMS
from jaxrnn import Key, Layer, Params, stack

_TIMES = (1, 2, 5)  # the length that was climbed


@dataclass(frozen=True)
class Climbed:
    """What networks were trained for: a problem, by a recipe, and the longest length that at least
    half of them solve."""

    problem: str
    recipe: str
    length: int


@dataclass(frozen=True)
class MemoryInputs:
    """Every group of networks, by the name of its files."""

    climbs: dict[str, Climbed]


def keep_networks(folder: Path, problem: str, recipe: str, params: Params, rung: Data) -> Data:
    """Write the networks [S, ...] of the longest length that they solve, and say what they are."""
    name = f"{problem}-{recipe}".replace(" ", "-")
    files = write_networks(folder, name, _network(problem, recipe), params, rung["loss"])
    return {"name": name, "length": rung["length"], "files": files}


def describe_kept(config: RunConfig, folder: Path, climbs: list[Data]) -> None:
    """Describe what `keep_networks` wrote, as these climbs' results have it."""
    files: dict[str, str] = {}
    climbed = {}
    for climb in climbs:
        if kept := climb["kept"]:
            files |= kept["files"]
            climbed[kept["name"]] = Climbed(climb["problem"], climb["recipe"], kept["length"])
    if files:
        describe_networks(config, folder, "memory", MemoryInputs(climbed), files)


def use_networks(source: Path, sequences: int, keys: Key, progress: Tick) -> Result:
    """Test the networks of another run on freshly drawn sequences, as long as those that they were
    trained on and longer."""
    climbs = read_inputs(source, MemoryInputs).climbs
    groups = [(name, climbed, _load(source, name, climbed)) for name, climbed in climbs.items()]
    used = []
    for number, (name, climbed, params) in enumerate(groups):
        progress(number / len(groups), name)
        seeds = keys[np.arange(len(params[1].b)) % len(keys)]
        how = PROBLEMS[climbed.problem], RECIPES[climbed.recipe]
        tests = {}
        for times in _TIMES:
            length = times * climbed.length
            loss, right = evaluate(*how, length, sequences, params, seeds)
            pairs = zip(loss, right, strict=True)
            solved = [PROBLEMS[climbed.problem].solves(length, *pair) for pair in pairs]
            tests[length] = {"loss": loss, "right": right, "solved": np.array(solved)}
        used.append({"problem": climbed.problem, "recipe": climbed.recipe, "tests": tests})
    return Result({"used": used}, judge_used(used))


def judge_used(used: list[Data]) -> list[Finding]:
    """Whether networks still solve what they were trained for."""
    findings = []
    for group in used:
        (length, first), *longer = group["tests"].items()
        listed = ", ".join(f"{each:,} {_mean(test)}" for each, test in longer)
        findings.append(
            Finding(
                f"{group['problem']}, {group['recipe']}",
                f"Networks that solved a length of {length:,} solve it on other sequences.",
                "at least half of them",
                f"{int(first['solved'].sum())} of {len(first['solved'])}, {_mean(first)} right; "
                f"longer: {listed}",
                bool(np.mean(first["solved"]) >= 0.5),
            )
        )
    return findings


def _mean(test: Data) -> str:
    return f"{np.mean(test['right']):.1%}"


def _network(problem: str, recipe: str) -> Layer:
    sizes = PROBLEMS[problem].input_size, PROBLEMS[problem].output_size
    return stack(*RECIPES[recipe].build(*sizes))


def _load(source: Path, name: str, climbed: Climbed) -> Params:
    known: tuple[tuple[str, str, Mapping[str, object]], ...] = (
        ("problem", climbed.problem, PROBLEMS),
        ("recipe", climbed.recipe, RECIPES),
    )
    for what, got, names in known:
        if got not in names:
            raise InputError(f"{source}: {name} has the {what} {got!r}, expected one of {[*names]}")
    return load_networks(source, name, _network(climbed.problem, climbed.recipe))

"""The findings of `memory`, from the lengths that each recipe climbed."""

from __future__ import annotations

import numpy as np

from experiments.memory.recipes import DEFAULT, RECIPES
from experiments.shared.findings import Data, Finding
from experiments.shared.tasks import PROBLEMS

Groups = dict[str, dict[str, Data]]
_WORDS = {
    "latch": "To hold a sign through noise",
    "order": "To tell the order of two signals",
    "adding": "To add two marked numbers",
    "copy": "To copy ten symbols",
}
_WANTED = {"latch": 10_000, "order": 1000, "copy": 2000, "adding": 1000}


def judge(data: Data) -> list[Finding]:
    """The findings of `memory`."""
    groups = group_climbs(data["climbs"])
    findings = [_judge_reach(problem, entries) for problem, entries in groups.items()]
    if "order" in groups and data["explosion"]:
        findings += _judge_order(groups["order"])
    if "adding" in groups and data["explosion"]:
        findings += _judge_adding(groups["adding"], data["explosion"])
    if set(groups) == set(PROBLEMS) and data["explosion"]:
        findings.append(_judge_one_recipe(groups))
    return [*findings, *_judge_gradients(groups)]


def reach(entry: Data) -> np.ndarray:
    """The longest length that each network solved, [S]; 0 if none."""
    solved = np.array([rung["solved"] for rung in entry["rungs"]])
    return np.max(np.array([[rung["length"]] for rung in entry["rungs"]]) * solved, axis=0)


def group_climbs(climbs: list[Data]) -> Groups:
    """The climbs by problem and recipe."""
    groups: Groups = {}
    for entry in climbs:
        groups.setdefault(entry["problem"], {})[entry["recipe"]] = entry
    return groups


def find_best(entries: dict[str, Data]) -> str:
    """The vanilla recipe that reaches furthest: by its median network, then by its worst."""
    reaches = {name: reach(entry) for name, entry in entries.items() if RECIPES[name].vanilla}
    return max(reaches, key=lambda name: (np.median(reaches[name]), reaches[name].min()))


def _judge_reach(problem: str, entries: dict[str, Data]) -> Finding:
    """The lecture's network and the best vanilla one."""
    reaches = {name: reach(entry) for name, entry in entries.items()}
    vanilla = {name: each for name, each in reaches.items() if RECIPES[name].vanilla}
    best = find_best(entries)
    default, longest = (float(np.median(vanilla[name])) for name in (DEFAULT, best))
    shortest = PROBLEMS[problem].shortest
    others = ", ".join(
        f"{name} {np.median(each):.0f}"
        for name, each in reaches.items()
        if name not in (DEFAULT, best)
    )
    return Finding(
        problem,
        f"{_WORDS[problem]}: the cell is vanilla, and remembers ten times as long as the lecture's "
        "default network.",
        "the longest length solved, the median of the networks, is at least ten times as long",
        f"{DEFAULT} {default:.0f}, {best} {longest:.0f} ({longest / max(default, shortest):.0f} "
        f"times; the worst of {len(vanilla[best])} networks {vanilla[best].min()}); {others}",
        longest >= 10 * max(default, shortest),
    )


def _judge_order(entries: dict[str, Data]) -> list[Finding]:
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
            "Vanilla networks of at most 128 units tell the order of two signals without an error.",
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


def _judge_one_recipe(groups: Groups) -> Finding:
    """The recipe that comes furthest on the problem where it is worst, by its worst networks."""
    reaches = {
        name: {problem: int(reach(groups[problem][name]).min()) for problem in _WANTED}
        for name in groups["latch"]
        if RECIPES[name].vanilla
    }
    parts = {
        name: min(each[problem] / _WANTED[problem] for problem in _WANTED)
        for name, each in reaches.items()
    }
    best = max(parts, key=lambda name: parts[name])
    return Finding(
        "one recipe",
        "One recipe is enough for all four problems.",
        "every network of a recipe solves "
        + ", ".join(f"{problem} at {length:,}" for problem, length in _WANTED.items()),
        f"{best}: " + ", ".join(f"{name} {length:,}" for name, length in reaches[best].items()),
        parts[best] >= 1,
    )


def _judge_adding(entries: dict[str, Data], explosion: Data) -> list[Finding]:
    losses = {
        (name, rung["length"]): np.asarray(rung["loss"])
        for name, entry in entries.items()
        for rung in entry["rungs"]
        if RECIPES[name].vanilla
    }
    findings = []
    for length in (400, 1000):
        those = {name: each for (name, at), each in losses.items() if at == length}
        worst = {name: np.nan_to_num(each.max(), nan=np.inf) for name, each in those.items()}
        best = min(worst, key=lambda name: worst[name], default=None)
        findings.append(
            Finding(
                f"adding, {length}",
                f"Two numbers among {length:,} are added.",
                "squared error at most 0.01 for every network of a recipe (answering 1: 0.167)",
                "no recipe got that far"
                if best is None
                else f"{best}: {those[best].mean():.4f}, the worst {those[best].max():.4f}",
                best is not None and bool(those[best].max() <= 0.01),
            )
        )
    loss, radius, state = (np.asarray(explosion[name]) for name in ("loss", "radius", "state"))
    broken = np.flatnonzero(~np.isfinite(loss))
    at = int(broken[0]) if len(broken) else len(loss) - 1
    return [
        *findings,
        Finding(
            "adding, NaN",
            f"At T = {explosion['length']} a relu network breaks in its forward pass, where "
            "clipping the gradient does not reach.",
            "its loss stops being finite while its recurrent matrix has a spectral radius above 1",
            f"step {at}: loss {loss[max(at - 1, 0)]:.2g}, then {loss[at]:.2g}; spectral radius "
            f"{radius[0]:.3f} at the start, {radius[at]:.3f} then, largest state "
            f"{state[at]:.2g}; {radius[at]:.3f}^{explosion['length']} = 10^"
            f"{explosion['length'] * np.log10(radius[at]):.0f}",
            bool(len(broken)) and bool(radius[at] > 1),
        ),
    ]


def _judge_gradients(groups: Groups) -> list[Finding]:
    """Whether the gradient reaches back where the default network fails, and where the best do not;
    for the problems with one answer, because those of `copy` have different lags."""
    ends = {
        problem: entries[DEFAULT]["rungs"][-1]
        for problem, entries in groups.items()
        if not PROBLEMS[problem].everywhere
    }
    reached = {name: _decay(rung, "norms_before") for name, rung in ends.items()}
    held = {}
    for problem in ends:
        entries = groups[problem]
        best = find_best(entries)
        solved = [rung for rung in entries[best]["rungs"] if np.mean(rung["solved"]) >= 0.5]
        if solved:
            held[f"{problem}, {best}, {solved[-1]['length']}"] = _decay(solved[-1], "norms_after")
    return [
        Finding(
            "gradient, to learn",
            "The lecture's network stops learning where the gradient no longer reaches back.",
            "over the first length that it fails, the gradient's norm before training falls below "
            "0.01, on every problem with one answer",
            "; ".join(
                f"{name}: 10^{reached[name]:.1f} over {ends[name]['length']}" for name in ends
            ),
            bool(reached) and max(reached.values()) < -2,
        ),
        Finding(
            "gradient, to hold",
            "To hold what was learned at shorter lengths takes no gradient.",
            "a best network solves a length over which its gradient's norm falls below 0.01",
            "; ".join(f"{name}: 10^{decay:.1f}" for name, decay in held.items()),
            bool(held) and min(held.values()) < -2,
        ),
    ]


def _decay(rung: Data, norms: str) -> float:
    """The gradient's norm at the longest lag in powers of ten, averaged over the networks."""
    return float(np.mean(np.asarray(rung[norms])[:, -1]) / np.log(10))


def _percents(parts: np.ndarray) -> str:
    return f"{100 * parts.min():.1f} to {100 * parts.max():.1f} %"

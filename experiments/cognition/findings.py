"""What the measurements of `cognition` say about each claim."""

from __future__ import annotations

import math

import numpy as np

from experiments.shared.findings import Data, Finding

_RIGHT = 0.95
_STRUCTURE = 0.25
AT_REST = 0.1
"""The distance from a stable point, over the norm of a state, within which the state rests."""


def judge(data: Data) -> list[Finding]:
    """One finding per claim."""
    findings = [
        _judge_tasks(data["large"]),
        _judge_psychometric(data["psychometric"]),
        _judge_clusters(data["clusters"]),
        _judge_points(data["points"]),
    ]
    return findings + (judge_small(data["small"]) if data["small"] else [])


def judge_small(small: Data) -> list[Finding]:
    """The findings on the small networks, one for each task and seed."""
    signed = small["variants"]["Dale"]
    clear = {task: np.asarray(result["clear"]) for task, result in signed.items()}
    lowest = min(clear, key=lambda task: clear[task].mean())
    return [
        Finding(
            "small",
            "Networks of excitatory and inhibitory units learn single tasks.",
            f"at least {_RIGHT:.0%} right in the mean over seeds, where the evidence allows it",
            ", ".join(f"{task} {share.mean():.1%}" for task, share in clear.items()),
            clear[lowest].mean() >= _RIGHT,
        ),
        Finding(
            "signs",
            "After training every unit still excites or inhibits.",
            "not one weight has the other sign",
            f"{small['wrong_signs']} of {small['weights']:,} weights",
            small["wrong_signs"] == 0,
            required=True,
        ),
        _judge_costs(small),
    ]


def _judge_tasks(large: Data) -> Finding:
    clear = {task: float(np.mean(share)) for task, share in large["clear"].items()}
    worst = min(clear, key=clear.__getitem__)
    listed = ", ".join(
        f"{task} {clear[task]:.1%} (all trials {float(np.mean(large['right'][task])):.1%}, ideal "
        f"observer {float(np.mean(large['ideal'][task])):.1%})"
        for task in clear
    )
    return Finding(
        "tasks",
        f"One leaky network with noise learns all {len(clear)} tasks.",
        f"at least {_RIGHT:.0%} right on each, of the trials where an ideal observer of the noisy "
        "inputs is right 99 times of 100",
        listed,
        clear[worst] >= _RIGHT,
    )


def _judge_psychometric(curves: Data) -> Finding:
    trials = curves["trials"]
    drops, ranges = {}, {}
    for task, shares in curves["shares"].items():
        share = np.asarray(shares).mean(axis=0)
        error = 2 * math.sqrt(2 * 0.25 / trials)
        drops[task] = float(np.min(np.diff(share))) + error
        ranges[task] = f"{task} {share[0]:.2f} to {share[-1]:.2f}"
    return Finding(
        "psychometric",
        "The stronger the evidence for a choice, the more often it is made.",
        "no psychometric curve falls from one coherence to the next by more than two standard "
        "errors, and each spans at least 0.05 to 0.95",
        "; ".join(ranges.values()),
        min(drops.values()) >= 0
        and all(
            np.mean(shares, axis=0)[0] <= 0.05 and np.mean(shares, axis=0)[-1] >= 0.95
            for shares in curves["shares"].values()
        ),
    )


def _judge_clusters(clusters: Data) -> Finding:
    count = len(np.unique(clusters["labels"]))
    return Finding(
        "clusters",
        "Units fall into groups that serve the same tasks.",
        f"their variances by task have a mean silhouette of at least {_STRUCTURE}, below which "
        "Kaufman & Rousseeuw (1990) see no structure, and above that of shuffled ones",
        f"{count} clusters of {clusters['active']} active units: silhouette "
        f"{clusters['silhouette']:.2f}, shuffled {clusters['shuffled']:.2f}",
        clusters["silhouette"] >= max(_STRUCTURE, clusters["shuffled"]),
    )


def _judge_points(points: Data) -> Finding:
    parts = []
    for name in ("before the stimulus", "during the stimulus"):
        here = points[name]
        unstable, converged = np.asarray(here["unstable"]), np.asarray(here["converged"])
        stable = int(np.sum(converged & (unstable == 0)))
        away = f", {here['nearest']:.1%} away, after waiting {here['waited']:.1%}"
        parts.append(
            f"{name} {stable} stable points{away if stable else ''}, "
            f"{np.sum(converged & (unstable > 0))} saddles, {np.sum(~converged)} slow points"
        )
    return Finding(
        "points",
        "While the network waits for the stimulus, its state moves to a stable point.",
        f"after 200 more steps of waiting states are within {AT_REST} of their norm of one",
        "; ".join(parts),
        points["before the stimulus"]["waited"] <= AT_REST,
    )


def _judge_costs(small: Data) -> Finding:
    rows = {}
    for name, tasks in small["variants"].items():
        clear = np.mean([np.mean(result["clear"]) for result in tasks.values()])
        steps = np.concatenate([np.asarray(result["reached"]) for result in tasks.values()])
        never = int(np.isnan(steps).sum())
        median = float(np.median(np.where(np.isnan(steps), np.inf, steps)))
        rows[name] = float(clear), median, never
    listed = "; ".join(
        f"{name} {clear:.1%} right, {median:,.0f} steps to 90 %" + (f", {n} never" if n else "")
        for name, (clear, median, n) in rows.items()
    )
    return Finding(
        "costs",
        "Dale's law costs little accuracy.",
        "at most 2 percentage points of the trials with clear evidence, in the mean over tasks",
        listed,
        rows["Dale"][0] >= rows["no Dale"][0] - 0.02 if "no Dale" in rows else True,
    )

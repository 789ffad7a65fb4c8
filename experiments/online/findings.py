"""The findings of `online`, and its tables."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.online.costs import PEER, RTRL
from experiments.shared.findings import Data, Finding, describe_seeds

_SLACK = 1.1  # of costs that count as equal
_WRONG, _RIGHT = 0.9, 0.1  # squared errors of a sign that is not known, and that is
_LEVELS = {"xor": 0.1, "sine": 0.1}  # of the error at which a learner has recovered


def judge(data: Data) -> list[Finding]:
    """One finding of each stream, of the delays, and of the costs."""
    findings = [_judge_stream(data, name) for name in data["streams"]]
    return [*findings, _judge_delays(data), *_judge_costs(data["costs"])]


def recovery(error: np.ndarray, rules: int, level: float, block: int) -> np.ndarray:
    """Steps from each change of the rule until the mean error of a block is below the level,
    [seeds, rules]; those of a whole rule if it never is."""
    each = np.asarray(error).reshape(len(error), rules, -1)
    below = each < level
    first = np.where(below.any(-1), below.argmax(-1), each.shape[-1])
    return first * block


def summarize(data: Data, name: str) -> dict[str, Data]:
    """Of each learner: its mean error [seeds], its median steps to recover, and its cost."""
    summary = {}
    for learner, found in data["streams"][name].items():
        error = np.asarray(found["error"])
        steps = recovery(error, data["rules"], _LEVELS[name], data["block"])[:, 1:]
        summary[learner] = {
            "error": error.mean(1),
            "recovery": float(np.median(steps)),
            "cost": data["microseconds"][learner],
            "rate": found["rate"],
            "window": found["window"],
        }
    return summary


def write_table(data: Data) -> str:
    """Tables of errors, of delays, and of costs, as text."""
    stream = io.StringIO()
    console = Console(file=stream, width=110)
    for name in data["streams"]:
        table = Table(
            "learner", "mean error", "steps to recover", "us per step", "rate", title=name
        )
        for learner, row in summarize(data, name).items():
            cells = f"{row['recovery']:.0f}", f"{row['cost']:.1f}", f"{row['rate']:g}"
            table.add_row(learner, describe_seeds(row["error"]), *cells)
        console.print(table)
    table = Table("delays", *data["delays"], title="error at the end, by delays")
    for place, delay in enumerate(data["delay"]):
        errors = [f"{np.mean(each[place]):.3f}" for each in data["delays"].values()]
        table.add_row(f"{delay}, {delay + 2}", *errors)
    console.print(table)
    table = Table("units", *data["costs"][0]["microseconds"], title="microseconds per step")
    for row in data["costs"]:
        table.add_row(str(row["units"]), *(f"{each:.1f}" for each in row["microseconds"].values()))
    console.print(table)
    return stream.getvalue()


def _judge_stream(data: Data, name: str) -> Finding:
    summary = summarize(data, name)
    exact = {k: row for k, row in summary.items() if k.startswith(RTRL)}
    best = min(exact, key=lambda learner: float(exact[learner]["error"].mean()))
    ours = exact[best]
    rivals = {
        k: row
        for k, row in summary.items()
        if row["window"] and row["cost"] <= _SLACK * max(r["cost"] for r in exact.values())
    }
    rival = min(rivals, key=lambda learner: float(rivals[learner]["error"].mean()), default=None)
    if rival is None:
        return Finding(name, "", "some truncation costs no more", "none does", False)
    other = rivals[rival]
    return Finding(
        name,
        "RTRL errs less on a stream whose rule changes, and recovers sooner.",
        "its mean error, and its median steps to recover, are below those of the best truncated "
        "back-propagation that costs no more per step",
        f"{best} {describe_seeds(ours['error'])}, {ours['recovery']:.0f} steps; {rival} "
        f"{describe_seeds(other['error'])}, {other['recovery']:.0f} steps",
        bool(
            ours["error"].mean() < other["error"].mean() and ours["recovery"] <= other["recovery"]
        ),
    )


def _judge_delays(data: Data) -> Finding:
    errors = {name: np.asarray(each).mean(1) for name, each in data["delays"].items()}
    windows = {name: found["window"] for name, found in data["streams"]["xor"].items()}
    told, seen_alone = [], []
    for place, delay in enumerate(data["delay"]):
        blind = {
            name: errors[name][place] for name in errors if windows[name] and windows[name] <= delay
        }
        seen = next(each[place] for name, each in errors.items() if name.startswith(RTRL))
        if blind:
            others = ", ".join(f"{name} {error:.2f}" for name, error in blind.items())
            told.append(f"{delay}: RTRL {seen:.3f}, {others}")
            seen_alone.append(min(blind.values()) > _WRONG and seen < _RIGHT)
    return Finding(
        "delays",
        "Where both signs lie further back than it reaches, a truncated gradient learns nothing, "
        "and RTRL learns.",
        f"at some delay the squared error of every such gradient is above {_WRONG} at the end, and "
        f"RTRL's below {_RIGHT}",
        "; ".join(told) or "no delay is longer than a window",
        any(seen_alone),
    )


def _judge_costs(costs: list[Data]) -> list[Finding]:
    compared = {
        row["units"]: row["microseconds"][PEER] / row["microseconds"][RTRL]
        for row in costs
        if PEER in row["microseconds"] and row["units"] in (32, 64)
    }
    if not compared:
        return []
    told = ", ".join(f"{ratio:.2f} at {units} units" for units, ratio in compared.items())
    return [
        Finding(
            "costs",
            "An exact gradient takes less time than braintrace's.",
            "1.5 times as fast at 32 and 64 units",
            told,
            min(compared.values()) >= 1.5,
        )
    ]

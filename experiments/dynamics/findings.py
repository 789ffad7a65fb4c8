"""The findings of `dynamics`."""

from __future__ import annotations

import numpy as np

from experiments.shared.findings import Data, Finding

DISTANCES = ("histograms", "states", "spectra")


def judge(data: Data) -> list[Finding]:
    """The findings: of Lorenz-63 without noise what was claimed, of the others how far it goes."""
    findings = []
    for name, case in data["cases"].items():
        findings += [_judge_valid(name, case), _judge_distances(name, case)]
        if case["exponents"] is not None:
            findings.append(_judge_exponents(name, case))
    return findings


def _judge_valid(name: str, case: Data) -> Finding:
    medians = {m: float(np.median(each["valid"])) for m, each in case["models"].items()}
    by_seed = np.median(case["models"]["network"]["valid"], axis=1)
    strict = name == "lorenz-0"
    best = max(m for k, m in medians.items() if k not in ("network", "reservoir"))
    unit = "Lyapunov times" if case["exponents"] is not None else "hundreds of steps"
    return Finding(
        f"{name} forecast",
        f"{case['title']}: a network forecasts the system for several Lyapunov times."
        if strict
        else f"{case['title']}: a network forecasts for longer than simple models.",
        f"the median valid time is at least 6 {unit}"
        if strict
        else "its median valid time is at least that of the best polynomial and of persistence",
        f"{medians['network']:.1f} {unit}, seeds {by_seed.min():.1f} to {by_seed.max():.1f} "
        f"(at most {case['horizon']:.0f} are looked at); "
        + ", ".join(f"{m} {v:.1f}" for m, v in medians.items() if m != "network"),
        medians["network"] >= (6.0 if strict else best),
    )


def _judge_distances(name: str, case: Data) -> Finding:
    network = case["models"]["network"]["distances"]
    again = {each: float(np.median(case["again"][each])) for each in DISTANCES}
    medians = {each: float(np.median(network[each])) for each in DISTANCES}
    ratios = {each: medians[each] / max(again[each], 1e-12) for each in DISTANCES}
    limit = 1.2 if name == "lorenz-0" else 2.0
    others = {
        m: float(np.median(each["distances"]["histograms"]))
        for m, each in case["models"].items()
        if m != "network"
    }
    return Finding(
        f"{name} attractor",
        f"{case['title']}: left alone, a network moves as the system does.",
        f"histograms, states and spectra are at most {limit} times as far from the system as "
        "other stretches of it, in the median",
        "; ".join(f"{each} {medians[each]:.3f} against {again[each]:.3f}" for each in DISTANCES)
        + "; histograms of "
        + ", ".join(f"{m} {v:.2f}" for m, v in others.items()),
        max(ratios.values()) <= limit,
    )


def _judge_exponents(name: str, case: Data) -> Finding:
    time = case["time"]
    true = np.asarray(case["exponents"])
    found = np.asarray(case["models"]["network"]["exponents"])
    scale = 1 / (true[0] * time)  # such that the first true exponent is one per Lyapunov time
    off = np.abs(found[:, 0] / true[0] - 1)
    strict = name == "lorenz-0"
    good = off <= (0.03 if strict else 0.1)
    if name.startswith(("lorenz-", "roessler-")):
        small = 0.05 * true[0] / 0.9056
        good &= (np.abs(found[:, 1]) <= small) & (found[:, 2] < 0)
    median = np.median(found, axis=0) * time * scale
    needed = len(good) if strict else (len(good) + 1) // 2
    return Finding(
        f"{name} exponents",
        f"{case['title']}: a network has the Lyapunov exponents of the system.",
        f"the first is within {3 if strict else 10} % of the true one, and where the system has "
        f"three, the second is near 0 and the third negative, in {needed} of {len(good)} seeds",
        f"in {int(good.sum())}; first off by {off.min():.1%} to {off.max():.1%}; per Lyapunov time "
        f"{', '.join(f'{v:.2f}' for v in median)} against "
        f"{', '.join(f'{v:.2f}' for v in true * time * scale)}",
        int(good.sum()) >= needed,
    )

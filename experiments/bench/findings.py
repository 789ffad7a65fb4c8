"""The benchmark's findings: what its measurements say about each claim."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from experiments.shared.findings import Data, Finding

OURS, ALL, PLAIN, LOOP = "jaxrnn", "jaxrnn, all devices", "plain scan", "jaxrnn, loop"
_JAX_PEERS = ("flax", "haiku", "Keras")
_LAYERS = ("shape", "deep", "ragged")
_LARGE = ((256, 64, 128, 256), (512, 32, 512, 512))
_INSTALL = "pip install -e '.[peers]'"
Times = dict[str, dict[str, float]]


class Unmeasured(Finding):
    """A claim that this run did not measure; `measured` says why."""

    __slots__ = ()

    @property
    def verdict(self) -> str:
        """The word that the table prints."""
        return "not measured"


def judge(data: Data) -> list[Finding]:
    """One finding per claim."""
    rows = data["rows"]
    return [
        _judge_agreement(rows),
        _judge_torch(rows),
        *(_judge_peer(rows, name) for name in _JAX_PEERS),
        _judge_forward(rows),
        _judge_gradient(rows),
        _judge_all_devices(rows, data["devices"]),
        _judge_rate(rows),
        _judge_chunks(data["chunks"]),
        _judge_strategies(data["strategies"]),
        _judge_networks(rows, LOOP, 10),
        _judge_networks(rows, PLAIN, 1),
        _judge_compiling(data["compiling"], "gradient", "The gradient", 1.3),
        _judge_compiling(data["compiling"], "train", "A training step", 1.4),
        _judge_flatness(data["compiling"]),
        _judge_lengths(data["lengths"]),
        _judge_memory(data["memory"]),
    ]


def times_of(rows: Iterable[Data], what: str, kinds: tuple[str, ...] = ("shape",)) -> Times:
    """Milliseconds by case and contender, of the rows that were timed."""
    times: Times = {}
    for row in rows:
        if row["pass"] == what and row["kind"] in kinds and "milliseconds" in row:
            times.setdefault(row["case"], {})[row["contender"]] = row["milliseconds"]
    return times


def _judge_agreement(rows: list[Data]) -> Finding:
    compared = [row for row in rows if "difference" in row]
    differing = [row for row in compared if not row["difference"] <= row["allowed"]]
    worst = max((row["difference"] / row["allowed"] for row in compared), default=0.0)
    names = [f"{r['contender']} ({r['case']}, {r['pass']}) {r['status']}" for r in differing]
    return Finding(
        "same",
        "All contenders compute the same.",
        "outputs, gradients and parameters after a step are those of the plain scan, up to "
        "rounding: 32 eps sqrt(terms)",
        "; ".join(names) or f"{len(compared)} results, at most {worst:.2g} of what is allowed",
        not differing,
        required=any(row["contender"].startswith(OURS) for row in differing),
    )


def _judge_torch(rows: list[Data]) -> Finding:
    claim = "A training step is faster than torch.nn.RNN's."
    criterion = (
        "at least 1.5 times as fast at every shape, 3 times in the geometric mean; on one device "
        "or on all, whichever is faster"
    )
    ratios = _ratios(rows, "train", "torch", _faster)
    if not ratios:
        return _unmeasured("torch", claim, criterion, rows)
    others = _ratios(rows, "train", "torch", _faster, ("deep", "ragged"))
    return Finding(
        "torch",
        claim,
        criterion,
        _describe(ratios) + (f"; also {_list(others)}" if others else ""),
        min(ratios.values()) >= 1.5 and _mean(ratios) >= 3,
    )


def _judge_peer(rows: list[Data], peer: str) -> Finding:
    claim = f"A training step is faster than {peer}'s, on one device."
    criterion = "faster at every shape, deep and ragged too"
    ratios = _ratios(rows, "train", peer, kinds=_LAYERS)
    if not ratios:
        return _unmeasured(peer, claim, criterion, rows)
    return Finding(peer, claim, criterion, _describe(ratios), min(ratios.values()) > 1)


def _judge_forward(rows: list[Data]) -> Finding:
    claim = "The forward pass is as fast as the fastest JAX peer's, on one device."
    criterion = (
        "as fast or faster at every shape, deep and ragged too, 1.15 times in the geometric mean; "
        "torch and onnxruntime take twice as long at every shape"
    )
    fastest: dict[str, float] = {}
    for peer in _JAX_PEERS:
        for case, ratio in _ratios(rows, "forward", peer, kinds=_LAYERS).items():
            fastest[case] = min(ratio, fastest.get(case, np.inf))
    if not fastest:
        return _unmeasured("flax", claim, criterion, rows, "forward")
    measured, holds = _describe(fastest), min(fastest.values()) >= 1 and _mean(fastest) >= 1.15
    for other in ("torch", "onnxruntime"):
        if ratios := _ratios(rows, "forward", other, _faster, _LAYERS):
            measured += f"; {other} {min(ratios.values()):.2f} at least"
            holds &= min(ratios.values()) >= 2
    return Finding("forward", claim, criterion, measured, holds)


def _judge_gradient(rows: list[Data]) -> Finding:
    claim = "The gradient is faster than autodiff of the plain scan, on one device."
    criterion = "1.2 times as fast at every shape, 1.5 times in the geometric mean"
    ratios = _ratios(rows, "gradient", PLAIN)
    if not ratios:
        return _unmeasured("gradient", claim, criterion, rows)
    holds = min(ratios.values()) >= 1.2 and _mean(ratios) >= 1.5
    return Finding("gradient", claim, criterion, _describe(ratios), holds)


def _judge_all_devices(rows: list[Data], devices: int) -> Finding:
    claim = f"On all devices ({devices}) the gradient is twice as fast as the plain scan's on one."
    criterion = (
        "2.0 times in the geometric mean over the shapes; one device where the batch does not split"
    )
    ratios = _ratios(rows, "gradient", PLAIN, lambda times: times.get(ALL, times[OURS]))
    if not ratios or not any(ALL in times for times in times_of(rows, "gradient").values()):
        return _unmeasured(ALL, claim, criterion, rows, "devices")
    return Finding("devices", claim, criterion, _describe(ratios), _mean(ratios) >= 2)


def _judge_rate(rows: list[Data]) -> Finding:
    claim = "Large networks run at the rate of one large matrix product, on all devices."
    criterion = (
        "at least 0.9 of the rate of a 2048 x 2048 product timed in turn with it, in the gradient "
        "at " + " and ".join(_name(shape) for shape in _LARGE)
    )
    reached = {
        (row["case"], row["pass"]): (row["fraction"], row["product_gigaflops"])
        for row in rows
        if row["contender"] == ALL and tuple(row["shape"]) in _LARGE and row["kind"] == "shape"
        if "fraction" in row
    }
    judged = [reached.get((_name(shape), "gradient")) for shape in _LARGE]
    if None in judged:
        return Unmeasured("rate", claim, criterion, "not all shapes were timed", False)
    listed = ", ".join(
        f"{case} {what} {value:.2f} of {rate:.0f}"
        for (case, what), (value, rate) in reached.items()
    )
    holds = min(value[0] for value in judged if value is not None) >= 0.9
    return Finding("rate", claim, criterion, f"{listed} GFlop/s", holds)


def _judge_chunks(chunks: list[Data]) -> Finding:
    claim = "On one device the chunk size that unroll chooses is about the best."
    criterion = "the gradient within 1.1 times of the fastest of a sweep of sizes, at every shape"
    if not chunks:
        return Unmeasured("chunk", claim, criterion, "no single layer was timed", False)
    return Finding("chunk", claim, criterion, *_beside_the_best(chunks))


def _judge_strategies(strategies: list[Data]) -> Finding:
    claim = "On one device the strategy that unroll chooses is about the best of the four."
    criterion = (
        "the gradient within 1.1 times of that with the fastest strategy, at every shape; the same "
        "gradient with each, up to rounding"
    )
    if not strategies:
        return Unmeasured("strategy", claim, criterion, "no single layer was timed", False)
    differing = [
        f"{row['case']} differs by {difference:.0e} with {name}, {row['allowed']:.0e} allowed"
        for row in strategies
        for name, difference in row["differences"].items()
        if not difference <= row["allowed"]  # NaN too
    ]
    measured, holds = _beside_the_best(strategies)
    measured = "; ".join([measured, *differing])
    return Finding(
        "strategy", claim, criterion, measured, holds and not differing, required=bool(differing)
    )


def _beside_the_best(rows: list[Data]) -> tuple[str, bool]:
    """The time with `unroll`'s own choice over that with the fastest alternative, by case, and
    whether it is within 1.1 everywhere."""
    listed, ratios = [], []
    for row in rows:
        best = min(row["swept"], key=row["swept"].__getitem__)
        ratios.append(row["own"] / row["swept"][best])
        chosen = f"{row['chosen']} " if "chosen" in row else ""
        listed.append(f"{row['case']} {chosen}{ratios[-1]:.2f} of that with {best}")
    return ", ".join(listed), max(ratios) <= 1.1


def _judge_networks(rows: list[Data], other: str, mark: float) -> Finding:
    claim = "Many networks under vmap are no slower than plain scans under vmap."
    criterion = f"at least {mark:g} times as fast in every pass"
    pick = _ours
    if other == LOOP:
        claim = "Many networks under vmap are faster than a loop over them."
        criterion += "; on one device or, in blocks, on all"
        pick = _faster
    ratios = {
        f"{case} {what}": ratio
        for what in ("forward", "gradient", "train")
        for case, ratio in _ratios(rows, what, other, pick, ("networks",)).items()
    }
    if not ratios:
        return _unmeasured(other, claim, criterion, rows, "networks")
    holds = min(ratios.values()) >= mark
    return Finding("networks", claim, criterion, f"{_list(ratios)} times", holds)


def _judge_compiling(compiling: list[Data], what: str, claim: str, most: float) -> Finding:
    ratios = {
        row["case"]: row[what][OURS] / row[what][PLAIN] for row in compiling if not row["scaled"]
    }
    return Finding(
        "compiling",
        f"{claim} compiles about as fast as the plain scan's.",
        f"within {most} times at every shape, and for the deep network",
        f"{_list(ratios)} times",
        max(ratios.values()) <= most,
    )


def _judge_flatness(compiling: list[Data]) -> Finding:
    scaled = {row["steps"]: row["gradient"] for row in compiling if row["scaled"]}
    ours = {steps: seconds[OURS] for steps, seconds in scaled.items()}
    plain = {steps: seconds[PLAIN] for steps, seconds in scaled.items()}
    growth = max(ours.values()) / min(ours.values())
    return Finding(
        "compiling",
        "Compile time does not depend on T.",
        "within 1.5 times over all lengths",
        f"{growth:.2f} times: {_list_lengths(ours)} s; plain scan {_list_lengths(plain)} s",
        growth <= 1.5,
    )


def _judge_lengths(lengths: Data) -> Finding:
    steps: dict[int, dict[int, float]] = {}
    for row in lengths["rows"]:
        steps.setdefault(row["bytes"], {})[row["length"]] = row["microseconds_per_step"]
    claim = "The gradient's time per step does not grow with T, whatever the size of an output."
    *_, shorter, longest = [0, *sorted({row["length"] for row in lengths["rows"]})]
    criterion = f"at T = {longest:,} within 1.1 times of that at {shorter:,}"
    listed = "; ".join(f"{size} bytes {_list_lengths(times)}" for size, times in steps.items())
    listed = f"microseconds by bytes of an output: {listed}"
    if not shorter:
        return Unmeasured("long", claim, criterion, f"{listed}: one length", False)
    if lengths["stopped"]:
        measured = (
            f"quadratic in T: {listed}; longer ones are omitted. jaxlib 0.11.1 on CPU rewrites "
            "all outputs at every step (jax issue 40101)"
        )
        return Finding("long", claim, criterion, measured, False)
    growth = {size: times[longest] / times[shorter] for size, times in steps.items()}
    ratios = ", ".join(f"{ratio:.2f}" for ratio in growth.values())
    return Finding(
        "long", claim, criterion, f"{ratios} times; {listed}", max(growth.values()) <= 1.1
    )


def _judge_memory(memory: Data) -> Finding:
    megabytes, seconds = memory["megabytes"], memory["seconds"]
    return Finding(
        "memory",
        f"In chunks, recomputed, the gradient of {memory['case']} and a readout needs less memory.",
        "at most a tenth of the plain scan's temporary memory and 1.5 times its time; the same "
        "gradient, up to rounding",
        f"{megabytes[OURS]:.3g} against {megabytes[PLAIN]:.4g} MB, {seconds[OURS]:.2g} against "
        f"{seconds[PLAIN]:.2g} s; the gradients differ by {memory['difference']:.0e}, "
        f"{memory['allowed']:.0e} allowed",
        10 * megabytes[OURS] <= megabytes[PLAIN]
        and seconds[OURS] <= 1.5 * seconds[PLAIN]
        and memory["difference"] <= memory["allowed"],
    )


def _ours(times: dict[str, float]) -> float:
    return times[OURS]


def _faster(times: dict[str, float]) -> float:
    return min(times[OURS], times.get(ALL, np.inf))


def _ratios(
    rows: list[Data],
    what: str,
    other: str,
    pick: Callable[[dict[str, float]], float] = _ours,
    kinds: tuple[str, ...] = ("shape",),
) -> dict[str, float]:
    """The other's time over the library's, by case, where both were timed."""
    return {
        case: times[other] / pick(times)
        for case, times in times_of(rows, what, kinds).items()
        if other in times and OURS in times
    }


def _unmeasured(
    contender: str, claim: str, criterion: str, rows: list[Data], name: str = ""
) -> Finding:
    """A finding on a contender that was not timed, with the reason."""
    reasons = dict.fromkeys(
        row["status"] for row in rows if row["contender"] == contender and "milliseconds" not in row
    )
    reason = "; ".join(reasons) or "not part of this run"
    hint = f": {_INSTALL}" if reason == "not installed" else ""
    return Unmeasured(name or contender, claim, criterion, reason + hint, False)


def _mean(ratios: dict[str, float]) -> float:
    return float(np.exp(np.mean(np.log(list(ratios.values())))))


def _describe(ratios: dict[str, float]) -> str:
    return f"{_mean(ratios):.2f} times in the geometric mean: {_list(ratios)}"


def _list(ratios: dict[str, float]) -> str:
    return ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())


def _list_lengths(values: dict[int, float]) -> str:
    return ", ".join(f"{value:.2g} at {length:,}" for length, value in sorted(values.items()))


def _name(shape: Any) -> str:
    return ",".join(str(size) for size in shape)

"""The findings of `gradients`, and the statistic that they share with its figure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from experiments.shared.findings import Data, Finding

_WHEN = ("before", "after")


def judge(data: Data) -> list[Finding]:
    """The findings of `gradients`."""
    before, after = (_grow(data, when) for when in ("before", "after"))
    slower = float(np.mean(after > before))
    loss, right = ([float(data[when][name]) for when in _WHEN] for name in ("loss", "right"))
    return [
        *(_judge_exponent(data, when) for when in _WHEN),
        Finding(
            "decay",
            "Training makes the gradient decay more slowly with the lag.",
            "its norm grows more, or falls less, on at least 90 % of the sequences",
            f"on {slower:.0%}; {spread(before)[1]:+.3f} nats per step before, "
            f"{spread(after)[1]:+.3f} after",
            slower >= 0.9,
        ),
        Finding(
            "task",
            f"{data['train_steps']} steps teach the task ({data['task']}, {data['length']}).",
            "the loss on fresh sequences ends below that of the best answers without memory",
            f"{loss[0]:.3g} before, {loss[1]:.3g} after, without memory {data['blind_loss']:.3g}; "
            f"right {right[0]:.1%} and {right[1]:.1%}",
            loss[1] < data["blind_loss"],
        ),
    ]


def _judge_exponent(data: Data, when: str) -> Finding:
    exponents = np.asarray(data[when]["exponents"])
    growth, largest = _grow(data, when), exponents[:, 0]
    lags = np.shape(data[when]["gradients"])[1] - 2 - data["aligning"]
    allowed = math.log(exponents.shape[1]) / 2 / lags + 1e-4  # plus rounding of float32
    with np.errstate(invalid="ignore"):
        apart = float(spread(np.abs(growth - largest))[1])
    return Finding(
        f"exponent {when}",
        f"The largest Lyapunov exponent predicts how the gradient changes with the lag, {when} "
        "training.",
        f"they differ by at most log(N) / 2 = {allowed * lags:.2f} nats over {lags} steps, "
        f"{allowed:.3f} per step, in the median sequence",
        f"differ by {apart:.3f} per step; exponent {spread(largest)[1]:+.3f}, gradient "
        f"{spread(growth)[1]:+.3f}",
        apart <= allowed,
    )


def _grow(data: Data, when: str) -> np.ndarray:
    """How the gradient's norm grows with the lag, [B], in nats per step: from lag 1 back to where
    the exponents begin."""
    gradients = np.asarray(data[when]["gradients"])
    last = gradients.shape[1] - 1 - data["aligning"]
    with np.errstate(invalid="ignore"):  # if the gradient is zero at both
        return (gradients[:, last] - gradients[:, 1]) / (last - 1)


def spread(values: Any) -> np.ndarray:
    """The 10 % quantile, the median and the 90 % quantile over the leading axis, [3, ...]. They are
    values that occur, so that an infinite one does not affect the others."""
    ranked = np.sort(np.asarray(values), axis=0)
    return ranked[[round(part * (len(ranked) - 1)) for part in (0.1, 0.5, 0.9)]]

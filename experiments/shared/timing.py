"""One clock for all experiments: seconds until the output of a call is ready."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

Call = Callable[[], Any]


def time_once(call: Call) -> float:
    """Seconds of one call, until its output is ready."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def time_in_turn(*calls: Call, repeats: int) -> list[float]:
    """Median seconds of each call over rounds of one call each, after a round that does not count.

    Interleaved, so that what else the machine does slows all of them alike.
    """
    for call in calls:
        jax.block_until_ready(call())
    rounds = [[time_once(call) for call in calls] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]

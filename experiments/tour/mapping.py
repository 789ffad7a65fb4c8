"""Many sequences at once: ``vmap`` gives what a loop over them gives, and faster.

Claim 6: mapping one compiled call over thousands of sequences gives the states that a Python loop
of the compiled call for one sequence gives. Refuted by a difference beyond rounding. How many times
faster it is, is measured beside it: both compiled, warmed up, interleaved and blocked on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.output import Data, Finding, Tick
from jaxrnn import init_rnn, unroll


@dataclass(frozen=True)
class Config:
    """Claim 6."""

    num_sequences: int = 4096
    """Sequences."""
    num_steps: int = 50
    """T of each."""
    input_size: int = 1
    """Input features."""
    hidden_size: int = 16
    """Hidden units."""
    repeats: int = 5
    """Timings of each; the median counts."""


def measure(config: Config, seed: int, tick: Tick) -> Data:
    """Compare the mapped call with the loop, in values and in time."""
    key_params, key_xs = jax.random.split(jax.random.key(seed))
    params = init_rnn(key_params, config.input_size, config.hidden_size)
    shape = (config.num_sequences, config.num_steps, config.input_size)
    batch = jax.random.normal(key_xs, shape)
    # Cut outside the clock: the loop is charged for its calls alone.
    sequences = [jnp.asarray(xs) for xs in np.asarray(batch)]

    def states(xs: jax.Array) -> jax.Array:
        return unroll(params, None, xs)[1]

    one, many = jax.jit(states), jax.jit(jax.vmap(states))

    def loop() -> list[jax.Array]:
        return jax.block_until_ready([one(xs) for xs in sequences])

    def mapped() -> jax.Array:
        return jax.block_until_ready(many(batch))

    tick(0.0, "one call against a loop")
    looped = np.stack([np.asarray(states) for states in loop()])
    difference = float(np.max(np.abs(np.asarray(mapped()) - looped)))
    tick(0.3, "timing both")
    times = [(_seconds(loop), _seconds(mapped)) for _ in range(config.repeats)]
    loop_seconds, mapped_seconds = (float(np.median(column)) for column in zip(*times, strict=True))
    terms = config.num_steps * (config.input_size + config.hidden_size)
    return {
        "sequences": config.num_sequences,
        "difference": difference,
        "tolerance": float(jnp.finfo(jnp.float32).eps) * math.sqrt(terms),
        "loop_seconds": loop_seconds,
        "mapped_seconds": mapped_seconds,
    }


def judge(data: Data) -> list[Finding]:
    """The findings of claim 6."""
    speedup = data["loop_seconds"] / data["mapped_seconds"]
    return [
        Finding(
            "6",
            f"vmap over {data['sequences']:,} sequences gives what a loop over them gives.",
            f"max difference <= {data['tolerance']:.1e} = eps sqrt(T (D + H)), float32",
            f"max difference {data['difference']:.1e}",
            data["difference"] <= data["tolerance"],
            required=True,
        ),
        Finding(
            "6 speed",
            "The mapped call is faster than the loop of compiled calls.",
            "the loop takes longer than the mapped call, median of the timings",
            f"{speedup:.0f} times: {1e3 * data['mapped_seconds']:.1f} ms "
            f"against {1e3 * data['loop_seconds']:.0f} ms",
            speedup > 1,
        ),
    ]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

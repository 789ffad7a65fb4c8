"""Many sequences at once: ``vmap`` gives what a loop over them gives, and faster.

Claim 6: mapping one compiled call over thousands of sequences gives the states that a Python loop
of the compiled call for one sequence gives, and is faster. Refuted by a difference beyond rounding
or by the times: both compiled, warmed up, interleaved, and measured until the output is ready.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.findings import Data, Finding
from experiments.shared.output import Tick
from experiments.shared.timing import time_in_turn
from jaxrnn import init_rnn, unroll


@dataclass(frozen=True)
class Config:
    """Claim 6."""

    num_sequences: int = 4096
    """Number of sequences."""
    num_steps: int = 50
    """T, the time steps of each sequence."""
    input_size: int = 1
    """Input features."""
    hidden_size: int = 16
    """Hidden units."""
    repeats: int = 5
    """Timings of the call and of the loop; the medians are compared."""


def measure(config: Config, seed: int, tick: Tick) -> Data:
    """Compare the mapped call with the loop, in values and in time."""
    key_params, key_xs = jax.random.split(jax.random.key(seed))
    params = init_rnn(key_params, config.input_size, config.hidden_size)
    shape = (config.num_sequences, config.num_steps, config.input_size)
    batch = jax.random.normal(key_xs, shape)
    # Cut beforehand, so that the loop is timed for its calls alone.
    sequences = [jnp.asarray(xs) for xs in np.asarray(batch)]

    def states(xs: jax.Array) -> jax.Array:
        return unroll(params, None, xs)[1]

    one, many = jax.jit(states), jax.jit(jax.vmap(states))

    def loop() -> list[jax.Array]:
        return [one(xs) for xs in sequences]

    tick(0.0, "one call against a loop")
    difference = float(np.max(np.abs(np.asarray(many(batch)) - np.stack(loop()))))
    tick(0.3, "timing both")
    loop_seconds, mapped_seconds = time_in_turn(loop, lambda: many(batch), repeats=config.repeats)
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

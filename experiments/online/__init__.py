"""Networks that learn while they run: gradients forward in time beside truncated back-propagation.

Claims: on streams whose rule changes every 20,000 steps without a sign of it, real-time recurrent
learning (RTRL) errs less than truncated back-propagation that costs no more per step, and recovers
sooner after a change; where what matters lies further back than a truncated gradient reaches, that
one learns nothing, and RTRL learns; a gradient of RTRL takes less time than braintrace's exact one.
Refuted by the errors, by the times to recover, and by the clock.

All learners train the same vanilla network by Adam on clipped gradients, and each makes its guess
before it sees the target. The learning rate of each, on each stream, is the one of three with the
least error on other streams of the kind. BPTT(h) goes back h steps from each error and updates at
each step; BPTT(h; h) goes through windows of h steps and updates after each (Williams & Peng 1990).
Costs are times of one stream, all learners in turn.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.online.costs import measure_costs, time_learners
from experiments.online.findings import judge, write_table
from experiments.online.learners import FEW, Learner, make_learners
from experiments.online.streams import Signals, delayed_xor, drifting_sine
from experiments.shared.findings import Data, Result
from experiments.shared.options import Positive, RunConfig
from experiments.shared.output import Tick
from jaxrnn import Key

_RATES = (1e-3, 3e-3, 1e-2)
_DELAYS = ((1, 3), (2, 5), (1, 4), (3, 6))
_BLOCK = 200  # steps that one point of an error curve is the mean of
_TIMED = 2000


@dataclass(frozen=True)
class Config(RunConfig):
    """The options of `online`."""

    hidden_size: Positive = 16
    """Units of every network that learns."""
    rule_steps: Positive = 20_000
    """Steps from one change of the rule to the next; a multiple of 200."""
    seeds: Positive = 5
    """Streams and networks of each kind."""
    delays: tuple[Positive, ...] = (2, 4, 6, 8, 10)
    """The shorter delay of the products of two signs; the longer is two steps more."""
    delay_steps: Positive = 60_000
    """Steps of each stream of one such delay."""
    sizes: tuple[Positive, ...] = (8, 16, 32, 64, 128)
    """Units of the networks whose gradients are timed."""
    repeats: Positive = 7
    """Rounds of timing."""
    quick: bool = False
    """A tenth of the steps, and two seeds."""


Draw = Callable[[Key], Signals]


def run(config: Config, progress: Tick) -> Result:
    """Learn the streams that change, then those of growing delays, then time the gradients."""
    if config.quick:
        config = dataclasses.replace(
            config, rule_steps=2000, delay_steps=6000, seeds=2, delays=(2, 6), sizes=(8, 32)
        )
    learners = make_learners(config.hidden_size)
    data: Data = {
        "units": config.hidden_size,
        "rules": len(_DELAYS),
        "block": _BLOCK,
        "streams": {},
    }
    for number, (name, draw) in enumerate(_streams(config).items()):
        found = {}
        for place, learner in enumerate(learners):
            progress((number + place / len(learners)) / 3, f"{name}: {learner.name}")
            found[learner.name] = _learn(config, learner, draw) | {"window": learner.window}
        data["streams"][name] = found
    timed = delayed_xor(jax.random.key(config.seed), _DELAYS[:1], _TIMED)
    data["microseconds"] = time_learners(learners, timed, config.repeats)
    few = [learner for learner in learners if learner.name in FEW]
    data["delays"] = {learner.name: [] for learner in few}
    for number, delay in enumerate(config.delays):
        progress(2 / 3 + 0.3 * number / len(config.delays), f"delay {delay}")
        for learner in few:
            error = _learn(config, learner, _of_delay(delay, config.delay_steps))["error"]
            data["delays"][learner.name].append(error[:, -len(error[0]) // 10 :].mean(1))
    data["delay"] = config.delays
    progress(0.97, "costs")
    data["costs"] = measure_costs(config.sizes, config.repeats)
    return Result(data, judge(data), write_table(data))


def _streams(config: Config) -> dict[str, Draw]:
    steps = config.rule_steps // _BLOCK * _BLOCK

    def draw_xor(key: Key) -> Signals:
        return delayed_xor(key, _DELAYS, steps)

    def draw_sine(key: Key) -> Signals:
        return drifting_sine(key, len(_DELAYS), steps)

    return {"xor": draw_xor, "sine": draw_sine}


def _of_delay(delay: int, steps: int) -> Draw:
    def draw(key: Key) -> Signals:
        return delayed_xor(key, [(delay, delay + 2)], steps // _BLOCK * _BLOCK)

    return draw


@functools.cache
def _compile(learner: Learner) -> Callable[..., Any]:
    """Its program over streams side by side, for streams of all kinds."""
    return jax.jit(jax.vmap(learner.learn, in_axes=(0, 0, None)))


def _learn(config: Config, learner: Learner, draw: Draw) -> Data:
    """The errors [seeds, blocks] with the rate that is best on other streams, and that rate."""
    keys = jax.random.split(jax.random.key(config.seed), 2 * config.seeds)
    streams = jax.jit(jax.vmap(draw))(keys)
    learn = _compile(learner)

    def errors_of(seeds: slice, rate: float) -> np.ndarray:
        part: Any = jax.tree.map(lambda leaf: leaf[seeds], streams)
        errors = np.asarray(learn(keys[seeds], part, jnp.float32(rate)))
        return errors.reshape(len(errors), -1, _BLOCK).mean(2)

    others, own = slice(config.seeds, None), slice(config.seeds)
    tried = [float(errors_of(others, rate).mean()) for rate in _RATES]
    best = int(np.argmin(tried))
    return {"error": errors_of(own, _RATES[best]), "rate": _RATES[best], "tried": tried}

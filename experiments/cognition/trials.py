"""Ten tasks of cognitive neuroscience, as sequences of inputs and wanted outputs.

A trial has 100 time steps of 20 ms. The network reads a fixation signal, two rings of 16 units that
are tuned to directions (two modalities), and one unit per task, its rule; every input has noise at
every step. It puts out fixation and a ring of 16 units. While the fixation input is 1, it fixates;
when that ends (the go), it responds by the direction that the task asks for, or goes on fixating.

The layout and the rule inputs are those of Yang, Joglekar, Song, Newsome & Wang 2019, "Task
representations in neural networks trained to perform many cognitive tasks"; each task names the
experiment that it is modelled on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import Array, Key

NUM_STEPS = 100
RING = 16
NOISE = 0.3  # standard deviation of every input at every step
COHERENCES = (0.04, 0.08, 0.16, 0.32)
GRACE = 5  # steps after the go, or after the onset of a trial, that are not scored

_STRENGTH, _WIDTH = 0.8, math.pi / 8
_FIRST = (10, 40)  # steps of the first stimulus; in decisions the only one
_SECOND = (60, 80)
_GO = (80, 86)  # the go comes at one of these steps
_PULSE, _REFERENCE, _INTERVALS = 5, 35, (20, 25, 30, 40, 45, 50)


class Trials(NamedTuple):
    """A batch of trials [B] of one task.

    xs [T, B, D] without noise. go [B]: the step of the go. direction [B]: the angle that is right,
    NaN where fixating is. evidence [B]: signed, in favour of the first of two choices; 0 where
    nothing is uncertain. ideal [B]: how often an ideal observer of the noisy inputs is right.
    """

    xs: Array
    go: Array
    direction: Array
    evidence: Array
    ideal: Array


class Scene(NamedTuple):
    """What is drawn for each trial of any task: directions, a sign, a coherence and a go, [B]."""

    angle: Array
    sign: Array
    coherence: Array
    other: Array  # the sign of what does not count
    go: Array
    interval: Array


def draw_trials(task: str, key: Key, size: int) -> Trials:
    """Random trials of a task, without noise."""
    return make_trials(task, draw_scenes(key, size))


def draw_scenes(key: Key, size: int) -> Scene:
    """Random scenes, which make trials of any task."""
    # All from one draw: every call of a random generator takes about half a second to compile.
    uniform = jax.random.uniform(key, (7, size))

    def choose(row: int, values: Sequence[float]) -> Array:
        return jnp.asarray(values)[(uniform[row] * len(values)).astype(int)]

    return Scene(
        2 * math.pi * uniform[0],
        choose(1, (-1.0, 1.0)),
        choose(2, COHERENCES),
        choose(3, (-1.0, 1.0)) * choose(4, COHERENCES),
        choose(5, range(*_GO)),
        choose(6, _INTERVALS),
    )


def make_trials(task: str, scene: Scene) -> Trials:
    """The trials of a task in given scenes."""
    rings, direction, evidence, deviation = TASKS[task](scene)
    fixation = (_times() < scene.go)[..., None].astype(jnp.float32)
    rule = jnp.broadcast_to(
        jax.nn.one_hot(list(TASKS).index(task), len(TASKS)), (*fixation.shape[:2], len(TASKS))
    )
    xs = jnp.concatenate([fixation, *rings, rule], axis=-1)
    known = evidence == 0
    d = jnp.where(known, jnp.inf, jnp.abs(evidence) / deviation)
    return Trials(xs, scene.go, direction, evidence, jax.scipy.stats.norm.cdf(d))


def add_input_noise(trials: Trials, key: Key) -> Trials:
    """The trials with noise on every input but the rule."""
    seen = 1 + 2 * RING
    noise = NOISE * jax.random.normal(key, (*trials.xs.shape[:2], seen))
    return trials._replace(xs=trials.xs.at[..., :seen].add(noise))


def wanted_outputs(trials: Trials) -> tuple[Array, Array]:
    """The outputs [T, B, 1 + RING] that are right, and the weight [T, B] of their errors."""
    responds = ~jnp.isnan(trials.direction)
    after = _times() >= trials.go
    moving = after & responds
    fixation = jnp.where(moving, 0.05, 0.85)[..., None]
    bump = _bump(jnp.where(responds, trials.direction, 0.0))
    ring = 0.05 + jnp.where(moving[..., None], bump[None], 0.0)
    in_grace = (_times() < GRACE) | (after & (_times() < trials.go + GRACE))
    weights = jnp.where(in_grace, 0.0, jnp.where(after, 5.0, 1.0))
    return jnp.concatenate([fixation, ring], axis=-1), weights


def score(trials: Trials, ys: Array) -> tuple[Array, Array]:
    """Which trials [B] are right, and the directions [B] of the responses.

    A response is the direction of the population vector over the last five steps, and right within
    36 degrees of what is wanted; fixation must not be broken before the go.
    """
    fixating = ys[..., 0] > 0.5
    before = (_times() >= GRACE) & (_times() < trials.go)
    held = jnp.all(fixating | ~before, axis=0)
    ring = jnp.mean(ys[-5:, :, 1:], axis=0)
    angles = jnp.asarray(_preferred(), ring.dtype)
    response = jnp.arctan2(ring @ jnp.sin(angles), ring @ jnp.cos(angles))
    stays = jnp.mean(ys[-5:, :, 0], axis=0) > 0.5
    off = jnp.abs(_wrap(response - trials.direction))
    responded = ~stays & (off < math.pi / 5)  # False for NaN
    right = jnp.where(jnp.isnan(trials.direction), stays, responded)
    return held & right, response


# The tasks: the two rings [T, B, RING], the right direction, the evidence, and the standard
# deviation of an ideal observer's estimate of it.

Rings = tuple[Array, Array]
Task = Callable[[Scene], tuple[Rings, Array, Array, Array]]


def _go_task(scene: Scene) -> tuple[Rings, Array, Array, Array]:
    """Look where the stimulus is, as soon as fixation ends."""
    shown = _show(scene.angle, 1.0, _FIRST[0], NUM_STEPS)
    return _certain((shown, _nothing(scene)), scene.angle)


def _anti(scene: Scene) -> tuple[Rings, Array, Array, Array]:
    """Look away from the stimulus (Munoz & Everling 2004)."""
    shown = _show(scene.angle, 1.0, _FIRST[0], NUM_STEPS)
    return _certain((shown, _nothing(scene)), scene.angle + math.pi)


def _delayed(scene: Scene) -> tuple[Rings, Array, Array, Array]:
    """Look where the stimulus was (Funahashi, Bruce & Goldman-Rakic 1989)."""
    return _certain((_show(scene.angle, 1.0, *_FIRST), _nothing(scene)), scene.angle)


def _decision(scene: Scene) -> tuple[Rings, Array, Array, Array]:
    """Look where the stronger of two stimuli was (Gold & Shadlen 2007)."""
    return _decide(scene, (scene.sign * scene.coherence, None), 1)


def _context(counts: int) -> Task:
    """Both modalities show two stimuli; only one of them counts (Mante et al. 2013)."""

    def task(scene: Scene) -> tuple[Rings, Array, Array, Array]:
        shown = scene.sign * scene.coherence, scene.other
        return _decide(scene, shown if counts == 0 else shown[::-1], 1)

    return task


def _integration(scene: Scene) -> tuple[Rings, Array, Array, Array]:
    """Both modalities show the same decision (Raposo, Kaufman & Churchland 2014)."""
    return _decide(scene, (scene.sign * scene.coherence,) * 2, 2)


def _comparison(scene: Scene) -> tuple[Rings, Array, Array, Array]:
    """Was the first of two stimuli stronger (Romo, Brody, Hernandez & Lemus 1999)?"""
    evidence = scene.sign * scene.coherence
    first = _show(scene.angle, 1 + evidence, *_FIRST)
    second = _show(scene.angle, 1 - evidence, *_SECOND)
    both = sum(1 / _span(steps) for steps in (_FIRST, _SECOND))
    deviation = _deviation(1) * math.sqrt(both * _span(_FIRST) / 2)
    rings = first + second, _nothing(scene)
    return rings, _either(scene, scene.sign), evidence, jnp.asarray(deviation)


def _match(scene: Scene) -> tuple[Rings, Array, Array, Array]:
    """Respond only if the second stimulus is the first one again (Freedman & Assad 2016)."""
    again = jnp.where(scene.sign > 0, scene.angle, scene.angle + math.pi)
    shown = _show(scene.angle, 1.0, *_FIRST) + _show(again, 1.0, *_SECOND)
    direction = jnp.where(scene.sign > 0, scene.angle, jnp.nan)
    return _certain((shown, _nothing(scene)), direction)


def _timing(scene: Scene) -> tuple[Rings, Array, Array, Array]:
    """Was the interval between two pulses long (Leon & Shadlen 2003)?"""
    first = _show(scene.angle, 1.0, _FIRST[0], _FIRST[0] + _PULSE)
    start = _FIRST[0] + scene.interval
    second = _show(scene.angle, 1.0, start, start + _PULSE)
    longer = jnp.where(scene.interval > _REFERENCE, 1.0, -1.0)
    return _certain((first + second, _nothing(scene)), _either(scene, longer))


TASKS: dict[str, Task] = {
    "go": _go_task,
    "anti": _anti,
    "delayed response": _delayed,
    "decision": _decision,
    "context 1": _context(0),
    "context 2": _context(1),
    "integration": _integration,
    "comparison": _comparison,
    "match to sample": _match,
    "interval": _timing,
}
"""The tasks, by name."""

INPUTS, OUTPUTS = 1 + 2 * RING + len(TASKS), 1 + RING


def _decide(
    scene: Scene, shown: tuple[Array, Array | None], counted: int
) -> tuple[Rings, Array, Array, Array]:
    """Two opposite stimuli whose strengths differ, in one modality or both; the sign counts."""
    rings = tuple(
        _nothing(scene)
        if evidence is None
        else _show(scene.angle, 1 + evidence, *_FIRST)
        + _show(scene.angle + math.pi, 1 - evidence, *_FIRST)
        for evidence in shown
    )
    evidence = scene.sign * scene.coherence
    deviation = jnp.asarray(_deviation(counted))
    return (rings[0], rings[1]), _either(scene, scene.sign), evidence, deviation


def _certain(rings: Rings, direction: Array) -> tuple[Rings, Array, Array, Array]:
    nothing = jnp.zeros_like(direction)
    return rings, direction, nothing, jnp.ones_like(direction)


def _either(scene: Scene, sign: Array) -> Array:
    return jnp.where(sign > 0, scene.angle, scene.angle + math.pi)


def _deviation(modalities: int) -> float:
    """The standard deviation with which an ideal observer of the ring knows half the difference of
    two stimuli's strengths: from each step the projection on the bump."""
    energy = float(np.sum((_STRENGTH * np.exp(-0.5 * (_wrapped() / _WIDTH) ** 2)) ** 2))
    return NOISE / math.sqrt(2 * _span(_FIRST) * energy * modalities)


def _span(steps: tuple[int, int]) -> int:
    return steps[1] - steps[0]


def _show(angle: Array, strength: Array | float, start: Array | int, stop: Array | int) -> Array:
    """A bump of activity at `angle` [B] from `start` to `stop`: [T, B, RING]."""
    on = (_times() >= start) & (_times() < stop)
    shown = on * jnp.broadcast_to(jnp.asarray(strength), angle.shape)
    return shown[..., None] * _bump(angle)[None]


def _bump(angle: Array) -> Array:
    apart = _wrap(angle[:, None] - jnp.asarray(_preferred(), jnp.float32)[None])
    return _STRENGTH * jnp.exp(-0.5 * (apart / _WIDTH) ** 2)


def _nothing(scene: Scene) -> Array:
    return jnp.zeros((NUM_STEPS, len(scene.angle), RING))


def _times() -> Array:
    return jnp.arange(NUM_STEPS)[:, None]


def _preferred() -> np.ndarray:
    return 2 * math.pi * np.arange(RING) / RING


def _wrapped() -> np.ndarray:
    return (_preferred() + math.pi) % (2 * math.pi) - math.pi


def _wrap(angle: Array) -> Array:
    """The angle in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi

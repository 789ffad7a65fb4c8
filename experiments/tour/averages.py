"""The exponentially weighted moving average is the step without its tanh, and time plays no part.

Claim 3: with the identity as activation, ``w = alpha``, ``u = 1 - alpha`` and no bias, the step is
the exponentially weighted moving average ``v_t = alpha v_{t-1} + (1 - alpha) x_t``. Refuted by a
difference beyond rounding from that average written in NumPy. So is a leaky unit's state, of its
inputs, where the leak is ``1 - alpha``. The two weights, learned from data,
are those two numbers: refuted if they are off by more than 0.001. With tanh they can only
approximate the average: refuted if the remaining error is as small as the identity's.

Claim 4: the weights do not depend on time. Refuted if two weights learned on short sequences lose
the average on sequences a hundred times as long: if the error grows with time once the average,
which starts at zero, has reached the level of the series.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.findings import Data, Finding
from experiments.shared.output import Tick
from jaxrnn import (
    Activation,
    Array,
    Key,
    Params,
    RNNParams,
    init_train_state,
    make_train_step,
    train_steps,
    unroll,
    vanilla_rnn,
)

_ACTIVATIONS: dict[str, Activation] = {"identity": jax.nn.identity, "tanh": jnp.tanh}
_WEIGHT_TOLERANCE = 1e-3
_ERROR_TOLERANCE = 1e-5
_FLAT_RATIO = 1.25
SPAN = 100  # steps over which errors are averaged; five time constants of the longest average


@dataclass(frozen=True)
class Config:
    """Claims 3 and 4."""

    alphas: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
    """The averages to learn."""
    seeds: int = 5
    """Networks trained for each alpha and activation."""
    train_length: int = 20
    """Time steps of a training sequence."""
    test_length: int = 2000
    """Time steps of a test sequence."""
    test_sequences: int = 128
    """Test sequences."""
    train_steps: int = 1500
    """Training steps."""
    batch_size: int = 64
    """Sequences per training step."""
    learning_rate: float = 0.03
    """Adam's initial learning rate; it falls to 0 along a cosine."""
    noise: float = 0.5
    """Standard deviation of the noise on the series, a slow sine of amplitude 1."""


def measure(config: Config, seed: int, tick: Tick) -> Data:
    """Check the exact average, learn it, and test the learned weights on long sequences."""
    key_exact, key_train, key_test = jax.random.split(jax.random.key(seed), 3)
    tick(0.0, "the average itself")
    with jax.enable_x64(True):
        exact = _measure_exactness(config, key_exact)
    xs = _draw_series(key_test, config, config.test_length, config.test_sequences)
    targets = np.stack([_average(np.asarray(xs), alpha) for alpha in config.alphas])
    networks = {}
    for part, (name, activation) in enumerate(_ACTIVATIONS.items()):
        tick(0.1 + 0.45 * part, f"learning the two weights, {name}")
        weights = _learn(config, activation, key_train)
        outputs = _outputs(weights, xs, activation)
        errors = outputs - targets[:, None, :, :]
        networks[name] = {
            "w": weights.w_hh[..., 0, 0],  # [alphas, seeds]
            "u": weights.w_ih[..., 0, 0],
            "rms_error": np.sqrt(np.mean(errors**2, axis=(1, 3, 4))),  # [alphas, T]
            "example": outputs[:, 0, :, 0, 0],  # [alphas, T]
        }
    return {
        "alphas": config.alphas,
        "train_length": config.train_length,
        "exact": exact,
        "networks": networks,
        "rms_average": np.sqrt(np.mean(targets**2, axis=(2, 3))),
        "example": {"xs": xs[:, 0, 0], "average": targets[:, :, 0, 0]},
    }


def judge(data: Data) -> list[Finding]:
    """The findings of claims 3 and 4."""
    exact = data["exact"]
    alphas = np.asarray(data["alphas"])[:, None]
    networks = data["networks"]
    off = {
        name: (
            float(np.max(np.abs(net["w"] - alphas))),
            float(np.max(np.abs(net["u"] + alphas - 1))),
        )
        for name, net in networks.items()
    }
    identity, tanh = (measure_settled_error(data, name) for name in _ACTIVATIONS)
    average = "The exponentially weighted moving average"
    return [
        Finding(
            "3",
            f"{average} is this step with the identity, w = alpha, u = 1 - alpha, no bias.",
            f"within {exact['tolerance']:.1e} = eps / (1 - alpha) of NumPy's, float64",
            f"max difference {exact['difference']:.1e} over {len(data['rms_average'][0])} steps, "
            "plain and bias-corrected",
            exact["difference"] <= exact["tolerance"],
            required=True,
        ),
        _judge_leaky(exact),
        Finding(
            "3 learned",
            "Its two weights are learned from data.",
            f"every network's w and u are within {_WEIGHT_TOLERANCE} of alpha and 1 - alpha",
            f"identity: w off by at most {off['identity'][0]:.0e}, u by {off['identity'][1]:.0e} "
            f"({np.size(networks['identity']['w'])} networks)",
            max(off["identity"]) <= _WEIGHT_TOLERANCE,
        ),
        Finding(
            "3 tanh",
            "With tanh the average is only approximated.",
            f"the error is above {_ERROR_TOLERANCE} of the average's RMS for every alpha",
            f"RMS error {_describe_percents(tanh)} of the average's RMS "
            f"(alpha {_describe_range(data['alphas'])}); w off by up to {off['tanh'][0]:.2f}, "
            f"u by {off['tanh'][1]:.2f}",
            bool(np.min(tanh) > _ERROR_TOLERANCE),
        ),
        _judge_time(data, identity),
    ]


def _judge_leaky(exact: Data) -> Finding:
    return Finding(
        "3 leaky",
        "A leaky linear unit that nothing but its input reaches is the average of its inputs.",
        f"leak 1 - alpha, w = 0, u = 1: within {exact['tolerance']:.1e} of NumPy's, float64",
        f"max difference {exact['leaky']:.1e}",
        exact["leaky"] <= exact["tolerance"],
        required=True,
    )


def _judge_time(data: Data, identity: np.ndarray) -> Finding:
    """The finding of claim 4."""
    seen = data["train_length"]
    errors = [network["rms_error"] for network in data["networks"].values()]
    settled = [divide_errors(each, SPAN, 2 * SPAN) for each in errors]
    early = [divide_errors(each, 0, seen) for each in errors]
    length = len(errors[0][0])
    return Finding(
        "4",
        f"The weights do not depend on time: learned on {seen} steps, they hold on {length:,}.",
        f"the error of the last {SPAN} steps is at most {_FLAT_RATIO} times that of steps "
        f"{SPAN + 1} to {2 * SPAN}, and the identity's at most {_ERROR_TOLERANCE} of the average",
        f"ratio at most {max(map(np.max, settled)):.2f}; identity's error {np.max(identity):.0e} "
        f"of the average. Ratio to steps 1 to {seen}, while the average fills up from zero: "
        f"identity {_describe_range(early[0])}, tanh {_describe_range(early[1])}",
        max(map(np.max, settled)) <= _FLAT_RATIO and bool(np.max(identity) <= _ERROR_TOLERANCE),
        required=True,
    )


def divide_errors(errors: Any, start: int, stop: int) -> np.ndarray:
    """The mean error [alphas] of the last `SPAN` steps over that of the steps `start` to `stop`.

    errors: [alphas, T].
    """
    errors = np.asarray(errors)
    return errors[:, -SPAN:].mean(axis=1) / errors[:, start:stop].mean(axis=1)


def measure_settled_error(data: Data, name: str) -> np.ndarray:
    """The RMS error [alphas] of the last `SPAN` steps over the RMS of the average itself."""
    errors, averages = (
        np.asarray(values)[:, -SPAN:]
        for values in (data["networks"][name]["rms_error"], data["rms_average"])
    )
    return np.sqrt(np.mean(errors**2, axis=1) / np.mean(averages**2, axis=1))


def _describe_range(values: Sequence[float] | np.ndarray) -> str:
    low, high = f"{np.min(values):.2g}", f"{np.max(values):.2g}"
    return low if low == high else f"{low} to {high}"


def _describe_percents(values: np.ndarray) -> str:
    return f"{100 * np.min(values):.0f} to {100 * np.max(values):.0f} %"


def _measure_exactness(config: Config, key: Key) -> Data:
    """The step with the two weights set, compared with the average in two NumPy forms."""
    xs = _draw_series(key, config, config.test_length, 1)
    difference = leaky = 0.0
    unit = RNNParams(jnp.ones((1, 1)), jnp.zeros((1, 1)))
    for alpha in config.alphas:
        params = RNNParams(jnp.full((1, 1), 1 - alpha), jnp.full((1, 1), alpha))
        _, states = unroll(params, None, xs, activation=jax.nn.identity)
        series = np.asarray(xs)
        # The same average as a weighted sum, normalised as by pandas' ewm(adjust=True).
        ages = np.arange(config.test_length)
        weights = alpha ** ages.astype(np.float64)
        sums = np.convolve(series[:, 0, 0], weights)[: len(ages)]
        adjusted = sums / np.cumsum(weights)
        corrected = np.asarray(states)[:, 0, 0] / (1 - alpha ** (ages + 1.0))
        difference = max(
            difference,
            float(np.max(np.abs(np.asarray(states) - _average(series, alpha)))),
            float(np.max(np.abs(corrected - adjusted))),
        )
        _, states = unroll(unit, None, xs, activation=jax.nn.identity, leak=1 - alpha)
        leaky = max(leaky, float(np.max(np.abs(np.asarray(states) - _average(series, alpha)))))
    # The average forgets: rounding errors add up over 1 / (1 - alpha) steps only.
    memory = 1 / (1 - max(config.alphas))
    tolerance = memory * float(jnp.finfo(jnp.float64).eps)
    return {"difference": difference, "leaky": leaky, "tolerance": tolerance}


def _average(series: np.ndarray, alpha: float) -> np.ndarray:
    """The average of `series` [T, ...] in plain NumPy, float64."""
    averages = np.zeros(series.shape, np.float64)
    last = np.zeros(series.shape[1:], np.float64)
    for t, x in enumerate(series):
        last = alpha * last + (1 - alpha) * x
        averages[t] = last
    return averages


def _draw_series(key: Key, config: Config, num_steps: int, batch_size: int) -> Array:
    """Slow sines of random period and phase, plus noise: [T, B, 1]."""
    key_period, key_phase, key_noise = jax.random.split(key, 3)
    periods = jax.random.uniform(key_period, (batch_size, 1), minval=40, maxval=200)
    phases = jax.random.uniform(key_phase, (batch_size, 1), maxval=2 * jnp.pi)
    times = jnp.arange(num_steps)[:, None, None]
    waves = jnp.sin(2 * jnp.pi * times / periods + phases)
    return waves + config.noise * jax.random.normal(key_noise, waves.shape)


def _learn(config: Config, activation: Activation, key: Key) -> RNNParams:
    """Train every alpha and seed in one call: parameters with leading axes [alphas, seeds]."""
    layer = vanilla_rnn(1, 1, activation=activation, use_bias=False)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.train_steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    ages = jnp.arange(config.train_length)[:, None] - jnp.arange(config.train_length)

    def train(alpha: Array, params: RNNParams, key: Key) -> RNNParams:
        weights = jnp.where(ages >= 0, (1 - alpha) * alpha ** jnp.maximum(ages, 0), 0.0)

        def make_batch(key: Key, step: Array) -> tuple[Array, Array]:
            del step
            xs = _draw_series(key, config, config.train_length, config.batch_size)
            return xs, jnp.einsum("ts,sbd->tbd", weights, xs)

        def loss_fn(params: Params, batch: tuple[Array, Array], key: Key) -> tuple[Array, Data]:
            del key
            xs, targets = batch
            _, ys = layer.unroll(params, None, xs)
            return jnp.mean((ys - targets) ** 2), {}

        state = init_train_state(params, optimizer, key)
        step = make_train_step(loss_fn, optimizer)
        state, _ = train_steps(step, state, make_batch, config.train_steps)
        return state.params

    keys = jax.random.split(key, (2, config.seeds))
    params = jax.jit(jax.vmap(layer.init))(keys[0])
    over_seeds = jax.vmap(train, in_axes=(None, 0, 0))
    over_alphas = jax.jit(jax.vmap(over_seeds, in_axes=(0, None, None)))
    return over_alphas(jnp.asarray(config.alphas), params, keys[1])


def _outputs(weights: RNNParams, xs: Array, activation: Activation) -> np.ndarray:
    """The outputs [alphas, seeds, T, B, 1] of every network on the same sequences."""
    run = functools.partial(unroll, h0=None, xs=xs, activation=activation)
    states = jax.jit(jax.vmap(jax.vmap(lambda params: run(params)[1])))(weights)
    return np.asarray(states, np.float64)

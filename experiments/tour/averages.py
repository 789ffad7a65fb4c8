"""The exponentially weighted moving average is the step without its tanh, and time plays no part.

Claim 3: with the identity as activation, ``w = alpha``, ``u = 1 - alpha`` and no bias, the step is
the exponentially weighted moving average ``v_t = alpha v_{t-1} + (1 - alpha) x_t``. Refuted by a
difference beyond rounding from that average written in NumPy. The two weights, learned from data,
are those two numbers: refuted where they are off by more than 0.001. With tanh they can only come
near: refuted where the error left over is as small as the identity's.

Claim 4: the weights do not depend on time. Refuted where two weights learned on short sequences
lose the average on sequences a hundred times as long: where the error grows with time once the
average, which starts at zero, has filled up.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.figures import (
    BLUE,
    GREY,
    SERIES,
    SKY,
    VERMILION,
    mark_steps,
    saved_figure,
    say,
)
from experiments.shared.networks import init_networks
from experiments.shared.output import Data, Finding, Tick
from jaxrnn import (
    Activation,
    Array,
    Key,
    Params,
    RNNParams,
    fit,
    init_train_state,
    make_train_step,
    unroll,
    vanilla_rnn,
)

_ACTIVATIONS: dict[str, Activation] = {"identity": jax.nn.identity, "tanh": jnp.tanh}
_WEIGHT_TOLERANCE = 1e-3
_ERROR_TOLERANCE = 1e-5
_FLAT_RATIO = 1.25
_SPAN = 100  # steps over which errors are averaged; five memories of the longest average


@dataclass(frozen=True)
class Config:
    """Claims 3 and 4."""

    alphas: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
    """The averages to learn."""
    seeds: int = 5
    """Networks trained for each alpha and activation."""
    train_length: int = 20
    """Steps of a sequence in training."""
    test_length: int = 2000
    """Steps of a sequence in the test."""
    test_sequences: int = 128
    """Sequences in the test."""
    train_steps: int = 1500
    """Steps of the optimizer."""
    batch_size: int = 64
    """Sequences a step."""
    learning_rate: float = 0.03
    """Adam's learning rate at the start; a cosine takes it to 0."""
    noise: float = 0.5
    """Standard deviation of the noise on the series, a slow sine of amplitude 1."""


def measure(config: Config, seed: int, tick: Tick) -> Data:
    """Check the exact average, learn it, and test the learned weights on long sequences."""
    key_exact, key_train, key_test = jax.random.split(jax.random.key(seed), 3)
    tick(0.0, "the average itself")
    with jax.enable_x64(True):
        exact = _exact(config, key_exact)
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
    identity, tanh = (_relative_error(data, name, -_SPAN, None) for name in _ACTIVATIONS)
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
            f"RMS error {_percent(tanh)} of the average's RMS (alpha {_spread(data['alphas'])}); "
            f"w off by up to {off['tanh'][0]:.2f}, u by {off['tanh'][1]:.2f}",
            bool(np.min(tanh) > _ERROR_TOLERANCE),
        ),
        _judge_time(data, identity),
    ]


def _judge_time(data: Data, identity: np.ndarray) -> Finding:
    """The finding of claim 4."""
    seen = data["train_length"]
    networks = [np.asarray(net["rms_error"]) for net in data["networks"].values()]
    settled = [_mean_ratio(errors, _SPAN, 2 * _SPAN) for errors in networks]
    early = [_mean_ratio(errors, 0, data["train_length"]) for errors in networks]
    length = len(networks[0][0])
    return Finding(
        "4",
        f"The weights do not depend on time: learned on {seen} steps, they hold on {length:,}.",
        f"the error of the last {_SPAN} steps is at most {_FLAT_RATIO} times that of steps "
        f"{_SPAN + 1} to {2 * _SPAN}, and the identity's at most {_ERROR_TOLERANCE} of the average",
        f"ratio at most {max(map(np.max, settled)):.2f}; identity's error {np.max(identity):.0e} "
        f"of the average. Ratio to steps 1 to {seen}, while the average fills up from zero: "
        f"identity {_spread(early[0])}, tanh {_spread(early[1])}",
        max(map(np.max, settled)) <= _FLAT_RATIO and bool(np.max(identity) <= _ERROR_TOLERANCE),
        required=True,
    )


def _mean_ratio(errors: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The error [alphas, T] in the last steps over that in some steps."""
    return errors[:, -_SPAN:].mean(axis=1) / errors[:, start:stop].mean(axis=1)


def _relative_error(data: Data, name: str, start: int, stop: int | None) -> np.ndarray:
    """The RMS error of some steps over the RMS of the average itself, [alphas]."""
    errors, averages = (
        np.asarray(values)[:, start:stop]
        for values in (data["networks"][name]["rms_error"], data["rms_average"])
    )
    return np.sqrt(np.mean(errors**2, axis=1) / np.mean(averages**2, axis=1))


def _spread(values: Sequence[float] | np.ndarray) -> str:
    low, high = f"{np.min(values):.2g}", f"{np.max(values):.2g}"
    return low if low == high else f"{low} to {high}"


def _percent(values: np.ndarray) -> str:
    return f"{100 * np.min(values):.0f} to {100 * np.max(values):.0f} %"


def plot(data: Data, folder: Path) -> None:
    """Draw averages.png and lengths.png."""
    _plot_average(data, folder / "averages.png")
    _plot_lengths(data, folder / "lengths.png")


def _plot_average(data: Data, path: Path) -> None:
    """The three curves of one alpha, and all learned weights."""
    alphas = np.asarray(data["alphas"])
    shown = int(np.argmin(np.abs(alphas - 0.9)))
    networks, steps = data["networks"], np.arange(1, 201)
    part = slice(0, len(steps))
    identity_error, tanh_error = (
        _relative_error(data, name, -_SPAN, None)[shown] for name in _ACTIVATIONS
    )
    with saved_figure(path) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
        left.plot(steps, np.asarray(data["example"]["xs"])[part], color=GREY, alpha=0.4, lw=0.8)
        average = np.asarray(data["example"]["average"])[shown][part]
        left.plot(steps, average, color=SKY, lw=5, label=f"average, alpha = {alphas[shown]:g}")
        for name, colour in (("identity", BLUE), ("tanh", VERMILION)):
            curve = np.asarray(networks[name]["example"])[shown][part]
            left.plot(steps, curve, color=colour, lw=1.5, label=f"learned, {name}")
        left.set(xlabel="time step", ylabel="value (series in grey)")
        left.legend(loc="lower center", ncols=3, bbox_to_anchor=(0.5, 1.0), columnspacing=1.2)
        right.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--")
        for name, colour, marker in (("identity", BLUE, "o"), ("tanh", VERMILION, "^")):
            w, u = np.asarray(networks[name]["w"]), np.asarray(networks[name]["u"])
            style = {"color": colour, "marker": marker, "ls": "none", "ms": 6}
            right.plot(np.repeat(alphas, w.shape[1]), w.ravel(), **style, label=f"w, {name}")
            right.plot(
                np.repeat(1 - alphas, u.shape[1]),
                u.ravel(),
                **style,
                mfc="none",
                label=f"u, {name}",
            )
        right.set(xlabel="alpha (w), 1 - alpha (u)", ylabel="learned weight")
        right.legend(loc="upper left", handletextpad=0.2)
        say(
            figure,
            f"Without its tanh the step learns the moving average (to {identity_error:.0e});\n"
            f"with tanh it stays {100 * tanh_error:.0f} % off",
            f"w and u learned on sequences of {data['train_length']} steps, {w.shape[1]} seeds an "
            "alpha; % = RMS error over the RMS of the average",
        )


def _plot_lengths(data: Data, path: Path) -> None:
    """The error at every step of the long sequences."""
    train_length = data["train_length"]
    ratios = [
        _mean_ratio(np.asarray(net["rms_error"]), _SPAN, 2 * _SPAN)
        for net in data["networks"].values()
    ]
    with saved_figure(path) as figure:
        axes = figure.subplots()
        axes.axvspan(1, train_length, color=GREY, alpha=0.15, lw=0)
        axes.text(1.1, 2e-5, f"steps seen in training (1 to {train_length})", fontsize=9)
        for name, style in (("tanh", "-"), ("identity", "--")):
            errors = np.asarray(data["networks"][name]["rms_error"])
            for alpha, colour, row in zip(data["alphas"], SERIES, errors, strict=False):
                steps = np.arange(1, len(row) + 1)
                label = f"{name}, alpha = {alpha:g}"
                axes.plot(steps, row, ls=style, color=colour, lw=1.3, label=label)
        mark_steps(axes, [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000])
        axes.set(yscale="log", xlabel="time step", ylabel="RMS error of the average")
        axes.legend(loc="center right", bbox_to_anchor=(1, 0.5), ncols=2)
        say(
            figure,
            f"Weights learned on {train_length} steps hold on {len(row):,}:\n"
            f"after step {_SPAN} the error grows at most {np.max(ratios):.2f}-fold",
            f"the last {_SPAN} steps against steps {_SPAN + 1} to {2 * _SPAN}; before, the average "
            "fills up from zero",
        )


def _exact(config: Config, key: Key) -> Data:
    """The network with the two weights set, against two NumPy forms of the average."""
    xs = _draw_series(key, config, config.test_length, 1)
    difference = 0.0
    for alpha in config.alphas:
        params = RNNParams(jnp.full((1, 1), 1 - alpha), jnp.full((1, 1), alpha))
        _, states = unroll(params, None, xs, activation=jax.nn.identity)
        series = np.asarray(xs)
        # The same average as a weighted sum, normalised as pandas' ewm(adjust=True) has it.
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
    # The average forgets, so that errors add up over 1 / (1 - alpha) steps.
    memory = 1 / (1 - max(config.alphas))
    return {"difference": difference, "tolerance": memory * float(jnp.finfo(jnp.float64).eps)}


def _average(series: np.ndarray, alpha: float) -> np.ndarray:
    """The average of `series` [T, ...] in plain NumPy, float64."""
    averages = np.zeros(series.shape, np.float64)
    last = np.zeros(series.shape[1:], np.float64)
    for t, x in enumerate(series):
        last = alpha * last + (1 - alpha) * x
        averages[t] = last
    return averages


def _draw_series(key: Key, config: Config, num_steps: int, batch_size: int) -> Array:
    """Slow sines of random period and phase, with noise: [T, B, 1]."""
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
        state, _ = fit(make_train_step(loss_fn, optimizer), state, make_batch, config.train_steps)
        return state.params

    keys = jax.random.split(key, (2, config.seeds))
    over_seeds = jax.vmap(train, in_axes=(None, 0, 0))
    over_alphas = jax.jit(jax.vmap(over_seeds, in_axes=(0, None, None)))
    return over_alphas(jnp.asarray(config.alphas), init_networks(layer, keys[0]), keys[1])


def _outputs(weights: RNNParams, xs: Array, activation: Activation) -> np.ndarray:
    """The outputs of every network on the same sequences: [alphas, seeds, T, B] and features."""
    run = functools.partial(unroll, h0=None, xs=xs, activation=activation)
    states = jax.jit(jax.vmap(jax.vmap(lambda params: run(params)[1])))(weights)
    return np.asarray(states, np.float64)

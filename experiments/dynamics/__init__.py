"""Vanilla networks that become a chaotic system, from a series of its states alone.

Claims: a vanilla network that has learned the next state, run free, moves on the attractor of the
system: its Lyapunov exponents are the system's, its forecasts stay right for several Lyapunov
times, and its states and spectra differ from the true ones by little more than two stretches of the
system itself. Refuted, for Lorenz-63 without noise, by a first exponent that is off by more than
3 %, a second one above 0.05 in size or a third one that is not negative, in any seed; by a median
valid time below 6 Lyapunov times; and by distances above 1.2 times those of another true stretch.

Networks have at most 200 units. They are trained on windows in which each step reads its own output
and a small fraction of the true state, which keeps gradients bounded (generalised teacher forcing;
Hess et al. 2023); then the readout is fitted again by ridge regression, if free runs over the
validation rows become better by it. Beside them: the same networks with nothing but the readout
fitted (a reservoir), polynomials of the present state, and persistence. Systems and their time
steps are in `experiments.data.chaotic_systems`; `--csv FILE --columns a b c` takes a series of
one's own, of which only the attractor is compared.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn
from experiments.data.chaotic_systems import SYSTEMS, System, measure_exponents
from experiments.dynamics.findings import judge
from experiments.dynamics.measures import (
    compare,
    find_exponents,
    power_spectrum,
    run_all,
    run_free,
    valid_steps,
)
from experiments.dynamics.models import (
    Model,
    draw_reservoirs,
    fit_polynomial,
    fit_readouts,
    make_network,
    make_persistence,
    start_narrow,
)
from experiments.dynamics.observations import Observed, observe_file, observe_systems
from experiments.shared.findings import Data, Result
from experiments.shared.model_files import load_networks, read_inputs, save_networks
from experiments.shared.options import (
    Fraction,
    InputError,
    NotNegative,
    Positive,
    PositiveFloat,
    TrainConfig,
)
from experiments.shared.output import Tick, within
from experiments.shared.training import Task, start_networks, train, warm_up_and_cool_down
from jaxrnn import Array, Key, Layer, Params, TrainState, clip_by_global_norm, make_train_step

_WARM_UP = 200
_STARTS = 100
_HORIZON = 15.0  # Lyapunov times of a test forecast at most
_STRETCH = 20_000  # steps of the compared attractors
_EXPONENT_STEPS = 20_000
_READ_IN = 20  # steps of a training window that are given whole
_LOOK = 60  # steps of the free runs that validation scores


@dataclass(frozen=True)
class Config(TrainConfig):
    """The options of `dynamics`."""

    systems: tuple[Literal["lorenz", "roessler", "lorenz96"], ...] = (
        "lorenz",
        "roessler",
        "lorenz96",
    )
    """The simulated systems."""
    csv: Path | None = None
    """A series of one's own in place of them: one row per step, evenly spaced."""
    columns: tuple[str, ...] = ()
    """The columns of the file that are the state."""
    noises: tuple[NotNegative, ...] = (0.0, 0.05)
    """Standard deviations of noise on what is observed, in standard deviations of the series."""
    seeds: Positive = 5
    """Networks of each system and noise, trained side by side."""
    hidden_size: Positive = 200
    """Units."""
    forcing: Fraction = 0.1
    """The fraction of the true state that a network reads in training."""
    window: Positive = 60
    """Steps of a training window."""
    batch_size: Positive = 16
    """Windows per training step."""
    learning_rate: PositiveFloat = 0.001
    """Adam's peak learning rate."""
    steps: Positive = 1500
    """Maximum number of training steps; validation may stop a network earlier."""
    eval_every: Positive = 100
    """Training steps between validations, in one compiled call."""
    patience: Positive = 8
    """Validations without a new best after which a network stops."""
    quick: bool = False
    """Lorenz-63 alone, two networks, few steps."""


@dataclass(frozen=True)
class StateInputs:
    """What each network reads, by its name: the mean and the standard deviation of each coordinate
    that its inputs were standardised with."""

    means: dict[str, list[float]]
    deviations: dict[str, list[float]]


def run(config: Config, progress: Tick) -> Result:
    """Train networks of each system, and compare their free runs with it."""
    if config.quick:
        config = dataclasses.replace(config, systems=("lorenz",), noises=(0.0,), seeds=2, steps=300)
    key = jax.random.key(config.seed)
    if config.csv is None and config.columns:
        raise InputError(f"--columns is {config.columns} without --csv")
    if config.csv is None:
        series = observe_systems(config.systems, config.noises, key)
    else:
        series = observe_file(config.csv, config.columns, key)
    known = None if config.source is None else read_inputs(config.source, StateInputs)
    kept: dict[str, Any] = {}
    cases: Data = {}
    for number, one in enumerate(series):
        part = within(progress, number / len(series), (number + 1) / len(series), one.name)
        network = make_network(one.states.shape[1], config.hidden_size)
        if known is None:
            params, validation = _train(config, one, network, part)
        else:
            assert config.source is not None
            _check_scales(config.source, known, one)
            params, validation = load_networks(config.source, one.name, network), None
        kept[one.name] = network, params, validation
        part(0.7, "baselines")
        cases[one.name] = _test(config, one, Model(network, params), part)
    if config.source is None:
        means = {one.name: one.mean.tolist() for one in series}
        deviations = {one.name: one.deviation.tolist() for one in series}
        save_networks(config, "dynamics", StateInputs(means, deviations), kept)
    data: Data = {"cases": cases, "units": config.hidden_size}
    return Result(data, judge(data))


def _check_scales(source: Path, known: StateInputs, one: Observed) -> None:
    pairs = (known.means, one.mean), (known.deviations, one.deviation)
    if not all(
        one.name in had and np.allclose(had[one.name], now, rtol=1e-3) for had, now in pairs
    ):
        raise InputError(f"{source}: the networks of {one.name} read another series")


# Training


def _train(config: Config, one: Observed, network: Layer, tick: Tick) -> tuple[Params, Any]:
    """Networks [S, ...], each with the readout that runs free for longer on validation rows."""
    rows, end = one.observed[: one.train], one.train + one.validation
    validation = one.observed[one.train : end]
    loop = jaxrnn.closed_loop(network)

    def make_batch(key: Key, step: Array) -> Array:
        return jaxrnn.random_windows(key, rows, config.window + 1, config.batch_size)

    def loss_fn(params: Params, windows: Array, key: Key) -> tuple[Array, dict[str, Array]]:
        given, targets = windows[:-1], windows[1:]
        fraction = jnp.where(jnp.arange(config.window) < _READ_IN, 1.0, config.forcing)
        flags = jnp.broadcast_to(fraction[:, None, None], (*given.shape[:2], 1))
        _, ys = loop.unroll(params, None, jnp.concatenate([flags, given], axis=-1))
        return jnp.mean((ys - targets) ** 2), {}

    def validate(params: Params) -> Array:
        """The squared error of short free runs, in which none can gain by standing still."""
        windows = jaxrnn.sliding_windows(validation, _WARM_UP + _LOOK, stride=_LOOK)
        runs = run_free(network, params, windows[:_WARM_UP], _LOOK)
        return jnp.mean(jnp.minimum((runs - windows[_WARM_UP:]) ** 2, 10.0))

    optimizer = optax.chain(
        clip_by_global_norm(1.0),
        optax.adam(warm_up_and_cool_down(config.learning_rate, config.steps)),
    )
    start: TrainState = start_networks(network, optimizer, config)
    start = start._replace(params=start_narrow(start.params))
    task = Task(
        one.name,
        make_train_step(loss_fn, optimizer),
        make_batch,
        validate,
        [one.observed[: one.train]],
        config.batch_size,
    )
    trained = train(task, start, config, within(tick, 0.0, 0.6, ""))
    tick(0.6, "readouts")
    fitted = fit_readouts(config.hidden_size, trained.params[0], rows, validation).params
    return _choose(network, trained.params, fitted, one), trained.validation


def _choose(network: Layer, trained: Params, fitted: Params, one: Observed) -> Params:
    """For each seed, those of two parameters that stay right for longer on validation rows."""
    length = min((one.validation - _WARM_UP) // 2, 1000)
    rows = one.observed[one.train : one.train + one.validation]
    windows = jaxrnn.sliding_windows(rows, _WARM_UP + length, stride=50)
    true = np.asarray(windows[_WARM_UP:])
    valid = [
        valid_steps(run_all(Model(network, params), windows[:_WARM_UP], length), true).mean(axis=1)
        for params in (trained, fitted)
    ]
    better = jnp.asarray(valid[1] > valid[0])

    def choose(old: Array, new: Array) -> Array:
        return jnp.where(better.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, trained, fitted)


# Tests


def _test(config: Config, one: Observed, model: Model, tick: Tick) -> Data:
    """Measurements of the networks and of each baseline."""
    rows = one.observed[: one.train]
    validation = one.observed[one.train : one.train + one.validation]
    keys = jax.random.split(jax.random.key(config.seed + 1), config.seeds)
    drawn = draw_reservoirs(rows.shape[1], config.hidden_size, keys)
    models = {
        "network": model,
        "reservoir": fit_readouts(config.hidden_size, drawn, rows, validation),
        "cubic": fit_polynomial(3, rows, validation),
        "linear": fit_polynomial(1, rows, validation),
        "persistence": make_persistence(rows.shape[1]),
    }
    test = np.asarray(one.states[one.train + one.validation :])
    observed = one.observed[one.train + one.validation :]
    stretch = min(_STRETCH, len(test) // 2)
    others = range(stretch, len(test) - stretch + 1, stretch)
    time = one.lyapunov_time or 100.0
    horizon = min(int(_HORIZON * time), len(test) // 3)
    starts = np.linspace(_WARM_UP, len(test) - horizon - 1, _STARTS).astype(int)
    warm_up = observed[starts - _WARM_UP + np.arange(_WARM_UP)[:, None]]
    true = test[starts + np.arange(horizon)[:, None]]
    measured: Data = {}
    for number, (name, each) in enumerate(models.items()):
        tick(0.7 + 0.06 * number, name)
        valid = valid_steps(run_all(each, warm_up, horizon), true) / time
        long = run_all(each, observed[:_WARM_UP, None], stretch)[:, :, 0]
        distances = [compare(run, test[:stretch]) for run in long]
        measured[name] = {"valid": valid, "distances": _join(distances)}
        if name in ("network", "reservoir"):
            count = min(3, test.shape[1])
            found = find_exponents(each, observed[:_WARM_UP], count, _EXPONENT_STEPS)
            measured[name]["exponents"] = found
        if name == "network":
            shown = {"run": long[0], "true": test[:stretch]}
            first = run_all(each, warm_up[:, :1], horizon)[0, :, 0]
            shown["forecast"] = {"run": first, "true": true[:, 0], "valid": valid[0, 0]}
    again = _join([compare(test[i : i + stretch], test[:stretch]) for i in others])
    data: Data = {"title": one.title, "models": measured, "again": again, "time": time}
    data |= {"shown": _thin(shown), "exponents": _true_exponents(one), "horizon": horizon / time}
    return data


def _thin(shown: Data) -> Data:
    """What the figures draw: the first steps of the attractors, and both spectra."""
    spectra = {
        name: np.stack([power_spectrum(series) for series in shown[name].T[:1]])
        for name in ("run", "true")
        if np.isfinite(shown[name]).all()
    }
    maxima = {name: _return_map(shown[name]) for name in ("run", "true")}
    few = {name: shown[name][:4000] for name in ("run", "true")}
    return {**few, "spectra": spectra, "maxima": maxima, "forecast": shown["forecast"]}


def _return_map(states: np.ndarray) -> np.ndarray:
    """Successive maxima of the last coordinate, [M, 2] (Lorenz 1963, figure 4)."""
    z = states[:, -1]
    tops = z[1:-1][(z[1:-1] > z[:-2]) & (z[1:-1] >= z[2:])]
    return np.stack([tops[:-1], tops[1:]], axis=1)


def _true_exponents(one: Observed) -> Any:
    """The system's exponents, in nats per step, or None for a series of one's own."""
    system: System | None = SYSTEMS.get(one.name.partition("-")[0])
    return None if system is None else measure_exponents(system, 3) * system.step


def _join(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]}

"""Forecasts of a real series, one and many steps ahead, with bands from an ensemble.

Claim: an ensemble of vanilla networks forecasts the held-out end of a series better than
persistence and than seasonal persistence, one step ahead and over the whole horizon, and 80 % of
what happens lies in its 80 % bands. Refuted by the root mean square errors, and by the share of
test values inside the bands. A linear autoregression fitted on the same past stands in the same
table.

The series is cut in time: the networks and the autoregression are fitted on the beginning, chosen
on the validation part (stopping; the autoregression's order; the bands' noise) and tested on the
end, which nothing is chosen on. By default it is the yearly sunspot numbers; `--csv FILE --column
NAME` reads others. A missing value (an empty field) is told to the network by a mark; a step
without any value is not taken (`mask`); at a gap, where rows are absent, the state begins anew
(`resets`) and nothing is forecast across. Long series are trained by truncated back-propagation.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.series import Series, load_sunspots, read_csv
from experiments.forecast.ensemble import BAND, forecast_ensemble, unroll_forecasts
from experiments.forecast.figures import plot_forecast
from experiments.forecast.preparation import (
    Problem,
    Stream,
    make_features,
    make_stream,
    pose,
    to_units,
)
from experiments.shared.baselines import forecast_simply
from experiments.shared.findings import Data, Finding, Result, describe_seeds
from experiments.shared.options import (
    InputError,
    NotNegative,
    Positive,
    PositiveFloat,
    PositiveFraction,
    TrainConfig,
)
from experiments.shared.output import Tick
from experiments.shared.training import Task, record, start_networks, train
from jaxrnn import (
    Array,
    Key,
    Layer,
    Params,
    TrainState,
    dense,
    initializers,
    make_train_step,
    masked_mean,
    stack,
    truncate_train_step,
    vanilla_rnn,
)

_MAX_ORIGINS = 512


@dataclass(frozen=True)
class Config(TrainConfig):
    """The options of `forecast`."""

    csv: Path | None = None
    """A comma-separated file with a header; without it the yearly sunspot numbers."""
    column: tuple[str, ...] = ()
    """Columns of the file to forecast, together by one network."""
    time: str | None = None
    """Column of the file with increasing numbers or ISO dates, whose jumps are gaps."""
    horizon: Positive = 11
    """Steps ahead to forecast."""
    season: Positive = 11
    """Steps of the seasonal persistence, and of what is compared with it."""
    transform: Literal["none", "sqrt", "log"] | None = None
    """What the models read of the values; by default the square root of the sunspot numbers, and
    the values of a file as they are."""
    hidden_size: Positive = 16
    """Hidden units of each layer."""
    layers: Positive = 1
    """Vanilla layers."""
    window: Positive = 128
    """Steps of truncated back-propagation, and of the past that a forecast is made from."""
    validation: PositiveFraction = 0.2
    """Share of the rows, before the test rows, that choices are made on."""
    test: PositiveFraction = 0.2
    """Share of the rows, at the end, to test on."""
    learning_rate: PositiveFloat = 0.003
    """AdamW's learning rate."""
    weight_decay: NotNegative = 0.3
    """AdamW's weight decay."""
    input_noise: NotNegative = 0.2
    """Standard deviation of the noise on the standardised inputs in training."""
    recurrent_gain: PositiveFloat = 0.9
    """The recurrent matrices start orthogonal times this."""
    max_order: Positive = 20
    """Orders of the autoregression, from 1, among which validation chooses."""
    seeds: Positive = 20
    """Networks of the ensemble, trained in one vmapped call."""
    steps: Positive = 2000
    """Passes over the series at most; validation may stop a network before."""
    eval_every: Positive = 20
    """Passes from one validation to the next, in one compiled call."""
    patience: Positive = 20
    """Validations without a new best after which a network has stopped."""


def run(config: Config, progress: Tick) -> Result:
    """Train the ensemble, forecast the test rows and what follows the last row."""
    transform = config.transform or ("none" if config.csv else "sqrt")
    problem = pose(_read(config), transform, config.validation, config.test, config.horizon)
    network = _network(config, problem)
    task, start = _make_task(config, problem, network)
    trained = train(task, start, config, progress)
    data: Data = {
        "band": BAND,
        "series": problem.series._asdict(),
        "splits": problem.splits,
        "networks": record(trained),
        "test": _test(config, problem, network, trained.params),
        "future": _look_ahead(config, problem, network, trained.params),
    }
    return Result(data, _judge(data))


# The series


def _read(config: Config) -> Series:
    if config.csv is None:
        if config.column or config.time:
            raise InputError("--column and --time name columns of a --csv FILE, which is missing")
        return load_sunspots()
    if not config.column:
        raise InputError(f"--column is missing: which columns of {config.csv} to forecast?")
    return read_csv(config.csv, config.column, config.time)


# The network


def _network(config: Config, problem: Problem) -> Layer:
    size = problem.z.shape[1]
    inputs = make_features(problem.z).shape[1]
    recurrent = initializers.orthogonal(config.recurrent_gain)
    sizes = [inputs] + [config.hidden_size] * config.layers
    layers = [
        vanilla_rnn(before, after, w_hh_init=recurrent)
        for before, after in itertools.pairwise(sizes)
    ]
    return stack(*layers, dense(config.hidden_size, size))


def _make_task(config: Config, problem: Problem, network: Layer) -> tuple[Task, TrainState]:
    """Passes over the rows to fit; validation goes on from there."""
    stream = make_stream(problem)
    size = problem.z.shape[1]
    targets = jnp.asarray(np.nan_to_num(problem.z[1:]), jnp.float32)
    # A value is forecast where it is known, the step before was taken, and no gap lies between.
    scored = ~np.isnan(problem.z[1:]) & ~problem.series.begins[1:, None]
    scored &= np.asarray(stream.mask)[:-1, None]
    weights = jnp.asarray(scored)
    first, second = problem.splits

    def loss_of_window(
        params: Params, state: Any, batch: Any, key: Key
    ) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        (xs, mask, resets), ys, scored = batch
        noise = config.input_noise * jax.random.normal(key, (*xs.shape[:1], size))
        noisy = Stream(xs.at[:, :size].add(noise), mask, resets)
        state, forecasts = unroll_forecasts(network, params, state, noisy)
        return masked_mean((forecasts - ys) ** 2, scored), (state, {})

    def make_batch(key: Key, step: Array) -> Any:
        del key, step
        past = jax.tree.map(lambda leaf: leaf[: first - 1], stream)
        return past, targets[: first - 1], weights[: first - 1]

    def validate(params: Params) -> Array:
        past = jax.tree.map(lambda leaf: leaf[: second - 1], stream)
        forecasts = unroll_forecasts(network, params, None, past)[1]
        part = slice(first - 1, second - 1)
        return masked_mean((forecasts - targets[: second - 1])[part] ** 2, weights[part])

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(config.learning_rate, weight_decay=config.weight_decay),
    )
    step = make_train_step(loss_of_window, optimizer, has_carry=True)
    step = truncate_train_step(step, config.window)
    task = Task("network", step, make_batch, validate, (stream, targets, weights))
    return task, start_networks(network, optimizer, config, ())


# Forecasts


def _test(config: Config, problem: Problem, network: Layer, params: Params) -> Data:
    """The forecasts made at the test rows, and their errors [H, C] in the series' units."""
    origins = _choose_origins(config, problem)
    values, segments = problem.series.values, np.cumsum(problem.series.begins)
    rows = origins + 1 + np.arange(config.horizon)[:, None]  # [H, N]
    truth = np.where(segments[rows][..., None] == segments[origins][:, None], values[rows], np.nan)
    paths, bands = _forecast(config, problem, network, params, origins)
    forecasts = {
        name: to_units(problem, z)
        for name, z in forecast_simply(
            problem.z,
            problem.series.begins,
            problem.splits,
            origins,
            config.horizon,
            season=config.season,
            max_order=config.max_order,
        ).items()
    }
    forecasts["ensemble"] = paths.mean(axis=0)
    with np.errstate(invalid="ignore"):
        inside = np.where(np.isnan(truth), np.nan, (bands[0] <= truth) & (truth <= bands[1]))
    return {
        "origins": origins,
        "truth": truth,  # [H, N, C], NaN where unknown or behind a gap
        "rmse": {name: _rmse(forecast, truth) for name, forecast in forecasts.items()},  # [H, C]
        "network_rmse": _rmse(paths, truth),  # [S, H, C]
        "last": {name: forecast[:, -1] for name, forecast in forecasts.items()},
        "last_band": bands[:, :, -1],  # [2, H, C]
        "coverage": np.nanmean(inside, axis=1),  # [H, C]
        "deviation": np.nanstd(values[: problem.splits[0]], axis=0),  # [C]
    }


def _look_ahead(config: Config, problem: Problem, network: Layer, params: Params) -> Data:
    """The forecast [H, C] of what follows the last known row, and its band [2, H, C]."""
    taken = np.flatnonzero(~np.isnan(problem.z).all(axis=1))
    paths, bands = _forecast(config, problem, network, params, taken[-1:])
    return {"row": taken[-1], "forecast": paths.mean(axis=0)[:, 0], "band": bands[:, :, 0]}


def _choose_origins(config: Config, problem: Problem) -> np.ndarray:
    """Rows [N] whose next `horizon` rows are all test rows: each, or 512 evenly among them."""
    rows = np.arange(problem.splits[1] - 1, len(problem.z) - config.horizon)
    rows = rows[~np.isnan(problem.z[rows]).all(axis=1)]
    if not rows.size:
        raise InputError(f"{problem.series.name}: no test row has a value to forecast from")
    return rows[np.unique(np.linspace(0, len(rows) - 1, _MAX_ORIGINS).astype(int))]


def _forecast(
    config: Config, problem: Problem, network: Layer, params: Params, origins: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    return forecast_ensemble(
        network, params, problem, origins, horizon=config.horizon, window=config.window, key=key
    )


def _rmse(forecasts: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Over the origins, the last axis but one."""
    return np.sqrt(np.nanmean((forecasts - truth) ** 2, axis=-2))


# The table


def _judge(data: Data) -> list[Finding]:
    test = data["test"]
    pooled = {name: _pool(rmse, test) for name, rmse in test["rmse"].items()}
    single = _pool(test["network_rmse"], test)  # [S, 2]
    ours = pooled.pop("ensemble")
    findings = []
    for name, theirs in pooled.items():
        findings.append(
            Finding(
                name,
                f"The ensemble forecasts better than {name}.",
                "its error on the test rows is lower, one step ahead and over the horizon",
                f"one step {ours[0]:.3g} against {theirs[0]:.3g}, "
                f"all {len(test['truth'])} steps {ours[1]:.3g} against {theirs[1]:.3g}",
                bool((ours < theirs).all()),
            )
        )
    coverage = float(np.nanmean(test["coverage"]))
    return [
        Finding(
            "single",
            "An ensemble forecasts better than its networks do alone.",
            "its error over the horizon is lower than their mean",
            f"one step {describe_seeds(single[:, 0], 2)}, "
            f"all steps {describe_seeds(single[:, 1], 2)}; "
            f"ensemble {ours[0]:.3g} and {ours[1]:.3g}",
            bool(ours[1] < single[:, 1].mean()),
        ),
        *findings,
        Finding(
            "bands",
            f"The bands hold {BAND:.0%} of what happens.",
            "the share of the test values inside differs by at most 10 percentage points",
            f"{coverage:.0%} inside",
            abs(coverage - BAND) <= 0.1,
        ),
    ]


def _pool(rmse: Any, test: Data) -> np.ndarray:
    """RMSE one step ahead and over the horizon [..., 2]; of several columns the mean, each in units
    of its standard deviation."""
    rmse = np.asarray(rmse)
    if rmse.shape[-1] > 1:
        rmse = rmse / test["deviation"]
    whole = np.sqrt(np.mean(rmse**2, axis=-2))
    return np.stack([rmse[..., 0, :].mean(axis=-1), whole.mean(axis=-1)], axis=-1)


def plot(data: Data, folder: Path) -> None:
    """Draw history, forecasts, bands and truth of each column; write forecast.csv."""
    plot_forecast(data, folder)

"""Forecasts of a real series, one and many steps ahead, with bands from an ensemble.

Claim: an ensemble of vanilla networks forecasts the held-out end of a series better than
persistence and seasonal persistence, one step ahead and over the whole horizon, and its 80 % bands
cover 80 % of the true values. Refuted by the root mean square errors, and by the share of test
values inside the bands. The table also compares a linear autoregression fitted to the same past.

The series is split in time: the networks and the autoregression are fitted to the beginning, chosen
on the validation part (early stopping; the autoregression's order; the noise of the bands) and
tested on the end, on which nothing is chosen. The default is the yearly sunspot numbers; `--csv
FILE --column NAME` reads another series. An extra input tells the network which values are missing
(empty fields); a row without any value is masked; at a gap, where rows are absent, the state is
reset and nothing is forecast across it. Long series are trained by truncated back-propagation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.series import Series, load_sunspots, read_csv
from experiments.forecast.ensemble import BAND, forecast_ensemble, unroll_forecasts
from experiments.forecast.preparation import (
    PreparedSeries,
    Stream,
    make_features,
    make_stream,
    prepare_series,
    to_units,
)
from experiments.shared.baselines import forecast_baselines
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
    deep_rnn,
    initializers,
    make_train_step,
    masked_mean,
    truncate_train_step,
)

_MAX_ORIGINS = 512


@dataclass(frozen=True)
class Config(TrainConfig):
    """The options of `forecast`."""

    csv: Path | None = None
    """A comma-separated file with a header; by default the yearly sunspot numbers."""
    column: tuple[str, ...] = ()
    """Columns of the file to forecast, all by the same network."""
    time: str | None = None
    """Column of the file with increasing numbers or ISO dates; a jump is a gap."""
    horizon: Positive = 11
    """Number of steps ahead to forecast."""
    season: Positive = 11
    """Period of the seasonal persistence, in steps."""
    transform: Literal["none", "sqrt", "log"] | None = None
    """Transform of the values that the models read; by default sqrt for the sunspot numbers and
    none for a file."""
    hidden_size: Positive = 16
    """Hidden units per layer."""
    layers: Positive = 1
    """Number of vanilla layers."""
    window: Positive = 128
    """Steps of truncated back-propagation, and of the past that each forecast starts from."""
    validation: PositiveFraction = 0.2
    """Share of the rows, just before the test rows, on which choices are made."""
    test: PositiveFraction = 0.2
    """Share of the rows, at the end, for testing."""
    learning_rate: PositiveFloat = 0.003
    """AdamW's learning rate."""
    weight_decay: NotNegative = 0.3
    """AdamW's weight decay."""
    input_noise: NotNegative = 0.2
    """Standard deviation of the noise on the standardised inputs in training."""
    recurrent_gain: PositiveFloat = 0.9
    """The recurrent matrices start as random orthogonal matrices times this."""
    max_order: Positive = 20
    """Largest order of the autoregression; validation chooses one from 1 to this."""
    seeds: Positive = 20
    """Networks in the ensemble, trained in one vmapped call."""
    steps: Positive = 2000
    """Maximum number of passes over the series; validation may stop a network earlier."""
    eval_every: Positive = 20
    """Passes between validations, in one compiled call."""
    patience: Positive = 20
    """Validations without a new best after which a network stops."""


def run(config: Config, progress: Tick) -> Result:
    """Train the ensemble; forecast the test rows and the steps after the last row."""
    transform = config.transform or ("none" if config.csv else "sqrt")
    series = _read(config)
    prepared = prepare_series(series, transform, config.validation, config.test, config.horizon)
    network = _network(config, prepared)
    task, start = _make_task(config, prepared, network)
    trained = train(task, start, config, progress)
    data: Data = {
        "band": BAND,
        "series": prepared.series._asdict(),
        "splits": prepared.splits,
        "networks": record(trained),
        "test": _test(config, prepared, network, trained.params),
        "future": _look_ahead(config, prepared, network, trained.params),
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


def _network(config: Config, prepared: PreparedSeries) -> Layer:
    size = prepared.z.shape[1]
    inputs = make_features(prepared.z).shape[1]
    sizes = (inputs, *[config.hidden_size] * config.layers, size)
    return deep_rnn(sizes, w_hh_init=initializers.orthogonal(config.recurrent_gain))


def _make_task(config: Config, prepared: PreparedSeries, network: Layer) -> tuple[Task, TrainState]:
    """Training passes over the rows to fit; validation runs on through the rows after them."""
    stream = make_stream(prepared)
    size = prepared.z.shape[1]
    targets = jnp.asarray(np.nan_to_num(prepared.z[1:]), jnp.float32)
    # Scored are known values that follow an unmasked row without a gap between.
    scored = ~np.isnan(prepared.z[1:]) & ~prepared.series.begins[1:, None]
    scored &= np.asarray(stream.mask)[:-1, None]
    weights = jnp.asarray(scored)
    first, second = prepared.splits

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


def _test(config: Config, prepared: PreparedSeries, network: Layer, params: Params) -> Data:
    """The forecasts from the test rows, and their errors [H, C] in the series' units."""
    origins = _choose_origins(config, prepared)
    values, segments = prepared.series.values, np.cumsum(prepared.series.begins)
    rows = origins + 1 + np.arange(config.horizon)[:, None]  # [H, N]
    truth = np.where(segments[rows][..., None] == segments[origins][:, None], values[rows], np.nan)
    paths, bands = _forecast(config, prepared, network, params, origins)
    forecasts = {
        name: to_units(prepared, z)
        for name, z in forecast_baselines(
            prepared.z,
            prepared.series.begins,
            prepared.splits,
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
        "truth": truth,  # [H, N, C], NaN where unknown or after a gap
        "rmse": {name: _rmse(forecast, truth) for name, forecast in forecasts.items()},  # [H, C]
        "network_rmse": _rmse(paths, truth),  # [S, H, C]
        "last": {name: forecast[:, -1] for name, forecast in forecasts.items()},
        "last_band": bands[:, :, -1],  # [2, H, C]
        "coverage": np.nanmean(inside, axis=1),  # [H, C]
        "deviation": np.nanstd(values[: prepared.splits[0]], axis=0),  # [C]
    }


def _look_ahead(config: Config, prepared: PreparedSeries, network: Layer, params: Params) -> Data:
    """The forecast [H, C] of the rows after the last known one, and its band [2, H, C]."""
    known = np.flatnonzero(~np.isnan(prepared.z).all(axis=1))
    paths, bands = _forecast(config, prepared, network, params, known[-1:])
    return {"row": known[-1], "forecast": paths.mean(axis=0)[:, 0], "band": bands[:, :, 0]}


def _choose_origins(config: Config, prepared: PreparedSeries) -> np.ndarray:
    """Rows [N] whose next `horizon` rows are all test rows: at most 512, evenly spaced."""
    rows = np.arange(prepared.splits[1] - 1, len(prepared.z) - config.horizon)
    rows = rows[~np.isnan(prepared.z[rows]).all(axis=1)]
    if not rows.size:
        raise InputError(f"{prepared.series.name}: no test row has a value to forecast from")
    return rows[np.unique(np.linspace(0, len(rows) - 1, _MAX_ORIGINS).astype(int))]


def _forecast(
    config: Config, prepared: PreparedSeries, network: Layer, params: Params, origins: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    return forecast_ensemble(
        network, params, prepared, origins, horizon=config.horizon, window=config.window, key=key
    )


def _rmse(forecasts: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """RMSE over the origins, the last axis but one."""
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
            "The ensemble forecasts better than its networks do alone.",
            "its error over the horizon is lower than their mean",
            f"one step {describe_seeds(single[:, 0], 2)}, "
            f"all steps {describe_seeds(single[:, 1], 2)}; "
            f"ensemble {ours[0]:.3g} and {ours[1]:.3g}",
            bool(ours[1] < single[:, 1].mean()),
        ),
        *findings,
        Finding(
            "bands",
            f"The bands cover {BAND:.0%} of the true values.",
            "the share of the test values inside them differs by at most 10 percentage points",
            f"{coverage:.0%} inside",
            abs(coverage - BAND) <= 0.1,
        ),
    ]


def _pool(rmse: Any, test: Data) -> np.ndarray:
    """RMSE one step ahead and over the horizon [..., 2]; for several columns the mean of their
    RMSEs, each in units of the column's standard deviation."""
    rmse = np.asarray(rmse)
    if rmse.shape[-1] > 1:
        rmse = rmse / test["deviation"]
    whole = np.sqrt(np.mean(rmse**2, axis=-2))
    return np.stack([rmse[..., 0, :].mean(axis=-1), whole.mean(axis=-1)], axis=-1)

"""Forecasts of a real series, one and many steps ahead, with bands from an ensemble.

Claim: an ensemble of vanilla networks on top of a linear part forecasts the held-out end of a
series better than persistence, seasonal persistence and an autoregression, one step ahead and over
the whole horizon, and its 80 % bands cover 80 % of the true values. Refuted by the root mean square
errors, and by the share of test values inside the bands. The table also has what a forecaster would
fit: exponential smoothing and a seasonal ARIMA.

The linear part is an average of autoregressions of the series in several forms: transformed,
differenced, seasonally differenced (`experiments.forecast.linear`). The networks learn its errors
at all steps of the horizon at once, from changes, from levels beside those of the rows before, and
from its last error; so neither a trend nor a growing season is foreign to them. How far they are
followed is decided on the validation rows: not at all, where they help nothing there.

The series is split in time: the networks and the linear part are fitted to the beginning, chosen on
the validation part (early stopping; forms and weights; the spread of the bands) and tested on the
end, on which nothing is chosen. For the test all linear models are fitted again to all rows before
it. The default is the yearly sunspot numbers; `--csv FILE --column NAME` reads another series. Its
season is found from the data, and the horizon is one season, or 8 steps. A row without any value is
masked; at a gap, where rows are absent, the state is reset and nothing is forecast across it. Long
series are trained by truncated back-propagation.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.series import Series, load_sunspots, read_csv
from experiments.forecast.ensemble import (
    BAND,
    Trust,
    decide_trust,
    unroll_corrections,
)
from experiments.forecast.linear import Average, Transform
from experiments.forecast.preparation import (
    PreparedSeries,
    Scales,
    Stream,
    forecast_linearly,
    make_stream,
    make_targets,
    measure_errors,
    prepare_series,
    read_columns,
)
from experiments.forecast.testing import describe_future, judge, look_ahead, score_ensemble
from experiments.shared.findings import Data, Result
from experiments.shared.model_files import (
    load_networks,
    read_inputs,
    read_source,
    save_networks,
)
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


@dataclass(frozen=True)
class Config(TrainConfig):
    """The options of `forecast`."""

    with_source: ClassVar[frozenset[str]] = frozenset(("csv", "column", "time"))

    csv: Path | None = None
    """A comma-separated file with a header; by default the yearly sunspot numbers. With --from: a
    series to continue, by default the one that the networks were trained on."""
    column: tuple[str, ...] = ()
    """Columns of the file to forecast, all by the same network."""
    time: str | None = None
    """Column of the file with increasing numbers or ISO dates; a jump is a gap."""
    classical: bool = True
    """Whether statsmodels' exponential smoothing and ARIMA are in the table."""
    horizon: Positive | None = None
    """Number of steps ahead to forecast; by default a season, or 8 where there is none."""
    season: Positive | None = None
    """Period of the series, in steps; by default found from the data, and 1 means none."""
    transform: Transform | None = None
    """Transform of the values before anything is fitted; by default validation chooses."""
    hidden_size: Positive = 16
    """Hidden units per layer."""
    layers: Positive = 1
    """Number of vanilla layers."""
    window: Positive = 128
    """Steps of truncated back-propagation."""
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


@dataclass(frozen=True)
class ForecastInputs:
    """What the networks read: columns of a series, its season, and what `PreparedSeries` has of
    them; and how far they are followed."""

    columns: list[str]
    season: int
    horizon: int
    averages: list[Average]
    floors: list[float]
    scales: Scales
    trust: Trust


def run(config: Config, progress: Tick) -> Result:
    """Train the ensemble; forecast the test rows and the steps after the last row."""
    if config.source is not None:
        return _use(config, config.source)
    prepared = prepare_series(
        _read(config),
        config.transform,
        config.season,
        config.horizon,
        config.validation,
        config.test,
    )
    network = _network(config, prepared)
    task, start = _make_task(config, prepared, network)
    trained = train(task, start, config, progress)
    trust = decide_trust(prepared, network, trained.params)
    kept = {"network": (network, trained.params, trained.validation)}
    save_networks(config, "forecast", _describe(prepared, trust), kept)
    progress(0.99, "testing")
    data: Data = {
        "band": BAND,
        "series": prepared.series._asdict(),
        "season": prepared.season,
        "splits": prepared.splits,
        "forms": [average.best._asdict() for average in prepared.averages],
        "trust": [trust.first, trust.further],
        "networks": record(trained),
        "test": score_ensemble(
            prepared,
            network,
            trained.params,
            trust,
            max_order=config.max_order,
            classical=config.classical,
        ),
        "future": look_ahead(prepared, network, trained.params, trust),
    }
    return Result(data, judge(data))


def _describe(prepared: PreparedSeries, trust: Trust) -> ForecastInputs:
    return ForecastInputs(
        list(prepared.series.columns),
        prepared.season,
        prepared.horizon,
        list(prepared.averages),
        [column.floor for column in prepared.columns],
        prepared.scales,
        trust,
    )


def _use(config: Config, source: Path) -> Result:
    """Forecast what follows a series with networks of another run."""
    inputs, saved = read_inputs(source, ForecastInputs), read_source(source, Config)
    config = dataclasses.replace(
        config,
        csv=config.csv or saved.csv,
        column=config.column or saved.column,
        time=config.time or saved.time,
    )
    series = _read(config)
    count = len(inputs.columns)
    each = (inputs.averages, inputs.floors, inputs.scales.change, inputs.scales.level)
    wide = (inputs.scales.error, inputs.trust.spread)
    if any(len(part) != count for part in each) or any(
        len(part) != inputs.horizon or any(len(row) != count for row in part) for part in wide
    ):
        raise InputError(f"{source}: the description does not have {count} columns throughout")
    if len(series.columns) != count:
        raise InputError(
            f"{series.name}: {len(series.columns)} columns, but networks in {source} read {count}"
        )
    rows = len(series.values)
    columns = [
        column._replace(floor=floor)
        for column, floor in zip(read_columns(series, rows), inputs.floors, strict=True)
    ]
    prepared = PreparedSeries(
        series,
        inputs.season,
        inputs.horizon,
        (rows, rows),
        tuple(columns),
        tuple(inputs.averages),
        inputs.scales,
    )
    network = _network(config, prepared)
    params = load_networks(source, "network", network)
    future = look_ahead(prepared, network, params, inputs.trust)
    data: Data = {"band": BAND, "series": series._asdict(), "future": future}
    return Result(data, [], describe_future(data))


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
    """Vanilla layers below a readout that starts at zero: with the linear part alone."""
    count, size = prepared.series.values.shape
    errors = np.zeros((count, prepared.horizon, size))
    inputs = make_stream(prepared, errors).xs.shape[1]
    recurrent = initializers.orthogonal(config.recurrent_gain)
    layers = [
        vanilla_rnn(below, config.hidden_size, w_hh_init=recurrent)
        for below in (inputs, *[config.hidden_size] * (config.layers - 1))
    ]
    outputs = prepared.horizon * size
    return stack(*layers, dense(config.hidden_size, outputs, w_init=jax.nn.initializers.zeros))


def _make_task(config: Config, prepared: PreparedSeries, network: Layer) -> tuple[Task, TrainState]:
    """Training passes over the rows to fit; validation runs on through the rows after them."""
    first, second = prepared.splits
    rows = np.arange(len(prepared.series.values))
    errors = measure_errors(prepared, forecast_linearly(prepared, first, rows))
    stream = make_stream(prepared, errors)
    targets, known = make_targets(prepared, errors)
    ahead = (rows[:, None] + 1 + np.arange(prepared.horizon))[..., None]
    fitted = known & jnp.asarray(ahead < first) & stream.mask[:, None, None]
    judged = known & jnp.asarray((ahead >= first) & (ahead < second)) & stream.mask[:, None, None]
    values = 3 * prepared.series.values.shape[1]  # the inputs that are not flags or phases

    def loss_of_window(
        params: Params, state: Any, batch: Any, key: Key
    ) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        (xs, mask, resets), ys, scored = batch
        noise = config.input_noise * jax.random.normal(key, (*xs.shape[:1], values))
        noisy = Stream(xs.at[:, :values].add(noise), mask, resets)
        state, added = unroll_corrections(network, params, state, noisy, prepared.horizon)
        return masked_mean((added - ys) ** 2, scored), (state, {})

    def make_batch(key: Key, step: Array) -> Any:
        del key, step
        return jax.tree.map(lambda leaf: leaf[:first], (stream, targets, fitted))

    def validate(params: Params) -> Array:
        past = jax.tree.map(lambda leaf: leaf[:second], stream)
        added = unroll_corrections(network, params, None, past, prepared.horizon)[1]
        return masked_mean((added - targets[:second]) ** 2, judged[:second])

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(config.learning_rate, weight_decay=config.weight_decay),
    )
    step = make_train_step(loss_of_window, optimizer, has_carry=True)
    step = truncate_train_step(step, config.window)
    task = Task("network", step, make_batch, validate, (stream, targets, fitted, judged))
    return task, start_networks(network, optimizer, config, ())

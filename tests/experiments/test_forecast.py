"""Forecasts: baselines and linear forms by hand; nothing of the test rows is used before them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import forecast
from experiments.data.series import Series
from experiments.forecast import linear, preparation, testing
from experiments.forecast.classical import forecast_classically
from experiments.forecast.ensemble import Trust, correct, decide_trust, forecast_ensemble
from experiments.forecast.linear import Average, Column, Form
from experiments.forecast.preparation import (
    find_season,
    forecast_linearly,
    make_stream,
    make_targets,
    measure_errors,
    prepare_series,
)
from experiments.shared.baselines import forecast_baselines
from experiments.shared.options import InputError

CONFIG = forecast.Config(seeds=2, steps=4, eval_every=2, hidden_size=3, window=16)


pytestmark = pytest.mark.usefixtures("as_on_the_command_line")


def make_series(values, begins=()):
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    marks = np.isin(np.arange(len(values)), [0, *begins])
    names = tuple("abc"[: values.shape[1]])
    return Series("made", names, values, marks, np.arange(len(values), dtype=np.float64))


def forecast_of(values, origins, horizon, *, begins=(), season=4, max_order=6, splits=None):
    series = make_series(values, begins)
    splits = splits or (len(values) // 2, 3 * len(values) // 4)
    return forecast_baselines(
        series.values,
        series.begins,
        splits,
        np.asarray(origins),
        horizon,
        season=season,
        max_order=max_order,
    )


def test_persistence_repeats_the_last_value_and_seasonal_persistence_the_last_season():
    values = np.random.default_rng(0).normal(size=40)
    got = forecast_of(values, [20, 33], 6)
    for place, origin in enumerate([20, 33]):
        np.testing.assert_array_equal(got["persistence"][:, place, 0], [values[origin]] * 6)
        seasonal = [values[origin - 3 + step % 4] for step in range(6)]
        np.testing.assert_array_equal(got["seasonal persistence (4)"][:, place, 0], seasonal)


def test_an_autoregression_continues_a_series_that_is_one():
    values = [1.0, 0.3]
    for _ in range(80):
        values.append(1.6 * values[-1] - 0.98 * values[-2] + 0.1)
    forecasts = forecast_of(values, [50, 60], 8)
    name = next(name for name in forecasts if name.startswith("AR"))
    for place, origin in enumerate([50, 60]):
        expected = values[origin + 1 : origin + 9]
        np.testing.assert_allclose(forecasts[name][:, place, 0], expected, atol=1e-3)


def test_the_autoregression_learns_nothing_across_a_gap_and_nothing_from_missing_values():
    rng = np.random.default_rng(0)
    values = rng.normal(size=60).cumsum()
    whole = forecast_of(values, [55], 3, begins=(20,), max_order=1)["AR(1)"]
    moved = np.where(np.arange(60) == 10, np.nan, values)
    missing = forecast_of(moved, [55], 3, begins=(20,), max_order=1)["AR(1)"]
    assert np.isfinite(missing).all()
    assert not np.array_equal(whole, missing)
    # By hand: pairs of rows of one segment, before the second split.
    x, y = values[:44], values[1:45]
    kept = np.arange(1, 45) != 20
    slope, level = np.polyfit(x[kept], y[kept], 1)
    expected = values[55]
    for step in range(3):
        expected = slope * expected + level
        assert whole[step, 0, 0] == pytest.approx(expected, rel=1e-4)


def test_orders_beyond_the_rows_to_fit_do_no_harm():
    values = np.random.default_rng(0).normal(size=24)
    forecasts = forecast_of(values, [18, 19], 4, max_order=20, splits=(14, 19))
    for path in forecasts.values():
        assert np.isfinite(path).all()


# The season


def make_seasonal(period, rows=120, noise=0.3, trend=0.0):
    rng = np.random.default_rng(period)
    steps = np.arange(rows)
    shape = rng.normal(size=period)
    shape = 3 * (shape - shape.mean()) / shape.std()
    return 50 + trend * steps + shape[steps % period] + noise * rng.normal(size=rows)


@pytest.mark.parametrize("period", [4, 7, 12])
@pytest.mark.parametrize("trend", [0.0, 0.5])
def test_the_season_is_found_from_the_rows_before_the_test(period, trend):
    values = make_seasonal(period, trend=trend)
    assert find_season(make_series(values), 96) == period
    values[96:] = 0.0
    assert find_season(make_series(values), 96) == period


@pytest.mark.parametrize("seed", range(10))
def test_noise_and_random_walks_have_no_season(seed):
    noise = np.random.default_rng(seed).normal(size=150)
    assert find_season(make_series(noise), 120) == 1
    assert find_season(make_series(noise.cumsum()), 120) == 1


# The linear part


def make_column(values):
    values = np.asarray(values, np.float64)
    return Column(values, np.ones(len(values), bool), np.zeros(len(values), int), 1e-3)


@pytest.mark.parametrize("transform", ["none", "sqrt", "log"])
@pytest.mark.parametrize("differences", [0, 1])
@pytest.mark.parametrize("seasonal", [0.0, 0.2, 1.0])
def test_a_form_forecasts_as_its_definition_step_by_step(transform, differences, seasonal):
    rng = np.random.default_rng(0)
    column, season, horizon = make_column(rng.uniform(1, 3, size=60)), 4, 9
    form = Form(transform, differences, seasonal, (1, 3))
    weights, origins = np.array([0.5, -0.3, 0.05]), np.array([30, 59])
    got = linear._forecast(column, form, season, weights, origins, horizon)
    for place, origin in enumerate(origins):
        values = list(column.transform(transform)[: origin + 1])
        for step in range(horizon):
            read = linear.difference(np.array([*values, 0.0]), form, season)
            # The row to come, with 0 in its place, is minus what it is the difference from.
            expected = 0.5 * read[-2] - 0.3 * read[-4] + 0.05
            values.append(expected - read[-1])
            units = linear.invert_transform(transform, np.array(values[-1]))
            assert got[step, place] == pytest.approx(units, rel=1e-9)


def test_the_average_of_a_season_follows_it_with_its_weight():
    values = np.arange(20.0) ** 2
    got = linear.difference(values, Form("none", 0, 0.2, ()), 4)
    average = values[:4].copy()
    for row in range(4, 20):
        assert got[row] == pytest.approx(values[row] - average[row % 4])
        weight = max(0.2, 1 / (row // 4 + 1))
        average[row % 4] += weight * (values[row] - average[row % 4])
    assert np.isnan(got[:4]).all()


def test_a_trend_with_a_growing_season_is_forecast_to_its_end():
    steps = np.arange(200)
    season = np.sin(2 * np.pi * steps / 12) + 0.5 * np.cos(4 * np.pi * steps / 12)
    values = np.exp(0.01 * steps + 0.3 * season)
    prepared = prepare_series(make_series(values), None, None, None, 0.2, 0.2)
    assert (prepared.season, prepared.horizon) == (12, 12)
    origins = np.arange(159, 188)
    made = forecast_linearly(prepared, 160, origins)[..., 0]
    truth = values[origins + 1 + np.arange(12)[:, None]]
    level = np.repeat(values[None, origins], 12, axis=0)
    assert np.abs(made - truth).max() < 0.2 * np.abs(level - truth).max()
    assert prepared.averages[0].best.transform == "log"


def test_a_form_is_fitted_to_rows_of_one_segment_whose_value_is_known():
    rng = np.random.default_rng(0)
    values = rng.normal(size=80)
    segments = (np.arange(80) >= 40).astype(int)
    known = np.arange(80) != 20
    column = Column(values, known, segments, 1.0)
    got = linear._fit(column, Form("none", 0, 0.0, (1, 2)), 1, 70)
    rows = [t for t in range(2, 70) if t not in (20, 40, 41)]
    inputs = np.stack([[values[t - 1], values[t - 2], 1.0] for t in rows])
    ridge = np.diag([1e-3 * len(rows) * values[rows].var()] * 2 + [0.0])
    expected = np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ values[rows])
    np.testing.assert_allclose(got, expected, rtol=1e-8)
    assert linear._fit(column, Form("none", 0, 0.0, tuple(range(1, 30))), 1, 40) is None


def test_too_few_rows_for_what_was_chosen_are_refused():
    average = Average((Form("none", 0, 0.0, (1, 2, 3)),), (1.0,), 1)
    with pytest.raises(InputError, match="9 rows are too few to fit 3 lags to"):
        linear.forecast_average(average, make_column(np.arange(9.0)), 9, np.array([8]), 2)


# What is prepared


@pytest.fixture
def prepared():
    rng = np.random.default_rng(0)
    values = np.stack([np.sin(np.arange(120) / 3), rng.normal(size=120)], axis=1)
    values[[3, 40, 41, 111], 0] = np.nan
    values[[40, 90], 1] = np.nan  # row 40 has no value at all
    return prepare_series(make_series(values, begins=(30, 100)), "none", 1, 5, 0.2, 0.2)


def all_errors(prepared, stop=None):
    rows = np.arange(len(prepared.series.values))
    return measure_errors(prepared, forecast_linearly(prepared, stop or prepared.splits[0], rows))


def test_nothing_of_the_test_rows_is_used_before_them():
    values = make_seasonal(4, rows=150)
    whole = prepare_series(make_series(values), None, None, None, 0.2, 0.2)
    changed = values.copy()
    changed[120:] = 1000 - 7 * changed[120:]
    other = prepare_series(make_series(changed), None, None, None, 0.2, 0.2)
    assert other.averages == whole.averages
    assert other.scales == whole.scales
    assert (other.season, other.horizon) == (whole.season, whole.horizon)
    network = forecast._network(CONFIG, whole)
    params = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 2))
    params = jax.tree.map(lambda p: p + 0.1, params)
    assert decide_trust(whole, network, params) == decide_trust(other, network, params)
    tasks = [forecast._make_task(CONFIG, each, network)[0] for each in (whole, other)]
    one = jax.tree.map(lambda leaf: leaf[0], params)
    assert tasks[0].validate(one) == tasks[1].validate(one)
    batches = [task.make_batch(jax.random.key(0), 0) for task in tasks]
    for got, expected in zip(*map(jax.tree.leaves, batches), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_errors_are_those_of_the_rows_ahead_and_unknown_across_a_gap(prepared):
    linear_forecasts = np.zeros((5, 120, 2))
    errors = measure_errors(prepared, linear_forecasts)
    values = prepared.series.values
    for row in (60, 80, 94):
        for step in range(5):
            np.testing.assert_array_equal(errors[row, step], values[row + 1 + step])
    assert np.isnan(errors[97, 2]).all()  # row 100 follows a gap
    assert np.isnan(errors[119]).all()
    targets, known = make_targets(prepared, errors)
    np.testing.assert_array_equal(known, np.isfinite(errors))
    assert np.isfinite(targets).all()


def test_the_network_sees_which_values_are_missing_and_no_nan(prepared):
    stream = make_stream(prepared, all_errors(prepared))
    xs = np.asarray(stream.xs)
    assert xs.shape == (120, 3 * 2 + 2)
    assert np.isfinite(xs).all()
    assert np.abs(xs).max() <= 6
    np.testing.assert_array_equal(xs[:, 6:] == 1, ~np.isnan(prepared.series.values))
    assert np.flatnonzero(~np.asarray(stream.mask)).tolist() == [40]
    np.testing.assert_array_equal(stream.resets, prepared.series.begins)


def test_the_network_sees_the_last_error_and_never_a_later_one():
    prepared = prepare_series(make_series(make_seasonal(4)), "none", 4, 4, 0.2, 0.2)
    errors = all_errors(prepared)
    xs = np.asarray(make_stream(prepared, errors).xs)
    expected = errors[:-1, 0, 0] / prepared.scales.error[0][0]
    np.testing.assert_allclose(xs[1:, 2], np.nan_to_num(expected).clip(-6, 6), atol=1e-6)
    cut = prepared.series._replace(
        values=prepared.series.values[:100],
        begins=prepared.series.begins[:100],
        times=prepared.series.times[:100],
    )
    shorter = prepared._replace(series=cut, columns=preparation.read_columns(cut, 72))
    again = make_stream(shorter, all_errors(shorter)).xs
    np.testing.assert_allclose(again, xs[:100], atol=1e-5)


def test_scored_are_known_errors_of_the_rows_to_fit_and_to_validate_on(prepared):
    network = forecast._network(CONFIG, prepared)
    task, _ = forecast._make_task(CONFIG, prepared, network)
    _, _, fitted, judged = (np.asarray(leaf) for leaf in jax.tree.leaves(task.inputs)[-4:])
    first, second = prepared.splits
    ahead = np.arange(120)[:, None] + 1 + np.arange(5)
    assert not fitted[(ahead >= first), :].any()
    assert not judged[(ahead < first) | (ahead >= second), :].any()
    assert not fitted[40].any()  # masked
    assert not fitted[29].any()  # a gap follows
    assert fitted[60].all()
    assert judged[80].any()


# The networks


def test_before_training_the_ensemble_is_the_linear_part(prepared):
    network = forecast._network(CONFIG, prepared)
    params = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 2))
    made = forecast_ensemble(
        network, params, prepared, Trust(1.0, 1.0, [[1.0] * 2] * 5), np.array([95]), 96
    )
    np.testing.assert_allclose(made["ensemble"], made["linear part"], atol=1e-12)
    low, high = made["bands"]
    np.testing.assert_allclose(high - low, 2 * 1.2816, rtol=1e-12)


def fake_network(prepared, corrections):
    """A network of no parameters whose corrections [T, H, C] are given."""

    def correct(network, params, stream, horizon):
        del network, params, stream, horizon
        return jnp.asarray(corrections)[None]

    return correct


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_networks_are_followed_as_far_as_they_were_right_on_the_validation_rows(monkeypatch, share):
    prepared = prepare_series(
        make_series(make_seasonal(4, rows=400, noise=1)), "none", 4, 4, 0.3, 0.2
    )
    z = np.nan_to_num(all_errors(prepared) / np.asarray(prepared.scales.error))
    noise = np.random.default_rng(1).normal(size=z.shape)
    first = prepared.splits[0]
    told = z if share else noise
    told = np.where((np.arange(400) < first)[:, None, None], 0.0, told)
    scale = 1 / share if share else 1.0
    monkeypatch.setattr(
        "experiments.forecast.ensemble.correct", fake_network(prepared, scale * told)
    )
    trust = decide_trust(prepared, None, None)
    assert trust.first == pytest.approx(share, abs=0.2)
    assert trust.further == pytest.approx(share, abs=0.2)
    spread = np.asarray(trust.spread) / np.asarray(prepared.scales.error)
    assert (spread > 0.5).all() if not share else (spread < 0.6).all()


def test_corrections_are_the_networks_outputs_and_move_the_forecast_by_their_share(prepared):
    network = forecast._network(CONFIG, prepared)
    params = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 2))
    params = jax.tree.map(lambda p: p + 0.1, params)
    origins = np.array([95, 97])
    stream = make_stream(prepared, all_errors(prepared, 96))
    added = np.asarray(correct(network, params, stream, 5))
    for place in range(2):
        one = jax.tree.map(lambda leaf, at=place: leaf[at], params)
        ys = network.unroll(one, None, stream.xs, mask=stream.mask, resets=stream.resets)[1]
        np.testing.assert_allclose(added[place].reshape(120, -1), ys, atol=1e-5)
    trust = Trust(0.5, 0.25, [[1.0] * 2] * 5)
    made = forecast_ensemble(network, params, prepared, trust, origins, 96)
    shares = np.array([0.5, 0.25, 0.25, 0.25, 0.25])[:, None, None]
    moved = (
        shares * np.asarray(prepared.scales.error)[:, None] * added.mean(0)[origins].swapaxes(0, 1)
    )
    np.testing.assert_allclose(made["ensemble"] - made["linear part"], moved, atol=1e-6)
    np.testing.assert_allclose(made["networks"].mean(axis=0), made["ensemble"], atol=1e-6)


def test_a_run_returns_finite_forecasts_whatever_is_missing(prepared):
    network = forecast._network(CONFIG, prepared)
    params = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 2))
    trust = decide_trust(prepared, network, params)
    test = testing.score_ensemble(prepared, network, params, trust, max_order=6, classical=True)
    assert test["truth"].shape == (5, len(test["origins"]), 2)
    assert np.isnan(test["truth"]).any()  # row 111, and after the gap at 100
    assert set(test["rmse"]) == {"persistence", "linear part", "ensemble"} | {
        name for name in test["rmse"] if name.startswith("AR(")
    }
    for rmse in test["rmse"].values():
        assert np.isfinite(rmse).all()
    assert ((test["coverage"] >= 0) & (test["coverage"] <= 1)).all()
    future = testing.look_ahead(prepared, network, params, trust)
    assert future["row"] == 119
    low, high = future["band"]
    assert (low < future["forecast"]).all()
    assert (future["forecast"] < high).all()


def test_smoothing_and_arima_forecast_from_the_rows_up_to_each_origin():
    values = make_seasonal(4, rows=100)
    prepared = prepare_series(make_series(values), "none", 4, 4, 0.2, 0.2)
    origins = np.array([79, 90])
    made = forecast_classically(prepared, origins)
    later = values.copy()
    later[91:] += 100.0
    again = forecast_classically(
        prepare_series(make_series(later), "none", 4, 4, 0.2, 0.2), origins
    )
    assert set(made) == {"ETS", "ARIMA"}
    for name, forecasts in made.items():
        truth = values[origins + 1 + np.arange(4)[:, None]]
        assert np.abs(forecasts[..., 0] - truth).max() < 3.0  # the season's amplitude is 6
        np.testing.assert_allclose(again[name], forecasts)


@pytest.mark.parametrize(
    ("transform", "horizon", "message"),
    [("log", 5, "--transform log: made, 'a' has the value"), ("none", 30, "--horizon is 30")],
)
def test_what_cannot_be_prepared_is_refused(transform, horizon, message):
    values = np.random.default_rng(0).normal(size=120)
    with pytest.raises(InputError, match=message):
        prepare_series(make_series(values), transform, 1, horizon, 0.2, 0.2)


@pytest.mark.parametrize("rows", [24, 60])
def test_a_short_series_is_forecast(rows):
    values = np.random.default_rng(0).normal(size=rows).cumsum() + 30
    prepared = prepare_series(make_series(values), None, None, None, 0.2, 0.2)
    network = forecast._network(CONFIG, prepared)
    params = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 2))
    trust = decide_trust(prepared, network, params)
    test = testing.score_ensemble(prepared, network, params, trust, max_order=20, classical=True)
    assert all(np.isfinite(rmse).all() for rmse in test["rmse"].values())

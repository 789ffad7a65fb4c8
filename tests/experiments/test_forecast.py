"""Forecasts: the baselines by hand, and networks that feed back what they forecast."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import forecast
from experiments.data.series import Series
from experiments.forecast.ensemble import forecast_recursively
from experiments.forecast.preparation import make_stream, prepare_series, to_units
from experiments.shared.baselines import forecast_baselines

CONFIG = forecast.Config(
    seeds=2, steps=4, eval_every=2, hidden_size=3, horizon=5, window=16, transform="none"
)


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
    # By hand: pairs of rows of one segment, before the first split.
    x, y = values[:29], values[1:30]
    kept = np.arange(1, 30) != 20
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


@pytest.fixture
def prepared():
    rng = np.random.default_rng(0)
    values = np.stack([np.sin(np.arange(120) / 3), rng.normal(size=120)], axis=1)
    values[[3, 40, 41, 111], 0] = np.nan
    values[[40, 90], 1] = np.nan  # row 40 has no value at all
    return prepare_series(make_series(values, begins=(30, 100)), "none", 0.2, 0.2, 5)


def test_a_network_feeds_back_what_it_forecasts(prepared):
    network = forecast._network(CONFIG, prepared)
    params = network.init(jax.random.key(0))
    stream = make_stream(prepared)
    origins, horizon = np.array([115, 104, 60]), 4
    got = forecast_recursively(
        network, horizon, 16, stream, jnp.asarray(origins), params, jnp.zeros(2), jax.random.key(1)
    )
    for place, origin in enumerate(origins):
        xs = np.asarray(stream.xs)[origin - 15 : origin + 1]
        mask = np.asarray(stream.mask)[origin - 15 : origin + 1]
        resets = np.asarray(stream.resets)[origin - 15 : origin + 1]
        for step in range(horizon):
            changes = network.unroll(params, None, xs, mask=mask, resets=resets)[1]
            value = xs[-1, :2] + np.asarray(changes[-1])
            np.testing.assert_allclose(got[step, place], value, atol=1e-5)
            xs = np.concatenate([xs, [[*value, 1.0, 1.0]]]).astype(np.float32)
            mask, resets = np.append(mask, True), np.append(resets, False)


def test_the_network_sees_which_values_are_missing_and_no_nan(prepared):
    xs = np.asarray(make_stream(prepared).xs)
    assert xs.shape == (120, 4)
    assert np.isfinite(xs).all()
    np.testing.assert_array_equal(xs[:, 2:] == 1, ~np.isnan(prepared.z))
    assert np.flatnonzero(~np.asarray(make_stream(prepared).mask)).tolist() == [40]


def test_what_follows_a_gap_or_is_missing_is_neither_learned_nor_scored(prepared):
    network = forecast._network(CONFIG, prepared)
    task, _ = forecast._make_task(CONFIG, prepared, network)
    weights = np.asarray(task.inputs[2])  # row t: is the forecast of row t + 1 scored?
    assert not weights[29].any()  # a gap
    assert not weights[39].any()  # missing
    assert not weights[40].any()  # the row to forecast from is masked
    assert weights[2].tolist() == [False, True]
    assert weights[10].all()


def test_a_run_returns_finite_forecasts_whatever_is_missing(prepared):
    config = dataclasses.replace(CONFIG, column=("a",))
    network = forecast._network(config, prepared)
    params = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 2))
    test = forecast._test(config, prepared, network, params)
    assert test["truth"].shape == (5, len(test["origins"]), 2)
    assert np.isnan(test["truth"]).any()  # row 111, and after the gap at 100
    for rmse in test["rmse"].values():
        assert np.isfinite(rmse).all()
    assert ((test["coverage"] >= 0) & (test["coverage"] <= 1)).all()
    future = forecast._look_ahead(config, prepared, network, params)
    assert future["row"] == 119
    low, high = future["band"]
    assert (low <= high).all()


def test_transforms_are_undone():
    values = np.exp(np.random.default_rng(0).normal(size=(60, 1)))
    prepared = prepare_series(make_series(values), "log", 0.2, 0.2, 5)
    np.testing.assert_allclose(to_units(prepared, prepared.z), values, rtol=1e-12)

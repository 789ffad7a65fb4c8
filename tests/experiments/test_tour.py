"""The tour's measurements against their formulas in NumPy, and the findings drawn from them."""

import copy
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tour import averages, definition, mapping, retention, sunspot_series, sunspots
from jaxrnn import RNNParams, deep_rnn, unroll

pytestmark = pytest.mark.usefixtures("as_on_the_command_line")

ROOT = Path(__file__).parents[2]


def ignore(done, doing):
    del done, doing


def find_refuted(findings):
    return {finding.name for finding in findings if not finding.holds}


def plant(data, path, value):
    """The data with another value at a path of keys."""
    data = copy.deepcopy(data)
    *way, last = path
    place = data
    for name in way:
        place = place[name]
    place[last] = value
    return data


# Claims 1 and 2

DEFINITION = definition.Config(
    draws=4, unrolled_steps=3, num_steps=4, batch_size=2, input_size=2, hidden_size=3
)
DEFINITION_DATA = {
    "formula": {
        "one_step_eps": 8.0, "unrolled_eps": 24.0, "tolerance_eps": 8.0, "steps": 3, "draws": 4,
    },
    "copies": {"values": 1e-15, "gradients": 1e-15, "tolerance": 1e-15},
}  # fmt: skip


def test_the_states_of_the_formula_are_those_worked_by_hand():
    got = definition._compute_states(0.5, -2.0, 0.25, 0.75, np.array([3.0, -1.0]))
    first = math.tanh(0.5 * 0.75 - 2 * 3 + 0.25)
    assert got == pytest.approx([first, math.tanh(0.5 * first + 2 + 0.25)], rel=1e-15)


def test_a_difference_is_relative_to_the_largest_entry_of_its_own_array():
    got = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([10.0])}
    expected = {"a": jnp.array([1.0, 4.0]), "b": jnp.array([-11.0])}
    assert definition._measure_difference(got, expected) == pytest.approx(21 / 11)
    assert definition._measure_difference(got, got) == 0


def test_the_definition_and_the_copies_are_measured_within_rounding():
    data = definition.measure(DEFINITION, 0, ignore)
    assert find_refuted(definition.judge(data)) == set()
    assert data["copies"]["tolerance"] == 2.0**-52 * math.sqrt(4 * 2 * 3)
    assert data["formula"]["steps"] == 3


def test_a_step_without_its_bias_is_measured_and_refuted(monkeypatch):
    def forgetful(params, h, x):
        return jnp.tanh(params.w_hh @ h + params.w_ih @ x)

    monkeypatch.setattr(definition, "step", forgetful)
    data = definition.measure(DEFINITION, 0, ignore)
    assert find_refuted(definition.judge(data)) == {"1"}


def test_a_gradient_cut_after_each_step_is_measured_and_refuted(monkeypatch):
    def cut(params, h0, xs):
        _, states = unroll(params, h0, xs)
        first = jnp.zeros_like(states[:1]) if h0 is None else h0[None]
        before = jnp.concatenate([first, states[:-1]])
        zs = jax.lax.stop_gradient(before) @ params.w_hh.T + xs @ params.w_ih.T
        return None, jnp.tanh(zs if params.b is None else zs + params.b)

    monkeypatch.setattr(definition, "unroll", cut)
    data = definition.measure(DEFINITION, 0, ignore)
    assert data["copies"]["values"] < 1e-14
    assert find_refuted(definition.judge(data)) == {"2"}


@pytest.mark.parametrize(
    ("path", "value", "refuted"),
    [
        (("formula", "one_step_eps"), 8.1, {"1"}),
        (("formula", "unrolled_eps"), 24.1, {"1"}),
        (("copies", "values"), 2e-15, {"2"}),
        (("copies", "gradients"), 2e-15, {"2"}),
        (("formula", "draws"), 4, set()),
    ],
)
def test_a_planted_measurement_refutes_claim_1_or_2(path, value, refuted):
    assert find_refuted(definition.judge(plant(DEFINITION_DATA, path, value))) == refuted


# Claims 3 and 4

SPAN = averages.SPAN


def average(xs, alpha):
    """The average of xs [T] as the sum that its definition unrolls to."""
    return [
        sum((1 - alpha) * alpha ** (t - s) * xs[s] for s in range(t + 1)) for t in range(len(xs))
    ]


def run_by_hand(w, u, xs, activation):
    """The states of a univariate network without a bias."""
    states, h = [], 0.0
    for x in xs:
        h = activation(w * h + u * x)
        states.append(h)
    return states


def test_the_average_is_its_weighted_sum():
    xs = np.random.default_rng(0).normal(size=30)
    np.testing.assert_allclose(averages._average(xs, 0.8), average(xs, 0.8), rtol=1e-12)


def test_the_errors_of_the_learned_averages_are_those_of_their_two_weights():
    config = averages.Config(
        alphas=(0.5, 0.8), seeds=2, test_length=250, test_sequences=1, train_steps=5, batch_size=2
    )
    data = averages.measure(config, 0, ignore)
    assert data["exact"]["difference"] <= data["exact"]["tolerance"]
    assert data["exact"]["leaky"] <= data["exact"]["tolerance"]
    assert data["exact"]["tolerance"] == pytest.approx(2.0**-52 / (1 - 0.8))
    xs = np.asarray(data["example"]["xs"], np.float64)
    for place, alpha in enumerate(config.alphas):
        expected = np.array(average(xs, alpha))
        np.testing.assert_allclose(data["example"]["average"][place], expected, atol=1e-6)
        # The only test sequence: the root mean square is its absolute value.
        np.testing.assert_allclose(data["rms_average"][place], np.abs(expected), atol=1e-6)
        for name, activation in (("identity", float), ("tanh", math.tanh)):
            network = data["networks"][name]
            states = np.array([
                run_by_hand(float(network["w"][place, seed]), float(network["u"][place, seed]), xs,
                            activation)
                for seed in range(config.seeds)
            ])  # fmt: skip
            np.testing.assert_allclose(network["example"][place], states[0], atol=1e-5)
            rms = np.sqrt(np.mean((states - expected) ** 2, axis=0))
            np.testing.assert_allclose(network["rms_error"][place], rms, atol=1e-5)


def test_the_two_weights_are_learned_from_data():
    config = averages.Config(alphas=(0.5,), seeds=1, train_steps=300, batch_size=16)
    weights = averages._learn(config, jax.nn.identity, jax.random.key(0))
    assert abs(float(weights.w_hh[0, 0, 0, 0]) - 0.5) < 0.05
    assert abs(float(weights.w_ih[0, 0, 0, 0]) - 0.5) < 0.05


def make_averages(early=1e-7, late=1e-7, identity_w=0.5, identity_u=0.5, tanh_error=0.1):
    """The data of one average of 0.5 over 3 SPAN steps, which reaches a root mean square of 2."""
    rms = np.concatenate([np.full(2 * SPAN, early), np.full(SPAN, late)])[None]
    return {
        "alphas": (0.5,),
        "train_length": 20,
        "exact": {"difference": 1e-16, "leaky": 1e-16, "tolerance": 4e-16},
        "networks": {
            "identity": {
                "w": np.array([[0.5, identity_w]]), "u": np.array([[0.5, identity_u]]),
                "rms_error": rms,
            },
            "tanh": {
                "w": np.array([[0.7, 0.7]]), "u": np.array([[0.6, 0.6]]),
                "rms_error": np.full((1, 3 * SPAN), tanh_error),
            },
        },
        "rms_average": np.full((1, 3 * SPAN), 2.0),
    }  # fmt: skip


def test_settled_errors_are_relative_to_the_average_and_divided_ones_to_earlier_steps():
    data = make_averages(early=0.5, late=1.5)
    np.testing.assert_allclose(averages.measure_settled_error(data, "identity"), [0.75])
    errors = data["networks"]["identity"]["rms_error"]
    np.testing.assert_allclose(averages.divide_errors(errors, SPAN, 2 * SPAN), [3.0])


@pytest.mark.parametrize(
    ("planted", "refuted"),
    [
        ({}, set()),
        ({"identity_w": 0.5011}, {"3 learned"}),
        ({"identity_u": 0.4989}, {"3 learned"}),
        ({"tanh_error": 1e-5}, {"3 tanh"}),  # 0.5e-5 of the average's root mean square
        ({"late": 1.3e-7}, {"4"}),
        ({"early": 3e-5, "late": 3e-5}, {"4"}),  # flat, but not the average
    ],
)
def test_a_planted_measurement_refutes_claim_3_or_4(planted, refuted):
    assert find_refuted(averages.judge(make_averages(**planted))) == refuted


def test_a_step_that_is_not_the_average_refutes_claim_3():
    data = plant(make_averages(), ("exact", "difference"), 5e-16)
    assert find_refuted(averages.judge(data)) == {"3"}
    data = plant(make_averages(), ("exact", "leaky"), 5e-16)
    assert find_refuted(averages.judge(data)) == {"3 leaky"}


def test_a_step_with_swapped_weights_is_measured_and_refuted(monkeypatch):
    def swap(w_ih, w_hh):
        return RNNParams(w_hh, w_ih)

    monkeypatch.setattr(averages, "RNNParams", swap)
    config = averages.Config(alphas=(0.8,), test_length=30)
    with jax.enable_x64(True):
        exact = averages._measure_exactness(config, jax.random.key(0))
    assert exact["difference"] > 0.01


# Claim 5


def test_the_square_roots_are_standardised_by_the_training_years_and_undone():
    series = sunspot_series.split_sunspots(69)
    assert len(series.numbers) == 309  # 1700 to 2008
    assert (series.fit_end, series.train_end) == (137, 206)
    train = series.z[:206]
    np.testing.assert_allclose([train.mean(), train.std()], [0, 1], atol=1e-12)
    np.testing.assert_allclose(sunspot_series.to_numbers(series, series.z), series.numbers)
    np.testing.assert_array_equal(sunspot_series.to_numbers(series, np.array([-100.0])), [0.0])


def test_the_error_of_persistence_is_that_of_last_year_s_numbers():
    series = sunspot_series.split_sunspots(69)
    rmse = sunspot_series.measure_baselines(series, 2)["rmse"]
    numbers = series.numbers.tolist()
    squares = [(numbers[year] - numbers[year - 1]) ** 2 for year in range(206, 309)]
    assert rmse["persistence"] == pytest.approx(math.sqrt(sum(squares) / 103))


def make_sunspots(shallow=10.0, deep=8.0, spread=0.1, linear=12.0, persistence=20.0):
    seeds = np.array([-spread, spread])
    return {
        "networks": {
            depth: {
                "rmse": mean + seeds,
                "ensemble_rmse": mean,
                "validation_rmse": np.full(2, validation),
            }
            for depth, mean, validation in (("1", shallow, 5.0), ("3", deep, 4.0))
        },
        "baselines": {
            "rmse": {"persistence": persistence, "AR(2)": linear, "AR(9)": 14.0},
            "chosen": "AR(2)",
            "usual": "AR(9)",
        },
    }


@pytest.mark.parametrize(
    ("planted", "refuted"),
    [
        ({}, set()),
        ({"persistence": 9.9}, {"5"}),
        ({"linear": 7.9}, {"5 linear"}),
        ({"shallow": 8.2}, {"5 deep"}),  # a standard error is 0.14
        ({"spread": 1.1}, {"5 deep"}),
    ],
)
def test_a_planted_measurement_refutes_a_part_of_claim_5(planted, refuted):
    assert find_refuted(sunspots.judge(make_sunspots(**planted))) == refuted


# Claim 6

MAPPING = mapping.Config(num_sequences=3, num_steps=4, input_size=2, hidden_size=3, repeats=1)
MAPPING_DATA = {
    "sequences": 3,
    "difference": 1e-6,
    "tolerance": 1e-6,
    "loop_seconds": 2.0,
    "mapped_seconds": 1.0,
}


def test_the_loop_and_the_mapped_call_that_are_timed_give_numpy_s_states(monkeypatch):
    timed = []

    def time_in_turn(*calls, repeats):
        timed.extend(call() for call in calls)
        return [3.0, repeats]

    params = RNNParams(*map(jnp.asarray, np.random.default_rng(0).normal(size=(2, 3, 3))))
    params = params._replace(w_ih=params.w_ih[:, :2])
    monkeypatch.setattr(mapping, "time_in_turn", time_in_turn)
    monkeypatch.setattr(mapping, "init_rnn", lambda key, inputs, units: params)
    data = mapping.measure(MAPPING, 0, ignore)
    looped, mapped = timed
    xs = np.asarray(jax.random.normal(jax.random.split(jax.random.key(0))[1], (3, 4, 2)))
    w_ih, w_hh = np.asarray(params.w_ih), np.asarray(params.w_hh)
    for sequence in range(3):
        h = np.zeros(3)
        for t in range(4):
            h = np.tanh(w_hh @ h + w_ih @ xs[sequence, t])
            np.testing.assert_allclose(looped[sequence][t], h, atol=1e-5)
            np.testing.assert_allclose(mapped[sequence, t], h, atol=1e-5)
    assert (data["loop_seconds"], data["mapped_seconds"]) == (3.0, 1)
    assert data["tolerance"] == 2.0**-23 * math.sqrt(4 * (2 + 3))
    assert data["difference"] <= data["tolerance"]


def test_a_map_that_mixes_sequences_is_measured_and_refuted(monkeypatch):
    vmap = jax.vmap

    def reorder(function, *arguments, **options):
        mapped = vmap(function, *arguments, **options)
        is_measured = function.__name__ == "states"
        return (lambda xs: mapped(xs[::-1])) if is_measured else mapped

    monkeypatch.setattr(jax, "vmap", reorder)
    data = mapping.measure(MAPPING, 0, ignore)
    monkeypatch.undo()
    assert "6" in find_refuted(mapping.judge(data))


@pytest.mark.parametrize(
    ("name", "value", "refuted"),
    [
        ("sequences", 3, set()),
        ("difference", 1.1e-6, {"6"}),
        ("loop_seconds", 0.9, {"6 speed"}),
        ("mapped_seconds", 2.1, {"6 speed"}),
    ],
)
def test_a_planted_measurement_refutes_a_part_of_claim_6(name, value, refuted):
    assert find_refuted(mapping.judge(plant(MAPPING_DATA, (name,), value))) == refuted


# Claim 7


@pytest.mark.parametrize(
    ("accuracy", "reach"),
    [((0.95, 0.9, 0.5), 4), ((0.95, 0.5, 0.95), 1), ((0.8, 1, 1), 0), ((1, 1, 1), 30)],
)
def test_the_reach_is_the_longest_lag_up_to_which_every_lag_is_remembered(accuracy, reach):
    assert retention.find_reach((1, 4, 30), np.array(accuracy)) == reach


def test_lags_within_a_factor_of_four_share_a_program():
    groups = retention._group((1, 2, 4, 8, 12, 18, 30, 55, 100))
    assert groups == [[1, 2, 4], [8, 12, 18], [30, 55, 100]]


def test_the_norm_of_the_gradient_is_that_of_a_product_of_jacobians(key):
    config = retention.Config(gradient_sequences=2)
    network = deep_rnn((1, 3, 3, 1))
    params = network.init(key)
    lag, length = 3, 6
    batch = retention._draw(config, key, jnp.asarray(lag), length, 2)
    got = float(retention._log_gradient_norm(config, network, params, batch))
    first, second, _ = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    xs = np.asarray(batch.xs, np.float64)
    logs = []
    for sequence in range(2):
        h1, h2, product = np.zeros(3), np.zeros(3), np.eye(6)
        for t in range(lag + 1):
            h1 = np.tanh(first.w_hh @ h1 + first.w_ih @ xs[t, sequence] + first.b)
            h2 = np.tanh(second.w_hh @ h2 + second.w_ih @ h1 + second.b)
            one = (1 - h1**2)[:, None] * first.w_hh
            slopes = (1 - h2**2)[:, None]
            jacobian = np.block([
                [one, np.zeros((3, 3))], [slopes * (second.w_ih @ one), slopes * second.w_hh]
            ])  # fmt: skip
            product = jacobian @ product if t else product
        logs.append(np.log(np.linalg.norm(product) / math.sqrt(6)))
    assert got == pytest.approx(np.mean(logs), rel=1e-5)


def test_a_sequence_starts_with_its_sign_and_goes_on_with_noise(key):
    config = dataclasses.replace(retention.Config(), noise=0.5)
    batch = retention._draw(config, key, jnp.asarray(2), 50, 40)
    np.testing.assert_array_equal(batch.xs[0, :, 0], batch.signs)
    assert set(np.asarray(batch.signs).tolist()) == {-1.0, 1.0}
    noise = np.asarray(batch.xs)[1:]
    assert noise.std() == pytest.approx(0.5, rel=5 / math.sqrt(2 * noise.size))


def make_retention(accuracy=((1.0, 0.9), (0.6, 0.5)), before=(0.0, -8.0)):
    """The data of two lags and two seeds; the second depth is as good a network as can be."""
    drawn = {"accuracy": np.array(accuracy), "log_norm_before": np.repeat([before], 2, 0).T}
    good = {"accuracy": np.array([[1.0, 1.0], [0.5, 0.5]]), "log_norm_before": [[0.0], [-8.0]]}
    networks = {"1": drawn, "3": good}
    for network in networks.values():
        network["log_norm_after"] = np.zeros((2, 2))
    return {"lags": [1, 100], "networks": networks}


@pytest.mark.parametrize(
    ("planted", "refuted"),
    [
        ({}, set()),
        ({"accuracy": ((0.9, 0.89), (0.5, 0.5))}, {"7"}),  # fails at the shortest lag
        ({"accuracy": ((1.0, 1.0), (0.6, 0.61))}, {"7"}),  # still answers at the longest
        ({"before": (-8.0, -7.9)}, {"7 gradient"}),  # grows
        ({"before": (0.0, -6.9)}, {"7 gradient"}),  # 1e-3 is exp(-6.908)
    ],
)
def test_a_planted_measurement_refutes_a_part_of_claim_7(planted, refuted):
    assert find_refuted(retention.judge(make_retention(**planted))) == refuted


# The whole


def test_a_tour_cut_short_writes_its_data_and_figures_and_finds_the_exact_claims_to_hold(tmp_path):
    command = (
        *(sys.executable, "-m", "experiments", "tour", "--folder", str(tmp_path)),
        *("--sunspots.seeds", "2", "--sunspots.max-steps", "20"),
        *("--memory.seeds", "2", "--memory.train-steps", "5", "--memory.lags", "1", "4"),
    )
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    figures = {path.name for path in tmp_path.glob("*.png")}
    assert {"averages.png", "lengths.png", "memory.png", "sunspots.png"} <= figures
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["memory"]["lags"] == [1, 4]
    assert (tmp_path / "findings.csv").read_text().count("\n") >= 8
    assert done.returncode == 0, done.stdout  # 1 where a claim that must hold was refuted

"""The grid of learning rates and radii: what is trained, chosen and tested, and the baseline."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import sweep
from experiments.shared.options import InputError, check_config
from experiments.shared.tasks import draw_adding
from tests.support import oracle

pytestmark = pytest.mark.usefixtures("as_on_the_command_line")

CONFIG = sweep.Config(
    learning_rates=(1e-3, 1e-2),
    radii=(0.3, 0.9, 1.5),
    hidden_size=4,
    length=5,
    batch_size=3,
    test_sequences=16,
    repeats=1,
    seeds=2,
    steps=1,
    eval_every=1,
    devices=1,
)
GRID = (2, 2, 3)  # seeds, learning rates, radii


def compute_losses(params, batch, grid=GRID):
    """The losses of the networks, in NumPy float64."""
    rnn, readout = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    xs, targets = np.asarray(batch.xs, np.float64), np.asarray(batch.targets)
    whole = np.ones(xs.shape[:2], bool), np.zeros(xs.shape[:2], bool)
    losses = []
    for place in range(len(rnn.b)):
        p = {name: leaf[place] for name, leaf in rnn._asdict().items() if leaf is not None}
        h0 = np.zeros((xs.shape[1], p["b"].size))
        h = oracle.forward(p, h0, xs, *whole, False, "tanh")[0]
        answers = h @ readout.w[place, 0] + readout.b[place, 0]
        losses.append(np.mean((answers - targets) ** 2))
    return np.reshape(losses, grid)


def test_answering_one_has_a_squared_error_of_a_sixth():
    numbers = (np.arange(1000) + 0.5) / 1000  # the midpoint rule is off by 1 / (12 N^2)
    errors = (numbers[:, None] + numbers - 1) ** 2
    assert errors.mean() == pytest.approx(sweep.VARIANCE, abs=1e-6)


def test_a_network_that_always_answers_one_has_the_loss_of_the_baseline(key):
    network = sweep._network(CONFIG)
    params = jax.tree.map(jnp.zeros_like, network.init(key))
    params = (params[0], params[1]._replace(b=jnp.ones(1)))
    batch = draw_adding(key, CONFIG.length, 4096)
    loss = float(sweep._loss(network, params, batch))
    errors = (1 - np.asarray(batch.targets)) ** 2
    assert loss == pytest.approx(errors.mean(), rel=1e-5)
    assert abs(loss - sweep.VARIANCE) < 5 * errors.std() / np.sqrt(4096)  # standard errors


def test_the_grid_has_a_network_for_each_seed_rate_and_radius():
    _, states = sweep._make_task(CONFIG, sweep._network(CONFIG))
    rates = np.reshape(states.opt_state.hyperparams["learning_rate"], GRID)
    np.testing.assert_array_equal(
        rates, np.broadcast_to(np.float32(CONFIG.learning_rates)[:, None], GRID)
    )
    w_hh = np.asarray(states.params[0].w_hh, np.float64)
    radii = np.abs(np.linalg.eigvals(w_hh)).max(axis=-1).reshape(GRID)
    np.testing.assert_allclose(radii, np.broadcast_to(CONFIG.radii, GRID), rtol=1e-4)
    # Cells share the draws of their seed, and seeds share none.
    w_ih = np.asarray(states.params[0].w_ih).reshape(*GRID, -1)
    np.testing.assert_array_equal(w_ih, np.broadcast_to(w_ih[:, :1, :1], w_ih.shape))
    assert (w_ih[0] != w_ih[1]).all()


def test_every_network_of_the_grid_is_trained_at_its_own_rate(key):
    task, states = sweep._make_task(CONFIG, sweep._network(CONFIG))
    batch = task.make_batch(key, jnp.zeros((), jnp.int32))
    after, _ = jax.jit(jax.vmap(task.train_step, in_axes=(0, None)))(states, batch)
    changes = jax.tree.map(
        lambda new, old: jnp.max(jnp.abs(new - old).reshape(len(new), -1), axis=1),
        after.params,
        states.params,
    )
    # Adam's first step moves each entry by its rate, but for the 1e-8 added to its gradient.
    largest = np.max(jax.tree.leaves(changes), axis=0).reshape(GRID)
    expected = np.broadcast_to(np.asarray(CONFIG.learning_rates)[:, None], GRID)
    np.testing.assert_allclose(largest, expected, rtol=1e-3)


def test_a_run_chooses_a_cell_by_validation_and_tests_it_on_other_sequences():
    # Rates too small to change any weight: the grid's networks remain what they were.
    config = dataclasses.replace(CONFIG, learning_rates=(1e-20, 2e-20))
    data = sweep.run(config, lambda done, doing: None).data
    _, states = sweep._make_task(config, sweep._network(config))
    _, key_validation, key_test = jax.random.split(jax.random.key(config.seed), 3)
    validation, test = (
        compute_losses(states.params, draw_adding(key, config.length, config.test_sequences))
        for key in (key_validation, key_test)
    )
    np.testing.assert_allclose(data["losses"], validation, rtol=1e-5)
    column = int(np.argmin(validation.mean(axis=0)[0]))
    assert data["best"][1] == column
    np.testing.assert_allclose(data["test"], test[:, 0, column], rtol=1e-5)
    assert not np.allclose(test, validation, rtol=1e-3)
    assert data["seconds"]["networks"] == 12


def test_the_parameters_of_a_cell_are_those_of_its_rate_and_radius_for_every_seed():
    got = sweep._select_cell({"w": jnp.arange(12.0)}, GRID, (1, 2))
    np.testing.assert_array_equal(got["w"], [5.0, 11.0])


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("length", 1, "--length is 1"),
        ("learning_rates", (0.1, -1.0), "--learning-rates.1 is -1"),
        ("radii", (float("inf"),), "--radii.0 is inf"),
        ("seeds", 0, "--seeds is 0"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(option, value, said):
    with pytest.raises(InputError, match=said):
        check_config(dataclasses.replace(CONFIG, **{option: value}))


def test_the_spread_over_each_setting_is_the_standard_deviation_of_its_own_effect():
    rates, radii = np.array([0.0, 1.0, 5.0]), np.array([-1.0, 2.0])
    seeds = np.array([-0.25, 0.25])
    logs = seeds[:, None, None] + rates[:, None] + radii
    spread = sweep._measure_spread(10.0**logs)
    expected = (rates.std(), radii.std(), 0.25 * np.sqrt(2))  # sqrt((0.25^2 + 0.25^2) / (2 - 1))
    np.testing.assert_allclose(spread, expected)


def make_data(loop=2.0, test=0.01, rates=1.0, radii=1.0, seeds=0.1, networks=2):
    logs = np.linspace(-seeds, seeds, networks)[:, None, None] if networks > 1 else np.zeros(1)
    logs = logs + rates * np.array([[0.0], [1.0]]) + radii * np.array([0.0, 1.0])
    return {
        "learning_rates": (0.1, 0.2),
        "radii": (0.5, 1.0),
        "losses": np.reshape(10.0**logs, (networks, 2, 2)),
        "best": [0, 1],
        "test": np.full(networks, test),
        "seconds": {"networks": 8, "steps": 10, "loop": loop, "vmap": 1.0},
    }


@pytest.mark.parametrize(
    ("planted", "refuted"),
    [
        ({}, set()),
        ({"loop": 0.9}, {"speed"}),
        ({"test": 1 / 59}, {"best"}),
        ({"rates": 0.1}, {"learning rate"}),
        ({"radii": 0.1}, {"initial spectral radius"}),
        ({"seeds": 1.0}, {"learning rate", "initial spectral radius"}),
    ],
)
def test_a_finding_is_refuted_by_its_own_measurement_alone(planted, refuted):
    findings = sweep._judge(make_data(**planted))
    assert {finding.name for finding in findings if not finding.holds} == refuted


def test_one_seed_says_nothing_about_the_spread_over_seeds():
    findings = sweep._judge(make_data(networks=1))
    assert [finding.name for finding in findings] == ["speed", "best"]

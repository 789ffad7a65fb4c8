"""The streams that `online` learns from, what its learners see, and a small run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import online
from experiments.__main__ import main
from experiments.online.findings import recovery
from experiments.online.learners import make_learners, through_steps, through_windows
from experiments.online.streams import AHEAD, NOISE, delayed_xor, drifting_sine

pytestmark = pytest.mark.usefixtures("as_on_the_command_line")
UNITS = 4


def test_each_target_is_the_product_of_the_two_signs_that_its_rule_names(key):
    stream = delayed_xor(key, [(1, 3), (2, 5)], 50)
    signs, targets = np.asarray(stream.xs[:, 0]), np.asarray(stream.targets[:, 0])
    assert set(np.unique(signs)) == {-1.0, 1.0}
    for t in range(5, 100):
        first, second = (1, 3) if t < 50 else (2, 5)
        assert targets[t] == signs[t - first] * signs[t - second]


def test_the_sine_is_seen_in_noise_and_told_ahead_without_it(key):
    stream = drifting_sine(key, 3, 2000)
    xs, targets = np.asarray(stream.xs[:, 0]), np.asarray(stream.targets[:, 0])
    assert len(xs) == len(targets) == 6000
    error = xs[AHEAD:] - targets[:-AHEAD]
    assert abs(error.std() - NOISE) < 0.02
    assert abs(targets).max() <= 1
    turns = [np.abs(np.diff(np.sign(part))).sum() for part in targets.reshape(3, -1)]
    assert turns[1] > 1.5 * turns[0]  # the second rule's sine is faster


def test_the_time_to_recover_is_that_of_the_first_block_below_the_level():
    error = np.ones((2, 12))
    error[0, 2] = error[0, 5] = error[1, 8] = 0.01
    np.testing.assert_array_equal(recovery(error, 3, 0.1, 10), [[20, 10, 40], [40, 40, 0]])


@pytest.mark.parametrize("make", [through_steps, through_windows])
def test_a_truncated_learner_carries_its_state_over_the_whole_stream(key, make):
    """Without learning, errors are those of one unrolling, however the stream is cut."""
    stream = delayed_xor(key, [(1, 3)], 24)
    means = [float(make(UNITS, window).learn(key, stream, 0.0).mean()) for window in (3, 8)]
    np.testing.assert_allclose(*means, rtol=1e-4)


def test_every_learner_learns_the_shortest_rule(key):
    stream = delayed_xor(key, [(1, 2)], 4000)
    for learner in make_learners(8):
        if learner.name.startswith("RFLO"):  # its leak keeps what the rule does not need
            continue
        error = np.asarray(jax.jit(learner.learn)(key, stream, jnp.float32(0.01)))
        assert error.shape == (4000,)
        assert error[-400:].mean() < 0.75 * error[:400].mean(), learner.name


def test_a_small_run_writes_its_tables_and_its_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(online, "make_learners", lambda units: make_learners(units)[1::2])
    folder = tmp_path / "run"
    small = ("--hidden-size", "3", "--rule-steps", "200", "--seeds", "1", "--repeats", "1")
    rest = ("--delays", "2", "--delay-steps", "2000", "--sizes", "2")
    assert main(("online", *small, *rest, "--folder", str(folder))) == 0
    assert "microseconds per step" in capsys.readouterr().out
    assert (folder / "online.png").exists()
    data = json.loads((folder / "metrics.json").read_text())
    assert set(data["streams"]) == {"xor", "sine"}
    assert np.shape(data["streams"]["xor"]["RTRL, every 8"]["error"]) == (1, 4)
    assert all(np.shape(each) == (1, 1) for each in data["delays"].values())
    assert all(each > 0 for each in data["costs"][0]["microseconds"].values())

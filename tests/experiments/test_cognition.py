"""The tasks by hand and against an ideal observer; and a small run with every kind of network."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cognition
from experiments.__main__ import main
from experiments.cognition import analysis, cells, findings
from experiments.cognition.trials import (
    COHERENCES,
    GRACE,
    NOISE,
    NUM_STEPS,
    RING,
    TASKS,
    add_input_noise,
    draw_trials,
    score,
    wanted_outputs,
)

pytestmark = pytest.mark.usefixtures("as_on_the_command_line")

TINY = (
    *("--hidden-size", "12", "--small-size", "10", "--small-seeds", "2", "--steps", "3"),
    *("--small-steps", "2", "--eval-every", "2", "--trials", "16", "--quick", "--batch-size", "2"),
)


def draw(task, size=200, key=0):
    return draw_trials(task, jax.random.key(key), size)


@pytest.mark.parametrize("task", TASKS)
def test_the_wanted_outputs_are_right_and_those_of_doing_nothing_are_not(task):
    trials = draw(task)
    wanted, weights = wanted_outputs(trials)
    assert bool(score(trials, wanted)[0].all())
    still = jnp.full_like(wanted, 0.05).at[..., 0].set(0.85)
    right = np.asarray(score(trials, still)[0])
    np.testing.assert_array_equal(right, np.isnan(np.asarray(trials.direction)))
    assert float(weights[:GRACE].max()) == 0


@pytest.mark.parametrize("task", TASKS)
def test_a_response_before_the_go_is_wrong(task):
    trials = draw(task)
    wanted, _ = wanted_outputs(trials)
    early = wanted.at[60, :, 0].set(0.1)
    assert not bool(score(trials, early)[0].any())


def peak(ring):
    """The direction [B] of the largest activity of a ring [B, RING]."""
    angles = 2 * np.pi * np.arange(RING) / RING
    return np.angle(ring @ np.exp(1j * angles))


def test_directions_that_are_right_are_those_of_the_stimuli_that_count():
    for task, turned in (("go", 0.0), ("anti", np.pi), ("delayed response", 0.0)):
        trials = draw(task)
        shown = peak(np.asarray(trials.xs)[20, :, 1 : 1 + RING]) + turned
        assert np.cos(shown - np.asarray(trials.direction)).min() > math.cos(np.pi / RING)
    for task, first in (("decision", 1), ("context 1", 1), ("context 2", 1 + RING)):
        trials = draw(task)
        shown = peak(np.asarray(trials.xs)[20, :, first : first + RING])
        assert np.cos(shown - np.asarray(trials.direction)).min() > math.cos(np.pi / RING)


def test_the_other_modality_does_not_decide_in_context():
    trials = draw("context 1", 400)
    other = peak(np.asarray(trials.xs)[20, :, 1 + RING : 1 + 2 * RING])
    agrees = np.cos(other - np.asarray(trials.direction)) > 0
    assert 0.4 < agrees.mean() < 0.6


def test_a_delay_is_empty_and_every_rule_is_its_own():
    trials = draw("delayed response")
    xs = np.asarray(trials.xs)
    assert xs[45:, :, 1 : 1 + 2 * RING].max() == 0
    rules = np.stack([np.asarray(draw(task, 1).xs)[0, 0, 1 + 2 * RING :] for task in TASKS])
    np.testing.assert_array_equal(rules, np.eye(len(TASKS)))


def test_longer_intervals_than_the_reference_are_answered_where_the_pulses_were():
    trials = draw("interval")
    ring = np.asarray(trials.xs)[:, :, 1 : 1 + RING].sum(axis=-1)
    starts = [np.flatnonzero(np.diff(row > 0.1, prepend=False) & (row > 0.1)) for row in ring.T]
    intervals = np.array([second - first for first, second in starts])
    here = np.cos(peak(np.asarray(trials.xs)[11, :, 1 : 1 + RING]) - trials.direction) > 0
    np.testing.assert_array_equal(here, intervals > 35)


@pytest.mark.parametrize("task", ["decision", "integration", "comparison"])
def test_the_ideal_observer_is_right_as_often_as_one_that_weighs_all_noisy_inputs(task):
    """Maximum likelihood of the two choices that have the same coherence, from all inputs."""
    size = 4000
    trials = draw(task, size)
    noisy = np.asarray(add_input_noise(trials, jax.random.key(9)).xs, np.float64)
    clean = np.asarray(trials.xs, np.float64)[..., 1 : 1 + 2 * RING]
    turned = np.roll(clean.reshape(NUM_STEPS, size, 2, RING), RING // 2, axis=-1)
    turned = turned.reshape(clean.shape)
    if task == "comparison":  # the other choice swaps the strengths of both intervals
        low, high = clean[20].sum(axis=-1), clean[70].sum(axis=-1)
        turned = clean.copy()
        turned[10:40] *= (high / low)[:, None]
        turned[60:80] *= (low / high)[:, None]
    seen = noisy[..., 1 : 1 + 2 * RING]
    better = ((seen - clean) ** 2).sum(axis=(0, 2)) < ((seen - turned) ** 2).sum(axis=(0, 2))
    expected = float(trials.ideal.mean())
    assert abs(better.mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / size) + 0.01


def test_noise_reaches_every_input_but_the_rule():
    trials = draw("go", 50)
    noise = np.asarray(add_input_noise(trials, jax.random.key(1)).xs - trials.xs)
    assert np.abs(noise[..., 1 + 2 * RING :]).max() == 0
    spread = noise[..., : 1 + 2 * RING].std()
    assert abs(spread / NOISE - 1) < 5 / math.sqrt(2 * noise.size)


def test_small_networks_obey_dales_law_before_and_after_training():
    cell = cells.make_cell(10, leak=0.2, noise=0.05, signed=True)
    free = cell.network.init(jax.random.key(0))
    w = np.asarray(cell.params(free)[0].w_hh)
    assert (w * cells.signs_of(10) >= 0).all()
    assert (cells.signs_of(10) > 0).sum() == 8


def test_clusters_of_planted_profiles_are_found():
    rng = np.random.default_rng(0)
    planted = np.repeat(np.eye(4), 8, axis=0) + 0.05 * rng.random((32, 4))
    found = analysis.cluster_units(planted[rng.permutation(32)], 0)
    assert len(np.unique(found["labels"])) == 4
    assert found["silhouette"] > 0.9
    noise = analysis.cluster_units(rng.random((64, 6)), 0)
    assert noise["silhouette"] < 0.3
    assert abs(noise["silhouette"] - noise["shuffled"]) < 0.1


def test_a_silhouette_is_that_of_its_definition():
    points = np.array([[0.0], [1.0], [5.0], [7.0]])
    labels = np.array([0, 0, 1, 1])
    expected = [(6 - 1) / 6, (5 - 1) / 5, (4.5 - 2) / 4.5, (6.5 - 2) / 6.5]
    assert abs(analysis.measure_silhouette(points, labels) - np.mean(expected)) < 1e-12


def test_steps_to_a_share_are_the_first_that_have_it():
    curves = {"steps": [100, 200, 300], "validation": [[0.5, 0.5], [0.1, 0.4], [0.0, 0.3]]}
    np.testing.assert_array_equal(cells.first_reached(curves, 0.9), [200, np.nan])


@pytest.fixture
def few_small_tasks(monkeypatch):
    monkeypatch.setattr(cognition, "_SMALL_TASKS", ("go", "decision"))
    monkeypatch.setattr(cognition, "_CURVES", ("decision",))


@pytest.mark.usefixtures("few_small_tasks")
def test_a_run_writes_figures_and_networks_that_are_tested_again_without_training(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(cognition, "_SMALL_TASKS", cognition._SMALL_TASKS[:2])  # quick has one
    run, again = tmp_path / "run", tmp_path / "again"
    assert main(("cognition", "--folder", str(run), *TINY)) == 0
    names = {path.name for path in run.iterdir()}
    figures = {f"{n}.png" for n in ("psychometric", "trajectories", "variance", "connectivity")}
    assert figures | {"networks", "report.html"} <= names
    first = json.loads((run / "metrics.json").read_text())
    assert first["small"]["wrong_signs"] == 0
    assert first["small"]["weights"] == 3 * 2 * 100  # kinds with signs, seeds
    assert set(first["large"]["clear"]) == set(TASKS)
    source = ("--from", str(run), "--trials", "16", "--folder", str(again))
    assert main(("cognition", *source)) == 0
    second = json.loads((again / "metrics.json").read_text())
    assert second["large"]["right"] == first["large"]["right"]


def test_claims_hold_beyond_their_thresholds_and_are_refuted_short_of_them():
    def judge(share, fall=0.0, wrong=0):
        curve = np.linspace(0, 1, 2 * len(COHERENCES))[None]
        curve = curve - fall * np.eye(curve.shape[1])[4]
        small = {"go": {"clear": [share], "reached": [100.0]}}
        shares = {task: [share] for task in TASKS}
        data = {
            "large": {"clear": shares, "right": shares, "ideal": shares},
            "psychometric": {"shares": {"decision": curve}, "trials": 1000},
            "clusters": {"labels": [0, 1], "active": 2, "silhouette": share - 0.3, "shuffled": 0.2},
            "points": {
                name: {"unstable": [0], "converged": [True], "nearest": 0.5, "waited": 1 - share}
                for name in ("before the stimulus", "during the stimulus")
            },
            "small": {"variants": {"Dale": small}, "wrong_signs": wrong, "weights": 4},
        }
        return {finding.name: finding.holds for finding in findings.judge(data)}

    assert all(judge(0.96).values())
    low = judge(0.4, fall=0.5, wrong=1)
    assert not any(holds for name, holds in low.items() if name != "costs")


def test_a_leak_above_one_is_refused(capsys):
    assert main(("cognition", "--leak", "1.5")) == 2
    assert "--leak is 1.5" in capsys.readouterr().err

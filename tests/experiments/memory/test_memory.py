"""The climb step by step, its objective by hand, and the findings that `memory` draws from it."""

import functools
import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import memory
from experiments.__main__ import main
from experiments.memory import climbing, figures
from experiments.memory.climbing import Effort, climb, evaluate
from experiments.memory.findings import judge
from experiments.memory.recipes import Recipe
from experiments.shared.tasks import PROBLEMS
from jaxrnn import TrainState, vanilla_rnn
from jaxrnn.initializers import identity
from tests.experiments.memory.test_recipes import compiled, draw, keys, unroll_by_hand
from tests.support.checks import assert_close

EPS = float(np.finfo(np.float32).eps)
TINY = Recipe("tiny", "", lambda size: (vanilla_rnn(size, 4),))


pytestmark = pytest.mark.usefixtures("as_on_the_command_line")


def start(problem, count=1):
    """Tiny networks, stacked."""
    return climbing._start(problem, TINY, keys(count)).params


def first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


# The objective


def test_noise_is_added_to_the_argument_of_the_activation():
    recipe, problem = TINY._replace(noise=0.7, noisy=3), PROBLEMS["order"]
    params = first(start(problem))
    batch, key = draw("order", jax.random.key(1), 30, 5, mixed=True), jax.random.key(2)

    @compiled
    def measure(params):
        wider, silent = (
            climbing._add_noise(recipe._replace(noise=noise), params, batch, key)
            for noise in (0.7, 0.0)
        )
        pairs = (wider, silent, (params, batch))
        answers = [climbing._answer(problem, TINY, *pair) for pair in pairs]
        loss = climbing._objective(problem, recipe, params, batch, key)
        return wider[1].xs, loss, answers

    xs, loss, (noisy, silent, without) = measure(params)
    np.testing.assert_array_equal(xs[..., : problem.input_size], batch.xs)
    noises = np.asarray(xs[..., problem.input_size :], np.float64)
    noises = np.pad(noises, ((0, 0), (0, 0), (0, 1)))  # the last of four units has none
    hs = unroll_by_hand(params[0][0], batch.xs, np.tanh, added=0.7 * noises)
    last = hs[batch.last, np.arange(5)]
    answer = last @ np.asarray(params[1].w, np.float64).T + np.asarray(params[1].b)
    assert_close(noisy, answer, length=30 * 10)
    scores = np.log(np.exp(answer).sum(axis=1)) - answer[np.arange(5), batch.targets]
    assert float(loss) == pytest.approx(scores.mean(), rel=32 * EPS * math.sqrt(300))
    assert_close(silent, without, length=30 * 10)
    assert np.abs(noisy - without).max() > 0.1


def test_noise_is_a_normalised_sum_of_four_signs_anew_for_every_unit():
    layer = vanilla_rnn(1, 7).init(jax.random.key(0))  # an odd number of units
    batch = draw("latch", jax.random.key(1), 50, 100)
    add = compiled(functools.partial(climbing._add_noise, TINY._replace(noise=0.5, noisy=7)))
    noisy, wider = add(((layer,), None), batch, jax.random.key(2))
    np.testing.assert_array_equal(noisy[0][0].w_ih[:, 1:], 0.5 * np.eye(7))
    noises = np.asarray(wider.xs[..., 1:], np.float64)
    assert noises.shape == (51, 100, 7)
    count = noises.size
    for value, part in zip((-2, -1, 0, 1, 2), (1, 4, 6, 4, 1), strict=True):
        share = part / 16
        assert abs(np.mean(noises == value) - share) <= 5 * math.sqrt(share / count)
    assert abs(noises.mean()) <= 5 / math.sqrt(count)
    assert abs(noises.var() - 1) <= 5 * math.sqrt(1.5 / count)  # the fourth moment is 5/2
    for axis in range(3):
        one = np.moveaxis(noises, axis, 0)
        assert abs(np.mean(one[1:] * one[:-1])) <= 5 / math.sqrt(one[1:].size)


def penalty_by_hand(params, xs, targets, everywhere):
    """Pascanu et al. 2013, equation 9: over all k, how far from 1 the norm of
    dE/dx_{k+1} dx_{k+1}/dx_k is in parts of that of dE/dx_{k+1}, squared."""
    (layer,), readout = params
    hs = unroll_by_hand(layer, xs[:, None], np.tanh)[:, 0]
    outputs = hs @ np.asarray(readout.w).T + np.asarray(readout.b)
    parts = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    errors = parts - np.eye(outputs.shape[1])[targets]  # of a loss of every output, or of the last
    errors = errors / len(xs) if everywhere else np.eye(len(xs))[-1][:, None] * errors
    gradient, total = np.zeros(len(layer.w_hh)), 0.0
    for h, error in zip(hs[::-1], errors[::-1], strict=True):
        gradient = gradient + error @ np.asarray(readout.w)
        pulled = gradient * (1 - h**2) @ np.asarray(layer.w_hh)
        total += (np.linalg.norm(pulled) / np.linalg.norm(gradient) - 1) ** 2
        gradient = pulled
    return total


@pytest.mark.parametrize("name", ["latch", "copy"])
def test_unsteadiness_is_equation_9_from_explicit_jacobians(name):
    problem = PROBLEMS[name]
    params = first(start(problem))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

        @compiled
        def measure(batch):
            key, recipe = jax.random.key(0), TINY._replace(steadiness=3.0)
            how = params, batch, key
            losses = [climbing._objective(problem, each, *how) for each in (TINY, recipe)]
            return climbing._unsteadiness(problem, TINY, params, batch), *losses

        batch = compiled(lambda key: problem.draw(key, 7, 6))(jax.random.key(4))
        got, without, whole = measure(batch)
        assert got.dtype == jnp.float64
    xs, targets = np.asarray(batch.xs), np.asarray(batch.targets)
    some = range(climbing._PENALIZED)
    how = problem.everywhere
    wanted = [penalty_by_hand(params, xs[:, at], targets[..., at], how) for at in some]
    assert float(whole) == pytest.approx(float(without) + 3 * float(got), rel=1e-12)
    assert float(got) == pytest.approx(np.mean(wanted), rel=1e-9)


# Climbing


def make_run(values, best, best_loss):
    """Networks of one number each."""
    state = TrainState(jnp.int32(0), jnp.array(values), {"m": jnp.array(values)}, keys(1)[0])
    kept = (jnp.array(best), {"m": jnp.array(best)})
    since = np.zeros(len(values), int)
    return climbing._Climb(state, np.ones(len(values)), kept, np.array(best_loss), since)


def test_a_network_that_got_much_worse_is_reset_at_half_its_rate_and_a_finished_one_stays():
    # Better; a little worse; much worse; not finite; finished, and better or worse; never finite.
    values, best = np.arange(1.0, 8), np.arange(11.0, 18)
    run = make_run(values, best, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, np.inf])
    losses = np.array([0.5, 2.0, 2.2, np.inf, 0.1, 9.0, np.inf])
    running = np.array([True, True, True, True, False, False, True])
    recipe = TINY._replace(least=1 / 8)
    after = climbing._keep_best(run, losses, running, recipe)
    for tree in (after.state.params, after.state.opt_state["m"]):
        np.testing.assert_array_equal(tree, [1, 2, 13, 14, 15, 16, 7])
    for tree in (after.best[0], after.best[1]["m"]):
        np.testing.assert_array_equal(tree, [1, 12, 13, 14, 15, 16, 17])
    np.testing.assert_array_equal(after.best_loss, [0.5, 1, 1, 1, 1, 1, np.inf])
    np.testing.assert_array_equal(after.scale, [1, 1, 0.5, 0.5, 1, 1, 1])
    for _ in range(9):
        after = climbing._keep_best(after, losses, running, recipe)
    np.testing.assert_array_equal(after.scale[2:4], 1 / 8)


def test_a_network_without_a_new_best_for_longer_than_its_patience_is_reset_at_half_its_rate():
    recipe, running = TINY._replace(patience=2), np.array([True, True])
    run = make_run(np.array([1.0, 2.0]), np.array([11.0, 12.0]), [1.0, 1.0])
    scales = []
    for losses in ([1.0, 1.0], [1.05, 0.9], [1.05, 0.95], [1.0, 0.95], [1.0, 0.95]):
        run = climbing._keep_best(run, np.array(losses), running, recipe)
        scales.append([*run.scale])
    assert scales == [[1, 1], [1, 1], [0.5, 1], [0.5, 1], [0.5, 0.5]]
    np.testing.assert_array_equal(run.state.params, [11, 2])
    np.testing.assert_array_equal(run.since, [2, 0])


def test_on_scripted_losses_each_network_stops_by_its_own_and_returns_its_best_state(monkeypatch):
    """Validation and training follow a script; a network is its number of calls of _advance."""
    solved, nothing = 0.0, 1.0
    script = np.array(
        [
            [solved] * 9,  # solved before training
            [nothing, 0.6, *[solved] * 7],  # after two calls
            [nothing, 0.5, 0.9, 0.7, math.nan, 0.6, 0.6, 0.6, 0.6],  # never
        ]
    )
    calls, scales = [], []

    def fake_evaluate(problem, recipe, length, sequences, params, keys):
        now = script[np.arange(3), np.asarray(params).astype(int)]
        return now, (now == solved).astype(float)

    def fake_advance(problem, recipe, length, batch_size, state, scale):
        calls.append(np.asarray(state.params))
        scales.append(scale)
        after = state._replace(params=state.params + 1, opt_state={"m": state.params + 1})
        return after, np.array([1, 2, 3])

    monkeypatch.setattr(climbing, "evaluate", fake_evaluate)
    monkeypatch.setattr(climbing, "_advance", fake_advance)
    state = TrainState(jnp.zeros(3, jnp.int32), jnp.zeros(3), {"m": jnp.zeros(3)}, keys(3))
    every, effort = climbing._STEPS_A_CALL, Effort(10**6, 5 * 8 * climbing._STEPS_A_CALL, 1, 1)
    after, steps, skipped = climbing._train(PROBLEMS["latch"], TINY, 5, effort, state)
    np.testing.assert_array_equal(skipped, [1 * 2, 2 * 4, 3 * 8])  # in those calls
    np.testing.assert_array_equal(after.params, [0, 2, 1])
    np.testing.assert_array_equal(after.opt_state["m"], [0, 2, 1])
    np.testing.assert_array_equal(steps, every * np.array([2, 4, 8]))  # until the third pass
    # The first trains until its third pass; the third is reset from NaN, at 4, to its best, at 1.
    np.testing.assert_array_equal(np.transpose(calls)[0], [0, 1, 2, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(np.transpose(calls)[2], [0, 1, 2, 3, 1, 2, 3, 1])
    np.testing.assert_array_equal(np.transpose(scales)[2], [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25])


@pytest.mark.parametrize("grows", [True, False])
def test_on_scripted_answers_a_climb_ends_where_fewer_than_half_solve_and_starts_as_it_should(
    grows, monkeypatch
):
    """Training adds one to every parameter; the fraction right follows a script."""
    right = {5: [1.0, 1.0], 6: [1.0, 0.5], 7: [0.5, 0.5], 8: [1.0, 1.0]}
    given = []

    def train(problem, recipe, length, effort, state):
        given.append(state.params)
        longer = jax.tree.map(lambda leaf: leaf + 1, state.params)
        return state._replace(params=longer), np.array([length, 0]), np.array([0, length])

    monkeypatch.setattr(climbing, "_train", train)
    monkeypatch.setattr(climbing, "evaluate", lambda *how: (np.zeros(2), np.array(right[how[2]])))
    monkeypatch.setattr(climbing, "_measure_norms", lambda *how: np.array(how[2]))
    problem, recipe = PROBLEMS["latch"], TINY._replace(grows=grows)
    rungs = list(climb(problem, recipe, (5, 6, 7, 8), Effort(1, 1, 1, 1), keys()))
    assert [rung["length"] for rung in rungs] == [5, 6, 7]
    solved = [rung["solved"].tolist() for rung in rungs]
    assert solved == [[True, True], [True, False], [False, False]]
    assert [rung["steps"][0] for rung in rungs] == [5, 6, 7]
    assert [rung["skipped"][1] for rung in rungs] == [5, 6, 7]
    fresh = start(problem, 2)
    for place, params in enumerate(given):
        added = place if grows else 0
        wanted = jax.tree.map(lambda leaf, added=added: leaf + added, fresh)
        assert_close(params, wanted, length=3)
    assert_close(rungs[-1]["params"], jax.tree.map(lambda a: a + 1, given[-1]), length=1)


def test_a_climb_learns_the_latch_and_continues_with_the_networks_that_learned_it():
    problem, some, count = PROBLEMS["latch"], keys(), 500
    recipe = Recipe(
        "small", "", lambda size: (vanilla_rnn(size, 16),), optimizer=optax.adam(1e-2), grows=True
    )
    effort = Effort(steps=300, sequence_steps=10**6, batch_size=32, test=count)
    length = 5
    first, second = climb(problem, recipe, (length, length), effort, some)  # compiled once
    fresh = climbing._start(problem, recipe, some).params
    unseen = keys(2, seed=1)
    untrained, _ = evaluate(problem, recipe, length, count, fresh, unseen)
    for rung, params in ((first, fresh), (second, first["params"])):
        norms = climbing._measure_norms(problem, recipe, length, params, some)
        np.testing.assert_array_equal(rung["norms_before"], norms)
        loss, right = evaluate(problem, recipe, length, count, rung["params"], unseen)
        assert (loss < untrained).all()
        # Of answers that do not depend on the sign, the number right is binomial.
        assert right.min() > 0.5 + 5 * math.sqrt(0.25 / count)
        assert loss.max() < problem.blind_loss(length)


def test_gradient_norms_are_those_of_explicit_products():
    problem, length, some = PROBLEMS["order"], 12, keys()
    params = start(problem, 2)
    got = np.asarray(climbing._measure_norms(problem, TINY, length, params, some))
    lags = climbing._lags(length)
    assert lags.tolist() == list(range(1, 13))
    for seed, key in enumerate(some):
        layer = jax.tree.map(lambda leaf, at=seed: leaf[at], params[0][0])
        key_data, *directions = jax.random.split(key, 1 + climbing._MEASURED)
        xs = draw("order", key_data, length, climbing._MEASURED).xs
        hs = unroll_by_hand(layer, xs, np.tanh)
        logs = []
        for place, direction in enumerate(directions):
            row = np.asarray(jax.random.normal(direction, (4,)), np.float64)
            row = row / np.linalg.norm(row)
            norms = []
            for h in hs[::-1, place]:
                row = row * (1 - h**2) @ np.asarray(layer.w_hh, np.float64)
                norms.append(math.log(np.linalg.norm(row)))
            logs.append(norms)
        # Each step rounds its row by a few eps, of which what is left may be a hundredth.
        np.testing.assert_allclose(got[seed], np.mean(logs, axis=0), atol=100 * 12 * 4 * EPS)


def test_lags_run_from_one_to_the_length():
    for length in (1, 2, 39, 500, 10000):
        lags = climbing._lags(length)
        assert (lags[0], lags[-1]) == (1, length)
        assert (np.diff(lags) > 0).all()
        assert len(lags) <= 40


@pytest.mark.parametrize("name", ["adding", "copy"])
def test_an_evaluation_is_the_mean_over_its_parts(name, monkeypatch):
    monkeypatch.setattr(climbing, "_AT_ONCE", 4)
    problem, length, some = PROBLEMS[name], 6, keys(2, seed=9)
    params = start(problem, 2)
    sequences, parts, size = (3, 1, 3) if name == "copy" else (8, 2, 4)
    got = evaluate(problem, TINY, length, sequences, params, some)
    for seed, key in enumerate(some):
        (layer,), readout = jax.tree.map(lambda leaf, at=seed: leaf[at], params)
        rows = []
        for part in jax.random.split(jax.random.fold_in(key, length), parts):
            batch = draw(name, part, length, size)
            hs = unroll_by_hand(layer, batch.xs, np.tanh)
            outputs = hs @ np.asarray(readout.w, np.float64).T + np.asarray(readout.b)
            rows.append(score(name, outputs, batch.targets))
        # A loss sums 26 steps of 4 units at most, and a part is a number of some digits.
        wanted = np.mean(rows, axis=0)
        rounding = 32 * EPS * math.sqrt(26 * 4)
        np.testing.assert_allclose([got[0][seed], got[1][seed]], wanted, rtol=rounding)


def score(name, outputs, targets):
    if name == "adding":
        errors = outputs[-1, :, 0] - targets
        return np.mean(errors**2), np.mean(np.abs(errors) < 0.2)
    logs = np.log(np.exp(outputs).sum(axis=-1))
    chosen = np.take_along_axis(outputs, targets[..., None], axis=-1)[..., 0]
    return np.mean(logs - chosen), np.mean((outputs.argmax(axis=-1) == targets)[-10:])


# The experiment


@pytest.mark.parametrize(("gain", "length"), [(1.0, 2), (1e10, 4)])
def test_a_relu_network_is_followed_until_its_loss_is_not_finite_or_for_600_steps(
    gain, length, monkeypatch
):
    monkeypatch.setattr(memory, "_EXPLODING_LENGTH", length)
    start = identity(gain)
    monkeypatch.setattr(memory.initializers, "identity", lambda: start)
    followed = memory._explode(memory.Config())
    assert followed["length"] == length
    assert followed["radius"][0] == pytest.approx(gain, rel=1e-6)
    if gain > 1:  # the square of its cube overflows: the first call is the last
        assert len(followed["loss"]) == 10
        assert not np.isfinite(followed["loss"]).any()
        return
    assert len(followed["loss"]) == 600
    assert np.isfinite(followed["state"]).all()
    # The squared error of answering 1 has mean 1/6 and variance 1/15 - 1/36 per sequence.
    allowed = 1 / 6 - 5 * math.sqrt((1 / 15 - 1 / 36) / (100 * 32))
    assert followed["loss"][-100:].mean() < allowed


def run_small(folder, *options):
    sizes = ("--seeds", "2", "--batch-size", "2", "--test-sequences", "4", "--workers", "1")
    return main(("memory", "--folder", str(folder), *sizes, *options))


FIGURES = {"memory.png", "reaches.png", "lengths.png"}
FILES = {"config.json", "metrics.json", "findings.csv", "report.html"} | FIGURES


def test_a_small_run_writes_its_figures_and_its_measurements(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_LENGTHS", {"order": (20,)})
    monkeypatch.setattr(memory, "_STEPS", {"order": (50, 10**6)})
    monkeypatch.setattr(memory, "_FAR", {"order": (20, 40)})
    monkeypatch.setattr(memory, "_EXPLODING_LENGTH", 30)
    monkeypatch.setitem(memory.RECIPES, "growing", memory.RECIPES["lecture"])  # compiled once
    huge = identity(1e30)  # overflows at the second step, so that the explosion is a short one
    monkeypatch.setattr(memory.initializers, "identity", lambda: huge)
    options = ("--problems", "order", "--recipes", "lecture", "growing")
    assert run_small(tmp_path, *options) == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"checkpoints"}
    assert all(path.stat().st_size > 0 for path in tmp_path.iterdir())
    data = json.loads((tmp_path / "metrics.json").read_text())
    assert [entry["recipe"] for entry in data["climbs"]] == ["lecture", "growing"]
    for entry in data["climbs"]:
        (rung,) = entry["rungs"]
        assert rung["length"] == 20
        assert rung["far"]["length"] == 40
        for name in ("loss", "right", "solved", "steps", "skipped"):
            assert np.shape(rung[name]) == (2,)
        assert np.isfinite(rung["loss"]).all()
        for name in ("norms_before", "norms_after"):
            assert np.shape(rung[name]) == (2, len(rung["lags"]))
        assert set(rung["steps"]) <= {0, 50}
    assert data["climbs"][0]["rungs"] == data["climbs"][1]["rungs"]  # from the same keys


def make_rung(length, solved=True, **changed):
    lags = np.array([1, length])
    before = np.array([[-0.1, -0.2 if np.all(solved) else -20.0]] * 2)
    after = np.array([[-0.1, -20.0]] * 2)
    made = {"length": length, "steps": np.array([9, 9]), "loss": np.array([0.001, 0.002])}
    made |= {"right": np.ones(2), "solved": np.broadcast_to(solved, 2), "lags": lags}
    return made | {"norms_before": before, "norms_after": after, "skipped": np.zeros(2)} | changed


LENGTHS = (10, 50, 100, 150, 200, 400, 1000, 2000, 10_000)
BEST_LENGTHS = {"latch": 10_000, "order": 1000, "adding": 1000, "copy": 2000}


def make_data(**changed):
    """All claims hold; `changed` are the rungs' values, by problem and length: latch_100."""
    climbs = []
    for problem in PROBLEMS:
        lengths = [each for each in LENGTHS if each <= BEST_LENGTHS[problem]]
        rungs = []
        for length in lengths:
            far = {"length": 2000, "right": np.array([0.99, 1.0])}
            extra = {"far": far} if problem == "order" and length == 200 else {}
            rungs.append(make_rung(length, **(extra | changed.get(f"{problem}_{length}", {}))))
        short = [make_rung(10), make_rung(50, False, loss=np.array([np.nan, 1.0]))]
        climbs.append({"problem": problem, "recipe": "lecture", "rungs": short})
        climbs.append({"problem": problem, "recipe": "growing", "rungs": rungs})
        climbs.append({"problem": problem, "recipe": "GRU", "rungs": short})
    steps = np.arange(1.0, 31)
    explosion = {"loss": np.where(steps > 20, np.nan, steps), "radius": 1 + steps / 100}
    explosion |= {"length": 600, "state": steps} | changed.get("explosion", {})
    return {"seeds": 2, "explosion": explosion, "climbs": climbs}


FAILED = {"solved": np.array([False, False])}
ONE_FAILED = {"solved": np.array([True, False])}
ONE_WRONG = {"right": np.array([1.0, 0.999])}


@pytest.mark.parametrize(
    ("changed", "refuted"),
    [
        ({}, set()),
        ({f"latch_{length}": FAILED for length in LENGTHS[2:]}, {"latch", "one recipe"}),
        ({f"copy_{length}": FAILED for length in LENGTHS[2:]}, {"copy", "one recipe"}),
        ({"copy_2000": ONE_FAILED}, {"one recipe"}),
        ({"order_150": ONE_WRONG}, {"order, all right"}),
        ({"order_1000": ONE_WRONG}, {"order, trained"}),
        (
            {"order_200": {"far": {"length": 2000, "right": np.array([0.98, 1.0])}}},
            {"order, further"},
        ),
        ({"adding_400": {"loss": np.array([0.001, 0.011])}}, {"adding, 400"}),
        ({"adding_1000": {"loss": np.array([0.001, np.nan])}}, {"adding, 1000"}),
        ({"explosion": {"loss": np.ones(30)}}, {"adding, NaN"}),
        ({"explosion": {"radius": np.full(30, 0.9)}}, {"adding, NaN"}),
    ],
    ids=lambda value: "+".join(sorted(value)) or "none",
)
def test_each_verdict_follows_from_the_data(changed, refuted):
    findings = judge(make_data(**changed))
    assert len(findings) == 13
    assert {finding.name for finding in findings if not finding.holds} == refuted


def test_a_recipe_that_diverged_does_not_hide_one_that_adds():
    data = make_data()
    (lecture,) = (e for e in data["climbs"] if (e["problem"], e["recipe"]) == ("adding", "lecture"))
    for length in (400, 1000):  # the recipe that comes first
        lecture["rungs"].append(make_rung(length, solved=False, loss=np.array([np.nan, 0.1])))
    holds = {finding.name: finding.holds for finding in judge(data)}
    assert holds["adding, 400"]
    assert holds["adding, 1000"]


def test_the_gradient_verdicts_follow_from_the_norms():
    def judge_norms(recipe, when, *levels):
        """Of latch, order and adding, in powers of ten."""
        data = make_data()
        entries = [entry for entry in data["climbs"] if entry["recipe"] == recipe]
        for entry, level in zip(entries[:3], levels, strict=True):
            entry["rungs"][-1][f"norms_{when}"] = np.full((2, 2), level * math.log(10))
        return [finding.holds for finding in judge(data)[-2:]]

    assert judge_norms("lecture", "before", -2.1, -np.inf, -3.0) == [True, True]
    assert judge_norms("lecture", "before", -2.1, -np.inf, -1.9) == [False, True]
    assert judge_norms("growing", "after", -2.1, 0.0, 1.0) == [True, True]
    assert judge_norms("growing", "after", -1.9, 0.0, 1.0) == [True, False]


def test_claims_that_were_not_measured_have_no_finding_and_all_recipes_are_drawn(tmp_path):
    data = make_data() | {"explosion": None}
    for entry in data["climbs"]:
        entry["rungs"] = entry["rungs"][:2]
        entry["rungs"][-1]["norms_after"] = np.full((2, 2), -np.inf)
    names = [finding.name for finding in judge(data)]
    assert names == [*PROBLEMS, "gradient, to learn", "gradient, to hold"]
    names = {entry["recipe"] for entry in data["climbs"]}
    short = data["climbs"][0]
    data["climbs"] += [short | {"recipe": name} for name in memory.RECIPES if name not in names]
    figures.plot(data, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--problems", "latch", "none"), ["--problems is 'none'", "latch, order"]),
        (("--recipes", "lecture", "LSTM"), ["--recipes is 'LSTM'", "lecture, deep"]),
        (("--recipes", "growing", "GRU"), ["--recipes lacks lecture"]),
        (("--quick", "--recipes", "deep"), ["--recipes lacks lecture"]),
        (("--quick", "--problems", "adding"), ["--problems is adding", "latch, order, copy"]),
        (("--seeds", "1"), ["--seeds is 1"]),
        (("--batch-size", "0"), ["--batch-size is 0"]),
        (("--workers", "0"), ["--workers is 0"]),
    ],
    ids=" ".join,
)
def test_bad_options_are_refused_by_name(options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "_run_side_by_side", None)  # nothing must run
    assert main(("memory", "--folder", str(tmp_path / "new"), *options)) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in said), message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("option", ["problems", "recipes"])
def test_no_problems_and_no_recipes_are_refused(option):
    with pytest.raises(memory.InputError, match=f"--{option} names nothing"):
        memory.run(memory.Config(**{option: ()}), lambda done, doing: None)


def test_a_name_given_twice_is_climbed_once_and_quick_leaves_one_recipe_per_problem():
    def choose(**options):
        return memory._choose_pairs(memory.Config(**options))

    twice = {"problems": ("copy", "copy"), "recipes": ("deep", "lecture", "deep")}
    assert choose(**twice) == [("copy", "deep"), ("copy", "lecture")]
    assert choose(quick=True) == [
        *(("latch", "lecture"), ("latch", "growing")),
        *(("order", "lecture"), ("order", "blocks")),
        *(("copy", "lecture"), ("copy", "blocks")),
    ]
    assert len(choose()) == 4 * len(memory.RECIPES)


def test_an_interrupted_run_resumes_with_the_missing_climbs_and_ends_like_one_that_was_not(
    tmp_path, monkeypatch
):
    climbed, cut = [], True

    def climb_by_script(problem, recipe, lengths, effort, keys):
        if cut and problem.name == "order":
            raise KeyboardInterrupt
        climbed.append(problem.name)
        params = climbing._start(problem, recipe, keys).params
        yield make_rung(20 if problem.name == "latch" else 35, params=params)

    monkeypatch.setattr(memory, "climb", climb_by_script)
    monkeypatch.setattr(memory, "_explode", lambda *how: make_data()["explosion"])
    options = ("--problems", "latch", "order", "--recipes", "lecture")
    resumed, whole = tmp_path / "resumed", tmp_path / "whole"
    assert run_small(resumed, *options) == 130
    assert climbed == ["latch"]
    assert run_small(resumed, *options) == 2  # the folder holds a run
    cut = False
    assert main(("memory", "--resume", str(resumed))) == 0
    assert climbed == ["latch", "order"]
    assert {path.name for path in resumed.iterdir()} == FILES | {"checkpoints", "networks"}
    assert run_small(whole, *options) == 0
    for name in ("metrics.json", "findings.csv"):
        assert (resumed / name).read_text() == (whole / name).read_text()


def test_networks_of_the_longest_length_solved_are_kept_and_used_again(tmp_path, monkeypatch):
    kept = {}

    def climb_by_script(problem, recipe, lengths, effort, keys):
        for length, solved in ((20, True), (35, True), (50, False)):
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, length)
            params = climbing._start(problem, recipe, keys).params
            kept.setdefault(problem.name, {})[length] = params
            yield make_rung(length, solved, params=params)

    monkeypatch.setattr(memory, "climb", climb_by_script)
    monkeypatch.setattr(memory, "_explode", lambda *how: make_data()["explosion"])
    options = ("--problems", "latch", "copy", "--recipes", "lecture", "GRU")
    assert run_small(tmp_path / "run", *options) == 0
    used = tmp_path / "used"
    from_run = ("memory", "--from", str(tmp_path / "run"), "--test-sequences", "8")
    assert main((*from_run, "--folder", str(used))) == 0
    groups = json.loads((used / "metrics.json").read_text())["used"]
    names = [(group["problem"], group["recipe"]) for group in groups]
    assert names == [(p, r) for p in ("latch", "copy") for r in ("lecture", "GRU")]
    for group in groups:
        assert list(group["tests"]) == ["35", "70", "175"]
    config = memory.Config(test_sequences=8, seeds=2)
    seeds = jax.random.split(memory._split(config)[1], 2)
    how = PROBLEMS["copy"], memory.RECIPES["GRU"], 35, 8
    best_first = np.argsort(make_rung(35)["loss"], kind="stable")
    params = jax.tree.map(lambda leaf: leaf[best_first], kept["copy"][35])
    loss, _ = evaluate(*how, params, seeds)
    np.testing.assert_allclose(groups[3]["tests"]["35"]["loss"], loss, rtol=1e-5)
    assert (used / "used.png").stat().st_size > 0
    assert main((*from_run, "--folder", str(tmp_path / "more"), "--recipes", "GRU")) == 2


def test_processes_side_by_side_return_what_each_job_does(tmp_path):
    jobs = {name: functools.partial(dict, name=name) for name in ("one", "two", "three")}
    config = memory.Config(folder=tmp_path, workers=2)
    done = []
    results = memory._run_side_by_side(jobs, config, lambda part, doing: done.append(part))
    assert results == {name: {"name": name} for name in jobs}
    assert done == pytest.approx([1 / 3, 2 / 3, 1])
    resumed = memory.Config(resume=tmp_path, workers=2)
    jobs["one"] = functools.partial(dict, name="another")  # saved already
    assert memory._run_side_by_side(jobs, resumed, lambda part, doing: None) == results


def end_at_once_the_first_time(path):
    if not path.exists():
        path.touch()
        os._exit(1)
    return {"done": True}


def test_a_process_that_ends_without_a_result_is_started_again_and_twice_is_an_error(tmp_path):
    config = memory.Config(workers=2)
    jobs = {"one": functools.partial(dict, done=True)}
    jobs["two"] = functools.partial(end_at_once_the_first_time, tmp_path / "mark")
    assert memory._run_side_by_side(jobs, config, lambda part, doing: None) == {
        name: {"done": True} for name in jobs
    }
    never = {"two": functools.partial(os._exit, 1)}
    with pytest.raises(RuntimeError, match="missing: \\['two'\\]"):
        memory._run_side_by_side(never, config, lambda part, doing: None)

"""Chaotic systems against known numbers, measures by hand, and a small run of each kind."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.signal import lfilter

import jaxrnn
from experiments import dynamics
from experiments.__main__ import main
from experiments.data.chaotic_systems import SYSTEMS, advance, measure_exponents, simulate
from experiments.dynamics import measures, models

pytestmark = pytest.mark.usefixtures("as_on_the_command_line")

TINY = (
    *("--hidden-size", "20", "--seeds", "2", "--steps", "4", "--eval-every", "2"),
    *("--window", "30", "--batch-size", "2"),
)


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=lambda system: system.name)
def test_a_step_is_that_of_an_independent_solver_of_high_order(system):
    with jax.enable_x64(True):
        start = simulate(system, 1)[0]
        got = np.asarray(jax.jit(lambda s: advance(system, s))(jnp.asarray(start)))
    field = lambda t, s: np.asarray(FIELDS[system.name](s))  # noqa: E731
    solved = solve_ivp(field, (0, system.step), start, method="DOP853", rtol=1e-12, atol=1e-12)
    assert np.abs(got - solved.y[:, -1]).max() < 1e-5 * np.abs(start).max()


FIELDS = {
    "lorenz": lambda s: [
        10 * (s[1] - s[0]),
        s[0] * (28 - s[2]) - s[1],
        s[0] * s[1] - 8 / 3 * s[2],
    ],
    "roessler": lambda s: [-s[1] - s[2], s[0] + 0.2 * s[1], 0.2 + s[2] * (s[0] - 5.7)],
    "lorenz96": lambda s: [
        (s[(i + 1) % 10] - s[i - 2]) * s[i - 1] - s[i] + 8 for i in range(len(s))
    ],
}


@pytest.mark.parametrize(
    ("name", "known"), [("lorenz", (0.9056, 0.0, -14.5723)), ("roessler", (0.0714, 0.0, -5.3943))]
)
def test_the_exponents_of_a_simulated_system_are_the_known_ones(name, known):
    """Sprott 2003, appendix A. The largest converges like one over the square root of time."""
    found = measure_exponents(SYSTEMS[name], 3)
    assert abs(found[0] / known[0] - 1) < 0.08
    assert abs(found[1]) < 0.01 * known[0] + 0.005
    assert abs(found[2] / known[2] - 1) < 0.01


def test_the_valid_time_ends_where_the_error_first_exceeds_the_limit():
    true = np.random.default_rng(0).normal(size=(50, 3, 2))
    spread = np.sqrt(np.mean(np.sum((true - true.mean((0, 1))) ** 2, axis=-1)))
    runs = np.stack([true, true])
    runs[0, 10:, 1, 0] += 0.41 * spread
    runs[1, 20:, 2] = np.nan
    runs[1, 5, 0, 0] += 0.39 * spread
    np.testing.assert_array_equal(measures.valid_steps(runs, true), [[50, 10, 50], [50, 50, 20]])


def test_distances_are_zero_between_equals_and_largest_for_what_diverged_or_stands():
    states, others = (slow_noise(seed) for seed in (1, 2))
    assert max(measures.compare(states, states).values()) < 1e-7  # a root of rounding
    gone = measures.compare(np.full_like(states, np.inf), states)
    assert gone == {"histograms": 1.0, "states": float("inf"), "spectra": 1.0}
    still = measures.compare(np.zeros_like(states), states)
    again = measures.compare(others, states)
    for each in ("histograms", "states", "spectra"):
        assert again[each] < 0.5 * still[each]
    shifted = measures.compare(states + np.asarray([8.0, 0, 0]), states)
    np.testing.assert_allclose(shifted["histograms"], 1 / 3, atol=2e-3)


def slow_noise(seed):
    """A Gaussian series [T, 3] of variance 1 whose power is at low frequencies."""
    drawn = np.random.default_rng(seed).normal(size=(20_000, 3))
    return lfilter([(1 - 0.9**2) ** 0.5], [1, -0.9], drawn, axis=0)[100:]


def test_a_free_run_reads_its_own_outputs():
    layer = jaxrnn.scanned(1, 1, lambda key: (), lambda p, b: (), lambda p, s, x: ((), 0.5 * x))
    warm_up = jnp.asarray([1.0, 8.0])[:, None, None]
    run = measures.run_free(layer, (), warm_up, 3)
    np.testing.assert_allclose(run[:, 0, 0], [4.0, 2.0, 1.0])


def test_a_polynomial_of_the_right_degree_learns_a_map_exactly():
    x, y = np.zeros(1200), np.zeros(1200)
    for t in range(1199):  # Henon 1976
        x[t + 1], y[t + 1] = 1 - 1.4 * x[t] ** 2 + y[t], 0.3 * x[t]
    states = jnp.asarray(np.stack([x, y], axis=1), jnp.float32)
    model = models.fit_polynomial(2, states[:800], states[800:1000])
    run = measures.run_all(model, states[1000:1100, None], 10)[0, :, 0]
    assert np.abs(run - np.asarray(states[1100:1110])).max() < 1e-2
    still = measures.run_all(models.make_persistence(2), states[1000:1100, None], 2)[0, :, 0]
    np.testing.assert_array_equal(still, np.broadcast_to(states[1099], (2, 2)))


def test_a_small_run_writes_figures_and_networks_that_are_used_again(tmp_path, monkeypatch):
    monkeypatch.setattr(dynamics, "_EXPONENT_STEPS", 300)
    values = simulate(SYSTEMS["lorenz"], 2400)
    lines = ["a,b,c", *(",".join(f"{v:.6f}" for v in row) for row in values)]
    (tmp_path / "own.csv").write_text("\n".join(lines))
    given = ("--csv", str(tmp_path / "own.csv"), "--columns", "a", "b", "c")
    folder = tmp_path / "run"
    assert main(("dynamics", *TINY, *given, "--folder", str(folder))) == 0
    assert (folder / "dynamics-csv.png").exists()
    first = json.loads((folder / "metrics.json").read_text())["cases"]["csv"]
    assert set(first["models"]) == {"network", "reservoir", "cubic", "linear", "persistence"}
    used = tmp_path / "used"
    assert main(("dynamics", "--from", str(folder), "--folder", str(used))) == 0
    again = json.loads((used / "metrics.json").read_text())["cases"]["csv"]
    assert again["models"]["network"] == first["models"]["network"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--columns", "a"), "--columns"),
        (("--csv", "none.csv"), "--columns is missing"),
        (("--forcing", "1.5"), "--forcing is 1.5"),
        (("--systems", "pendulum"), "pendulum"),
    ],
)
def test_a_bad_option_is_refused(given, said, capsys, tmp_path):
    try:
        code = main(("dynamics", *given, "--folder", str(tmp_path / "run")))
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    assert said in capsys.readouterr().err

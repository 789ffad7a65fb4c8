"""The series that reservoirs are tested on, against loops of their equations; and a small run."""

import json

import jax
import numpy as np
import pytest

from experiments import reservoir
from experiments.__main__ import main
from experiments.data.delay_systems import draw_narma, simulate_mackey_glass

pytestmark = pytest.mark.usefixtures("as_on_the_command_line")


def test_mackey_glass_follows_its_equation():
    """Euler's method with steps 50 times as small, from the same past, errs by about its step."""
    delay, parts = 17, 500
    xs = simulate_mackey_glass(delay, 60)
    times = np.arange(-delay, 1) + delay
    past = np.interp(np.arange(delay * parts + 1) / parts, times, xs[: delay + 1])
    history = list(past)
    for _ in range(20 * parts):
        old = history[-1 - delay * parts]
        history.append(history[-1] + (0.2 * old / (1 + old**10) - 0.1 * history[-1]) / parts)
    got = np.asarray(history)[delay * parts :: parts]
    # The past is known at whole times only, and linear between them.
    assert np.abs(got - xs[delay : delay + 21]).max() < 0.01


def test_mackey_glass_moves_in_its_known_range_and_a_longer_delay_is_another_series():
    short, long = simulate_mackey_glass(17, 2000), simulate_mackey_glass(30, 2000)
    assert 0.2 < short.min() < 0.5
    assert 1.2 < short.max() < 1.45
    assert not np.allclose(short, long, atol=0.1)


def test_narma_follows_its_equation_and_stays_bounded():
    u, y = draw_narma(jax.random.key(1), 400)
    assert u.min() >= 0
    assert u.max() < 0.5
    assert np.abs(y).max() <= 2
    for t in (9, 50, 398):
        recent = sum(y[t - i] for i in range(10))
        expected = 0.3 * y[t] + 0.05 * y[t] * recent + 1.5 * u[t - 9] * u[t] + 0.1
        np.testing.assert_allclose(y[t + 1], expected, rtol=1e-12)


def test_a_small_run_writes_its_figures(tmp_path, monkeypatch):
    shorter = {"_TRAIN": 1000, "_VALIDATION": 500, "_TEST": 3000, "_LOOK": 100, "_FINALISTS": 2}
    for name, value in shorter.items():
        monkeypatch.setattr(reservoir, name, value)
    folder = tmp_path / "run"
    small = ("--hidden-size", "30", "--mackey-units", "30", "--trials", "2", "--seeds", "2")
    maps = ("--memory-units", "15", "--radii", "0.5", "0.9", "--leaks", "0.5", "1.0")
    assert main(("reservoir", *small, *maps, "--folder", str(folder))) == 0
    assert (folder / "reservoir.png").exists()
    assert (folder / "memory_capacity.png").exists()
    data = json.loads((folder / "metrics.json").read_text())
    assert np.shape(data["memory"]["capacity"]) == (2, 2)
    tasks = data["tasks"]
    assert set(tasks) == {"mackey-glass 17", "mackey-glass 30", "narma", "lorenz"}
    assert all(0 < error < 1 for task in tasks.values() for error in task["nrmse"])
    # What is remembered: no more than there are units, and more with a larger radius.
    capacity = np.asarray(data["memory"]["capacity"])
    assert np.all((capacity > 1) & (capacity <= 15))
    assert capacity[1, 1] > capacity[0, 1]

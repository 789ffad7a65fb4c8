"""The command line of the experiments, and the parts of the tour that are quick."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def experiments(*arguments):
    command = [sys.executable, "-m", "experiments", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_list_names_every_experiment():
    done = experiments("--list")
    assert done.returncode == 0
    assert done.stdout.startswith("tour")


@pytest.mark.parametrize("arguments", [("nothing",), ("tour", "--nothing", "1")])
def test_an_unknown_name_or_option_is_refused_without_a_traceback(arguments):
    done = experiments(*arguments)
    assert done.returncode == 2
    assert "nothing" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_tour_cut_short_writes_its_data_and_figures_and_finds_the_exact_claims_to_hold(tmp_path):
    done = experiments(
        *("tour", "--folder", str(tmp_path)),
        *("--sunspots.seeds", "2", "--sunspots.max-steps", "20"),
        *("--memory.seeds", "2", "--memory.train-steps", "5", "--memory.lags", "1", "4"),
    )
    assert "Traceback" not in done.stderr
    figures = {path.name for path in tmp_path.glob("*.png")}
    assert {"averages.png", "memory.png", "sunspots.png"} <= figures
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["memory"]["lags"] == [1, 4]
    assert (tmp_path / "findings.csv").read_text().count("\n") >= 8
    assert done.returncode == 0, done.stdout  # 1 where a claim that must hold was refuted

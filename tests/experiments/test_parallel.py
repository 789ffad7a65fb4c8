"""The experiment on time in parallel: what it times, and what its findings say."""

import copy

import jax
import numpy as np
import pytest

from experiments import parallel
from experiments.parallel import figures, findings
from experiments.parallel.findings import IN_CHUNKS, IN_ORDER, OVER_DEVICES

CONFIG = parallel.Config(
    shapes=((640, 1, 128), (96, 2, 5)),
    remembering=((640, 1, 128),),
    exponents=(1280, 1, 128),
    radii=(0.2, 3.0),
    repeats=1,
)


@pytest.mark.usefixtures("as_on_the_command_line")
def test_a_run_compares_times_and_draws_what_ran_in_chunks_and_what_in_order(tmp_path):
    result = parallel.run(CONFIG, lambda done, doing: None)
    rows = result.data["rows"]
    assert [findings.name_row(row) for row in rows] == [
        *("640,1,128", "96,2,5"),
        *("640,1,128 radius 1.5", "640,1,128 relu"),
    ]
    forgets, remembers = result.data["exponents"]
    assert forgets["exponent"] < -0.5
    assert forgets["agreed"]
    assert 0 < forgets["residual"] <= forgets["tolerance"]
    assert remembers["exponent"] > 0
    assert not remembers["agreed"]
    assert remembers["memory"] == 1281
    verdicts = {finding.name: finding.holds for finding in result.findings}
    assert verdicts["same"]
    assert verdicts["seams"]
    assert "640,1,128: forward" in result.text
    figures.plot(result.data, tmp_path)
    assert (tmp_path / "parallel.png").stat().st_size > 0


@pytest.mark.usefixtures("as_on_the_command_line")
def test_the_difference_is_relative_to_the_largest_entry_and_nan_is_the_largest():
    expected = (np.array([1.0, -4.0]), np.array([2.0]))
    assert parallel._compare((np.array([1.0, -3.0]), np.array([2.1])), expected) == 0.25
    assert np.isnan(parallel._compare((np.array([1.0, np.nan]), np.array([2.0])), expected))
    drawn = parallel._draw(CONFIG, (8, 2, 16), 0.7)
    radius = np.abs(np.linalg.eigvals(np.asarray(drawn.params.w_hh, np.float64))).max()
    assert radius == pytest.approx(0.7, rel=1e-4)
    assert parallel._draw(CONFIG, (8, 2, 16), "relu").activation is jax.nn.relu


def make_row(shape, kind="orthogonal", chunks=0.1, devices=0.05):
    seconds = {IN_ORDER: 1.0, IN_CHUNKS: chunks, OVER_DEVICES: devices}
    one = {"seconds": seconds, "differences": dict.fromkeys(seconds, 0.0)}
    return {"shape": shape, "kind": kind, "forward": one, "gradient": copy.deepcopy(one)}


def make_data():
    return {
        "rows": [
            make_row((9600, 1, 64)),
            make_row((100_000, 1, 64), chunks=0.01),
            make_row((9600, 1, 256)),
            make_row((9600, 4, 64), chunks=0.9),
            make_row((9600, 1, 64), "relu", chunks=1.1),
        ],
        "exponents": [
            {"exponent": -0.3, "agreed": True, "residual": 1e-6, "tolerance": 2e-6},
            {"exponent": 0.1, "agreed": False, "residual": 1.0, "tolerance": 2e-6},
        ],
        "platform": "cpu",
    }


def change(data, path, value):
    *places, last = path
    for place in places:
        data = data[place]
    data[last] = value


@pytest.mark.parametrize(
    ("path", "value", "refuted"),
    [
        (("platform",), "cpu", []),
        (("platform",), "gpu", []),
        (("rows", 0, "gradient", "differences", IN_CHUNKS), np.nan, ["same"]),
        (("exponents", 0, "residual"), 3e-6, ["seams"]),
        (("rows", 2, "gradient", "seconds", IN_CHUNKS), 0.5, ["speed"]),
        (("rows", 2, "forward", "seconds", OVER_DEVICES), 0.5, ["speed"]),
        (("rows", 3, "forward", "seconds", IN_CHUNKS), 1.01, ["slowest"]),
        (("rows", 0, "forward", "seconds", IN_CHUNKS), 0.9, ["slowest"]),
        (("rows", 4, "gradient", "seconds", IN_CHUNKS), 1.2, ["cost"]),
    ],
)
def test_a_finding_is_refuted_by_its_own_measurement_alone(path, value, refuted):
    data = make_data()
    change(data, path, value)
    judged = findings.judge(data)
    assert [finding.name for finding in judged if not finding.holds] == refuted


def test_on_a_gpu_one_narrow_sequence_has_a_threshold_of_its_own():
    data = make_data()
    data["platform"] = "gpu"
    change(data, ("rows", 1, "gradient", "seconds", IN_CHUNKS), 0.04)
    refuted = [finding.name for finding in findings.judge(data) if not finding.holds]
    assert refuted == ["speed"]

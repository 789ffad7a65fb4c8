"""What the cell's options cost: what the programs compute, and the verdicts."""

import jax
import numpy as np
import pytest

from experiments.bench import variants
from experiments.bench.cases import Case
from experiments.bench.variants import LEAKY, PLAIN, VANILLA

pytestmark = pytest.mark.usefixtures("as_on_the_command_line")

SHAPE = (6, 3, 2, 10)


def outputs(name):
    init, run = variants._variants(SHAPE)[name]
    key = jax.random.key(0)
    return np.asarray(run(init(key), jax.random.normal(key, SHAPE[:3]), key))


def test_the_plain_scan_computes_what_the_leaky_layer_does():
    np.testing.assert_allclose(outputs(PLAIN), outputs(LEAKY), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs("learned leak"), outputs(LEAKY), rtol=1e-5, atol=1e-6)
    for name in (VANILLA, "leak and noise"):
        assert np.abs(outputs(name) - outputs(LEAKY)).max() > 0.01


def test_every_option_is_timed_at_each_shape_and_a_low_rank_beside_a_dense_matrix():
    rows = variants.measure_variants([Case("shape", SHAPE)], 0, 0.0, 1, quick=True)
    assert set(rows[0]["milliseconds"]) == set(variants._variants(SHAPE))
    assert [row["pass"] for row in rows] == ["gradient", "forward", "gradient"]
    assert set(rows[1]["milliseconds"]) == {"dense", "low rank"}


def rows_of(leaky, plain, thin):
    times = {VANILLA: 1.0, LEAKY: leaky, PLAIN: plain, "learned leak": 1.2}
    wide = {
        "shape": (1, 1, 1, 4),
        "pass": "forward",
        "milliseconds": {"dense": thin, "low rank": 1},
    }
    shape = {"milliseconds": times | {"leak and noise": 2.0, "Dale": 1.1}}
    return [shape, wide]


@pytest.mark.parametrize(
    ("times", "holds"),
    [
        ((1.1, 1.5, 2.1), [True, True]),
        ((1.2, 1.7, 2.1), [False, True]),
        ((1.1, 1.4, 1.9), [False, False]),
    ],
)
def test_verdicts_follow_the_thresholds(times, holds):
    found = variants.judge_variants(rows_of(*times))
    assert [finding.holds for finding in found] == holds

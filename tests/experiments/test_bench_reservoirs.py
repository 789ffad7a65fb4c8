"""Reservoirs in the benchmark: every case is timed, and the verdicts follow from the times."""

import pytest

from experiments.bench import reservoirs
from experiments.bench.reservoirs import NUMPY, OURS

pytestmark = pytest.mark.usefixtures("as_on_the_command_line")


def test_every_case_is_timed_and_nothing_is_claimed_without_peers():
    rows = reservoirs.measure_reservoirs((20,), 1, peers=False, quick=True)
    assert [row["case"].split(",")[0] for row in rows] == [
        "fit and run",
        "run",
        "fit 4 of 30 units",
    ]
    assert all(row["seconds"][OURS] > 0 for row in rows)
    assert reservoirs.judge_reservoirs(rows) == []


@pytest.mark.parametrize(
    ("ratios", "holds"),
    [((3.1, 1.1, 10.1), True), ((2.9, 2, 20), False), ((5, 0.9, 20), False), ((5, 2, 9), False)],
)
def test_the_verdict_follows_from_each_case(ratios, holds):
    cases = ("fit and run, 100 units", "run, 10000 units with 10 inputs", "fit 64 of 300 units")
    rows = [
        {"case": case, "seconds": {OURS: 1.0, NUMPY: ratio}}
        for case, ratio in zip(cases, ratios, strict=True)
    ]
    (finding,) = reservoirs.judge_reservoirs(rows)
    assert finding.holds == holds

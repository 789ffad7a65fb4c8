"""What `bench` measures of whole loops, depths and devices: programs, counts and verdicts."""

import jax
import numpy as np
import pytest

from experiments.bench import depths, torch_loops, weak_scaling, whole_loops
from experiments.bench.depths import NAMES, PLAIN, REPEATED, STACKED, judge_depths
from experiments.bench.figures import _list_loops
from experiments.bench.weak_scaling import count_exchanged, judge_weak_scaling
from experiments.bench.whole_loops import FLAX, MAPPED, OURS, TORCH, judge_loops
from jaxrnn import repeated, vanilla_rnn
from jaxrnn.host import count_cores
from tests.support.peers import require_peer

pytestmark = pytest.mark.usefixtures("as_on_the_command_line")

SHAPE = (12, 64, 2, 8)
STEPS = 200
MAKERS = {
    "flax": whole_loops._flax_loop,
    "torch": torch_loops.torch_loop,
    "torch, swept": lambda *start: torch_loops.torch_sweep(*start[:3], 2, start[3]),
    "torch, mapped": lambda *start: torch_loops.torch_mapped(*start[:3], 2, start[3]),
    "jaxrnn, swept": lambda *start: whole_loops._library_sweep(*start[:3], 2, start[3]),
}


def train(make):
    network, params = whole_loops._start(SHAPE, 0)
    return np.array(make(SHAPE, network, params, 0)(STEPS))


@pytest.mark.parametrize("name", MAKERS)
def test_every_loop_trains_the_same_network_as_fit_does(name):
    # From the same weights, on other draws: losses that agree as far as means over 64 sequences do.
    if "jaxrnn" not in name:
        require_peer(name.partition(",")[0])
    expected, got = train(whole_loops._library_loop), train(MAKERS[name])
    assert got.shape == expected.shape == (STEPS,)
    assert expected[-20:].mean() < 0.8 * expected[:5].mean()
    for part in (slice(0, 10), slice(90, 110), slice(-20, None)):
        np.testing.assert_allclose(got[part].mean(), expected[part].mean(), rtol=0.1)


def test_a_loop_goes_on_where_it_stopped():
    network, params = whole_loops._start(SHAPE, 0)
    loop = whole_loops._library_loop(SHAPE, network, params, 0)
    np.testing.assert_allclose(loop(5) + loop(5), train(whole_loops._library_loop)[:10], rtol=1e-6)


def loops_of(ours, flax, torch, swept=1.0, apart=1.0):
    return {
        "shape": SHAPE,
        "networks": 2,
        "losses": {OURS: 1.0, FLAX: apart, TORCH: 1.0},
        "microseconds": {OURS: ours, FLAX: flax, TORCH: torch},
        "swept_microseconds": {OURS: swept, TORCH: 2.0, MAPPED: 1.5},
    }


@pytest.mark.parametrize(
    ("loops", "holds"),
    [
        (loops_of(1.0, 1.5, 5.0), [True, True]),
        (loops_of(1.0, 1.4, 5.0), [False, True]),
        (loops_of(1.0, 1.5, 4.9), [False, True]),
        (loops_of(1.0, 1.5, 5.0, swept=1.6), [True, False]),
        (loops_of(1.0, 1.5, 5.0, apart=1.2), [False, True]),
    ],
)
def test_loops_are_judged_by_the_thresholds(loops, holds):
    assert [finding.holds for finding in judge_loops(loops)] == holds


def test_without_another_framework_loops_are_not_measured():
    alone = loops_of(1.0, 1.5, 5.0)
    alone |= {"losses": {OURS: 1.0}, "microseconds": {OURS: 1.0}, "swept_microseconds": {OURS: 1.0}}
    assert {finding.verdict for finding in judge_loops(alone)} == {"not measured"}


def test_the_figure_has_a_row_for_each_loop_in_which_others_took_part():
    loops = loops_of(1.0, 2.0, 3.0)  # microseconds
    rows = [(row["case"], row["contender"], row["milliseconds"]) for row in _list_loops(loops)]
    assert rows == [
        *(("fit 12,64,2,8", *pair) for pair in ((OURS, 0.001), (FLAX, 0.002), (TORCH, 0.003))),
        *(("sweep of 2", *pair) for pair in ((OURS, 0.001), (TORCH, 0.002), (MAPPED, 0.0015))),
    ]
    alone = {**loops, "microseconds": {OURS: 1.0}, "swept_microseconds": {OURS: 1.0}}
    assert _list_loops(alone) == []


def test_all_forms_of_a_deep_network_have_the_same_loss():
    shape, depth = (6, 3, 4, 4), 3
    several = repeated(vanilla_rnn(4, 4), depth).init(jax.random.key(0))
    one_by_one = tuple(jax.tree.map(lambda leaf, at=n: leaf[at], several) for n in range(depth))
    xs = jax.random.normal(jax.random.key(1), shape[:3])
    losses = {
        name: float(loss(several if name == REPEATED else one_by_one, xs))
        for name, loss in depths._losses(shape, depth).items()
    }
    assert set(losses) == set(NAMES)
    np.testing.assert_allclose(list(losses.values()), losses[PLAIN], rtol=1e-5)


@pytest.mark.parametrize(
    ("stacked", "several", "time", "holds"),
    [
        (3.2, 1.2, 1.0, True),
        (3.4, 1.2, 1.0, False),
        (3.2, 1.3, 1.0, False),
        (3.2, 1.2, 1.1, False),
    ],
)
def test_depths_are_judged_by_growth_and_time(stacked, several, time, holds):
    first = {STACKED: 1.0, REPEATED: 1.0, PLAIN: 1.0}
    last = {STACKED: stacked, REPEATED: several, PLAIN: 3.0}
    rows = [
        {"depth": depth, "compile_seconds": seconds, "milliseconds": {STACKED: 1, REPEATED: time}}
        for depth, seconds in ((2, first), (16, last))
    ]
    assert judge_depths(rows).holds == holds


def test_the_bytes_of_all_reduces_are_counted_in_the_text_of_a_program():
    program = """
  %a = f32[3,4]{1,0} all-reduce(%x), channel_id=1
  %b = (f32[5]{0}, s32[]) all-reduce-start(%y, %z), channel_id=2
  %c = (f32[5]{0}, s32[]) all-reduce-done(%b)
  %d = f32[100]{0} add(%p, %q)
"""
    assert count_exchanged(program) == 4 * (12 + 5 + 1)


@pytest.mark.skipif(count_cores() < 2, reason="each device has a core of its own")
def test_two_devices_exchange_one_gradient_per_step():
    rows = weak_scaling.measure_weak_scaling((5, 2, 3, 4), 1)
    assert [(row["processes"], row["devices"]) for row in rows] == [(1, 1), (1, 2), (2, 2)]
    gradient = 4 * (4 * 3 + 4 * 4 + 4)
    assert rows[0]["bytes"] == 0
    for row in rows[1:]:
        assert gradient < row["bytes"] < gradient + 64  # and the loss, and the weights of the mean
    assert all(row["milliseconds"] > 0 for row in rows)


@pytest.mark.parametrize(("times", "holds"), [((1.2, 1.2), True), ((1.2, 1.3), False)])
def test_weak_scaling_is_judged_by_the_slower_run(times, holds):
    rows = [
        {"processes": p, "devices": d, "milliseconds": t, "bytes": 8}
        for p, d, t in ((1, 1, 1.0), (1, 2, times[0]), (2, 2, times[1]))
    ]
    assert judge_weak_scaling(rows).holds == holds
    assert judge_weak_scaling(rows[:1]).verdict == "not measured"

"""The benchmark: who takes part and agrees, what its findings say, and what a run writes."""

import functools
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import bench
from experiments.__main__ import main
from experiments.bench import cases, choices, findings, library, many_networks, peers, scaling
from experiments.bench.cases import Case, compare, count_flops, make_workload, solve
from experiments.bench.choices import force_strategy, measure_strategies
from experiments.bench.entrants import Entrant, Program, Unavailable, interleave
from experiments.bench.scaling import measure_lengths
from jaxrnn._products import column_product
from tests.support.peers import require_peer

ROOT = Path(__file__).parents[2]
SHAPE = (7, 4, 3, 5)
CASES = {
    "shape": Case("shape", SHAPE),
    "deep": Case("deep", SHAPE, layers=3),
    "ragged": Case("ragged", SHAPE),
    "networks": Case("networks", SHAPE, networks=3),
}
PASSES = ("forward", "gradient", "train")
PACKAGES = {
    "flax": "flax",
    "haiku": "haiku",
    "Keras": "keras",
    "torch": "torch",
    "onnxruntime": "onnxruntime",
}
TINY = (
    *("--shapes", "6", "2", "3", "4", "--deep", "6", "2", "3", "4", "--layers", "2"),
    *("--ragged", "6", "2", "3", "4", "--small", "6", "2", "3", "4", "--networks", "3"),
    *(
        "--long",
        "9",
        "2",
        "3",
        "4",
        "--lengths",
        "5",
        "10",
        "--seconds",
        "0",
        "--rounds",
        "1",
        "--passes",
        "train",
    ),
    *("--depths", "1", "2", "--equal", "6", "2", "4", "4", "--loop", "6", "2", "3", "4"),
    *("--swept", "2", "--scaled", "6", "2", "3", "4"),
)


pytestmark = pytest.mark.usefixtures("as_on_the_command_line")


@pytest.fixture
def without_peers(monkeypatch):
    real = importlib.import_module

    def import_module(name, package=None):
        if name.split(".", maxsplit=1)[0] in (*PACKAGES.values(), "onnx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)


@functools.cache
def solved(kind):
    workload = make_workload(CASES[kind], 0)
    return workload, solve(workload)


def check_agreement(builders, kind):
    workload, reference = solved(kind)
    for name, build in builders.items():
        for what in PASSES:
            try:
                entrant = build(workload, what)
            except Unavailable:
                assert name == "jaxrnn, all devices" or what != "forward", name
                continue
            difference, allowed = compare(what, entrant.read(), reference, workload)
            assert difference <= allowed, (name, what)
            entrant.call()


@pytest.mark.parametrize("kind", ["shape", "deep", "ragged"])
def test_the_library_agrees_with_the_plain_scan(kind):
    check_agreement(library.BUILDERS, kind)


def test_many_networks_agree_with_the_plain_scan():
    check_agreement(many_networks.BUILDERS, "networks")


ON_TWO_DEVICES = """
from experiments.bench import library, many_networks
from experiments.bench.cases import Case, compare, make_workload, solve
for case, build in (
    (Case("ragged", (7, 4, 3, 5)), library.build_sharded),
    (Case("networks", (7, 4, 3, 5), networks=132), many_networks.build_mapped_sharded),
):
    workload = make_workload(case, 0)
    reference = solve(workload)
    for what in ("forward", "gradient", "train"):
        entrant = build(workload, what)
        difference, allowed = compare(what, entrant.read(), reference, workload)
        assert difference <= allowed, (case.kind, what, difference, allowed)
        entrant.call()
"""


def test_the_library_on_two_devices_agrees_with_the_plain_scan():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, "-c", ON_TWO_DEVICES]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["shape", "deep", "ragged"])
@pytest.mark.parametrize("name", list(PACKAGES))
def test_a_peer_that_is_installed_agrees_with_the_plain_scan(name, kind):
    require_peer(PACKAGES[name])
    check_agreement({name: peers.BUILDERS[name]}, kind)


def test_a_wrong_result_differs_by_more_than_is_allowed():
    workload, reference = solved("shape")
    for what, right in zip(PASSES, reference, strict=True):
        assert np.less_equal(*compare(what, right, reference, workload))
        wrong = jax.tree.map(lambda leaf: leaf * np.float32(1.01), right)
        assert not np.less_equal(*compare(what, wrong, reference, workload))
        leaves, structure = jax.tree.flatten(right)
        leaves[-1] = np.full_like(leaves[-1], np.nan)
        broken = jax.tree.unflatten(structure, leaves)
        assert not np.less_equal(*compare(what, broken, reference, workload))
    with pytest.raises(ValueError, match=r"shape \(6, 4, 5\), expected \(7, 4, 5\)"):
        compare("forward", reference.forward[1:], reference, workload)


def test_padding_may_hold_anything_and_half_of_a_ragged_batch_is_padding():
    workload, reference = solved("ragged")
    mask = workload.mask
    assert mask.mean() == pytest.approx((1 + 1 / SHAPE[0]) / 2)
    filled = np.where(mask[..., None], reference.forward, 7)
    assert compare("forward", filled, reference, workload)[0] == 0


def test_flops_are_those_of_the_products_and_leave_padding_out():
    steps, batch, inputs, units = SHAPE
    workload, _ = solved("shape")
    forward = 2 * steps * batch * units * (inputs + units)
    assert count_flops(workload, "forward") == forward
    assert count_flops(workload, "gradient") == 2 * forward + 2 * steps * batch * units**2
    ragged, _ = solved("ragged")
    share = ragged.lengths.sum() / (steps * batch)
    assert count_flops(ragged, "gradient") == count_flops(workload, "gradient") * share
    networks, _ = solved("networks")
    assert count_flops(networks, "train") == 3 * count_flops(workload, "train")


def test_every_call_runs_in_each_round_and_a_median_is_of_a_single_run():
    calls = []
    times = interleave(
        {name: lambda name=name: calls.append(name) for name in "ab"}, 0.0, least_rounds=3
    )
    assert set(calls) == {"a", "b"}
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    assert all(0 < value < 0.02 for values in times.values() for value in values)


@pytest.mark.parametrize("name", list(PACKAGES))
def test_a_peer_that_is_not_installed_says_so(without_peers, name):
    with pytest.raises(Unavailable, match="not installed"):
        peers.BUILDERS[name](solved("shape")[0], "forward")


def test_a_peer_whose_import_fails_says_why(monkeypatch):
    def lack_another(name):
        raise ModuleNotFoundError("No module named 'jmp'", name="jmp")

    monkeypatch.setattr(importlib, "import_module", lack_another)
    with pytest.raises(Unavailable, match="cannot be imported: No module named 'jmp'"):
        peers.load("haiku")


def test_a_run_without_peers_names_them_and_writes_tables_data_and_a_figure(
    tmp_path, capsys, without_peers
):
    assert main(("bench", "--folder", str(tmp_path), *TINY)) == 0
    printed = capsys.readouterr().out
    assert "training step: median ms; % of" in printed
    assert "seconds to compile, temporary MB" in printed
    assert "flax: not installed" in printed
    assert "not measured" in printed
    assert (tmp_path / "bench.png").stat().st_size > 0
    data = json.loads((tmp_path / "metrics.json").read_text())
    rows = {(row["case"], row["pass"], row["contender"]): row for row in data["rows"]}
    for name in ("jaxrnn", "plain scan"):
        row = rows["ragged 6,2,3,4", "train", name]
        assert row["status"] == "timed"
        assert row["rounds"] >= 1
        assert row["milliseconds"] > 0
        assert row["fraction"] > 0
        assert row["compile_seconds"] > 0
        assert row["temporary_megabytes"] > 0
        assert row["difference"] <= row["allowed"]
    assert rows["6,2,3,4", "train", "torch"]["status"] == "not installed"
    assert rows["3 nets 6,2,3,4", "train", "jaxrnn, loop"]["status"] == "timed"


def test_a_contender_that_differs_is_a_row_and_is_not_timed(monkeypatch):
    def build_wrong(workload, what):
        entrant = library.build_plain(workload, what)
        return entrant._replace(read=lambda: jax.tree.map(lambda leaf: 2 * leaf, entrant.read()))

    workload, reference = solved("shape")
    row, entrant = bench._enter("wrong", build_wrong, workload, "gradient", reference)
    assert entrant is None
    assert row["status"] == "differs by 1e+00, 2e-05 allowed"


def test_a_peer_that_fails_is_a_row_and_the_library_s_own_failure_is_raised():
    def fail(workload, what):
        raise AttributeError("no such method")

    workload, reference = solved("shape")
    row, entrant = bench._enter("flax", fail, workload, "forward", reference)
    assert entrant is None
    assert row["status"] == "fails: AttributeError: no such method"
    with pytest.raises(AttributeError):
        bench._enter("jaxrnn", fail, workload, "forward", reference)


@pytest.mark.parametrize("option", ["passes", "lengths"])
def test_nothing_to_time_is_refused(option, capsys):
    assert main(("bench", f"--{option}")) == 2
    assert f"--{option}" in capsys.readouterr().err


def make_rows(speeds, what="train", shape=(256, 64, 128, 256), kind="shape", **entries):
    case = Case(kind, shape, networks=1024 if kind == "networks" else 0)
    return [
        {
            **case._asdict(),
            **{"case": case.name, "pass": what, "contender": name, "status": "timed"},
            **{"milliseconds": time, "difference": 0.0, "allowed": 1.0},
            **{"fraction": 0.95, "product_gigaflops": 100.0},
            **entries,
        }
        for name, time in speeds.items()
    ]


def make_data(rows, seconds=1.0, growth=1.0, stopped=(), own=1.0, kept=1.0):
    """The library compiles as fast as the plain scan, and its time per step is constant; `own` is
    its time with its own choices, where the best take 1; `kept` its memory, the plain scan's 10."""
    scaled = [
        {"case": str(t), "steps": t, "gradient": {"jaxrnn": s, "plain scan": 1.0}, "scaled": True}
        for t, s in ((10, 1.0), (100, seconds))
    ]
    lengths = [
        {"length": t, "bytes": size, "microseconds_per_step": s}
        for size in (4, 480)
        for t, s in ((10, 1.0), (100, growth if size == 480 else 1.0))
    ]
    return {
        "rows": rows,
        "chunks": [
            {"case": "a", "own": 1.0, "swept": {"8 steps": 1.0, "16 steps": 2.0}},
            {"case": "b", "own": own, "swept": {"8 steps": 2.0, "16 steps": 1.0}},
        ],
        "strategies": [
            {
                **{"case": "a", "own": own, "swept": {"before": 1.0, "joined": 1.1}},
                **{"chosen": "joined", "differences": {"before": 0.1}, "allowed": 1.0},
            }
        ],
        "compiling": [
            {**scaled[1], "case": "deep", "scaled": False, "train": scaled[1]["gradient"]},
            *scaled,
        ],
        "memory": {
            **{"case": "long", "difference": 0.0, "allowed": 1.0},
            "seconds": {"jaxrnn": 1.5, "plain scan": 1.0},
            "megabytes": {"jaxrnn": kept, "plain scan": 10.0},
        },
        "lengths": {"rows": lengths, "stopped": dict.fromkeys(stopped, 100)},
        "devices": 2,
    }


def judge(data):
    """The verdicts, in order, by name."""
    verdicts = {}
    for finding in findings.judge(data):
        verdicts.setdefault(finding.name, []).append(finding.verdict)
    return verdicts


def make_all_rows(factor=1.0):
    """Just beyond every threshold; `factor` divides the others' times."""
    others = {"flax": 1.16, "haiku": 1.2, "Keras": 1.2, "torch": 3.1, "plain scan": 2.1}
    speeds = {"jaxrnn": 1.0, "jaxrnn, all devices": 1.0}
    speeds |= {name: time / factor for name, time in others.items()}
    networks = {"jaxrnn": 1.0, "plain scan": 1.1 / factor, "jaxrnn, loop": 10.1 / factor}
    rows = [row for what in PASSES for row in make_rows(speeds, what)]
    rows += make_rows(speeds, "gradient", (512, 32, 512, 512))
    return rows + make_rows(networks, "train", (100, 8, 8, 16), "networks")


def test_every_claim_holds_just_beyond_its_threshold():
    verdicts = judge(make_data(make_all_rows()))
    assert {verdict for several in verdicts.values() for verdict in several} == {"holds"}
    assert len(verdicts) == 15


def test_every_claim_is_refuted_short_of_its_threshold():
    rows = [{**row, "difference": 2.0, "fraction": 0.8} for row in make_all_rows(factor=2.2)]
    verdicts = judge(make_data(rows, seconds=1.6, growth=1.3, own=1.15, kept=1.1))
    assert {verdict for several in verdicts.values() for verdict in several} == {"REFUTED"}
    same = findings.judge(make_data(rows))[0]
    assert same.required  # ours differs: a program that is wrong fails


def test_one_slow_shape_refutes_a_claim_and_another_framework_s_error_does_not_fail_the_run():
    rows = make_rows({"jaxrnn": 1.0, "flax": 9.0, "torch": 9.0})
    rows += make_rows({"jaxrnn": 1.0, "flax": 0.9, "torch": 1.4}, shape=(1, 2, 3, 4))
    rows += make_rows({"haiku": 1.0}, difference=2.0)
    verdicts = judge(make_data(rows))
    assert verdicts["flax"] == verdicts["torch"] == verdicts["same"] == ["REFUTED"]
    assert not any(finding.required for finding in findings.judge(make_data(rows)))


@pytest.mark.parametrize(
    ("peers", "verdict"),
    [
        ({"flax": 1.3, "haiku": 1.16, "torch": 2.1, "onnxruntime": 2.1}, "holds"),
        ({"flax": 1.3, "haiku": 1.14, "torch": 2.1, "onnxruntime": 2.1}, "REFUTED"),
        ({"flax": 1.3, "haiku": 1.16, "torch": 1.9, "onnxruntime": 2.1}, "REFUTED"),
        ({"flax": 1.3, "haiku": 1.16, "torch": 2.1, "onnxruntime": 1.9}, "REFUTED"),
    ],
)
def test_forward_is_judged_by_the_fastest_jax_peer_and_by_each_of_the_others(peers, verdict):
    assert judge(make_data(make_rows({"jaxrnn": 1.0, **peers}, "forward")))["forward"] == [verdict]


def test_a_claim_that_was_not_timed_is_not_measured_and_says_why():
    rows = make_rows({"jaxrnn": 1.0})
    absent = make_rows({"torch": 1.0, "flax": 1.0}, status="not installed")
    for row in absent:
        del row["milliseconds"], row["difference"]
    judged = {finding.name: finding for finding in findings.judge(make_data(rows + absent))}
    for name in ("torch", "flax", "haiku", "forward", "gradient", "devices", "rate", "networks"):
        assert judged[name].verdict == "not measured", name
    assert findings._judge_chunks([]).verdict == "not measured"
    assert findings._judge_strategies([]).verdict == "not measured"
    assert judged["torch"].measured == "not installed: pip install -e '.[peers]'"
    assert judged["haiku"].measured == "not part of this run"


def test_lengths_beyond_the_first_with_quadratic_time_are_not_run(monkeypatch):
    seconds = {10: 1.0, 100: 100.0, 1000: 1e4}
    asked = []

    def build(workload, what):
        asked.append(workload.case.shape[0])
        return Entrant(lambda: workload.case.shape[0], None)

    monkeypatch.setattr("experiments.bench.scaling.BUILDERS", {"jaxrnn": build})
    monkeypatch.setattr("experiments.bench.scaling.time_once", lambda call: seconds[call()])
    lengths = measure_lengths((10, 100, 1000), 0, 0.0, 1)
    assert 1000 not in asked
    assert lengths["stopped"] == dict.fromkeys((4, 32, 480, 2048), 100)
    long = findings._judge_lengths(lengths)
    assert not long.holds
    assert long.measured.startswith("quadratic in T")
    assert "40101" in long.measured


def differentiate(name):
    """The library's gradient on the tiny shape with a strategy, as a jaxpr."""
    workload, _ = solved("shape")
    with force_strategy(name) as used:
        loss = library.loss_of(library.library_outputs(workload.case))
        jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(workload.params, (workload.xs, None))
    return str(jaxpr), used


def test_each_forced_strategy_is_another_program_and_the_only_one_used():
    programs = {}
    for name in choices.STRATEGIES:
        programs[name], used = differentiate(name)
        assert used == {name}
    assert len(set(programs.values())) == len(choices.STRATEGIES) == 4
    own, (chosen,) = differentiate(None)
    assert own == programs[chosen]


def test_the_sweep_of_strategies_times_single_layers_and_compares_their_gradients():
    rows = measure_strategies(list(CASES.values()), 0, 0.0, 1)
    (row,) = rows
    assert row["case"] == CASES["shape"].name
    assert set(row["swept"]) == set(row["differences"]) == set(choices.STRATEGIES)
    assert min(row["swept"].values()) > 0
    assert row["own"] == row["swept"][row["chosen"]]
    assert row["differences"][row["chosen"]] == 0  # the same program
    assert max(row["differences"].values()) <= row["allowed"]


def test_a_strategy_with_a_wrong_product_is_found_and_fails_the_run(monkeypatch):
    monkeypatch.setattr(
        "jaxrnn.recurrence.plan.column_product", lambda x, w: 1.01 * column_product(x, w)
    )
    (row,) = measure_strategies([CASES["shape"]], 0, 0.0, 1)
    wrong = {name for name, value in row["differences"].items() if value > row["allowed"]}
    assert wrong == {"columns"}
    finding = findings._judge_strategies([row])
    assert "with columns, 2e-05 allowed" in finding.measured
    assert not finding.holds
    assert finding.required


def test_a_training_step_is_adam_s_first():
    workload, _ = solved("shape")
    stepped = library.build_library(workload, "train").read()
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), stepped, workload.params)
    rates = [float(move) / cases.LEARNING_RATE for move in jax.tree.leaves(moved)]
    np.testing.assert_allclose(rates, 1, rtol=0.01)  # Adam's first step


def test_a_length_is_told_from_a_shape_that_equals_it(monkeypatch):
    names = []

    def compile_nothing(case, name, what):
        names.append((what, name))
        return Program(None, float(len(names)), 0)

    monkeypatch.setattr(scaling, "compile_pass", compile_nothing)
    rows = scaling.measure_compiling([Case("shape", (10, 32, 8, 32))], [10], 1)
    assert [row["scaled"] for row in rows] == [False, True]
    assert rows[0]["gradient"] == {"jaxrnn": 1.0, "plain scan": 2.0}
    assert rows[0]["train"] == {"jaxrnn": 3.0, "plain scan": 4.0}
    assert rows[1]["gradient"] == {"jaxrnn": 5.0, "plain scan": 6.0}
    assert "train" not in rows[1]

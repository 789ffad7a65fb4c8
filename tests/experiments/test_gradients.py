"""The report on a network: what it measures, what it saves, and which files it refuses."""

import hashlib
import json
import math

import numpy as np
import pytest
import safetensors.numpy

from experiments import gradients
from experiments.__main__ import main
from experiments.gradients import figures
from experiments.gradients.findings import judge

TINY = ("--length", "2", "--train-steps", "3", "--batch-size", "2", "--sequences", "2")


pytestmark = pytest.mark.usefixtures("as_on_the_command_line")


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


SHAPES = {"0.w_ih": (3, 1), "0.w_hh": (3, 3), "0.b": (3,), "1.w": (2, 3), "1.b": (2,)}


def make_arrays():
    """A network of one layer of three units that fits the latch."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def pack(**changed):
    """The file of these parameters; `changed` are other arrays by name, and None leaves one out."""
    arrays = make_arrays() | {name[1:].replace("_", ".", 1): a for name, a in changed.items()}
    return safetensors.numpy.save({name: a for name, a in arrays.items() if a is not None})


def declare(shape, stop):
    """A file that declares one tensor and holds no data."""
    header = json.dumps({"0.w_hh": {"dtype": "F32", "shape": shape, "data_offsets": [0, stop]}})
    return len(header).to_bytes(8, "little") + header.encode()


def write_network(path, content, **changed):
    """Write parameters and a description; `changed` are other entries, and None leaves one out."""
    description = {"hidden_size": 3, "layers": 1, "activation": "tanh"}
    description |= {"sha256": hashlib.sha256(content).hexdigest()} | changed
    path.write_bytes(content)
    entries = {name: value for name, value in description.items() if value is not None}
    path.with_suffix(".json").write_text(json.dumps(entries))


def test_a_run_saves_its_network_and_a_run_from_it_begins_with_the_measurements_it_ended_with(
    tmp_path, capsys
):
    first, second = tmp_path / "first", tmp_path / "second"
    drawn = ("--hidden-size", "4", "--layers", "2", "--activation", "relu")
    assert main(("gradients", "--folder", str(first), "--task", "adding", *drawn, *TINY)) == 0
    assert "exponent before" in capsys.readouterr().out
    names = {"config.json", "metrics.json", "findings.csv", "gradients.png", "report.html"}
    names |= {"network.safetensors", "network.json"}
    assert {path.name for path in first.iterdir()} == names
    assert all(path.stat().st_size > 0 for path in first.iterdir())
    description = json.loads((first / "network.json").read_text())
    assert (description["layers"], description["activation"]) == (2, "relu")
    arrays = safetensors.numpy.load_file(first / "network.safetensors")
    assert arrays["1.w_ih"].shape == (4, 4)
    assert arrays["2.w"].dtype == np.float32

    network = ("--network", str(first / "network.safetensors"), "--task", "adding", "--layers", "2")
    assert main(("gradients", "--folder", str(second), *network, *TINY)) == 0
    before, after = read_metrics(second), read_metrics(first)
    assert (before["hidden_size"], before["layers"], before["activation"]) == (4, 2, "relu")
    assert before["before"] == after["after"]
    assert before["before"] != after["before"]


def test_every_measure_of_a_linear_network_is_its_gain():
    gain, steps = 0.5, 3
    config = gradients.Config(
        activation="identity",
        gain=gain,
        hidden_size=4,
        length=steps - 1,
        train_steps=1,
        batch_size=2,
        sequences=2,
    )
    data, findings, _ = gradients.run(config, lambda done, doing: None)
    measured, log = data["before"], math.log(gain)
    every = np.arange(steps + 1)
    np.testing.assert_allclose(measured["exponents"], np.full((2, 4), log), rtol=1e-5)
    np.testing.assert_allclose(measured["jacobians"], [every * log] * 2, atol=1e-5)
    falls = np.diff(np.asarray(measured["gradients"])[:, 1:], axis=1)
    np.testing.assert_allclose(falls, np.full((2, steps - 1), log), rtol=1e-4)
    assert data["product_steps"] == [1, 2, 3]
    values = np.broadcast_to(np.array(data["product_steps"])[:, None] * log, (2, 3, 4))
    np.testing.assert_allclose(measured["singular_values"], values, rtol=1e-5)
    assert not np.any(measured["saturated"])
    by_name = {finding.name: finding for finding in findings}
    assert by_name["exponent before"].holds
    assert "differ by 0.000" in by_name["exponent before"].measured


def make_data(before, after, exponent=-0.5, loss=0.1):
    """Data of two sequences whose gradients change by `before` and `after` nats per step."""
    lags = np.arange(11)

    def make(growth):
        return {
            "gradients": np.array([growth * lags, growth * lags]),
            "jacobians": np.array([growth * lags, growth * lags]),
            "exponents": np.full((2, 4), exponent),
            "singular_values": np.full((2, 3, 4), -1.0),
            "saturated": np.zeros((2, 10)),
            "loss": np.float32(loss),
            "right": np.float32(0.9),
        }

    names = {"hidden_size": 4, "layers": 1, "activation": "relu", "task": "latch", "length": 9}
    numbers = {"train_steps": 5, "blind_loss": 0.7, "aligning": 2, "product_steps": [1, 5, 10]}
    return {**names, **numbers, "before": make(before), "after": make(after)}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"before": -0.5, "after": -0.45}, [True, True, True, True]),
        ({"before": -0.5, "after": -0.2}, [True, False, True, True]),
        ({"before": -0.3, "after": -0.41}, [False, True, False, True]),
        ({"before": -0.5, "after": -0.5, "loss": 0.8}, [True, True, False, False]),
        ({"before": -0.5, "after": -0.45, "loss": math.nan}, [True, True, True, False]),
    ],
)
def test_each_verdict_follows_from_the_data(options, wanted):
    # log(4) / 2 nats over the 7 steps from lag 1 to lag 8 are 0.099 per step
    assert [finding.holds for finding in judge(make_data(**options))] == wanted


def test_a_gradient_and_an_exponent_of_nothing_are_judged_and_drawn_without_a_warning(tmp_path):
    data = make_data(-0.5, -0.5)
    for name in ("gradients", "jacobians", "exponents", "singular_values"):
        data["after"][name][...] = -np.inf
    findings = judge(data)
    assert [finding.holds for finding in findings[:3]] == [True, False, False]
    figures.plot(data, tmp_path)
    assert (tmp_path / "gradients.png").stat().st_size > 0


@pytest.fixture
def refuse(tmp_path, capsys, monkeypatch):
    """Runs the experiment, which must refuse before it compiles or writes; returns its message."""

    def fail(*args, **options):
        raise AssertionError("something was measured or drawn")

    monkeypatch.chdir(tmp_path)
    for name in ("_measure", "_draw_network", "_split", "write_config"):
        monkeypatch.setattr(gradients, name, fail)

    def call(*options):
        before = sorted(tmp_path.rglob("*"))
        assert main(("gradients", *options)) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("python -m experiments gradients: ")
        assert output.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return output.err

    return call


W_HH = make_arrays()["0.w_hh"]
FILES = [
    ("empty", b"", ["is empty"]),
    ("text", b"The sea, the sea.\n", ["cannot be read as safetensors"]),
    ("a pickle", b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00}\x94.", ["cannot be read"]),
    ("cut short", pack()[:-30], ["cannot be read"]),
    ("the beginning lost", pack()[100:], ["cannot be read"]),
    ("a huge header", (10**14).to_bytes(8, "little") + b"{}", ["cannot be read"]),
    ("a huge tensor", declare([10**7, 10**7], 4 * 10**14), ["cannot be read"]),
    ("no recurrent matrix", pack(_0_w_hh=None), ["'0.w_hh' is missing"]),
    ("a vector", pack(_0_w_hh=W_HH[0]), ["'0.w_hh'", "(3,)", "(3, 3)"]),
    ("not square", pack(_0_w_hh=W_HH[:2]), ["'0.w_hh'", "(2, 3)", "(3, 3)"]),
    ("no units", pack(_0_w_hh=W_HH[:0, :0]), ["'0.w_hh'", "(0, 0)"]),
    ("no bias", pack(_0_b=None), ["'0.b' is missing"]),
    ("another array", pack(_1_v=W_HH), ["'1.v' is not expected"]),
    ("a short bias", pack(_0_b=W_HH[0, :2]), ["'0.b'", "(2,)", "(3,)"]),
    ("another task", pack(_0_w_ih=W_HH), ["'0.w_ih'", "(3, 3)", "(3, 1)", "--task latch"]),
    ("doubles", pack(_1_w=np.zeros((2, 3))), ["'1.w'", "float64", "float32"]),
    ("integers", pack(_1_b=np.arange(2)), ["'1.b'", "int64", "float32"]),
    ("NaN", pack(_0_w_hh=W_HH * np.float32("nan")), ["0.w_hh", "not finite"]),
]


@pytest.mark.parametrize(("content", "said"), [f[1:] for f in FILES], ids=[f[0] for f in FILES])
def test_a_malformed_network_is_refused(refuse, tmp_path, content, said):
    path = tmp_path / "network.safetensors"
    write_network(path, content)
    message = refuse("--network", str(path))
    for part in ["network.safetensors", *said]:
        assert part in message


def test_a_flipped_bit_in_the_parameters_is_refused(refuse, tmp_path):
    path, content = tmp_path / "network.safetensors", bytearray(pack())
    write_network(path, bytes(content))
    content[content.index(W_HH.tobytes())] ^= 1
    path.write_bytes(content)
    assert "is not the file that" in refuse("--network", str(path))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"activation": None}, ["activation", "Field required"]),
        ({"activation": "gelu\n"}, ["activation is 'gelu\\n'", "'tanh', 'relu'"]),
        ({"activation": [0.0]}, ["activation is [0.0]", "'tanh', 'relu'"]),
        ({"hidden_size": 0}, ["hidden_size is 0", "greater than or equal to 1"]),
        ({"hidden_size": "3"}, ["hidden_size is '3'", "integer"]),
        ({"layers": None}, ["layers", "Field required"]),
        ({"sha256": None}, ["sha256", "Field required"]),
        ({"dropout": 0.5}, ["dropout is 0.5", "Unexpected"]),
    ],
    ids=str,
)
def test_a_malformed_description_is_refused(refuse, tmp_path, changed, said):
    path = tmp_path / "network.safetensors"
    write_network(path, pack(), **changed)
    message = refuse("--network", str(path))
    for part in ["network.json", *said]:
        assert part in message


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hidden_size": 4}, ["'0.w_hh' has shape (3, 3), expected (4, 4)"]),
        ({"layers": 2}, ["'1.w_hh' is missing"]),
    ],
    ids=str,
)
def test_a_description_of_another_network_is_refused(refuse, tmp_path, changed, said):
    path = tmp_path / "network.safetensors"
    write_network(path, pack(), **changed)
    message = refuse("--network", str(path))
    for part in ["network.safetensors", "network.json", *said]:
        assert part in message


@pytest.mark.parametrize("content", [None, b"", b"The sea", b"[3, 1]", b"\xff\xfe"], ids=str)
def test_a_network_without_a_description_is_refused(refuse, tmp_path, content):
    path = tmp_path / "network.safetensors"
    path.write_bytes(pack())
    if content is not None:
        path.with_suffix(".json").write_bytes(content)
    assert "network.json" in refuse("--network", str(path))


@pytest.mark.parametrize(
    ("name", "said"), [("none.safetensors", "No such file"), (".", "directory")]
)
def test_a_network_that_is_no_file_is_refused(refuse, tmp_path, name, said):
    assert said in refuse("--network", str(tmp_path / name))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--hidden-size", "64"), ["--hidden-size is 64", "has 3"]),
        (("--layers", "2"), ["--layers is 2", "has 1"]),
        (("--activation", "relu"), ["--activation is relu", "has tanh"]),
        (("--start", "orthogonal"), ["--start is orthogonal", "initialised"]),
        (("--gain", "1"), ["--gain is 1", "initialised"]),
        (("--task", "copy"), ["'0.w_ih'", "(3, 1)", "(3, 10)", "--task copy"]),
        (("--folder", "."), ["--folder is .", "overwritten"]),
    ],
    ids=" ".join,
)
def test_an_option_that_contradicts_the_network_is_refused(refuse, tmp_path, options, said):
    path = tmp_path / "network.safetensors"
    write_network(path, pack())
    message = refuse("--network", str(path), *options)
    for part in ["network.safetensors", *said]:
        assert part in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--length", "0"), ["--length is 0", "greater than or equal to 1"]),
        (("--task", "order", "--length", "9"), ["--length is 9", "at least 10", "--task order"]),
        (("--hidden-size", "0"), ["--hidden-size is 0"]),
        (("--gain", "inf"), ["--gain is inf"]),
        (("--clip", "0"), ["--clip is 0", "greater than 0"]),
        (("--sequences", "-1"), ["--sequences is -1"]),
    ],
    ids=" ".join,
)
def test_an_option_out_of_range_is_refused(refuse, options, said):
    message = refuse(*options)
    for part in said:
        assert part in message


def test_a_training_that_diverges_is_an_error_and_saves_no_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gradients, "_measure", lambda *arguments: {})
    options = ("--activation", "identity", "--gain", "1e30", "--hidden-size", "4")
    assert main(("gradients", "--folder", str(tmp_path), *options, *TINY)) == 2
    assert "not finite" in capsys.readouterr().err
    assert not (tmp_path / "network.safetensors").exists()

"""The report on a network: what it measures, what it keeps, and which files it refuses."""

import io
import json
import math
import zipfile

import numpy as np
import pytest

from experiments import gradients
from experiments.__main__ import main

TINY = ("--length", "2", "--train-steps", "3", "--batch-size", "2", "--sequences", "2")


pytestmark = pytest.mark.usefixtures("as_on_the_command_line")


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def make_arrays(hidden_size=3, input_size=1, output_size=2):
    """A network of one layer that fits the latch, as the experiment writes it."""
    rng = np.random.default_rng(0)
    shapes = {
        "layers.0.w_ih": (hidden_size, input_size),
        "layers.0.w_hh": (hidden_size, hidden_size),
        "layers.0.b": (hidden_size,),
        "readout.w": (output_size, hidden_size),
        "readout.b": (output_size,),
    }
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {"activation": np.array("tanh"), **arrays}


def pack(arrays, save=np.savez):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def change(**arrays):
    """The file with these arrays instead, those of None left out; `__` stands for a dot."""
    whole = make_arrays()
    for name, array in arrays.items():
        whole[name.replace("__", ".")] = array
    return pack({name: array for name, array in whole.items() if array is not None})


def pack_a_huge_header():
    """An array of 10^14 numbers, of which none is there."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**7, 10**7)}
    )
    file = io.BytesIO(pack(make_arrays()))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("readout.v.npy", header.getvalue())
    return file.getvalue()


def flip_a_byte():
    content = bytearray(pack(make_arrays()))
    place = content.index(make_arrays()["layers.0.w_hh"].tobytes())
    content[place] ^= 1
    return bytes(content)


def test_a_run_keeps_its_network_and_a_run_from_it_measures_first_what_the_first_ended_with(
    tmp_path, capsys
):
    first, second = tmp_path / "first", tmp_path / "second"
    drawn = ("--hidden-size", "4", "--layers", "2", "--activation", "relu")
    assert main(("gradients", "--folder", str(first), "--task", "adding", *drawn, *TINY)) == 0
    assert "exponent before" in capsys.readouterr().out
    names = {"config.json", "metrics.json", "findings.csv", "gradients.png", "network.npz"}
    assert {path.name for path in first.iterdir()} == names
    assert all(path.stat().st_size > 0 for path in first.iterdir())
    with np.load(first / "network.npz", allow_pickle=False) as arrays:
        assert str(arrays["activation"]) == "relu"
        assert arrays["layers.1.w_ih"].shape == (4, 4)
        assert arrays["readout.w"].dtype == np.float32

    network = ("--network", str(first / "network.npz"), "--task", "adding", "--layers", "2")
    assert main(("gradients", "--folder", str(second), *network, *TINY)) == 0
    before, after = read_metrics(second), read_metrics(first)
    assert (before["hidden_size"], before["layers"], before["activation"]) == (4, 2, "relu")
    assert before["before"] == after["after"]
    assert before["before"] != after["before"]


def test_a_linear_network_grows_by_its_gain_in_every_measure():
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
    """Data of two sequences whose gradients change by `before` and `after` a step."""
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
    # log(4) / 2 nats over the 7 steps from lag 1 to lag 8 are 0.099 a step
    assert [finding.holds for finding in gradients._judge(make_data(**options))] == wanted


def test_a_gradient_and_an_exponent_of_nothing_are_judged_and_drawn_without_a_warning(tmp_path):
    data = make_data(-0.5, -0.5)
    for name in ("gradients", "jacobians", "exponents", "singular_values"):
        data["after"][name][...] = -np.inf
    findings = gradients._judge(data)
    assert [finding.holds for finding in findings[:3]] == [True, False, False]
    gradients.plot(data, tmp_path)
    assert (tmp_path / "gradients.png").stat().st_size > 0


@pytest.fixture
def refuse(tmp_path, capsys, monkeypatch):
    """Runs the experiment, which is to refuse before it compiles or writes; returns its words."""

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


W_HH = make_arrays()["layers.0.w_hh"]
FILES = [
    ("empty", b"", ["is empty"]),
    ("text", b"The sea, the sea.\n", ["no .npz archive"]),
    ("one array", b"\x93NUMPY\x01\x00", ["no .npz archive"]),
    ("a pickle", b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00}\x94.", ["no .npz archive"]),
    ("cut short", pack(make_arrays())[:-30], ["cut short"]),
    ("the beginning lost", pack(make_arrays())[100:], ["cannot be read"]),
    ("a flipped bit", flip_a_byte(), ["cannot be read", "CRC"]),
    ("compressed", pack({"a": np.zeros(9999)}, np.savez_compressed), ["compressed"]),
    ("pickled", change(layers__0__b=np.array([{}, [], 1], object)), ["cannot be read", "pickle"]),
    ("a huge header", pack_a_huge_header(), ["cannot be read"]),
    ("no activation", change(activation=None), ["activation is 'missing'", "tanh, relu"]),
    ("another activation", change(activation=np.array("gelu\n")), ["'gelu\\n'", "tanh, relu"]),
    ("an activation of numbers", change(activation=np.zeros(3)), ["'[0. 0. 0.]'"]),
    ("no recurrent matrix", change(layers__0__w_hh=None), ["layers.0.w_hh", "missing"]),
    ("a vector", change(layers__0__w_hh=W_HH[0]), ["layers.0.w_hh", "(3,)", "square"]),
    ("not square", change(layers__0__w_hh=W_HH[:2]), ["layers.0.w_hh", "(2, 3)", "square"]),
    ("no units", change(layers__0__w_hh=W_HH[:0, :0]), ["layers.0.w_hh", "(0, 0)"]),
    ("no bias", change(layers__0__b=None), ["'layers.0.b' is missing"]),
    ("half a layer more", change(layers__1__w_hh=W_HH), ["'layers.1.b' is missing"]),
    ("another array", change(readout__v=W_HH), ["'readout.v' is no parameter"]),
    ("a short bias", change(layers__0__b=W_HH[0, :2]), ["layers.0.b", "(2,)", "(3,)"]),
    ("another task", change(layers__0__w_ih=W_HH), ["w_ih", "(3, 3)", "(3, 1)", "--task latch"]),
    ("doubles", change(readout__w=np.zeros((2, 3))), ["readout.w", "float64", "float32"]),
    ("words", change(readout__b=np.array(["a", "b"])), ["readout.b", "<U1", "float32"]),
    ("NaN", change(layers__0__w_hh=W_HH * np.float32("nan")), ["layers.0.w_hh", "not finite"]),
]


@pytest.mark.parametrize(("content", "said"), [f[1:] for f in FILES], ids=[f[0] for f in FILES])
def test_a_malformed_network_is_refused(refuse, tmp_path, content, said):
    path = tmp_path / "network.npz"
    path.write_bytes(content)
    message = refuse("--network", str(path))
    for part in ["network.npz", *said]:
        assert part in message


@pytest.mark.parametrize(("name", "said"), [("none.npz", "No such file"), (".", "directory")])
def test_a_network_that_is_no_file_is_refused(refuse, tmp_path, name, said):
    assert said in refuse("--network", str(tmp_path / name))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--hidden-size", "64"), ["--hidden-size is 64", "has 3"]),
        (("--layers", "2"), ["--layers is 2", "has 1"]),
        (("--activation", "relu"), ["--activation is relu", "has tanh"]),
        (("--start", "orthogonal"), ["--start is orthogonal", "started already"]),
        (("--gain", "1"), ["--gain is 1", "started already"]),
        (("--task", "copy"), ["layers.0.w_ih", "(3, 1)", "(3, 10)", "--task copy"]),
        (("--folder", "."), ["--folder is .", "overwritten"]),
    ],
    ids=" ".join,
)
def test_an_option_that_contradicts_the_network_is_refused(refuse, tmp_path, options, said):
    path = tmp_path / "network.npz"
    path.write_bytes(pack(make_arrays()))
    message = refuse("--network", str(path), *options)
    for part in ["network.npz", *said]:
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


def test_a_training_that_diverges_is_told_and_keeps_no_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gradients, "_measure", lambda *arguments: {})
    options = ("--activation", "identity", "--gain", "1e30", "--hidden-size", "4")
    assert main(("gradients", "--folder", str(tmp_path), *options, *TINY)) == 2
    assert "not finite" in capsys.readouterr().err
    assert not (tmp_path / "network.npz").exists()

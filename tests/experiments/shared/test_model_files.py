"""Networks that a run left behind: what is written, what is read again, and what is refused."""

import dataclasses
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import text
from experiments.__main__ import main
from experiments.shared.model_files import (
    FOLDER,
    load_networks,
    read_inputs,
    read_source,
    save_networks,
)
from experiments.shared.options import InputError
from jaxrnn.interop.safetensors import save_params

pytestmark = pytest.mark.usefixtures("as_on_the_command_line")

INPUTS = text.TextInputs("abc", "ab", 0.1)
CONFIG = text.Config(hidden_size=4, embedding_size=3, seeds=3, temperature=0.5)
NETWORK = text._network(CONFIG, INPUTS.alphabet)


def draw(key):
    return jax.vmap(NETWORK.init)(jax.random.split(key, 3))


@pytest.fixture
def source(tmp_path, key):
    folder = tmp_path / "run"
    kept = {"network": (NETWORK, draw(key), np.array([3.0, 1.0, 2.0]))}
    save_networks(dataclasses.replace(CONFIG, folder=folder), "text", INPUTS, kept)
    return folder


def test_what_was_saved_is_read_again_the_best_network_first(source, key):
    assert read_inputs(source, text.TextInputs) == INPUTS
    assert read_source(source, text.Config) == CONFIG
    params = load_networks(source, "network", NETWORK)
    ordered = jax.tree.map(lambda leaf: leaf[jnp.array([1, 2, 0])], draw(key))
    for got, expected in zip(jax.tree.leaves(params), jax.tree.leaves(ordered), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_without_a_folder_nothing_is_written(key):
    kept = {"network": (NETWORK, draw(key), np.zeros(3))}
    save_networks(CONFIG, "text", INPUTS, kept)


def test_networks_of_a_name_that_was_not_saved_are_refused(source):
    with pytest.raises(InputError, match=r"lists no other-0\.safetensors"):
        load_networks(source, "other", NETWORK)


def edit(change):
    """Damage the description by a change of its JSON."""

    def damage(folder):
        path = folder / "networks.json"
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return damage


def cut(name, share):
    def damage(folder):
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return damage


def flip(name, share):
    def damage(folder):
        path = folder / name
        content = bytearray(path.read_bytes())
        content[int(share * (len(content) - 1))] ^= 0xFF
        path.write_bytes(content)

    return damage


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def remove(name):
    return lambda folder: (folder / name).unlink()


def replace(change, network=NETWORK):
    """Other parameters, described as they should be."""

    def damage(folder):
        params = change(network.init(jax.random.key(1)))
        path = folder / "network-1.safetensors"
        save_params(path, network, params)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        edit(lambda value: value["files"].update({path.name: digest}))(folder)

    return damage


def set_first(value):
    return lambda params: (params[0].at[0, 0].set(value), *params[1:])


OTHER = text._network(dataclasses.replace(CONFIG, hidden_size=5), INPUTS.alphabet)
FIRST = "network-0.safetensors"
DAMAGES = {
    **{
        f"weights cut at {share}": cut(FIRST, share) for share in (0.0, 0.001, 0.1, 0.5, 0.9, 0.999)
    },
    **{f"weights changed at {share}": flip(FIRST, share) for share in (0, 0.01, 0.3, 0.6, 1)},
    "weights missing": remove(FIRST),
    "weights of text": write(FIRST, b"not a safetensors file"),
    "weights of zeros": write(FIRST, bytes(1000)),
    "weights not a number": replace(set_first(jnp.nan)),
    "weights infinite": replace(set_first(jnp.inf)),
    "weights of another network": replace(lambda params: params, OTHER),
    **{f"description cut at {s}": cut("networks.json", s) for s in (0.0, 0.01, 0.2, 0.7, 0.99)},
    **{f"description changed at {s}": flip("networks.json", s) for s in (0, 0.1, 0.5, 1)},
    "description missing": remove("networks.json"),
    "description a list": write("networks.json", b"[1, 2]"),
    "description null": write("networks.json", b"null"),
    "description not UTF-8": write("networks.json", b"\xff\xfe{}"),
    "no format": edit(lambda value: value.pop("format")),
    "another format": edit(lambda value: value.update(format=2)),
    "another experiment": edit(lambda value: value.update(experiment="movies")),
    "no files": edit(lambda value: value.update(files={})),
    "files a list": edit(lambda value: value.update(files=[])),
    "no alphabet": edit(lambda value: value["inputs"].pop("alphabet")),
    "a short alphabet": edit(lambda value: value["inputs"].update(alphabet="ab")),
    "alphabet a number": edit(lambda value: value["inputs"].update(alphabet=3)),
    "a prompt of other characters": edit(lambda value: value["inputs"].update(prompt="xyz")),
    "an unknown option": edit(lambda value: value["config"].update(colour="red")),
    "another size": edit(lambda value: value["config"].update(hidden_size=5)),
    "a size of zero": edit(lambda value: value["config"].update(hidden_size=0)),
    "a size of text": edit(lambda value: value["config"].update(hidden_size="four")),
    "something beside": edit(lambda value: value.update(more=1)),
}


def test_there_are_forty_damages():
    assert len(DAMAGES) >= 40


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_network_is_refused_in_one_line_and_nothing_is_written(
    source, tmp_path, capsys, damage
):
    DAMAGES[damage](source / FOLDER)
    folder = tmp_path / "used"
    code = main(["text", "--from", str(source), "--folder", str(folder)])
    said = capsys.readouterr().err
    assert code == 2
    assert len(said.strip().splitlines()) == 1
    assert said.startswith("python -m experiments text: ")
    assert str(source) in said or "--prompt" in said
    assert not folder.exists()


def test_networks_are_used_where_they_were_copied_without_the_rest_of_the_run(
    source, tmp_path, capsys
):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(source / FOLDER, elsewhere / FOLDER)
    shutil.rmtree(source)
    options = ["--prompt", "cab", "--sample-size", "9", "--samples", "2"]
    folder = tmp_path / "used"
    code = main(["text", "--from", str(elsewhere), "--folder", str(folder), *options])
    assert code == 0
    written = (folder / "samples.txt").read_text()
    assert written.count("cab") >= 2
    assert (folder / "report.html").exists()
    assert not (folder / "text.png").exists()  # no text was given to predict


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hidden-size", "8"), "--hidden-size is 8, but the run in"),
        (("--steps", "8"), "--steps is 8, but the run in"),
        (("--resume", "nowhere"), "--from and --resume are both given"),
        (("--prompt", "x"), "--prompt has 'x'"),
        (("--temperature", "0"), "--temperature"),
    ],
)
def test_options_that_do_not_go_with_from_are_refused(source, tmp_path, capsys, options, message):
    folder = tmp_path / "used"
    assert main(["text", "--from", str(source), "--folder", str(folder), *options]) == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


def test_a_folder_that_is_not_empty_is_not_written_into(source, capsys):
    assert main(["text", "--from", str(source), "--folder", str(source)]) == 2
    assert "is not empty" in capsys.readouterr().err

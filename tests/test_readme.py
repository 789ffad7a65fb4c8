"""What the README says is run, or compared with what is run."""

import re
from pathlib import Path

import pytest

from tests.support.checks import assert_identical

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("as_on_the_command_line")
def test_the_examples_run_as_printed_and_learn_and_lose_nothing(capsys, tmp_path, monkeypatch):
    example, weights = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    first, last = (float(word) for word in capsys.readouterr().out.split())
    assert last < first / 10
    pytest.importorskip("onnx")
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    exec(compile(weights, "README.md", "exec"), names)
    assert_identical(names["params"], names["state"].params)
    assert [path.name for path in tmp_path.iterdir()] == ["rnn.safetensors"]
    assert [value.name for value in names["model"].graph.input] == ["xs", "lengths"]


def test_the_gate_runs_the_readme_s_test_command():
    commands = re.findall(r"^    (python3 -m venv .*)$", README, re.MULTILINE)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_map_and_the_figures_name_files_that_exist():
    listed = set(re.findall(r"`(\w+(?:\.py|/))`", README.split("holds |")[1]))
    folders = {f"{path.parent.name}/" for path in (ROOT / "jaxrnn").glob("*/__init__.py")}
    modules = folders | {path.name for path in (ROOT / "jaxrnn").glob("[a-z]*.py")}
    assert listed == modules
    figures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert figures
    assert all((ROOT / figure).is_file() for figure in figures)


@pytest.mark.parametrize("heading", ["Install", "Example", "The tour", "Tests", "Map"])
def test_the_readme_has_its_sections_and_is_short(heading):
    assert f"\n## {heading}\n" in README
    assert len(README.splitlines()) <= 120

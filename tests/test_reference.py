"""The reference that pdoc renders, by the command in the README."""

import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import jaxrnn
from jaxrnn import interop

ROOT = Path(__file__).parents[1]
COMMAND = re.search(r"`pdoc (.*?)`", (ROOT / "README.md").read_text(encoding="utf-8"))[1]
MODULES = [
    "jaxrnn",
    *(f"jaxrnn.{name}" for name in jaxrnn.__all__ if inspect.ismodule(getattr(jaxrnn, name))),
    "jaxrnn.files",
    *(f"jaxrnn.interop.{name}" for name in interop.__all__),
]

# Fields of NamedTuples under `from __future__ import annotations`:
# https://github.com/mitmproxy/pdoc/issues/765
UPSTREAM = re.compile(r"Error parsing type annotation ForwardRef\(.* for \S+\.__init__\. Import of")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """(folder of pages, lines of warnings)."""
    folder = tmp_path_factory.mktemp("reference")
    command = [sys.executable, "-W", "always", "-m", "pdoc", *shlex.split(COMMAND), "-o", folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stderr.splitlines()


def read_page(folder, module):
    return folder.joinpath(*module.split(".")).with_suffix(".html").read_text(encoding="utf-8")


def list_public_names(module):
    """The names in `__all__`, or else the public functions and classes defined in a module."""
    own = [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    ]
    names = getattr(module, "__all__", own)
    return [name for name in names if not inspect.ismodule(getattr(module, name))]


def test_pdoc_renders_the_reference_without_a_warning(reference):
    _, warnings = reference
    assert [line for line in warnings if line and not UPSTREAM.search(line)] == []


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_appears_in_the_reference(reference, module):
    page = read_page(reference[0], module)
    names = list_public_names(importlib.import_module(module))
    assert names
    assert [name for name in names if f'id="{name}"' not in page] == []


@pytest.mark.parametrize("module", MODULES)
def test_no_formula_is_rendered_as_emphasis(reference, module):
    """Markdown reads "2 *a and b* c" as emphasis."""
    assert re.findall(r"<em>.*?</em>", read_page(reference[0], module), re.DOTALL) == []

"""The package as it is imported: nothing happens on import, and its public names are complete."""

import ast
import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import jaxrnn

PACKAGE = Path(jaxrnn.__file__).parent
MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(jaxrnn.__path__, "jaxrnn.")
]
FUNCTIONS = [
    value
    for module in MODULES
    for name, value in vars(module).items()
    if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != "_"
]

IMPORT = """
import json, sys
import jax, numpy, optax
from jax._src import xla_bridge
before, modules = dict(jax.config.values), set(sys.modules)
import jaxrnn
changed = [name for name, value in jax.config.values.items() if before.get(name) is not value]
started = xla_bridge.backends_are_initialized()
new = sorted(set(sys.modules) - modules)
jax.devices()
core = sorted(sys.modules)
import jaxrnn.files
from jaxrnn.interop import flax, haiku, keras, onnx, safetensors, torch
print(json.dumps({
    "changed": changed,
    "started": started,
    "started by jax.devices": xla_bridge.backends_are_initialized(),
    "new": new,
    "modules": core,
    "with formats": sorted(sys.modules),
}))
"""


@pytest.fixture(scope="module")
def imported():
    """What a fresh process says of ``import jaxrnn``."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", IMPORT]
    done = subprocess.run(
        command, env=environment, cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_importing_starts_no_backend(imported):
    assert not imported["started"]
    assert imported["started by jax.devices"]


def test_importing_changes_no_configuration(imported):
    assert imported["changed"] == []


def test_importing_brings_the_core_dependencies_alone(imported):
    assert {name.split(".")[0] for name in imported["new"]} <= {"jaxrnn", "jax", "jaxlib"}
    tops = {name.split(".")[0] for name in imported["modules"]}
    others = {"flax", "matplotlib", "pandas", "rich", "statsmodels", "torch", "tyro", "onnx"}
    assert not tops & others


def test_importing_the_formats_imports_no_framework(imported):
    tops = {name.split(".")[0] for name in imported["with formats"]}
    assert "jaxrnn.interop.torch" in imported["with formats"]
    assert not tops & {"flax", "haiku", "keras", "onnx", "safetensors", "tensorflow", "torch"}


def test_all_is_sorted_and_holds_every_name_that_the_package_imports():
    assert jaxrnn.__all__ == sorted(jaxrnn.__all__)
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imported = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert set(jaxrnn.__all__) == {alias.name for node in imported for alias in node.names}


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_every_type_hint_of_a_public_function_can_be_looked_up():
    assert jaxrnn.unroll in FUNCTIONS
    for function in FUNCTIONS:
        hints = typing.get_type_hints(function)
        assert set(hints) == {*inspect.signature(function).parameters, "return"}, function

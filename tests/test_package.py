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
import importlib, json, pkgutil, sys
import jax, numpy, optax
from jax._src import xla_bridge
before, modules = dict(jax.config.values), set(sys.modules)
import jaxrnn
added = sorted(set(sys.modules) - modules)
for found in pkgutil.walk_packages(jaxrnn.__path__, "jaxrnn."):
    importlib.import_module(found.name)
all_added = sorted(set(sys.modules) - modules)
changed = [name for name, value in jax.config.values.items() if before.get(name) is not value]
started = xla_bridge.backends_are_initialized()
jax.devices()
print(json.dumps({
    "added by jaxrnn": added,
    "added by all modules": all_added,
    "changed": changed,
    "started": started,
    "started by jax.devices": xla_bridge.backends_are_initialized(),
}))
"""


@pytest.fixture(scope="module")
def imported():
    """What happens in a fresh process that imports jaxrnn, and then each of its modules."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", IMPORT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_importing_starts_no_backend(imported):
    assert not imported["started"]
    assert imported["started by jax.devices"]


def test_importing_changes_no_configuration(imported):
    assert imported["changed"] == []


@pytest.mark.parametrize("modules", ["added by jaxrnn", "added by all modules"])
def test_importing_brings_nothing_but_the_core_dependencies(imported, modules):
    assert "jaxrnn.recurrence" in imported[modules]
    assert ("jaxrnn.interop.torch" in imported[modules]) == (modules == "added by all modules")
    tops = {name.split(".")[0] for name in imported[modules]}
    assert tops <= {"jaxrnn", "jax", "jaxlib", "numpy", "optax", *sys.stdlib_module_names}


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

"""The package as a whole: importing it does nothing, and its own imports point one way."""

import ast
import inspect
import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import jaxrnn
import jaxrnn.files
import jaxrnn.interop.flax
import jaxrnn.interop.haiku
import jaxrnn.interop.keras
import jaxrnn.interop.onnx
import jaxrnn.interop.safetensors
import jaxrnn.interop.torch

PACKAGE = Path(jaxrnn.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
)
FORMATS = [
    getattr(jaxrnn.interop, name)
    for name in ("flax", "haiku", "keras", "onnx", "safetensors", "torch")
]
PUBLIC = [
    *(getattr(jaxrnn, name) for name in jaxrnn.__all__),
    *(
        value
        for module in (
            jaxrnn.diagnostics,
            jaxrnn.files,
            jaxrnn.host,
            jaxrnn.initializers,
            jaxrnn.sharding,
            jaxrnn.training,
            *FORMATS,
        )
        for name, value in vars(module).items()
        if not name.startswith("_")
    ),
]
OWN = [value for value in PUBLIC if getattr(value, "__module__", "").startswith("jaxrnn")]
FUNCTIONS = [
    value
    for value in OWN
    if inspect.isfunction(value) and not value.__module__.startswith("jaxrnn._")
]
CLASSES = [value for value in OWN if inspect.isclass(value)]

# Imports


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


# Names


def test_all_is_sorted_and_holds_every_public_name():
    assert jaxrnn.__all__ == sorted(jaxrnn.__all__)
    own = {
        name
        for name, value in vars(jaxrnn).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert set(jaxrnn.__all__) == own | {"diagnostics", "host", "initializers", "sharding"}


def test_no_public_function_shares_its_name_with_a_module():
    assert MODULES
    assert not {function.__name__ for function in FUNCTIONS} & {m.split(".")[-1] for m in MODULES}


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("value", [*FUNCTIONS, *CLASSES], ids=lambda value: value.__name__)
def test_every_public_function_and_class_has_a_docstring(value):
    doc = value.__doc__ or ""
    assert doc.strip()
    assert not doc.startswith(f"{value.__name__}(")  # which NamedTuple writes


@pytest.mark.parametrize("module", ["", *MODULES])
def test_every_module_has_a_docstring(module):
    path = PACKAGE / "__init__.py" if not module else source(module)
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_public_function_is_annotated_in_full(function):
    signature = inspect.signature(function)
    hints = typing.get_type_hints(function)  # every name in them can be looked up
    assert set(hints) == {*signature.parameters, "return"}


# Imports inside the package

CHAIN = [
    "_types",
    "_checks",
    "_products",
    "recurrence.chunks",
    "initializers",
    "cell",
    "recurrence",
    "layers.contract",
    "layers.pointwise",
    "layers.combinators",
]
MODEL = CHAIN[CHAIN.index("cell") :]


def source(module):
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(module):
    """(modules of the package, other packages) that a module imports, anywhere in its code."""
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(source(module).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = [node.module]
            if node.module == "jaxrnn":
                names = [f"jaxrnn.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "jaxrnn":
                inside.add(rest)
            else:
                outside.add(top)
    return inside, outside


@pytest.mark.parametrize("module", CHAIN)
def test_imports_point_one_way(module):
    inside, _ = imports(module)
    assert inside <= set(CHAIN[: CHAIN.index(module)])


TRAINING = [module for module in MODULES if module.split(".")[0] == "training"]


@pytest.mark.parametrize("module", ["sequences", "sharding", *TRAINING])
def test_training_and_sequences_import_no_model(module):
    inside, _ = imports(module)
    allowed = {"_types", "_checks", *(TRAINING if module != "sequences" else [])}
    assert inside <= allowed | ({"host"} if module == "sharding" else set())


def test_the_chain_of_imports_holds_every_link():
    assert "cell" in imports("recurrence")[0]
    assert "recurrence" in imports("layers.contract")[0]
    assert "layers.contract" in imports("layers.combinators")[0]


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("interop")])
def test_modules_import_only_the_core_dependencies_and_what_exists(module):
    inside, outside = imports(module)
    assert inside <= set(MODULES)
    assert outside <= set(sys.stdlib_module_names) | {"jax", "jaxlib", "numpy", "optax"}

"""The rules of the house: functions of a source tree that yield what violates them.

Every rule walks all files, so that no new module escapes it. `RULES` is the table of them.
"""

import ast
import collections
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.source import called_name, count_code_lines, is_private

CORE = {*sys.stdlib_module_names, "jax", "jaxlib", "numpy", "optax"}
BASES = ("_types", "_checks", "_products")
CHAIN = (
    *(*BASES, "matrices", "params", "initializers"),
    *("constraints", "cell", "recurrence", "layers"),
)
MAY_IMPORT = {
    **{part: CHAIN[:position] for position, part in enumerate(CHAIN)},
    **dict.fromkeys(("sequences", "training", "host", "files"), BASES),
    "sharding": (*BASES, "training", "host"),
    "online": (*CHAIN, "training"),
}
"""What a part of jaxrnn may import beside itself. Parts that are not listed (interop, diagnostics)
stand on top: they import the chain and `files`, and no other part imports them."""
ON_TOP = (*CHAIN, "files", "")

CODE_LINES, MODULE_LINES = 45, 350
PARTS, FLAT_EXPERIMENTS = 19, 8
CONVENTIONAL = {"figures", "findings", "__main__"}
TOP_LEVEL = {"README.md", "experiments", "jaxrnn", "pyproject.toml", "tests"}


def packages_import_one_way(source):
    for importer, imported in imports(source, "jaxrnn", "experiments"):
        if imported.package == "tests" or (importer.package, imported.package) == (
            "jaxrnn",
            "experiments",
        ):
            yield f"{importer.name} imports {imported.name}"


def parts_of_jaxrnn_import_one_way(source):
    for importer, imported in imports(source, "jaxrnn"):
        here, there = part(importer), part(imported)
        if here and here != there and there not in MAY_IMPORT.get(here, ON_TOP):
            yield f"{importer.name} imports {imported.name}"


def no_modules_import_each_other(source):
    graph = {name: source.imported(module) for name, module in source.modules.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield " <- ".join(error.args[1])


def private_names_stay_in_their_folder(source):
    for module in source.of("jaxrnn", "experiments"):
        for name in module.imports():
            parts = name.split(".")
            for position, word in enumerate(parts):
                owner = ".".join(parts[:position])
                if is_private(word) and not f"{module.name}.".startswith(f"{owner}."):
                    yield f"{module.name} imports {name}"


def no_import_is_relative(source):
    for module in source.modules.values():
        for name in module.imports():
            if name.startswith("."):
                yield f"{module.name} imports {name}"


def the_core_imports_its_dependencies_alone(source):
    for module in source.of("jaxrnn"):
        if part(module) != "interop":
            for top in {name.split(".")[0] for name in module.imports()}:
                if top not in CORE | {"jaxrnn", "experiments", "tests"}:
                    yield f"{module.name} imports {top}"


def only_figures_import_matplotlib(source):
    for module in source.of("jaxrnn", "experiments"):
        tops = {name.split(".")[0] for name in module.imports()}
        if module.basename != "figures" and "matplotlib" in tops:
            yield f"{module.name} imports matplotlib"


def measuring_never_imports_drawing(source):
    for importer, imported in imports(source, "jaxrnn", "experiments"):
        if imported.basename == "figures" and importer.basename not in {"figures", "__main__"}:
            yield f"{importer.name} imports {imported.name}"


def no_public_function_is_named_like_a_module(source):
    code = source.of("jaxrnn", "experiments")
    modules = {module.basename for module in code}
    for module in code:
        for function in module.public(ast.FunctionDef):
            if function.name in modules:
                yield f"{module.name}.{function.name}"


def no_two_classes_of_the_experiments_share_a_name(source):
    places = collections.defaultdict(list)
    for module in source.of("experiments"):
        for definition in module.public(ast.ClassDef):
            places[definition.name].append(module.name)
    yield from repeated(places, {"Config"})


def no_two_modules_of_a_package_share_a_name(source):
    for package, conventional in (("jaxrnn", set()), ("experiments", CONVENTIONAL)):
        places = collections.defaultdict(list)
        for module in source.of(package):
            places[module.basename].append(module.name)
        yield from repeated(places, conventional)


def modules_and_what_they_offer_have_docstrings(source):
    for module in source.of("jaxrnn", "experiments"):
        if not ast.get_docstring(module.tree):
            yield module.name
        if not module.is_private:
            for definition in module.public(ast.FunctionDef, ast.ClassDef):
                if not ast.get_docstring(definition):
                    yield f"{module.name}.{definition.name}"


def public_functions_of_jaxrnn_are_annotated(source):
    for module in source.of("jaxrnn"):
        for function in module.public(ast.FunctionDef):
            given = function.args
            arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            arguments += [extra for extra in (given.vararg, given.kwarg) if extra]
            if not function.returns or not all(argument.annotation for argument in arguments):
                yield f"{module.name}.{function.name}"


def functions_are_short(source):
    for module in source.of("jaxrnn", "experiments"):
        for function in module.functions():
            lines = count_code_lines(module.text, function)
            if lines > CODE_LINES:
                yield f"{module.name}.{function.name}: {lines} lines"


def modules_are_short(source):
    for module in source.of("jaxrnn", "experiments"):
        lines = len(module.text.splitlines())
        if lines > MODULE_LINES:
            yield f"{module.path}: {lines} lines"


def jaxrnn_has_few_parts(source):
    found = {part(module) for module in source.of("jaxrnn")} - {""}
    if len(found) > PARTS:
        yield f"jaxrnn/ has {len(found)} parts: {sorted(found)}"


def experiments_has_few_flat_modules(source):
    found = [m.path.name for m in source.of("experiments") if len(m.path.parts) == 2]
    if len(found) > FLAT_EXPERIMENTS:
        yield f"experiments/ has {len(found)} flat modules: {found}"


def no_module_is_called_utils(source):
    for module in source.modules.values():
        if {"util", "utils"} & set(module.basename.split("_")):
            yield module.name


def the_root_holds_what_the_design_lists(source):
    if not (source.root / ".git").exists():
        pytest.skip("what belongs to the repository is unknown outside of a git checkout")
    yield from {name for name in top_level(source.root) if not name.startswith(".")} - TOP_LEVEL


def tests_mirror_the_code(source):
    """A folder of jaxrnn has a folder of tests; what is smaller may have a file `test_NAME.py`."""
    tests = {module.path for module in source.of("tests") if module.basename.startswith("test_")}
    for module in source.of("jaxrnn", "experiments"):
        inside = module.name.split(".")[1:]
        at_top = len(inside) == 1
        is_experiment = module.package == "experiments" and at_top and inside != ["__main__"]
        if not is_experiment and not (module.path.name == "__init__.py" and inside):
            continue
        folder = Path("tests", *([] if module.package == "jaxrnn" else ["experiments"]), *inside)
        in_folder = any(folder in path.parents for path in tests)
        in_file = folder.with_name(f"test_{folder.name}.py") in tests
        if not in_folder and not (in_file and (is_experiment or not at_top)):
            yield f"{module.name} has no tests in {folder}/"


def no_data_runs_as_code(source):
    for module in source.of("jaxrnn", "experiments"):
        for name in module.imports():
            if name.split(".")[0] in {"cloudpickle", "dill", "marshal", "pickle"}:
                yield f"{module.name} imports {name}"
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and runs_code(node):
                yield f"{module.name} calls {ast.unparse(node)}"


RULES = [
    packages_import_one_way,
    parts_of_jaxrnn_import_one_way,
    no_modules_import_each_other,
    private_names_stay_in_their_folder,
    no_import_is_relative,
    the_core_imports_its_dependencies_alone,
    only_figures_import_matplotlib,
    measuring_never_imports_drawing,
    no_public_function_is_named_like_a_module,
    no_two_classes_of_the_experiments_share_a_name,
    no_two_modules_of_a_package_share_a_name,
    modules_and_what_they_offer_have_docstrings,
    public_functions_of_jaxrnn_are_annotated,
    functions_are_short,
    modules_are_short,
    jaxrnn_has_few_parts,
    experiments_has_few_flat_modules,
    no_module_is_called_utils,
    the_root_holds_what_the_design_lists,
    tests_mirror_the_code,
    no_data_runs_as_code,
]


def imports(source, *packages):
    """(importer, imported) for every import between modules of the tree."""
    for module in source.of(*packages):
        for name in sorted(source.imported(module)):
            yield module, source.modules[name]


def part(module):
    """The file or folder in jaxrnn/ that a module belongs to; "" for the package itself."""
    return module.name.split(".")[1] if "." in module.name else ""


def repeated(places, allowed):
    for name, modules in places.items():
        if len(modules) > 1 and name not in allowed:
            yield f"{name}: {modules}"


def top_level(root):
    """Names at the root of the files that git tracks."""
    command = ["git", "-c", "safe.directory=*", "-C", str(root), "ls-files"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split("/")[0] for line in listed.splitlines()}


def runs_code(call):
    """Whether a call runs the code that it is given, or lets NumPy unpickle."""
    if isinstance(call.func, ast.Name) and called_name(call) in {"eval", "exec"}:
        return True
    return any(
        word.arg == "allow_pickle"
        and not (isinstance(word.value, ast.Constant) and word.value.value is False)
        for word in call.keywords
    )

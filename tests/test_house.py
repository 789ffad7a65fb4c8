"""The repository keeps the rules of the house; each rule finds violations planted in a tree."""

import itertools
import subprocess
from pathlib import Path

import pytest

from tests.support import house_rules as rules
from tests.support.house_rules import CODE_LINES, FLAT_EXPERIMENTS, MODULE_LINES, PARTS, RULES
from tests.support.source import read_source

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def repository():
    return read_source(ROOT)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_repository_keeps_the_rule(repository, rule):
    violations = list(rule(repository))
    assert not violations, "\n".join(violations)


# The small tree, and what is planted in it

DOC = '"""A docstring."""\n'
SMALL = {
    "README.md": "",
    "jaxrnn/__init__.py": DOC + "from jaxrnn.cell import step\nimport jaxrnn.interop.torch\n",
    "jaxrnn/_types.py": DOC + "import jax\n",
    "jaxrnn/cell.py": DOC + "from jaxrnn._types import Array\n",
    "jaxrnn/layers/__init__.py": DOC,
    "jaxrnn/layers/contract.py": DOC + "from jaxrnn.cell import step\n",
    "jaxrnn/interop/__init__.py": DOC,
    "jaxrnn/interop/_reading.py": DOC + "from jaxrnn.layers.contract import Layer\n",
    "jaxrnn/interop/torch.py": DOC + "import torch\nfrom jaxrnn.interop._reading import read\n",
    "experiments/__init__.py": DOC,
    "experiments/__main__.py": DOC + "from experiments.bench import figures\n",
    "experiments/bench/__init__.py": DOC + f"import jaxrnn\nclass Config:\n    {DOC}",
    "experiments/bench/figures.py": DOC + "import matplotlib.pyplot\n",
    "experiments/memory/__init__.py": DOC + f"class Config:\n    {DOC}",
    "experiments/memory/figures.py": DOC,
    "tests/interop/test_torch.py": "import experiments.bench, jaxrnn._types\n",
    "tests/layers/test_layers.py": "",
    "tests/experiments/test_bench.py": "",
    "tests/experiments/memory/test_memory.py": "",
}
LAYER, EXPERIMENT = "jaxrnn/layers/deep/new.py", "experiments/bench/deep/new.py"


def function(name="f", arguments="", lines=1, doc=DOC):
    body = "\n".join(["    pass"] * lines)
    return f"def {name}({arguments}) -> None:\n    {doc}{body}\n"


def inside_a_function(line):
    return f"def f():\n    {line}\n"


PLANTS = {
    rules.packages_import_one_way: [
        {LAYER: "import experiments.bench"},
        {EXPERIMENT: "from tests.layers import test_layers"},
    ],
    rules.parts_of_jaxrnn_import_one_way: [
        {"jaxrnn/cell.py": "from jaxrnn.layers.contract import f"},
        {LAYER: "from jaxrnn import step"},
        {LAYER: "import jaxrnn.interop.torch"},
        {"jaxrnn/training/new.py": inside_a_function("from jaxrnn.cell import step")},
        {"jaxrnn/sequences.py": "import jaxrnn.cell"},
        {"jaxrnn/sharding.py": "import jaxrnn.layers"},
        {"jaxrnn/diagnostics/deep/new.py": "import jaxrnn.interop.torch"},
    ],
    rules.no_modules_import_each_other: [
        {
            LAYER: "from jaxrnn.layers import other",
            "jaxrnn/layers/other.py": inside_a_function("from jaxrnn.layers.deep.new import g"),
        },
        {"jaxrnn/layers/__init__.py": "from jaxrnn.layers import f"},
    ],
    rules.private_names_stay_in_their_folder: [
        {"jaxrnn/diagnostics/deep/new.py": "from jaxrnn.interop import _reading"},
        {EXPERIMENT: "from jaxrnn._types import Array"},
        {LAYER: "from jaxrnn.layers.contract import _check"},
    ],
    rules.no_import_is_relative: [
        {LAYER: "from ..contract import f"},
        {"tests/layers/new.py": "from . import f"},
    ],
    rules.the_core_imports_its_dependencies_alone: [
        {LAYER: "import flax.linen"},
        {LAYER: inside_a_function("return importlib.import_module('torch')")},
    ],
    rules.only_figures_import_matplotlib: [
        {EXPERIMENT: "import matplotlib.pyplot"},
        {"experiments/new.py": "from matplotlib import pyplot"},
    ],
    rules.measuring_never_imports_drawing: [
        {EXPERIMENT: inside_a_function("from experiments.bench import figures")},
        {"experiments/memory/new.py": "from experiments.bench.figures import draw"},
    ],
    rules.no_public_function_is_named_like_a_module: [
        {EXPERIMENT: function("contract")},
        {LAYER: function("memory")},
    ],
    rules.no_two_classes_of_the_experiments_share_a_name: [
        {EXPERIMENT: "class Same:\n    pass", "experiments/new.py": "class Same:\n    pass"},
    ],
    rules.no_two_modules_of_a_package_share_a_name: [
        {"jaxrnn/layers/deep/cell.py": DOC},
        {"jaxrnn/layers/figures.py": DOC, "jaxrnn/interop/figures.py": DOC},
        {"experiments/memory/bench.py": DOC},
    ],
    rules.modules_and_what_they_offer_have_docstrings: [
        {"jaxrnn/interop/_new.py": "x = 1"},
        {EXPERIMENT: DOC + function(doc="")},
        {LAYER: DOC + "class C:\n    x = 1"},
    ],
    rules.public_functions_of_jaxrnn_are_annotated: [
        {LAYER: function(arguments="x")},
        {LAYER: function(arguments="*, x")},
        {LAYER: function(arguments="**x")},
        {LAYER: "def f(x: int):\n    return x"},
    ],
    rules.functions_are_short: [
        {EXPERIMENT: function(lines=CODE_LINES)},
        {LAYER: "class C:\n    def f(self):\n" + "        pass\n" * CODE_LINES},
    ],
    rules.modules_are_short: [{EXPERIMENT: "\n" * (MODULE_LINES + 1)}],
    rules.jaxrnn_has_few_parts: [{f"jaxrnn/new{n}/__init__.py": DOC for n in range(PARTS - 3)}],
    rules.experiments_has_few_flat_modules: [
        {f"experiments/new{n}.py": DOC for n in range(FLAT_EXPERIMENTS - 1)},
    ],
    rules.no_module_is_called_utils: [
        {"tests/layers/utils.py": ""},
        {"experiments/bench/entrants_util/__init__.py": DOC},
    ],
    rules.the_root_holds_what_the_design_lists: [
        {"notes.txt": ""},
        {"scripts/deep/new.py": ""},
    ],
    rules.tests_mirror_the_code: [
        {"jaxrnn/training/__init__.py": DOC},
        {"jaxrnn/training/__init__.py": DOC, "tests/training/checks.py": ""},
        {"jaxrnn/training/__init__.py": DOC, "tests/test_training.py": ""},
        {"jaxrnn/interop/onnx/__init__.py": DOC},
        {"experiments/music/__init__.py": DOC},
        {"experiments/music.py": DOC},
    ],
    rules.no_data_runs_as_code: [
        {EXPERIMENT: "from pickle import load"},
        {LAYER: "np.load(path, allow_pickle=True)"},
        {LAYER: inside_a_function("return eval(x)")},
        {EXPERIMENT: "exec('x = 1')"},
    ],
}


def write_tree(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    for command in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    return read_source(root)


def test_a_small_tree_keeps_every_rule(tmp_path):
    source = write_tree(tmp_path, SMALL)
    assert {rule.__name__: found for rule in RULES if (found := list(rule(source)))} == {}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_planted_violation_of_the_rule_is_found(tmp_path, rule):
    assert PLANTS[rule]
    for number, files in enumerate(PLANTS[rule]):
        assert list(rule(write_tree(tmp_path / str(number), SMALL | files))), files


def test_a_tree_at_its_limits_keeps_the_rules_of_size(tmp_path):
    text = function(lines=CODE_LINES - 1, doc=DOC + "\n    # a comment is no code\n\n")
    files = {EXPERIMENT: text + "\n" * (MODULE_LINES - text.count("\n"))}
    files |= {f"jaxrnn/new{n}/__init__.py": DOC for n in range(PARTS - 4)}
    files |= {f"experiments/new{n}.py": DOC for n in range(FLAT_EXPERIMENTS - 2)}
    source = write_tree(tmp_path, SMALL | files)
    limits = (
        rules.functions_are_short,
        rules.modules_are_short,
        rules.jaxrnn_has_few_parts,
        rules.experiments_has_few_flat_modules,
    )
    assert list(itertools.chain.from_iterable(rule(source) for rule in limits)) == []

"""The command line of the experiments, what it imports, and short runs of some of them."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "experiments"
FOLDERS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"shared", "data"}


def experiments(*arguments):
    return python("-m", "experiments", *arguments)


def python(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def read_names(path):
    """The names that a module defines at its top level."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
    return names


def test_the_list_names_every_experiment_and_what_it_is_about():
    done = experiments("--list")
    assert done.returncode == 0
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert listed.keys() == FOLDERS
    for name, about in listed.items():
        docstring = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text()))
        assert about == docstring.splitlines()[0]


def test_every_experiment_is_a_folder():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_an_experiment_has_options_a_measurement_and_figures(name):
    assert {"Config", "run"} <= read_names(PACKAGE / name / "__init__.py")
    assert "plot" in read_names(PACKAGE / name / "figures.py")


IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in ("mido", "music21"):  # of the extra `music`, which may be missing
            raise
    assert "matplotlib" not in sys.modules, f"{name} imports matplotlib"
"""


def test_no_measuring_module_imports_matplotlib():
    paths = [path for path in PACKAGE.rglob("*.py") if path.stem not in ("figures", "__main__")]
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in paths
    )
    assert len(modules) > len(FOLDERS)
    done = python("-c", IMPORT_ALL, *modules)
    assert done.returncode == 0, done.stderr


RUN_AND_LIST_IMPORTS = """
import contextlib, io, sys
from experiments.__main__ import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print(*sys.modules)
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(("--list",), set()), (("--help",), set()), (("sweep", "--help"), {"sweep"})],
)
def test_the_command_line_imports_only_the_experiment_that_it_runs(arguments, expected):
    done = python("-c", RUN_AND_LIST_IMPORTS, *arguments)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert {name for name in FOLDERS if f"experiments.{name}" in imported} == expected


@pytest.mark.parametrize("arguments", [("nothing",), ("tour", "--nothing", "1")])
def test_an_unknown_name_or_option_is_refused_without_a_traceback(arguments):
    done = experiments(*arguments)
    assert done.returncode == 2
    assert "nothing" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def write_table(folder):
    """Two columns with missing values and a gap."""
    rng = np.random.default_rng(0)
    rows = [f"{day},{np.sin(day / 2):.4f},{rng.normal():.4f}" for day in range(80) if day != 60]
    rows[30], rows[70] = "30,,0.5", "71,NA,"
    path = folder / "table.csv"
    path.write_text("\n".join(["day,a,b", *rows]) + "\n")
    return ("--csv", str(path), "--column", "a", "b", "--time", "day", "--horizon", "3")


def write_book(folder):
    path = folder / "book.txt"
    path.write_text("It was a dark and stormy night; the rain fell in torrents.\n" * 60)
    return ("--text", str(path), "--hidden-size", "8", "--window", "50", "--streams", "8")


def write_rolls(folder):
    scipy_io = pytest.importorskip("scipy.io")
    pytest.importorskip("mido")
    rng = np.random.default_rng(0)
    cells = {}
    for name in ("traindata", "validdata", "testdata"):
        cells[name] = np.empty((1, 4), object)
        for place, frames in enumerate((12, 9, 20, 15)):
            cells[name][0, place] = (rng.random((frames, 88)) < 0.05).astype(np.float64)
    path = folder / "rolls.mat"
    scipy_io.savemat(path, cells)
    return (
        *("--data", str(path), "--hidden-size", "8"),
        *("--sample-frames", "12", "--plain-steps", "6"),
    )


def write_nothing(folder):
    del folder
    return ("--hidden-size", "8", "--videos", "4", "--test-videos", "2", "--frames", "23")


def write_a_grid(folder):
    del folder
    return ("--learning-rates", "0.01", "0.1", "--radii", "0.5", "1", "--length", "4")


def read_weights(folder):
    """The bytes of every tensor; those of a file also depend on the order of its metadata."""
    return {
        (path.name, name): tensor.tobytes()
        for path in sorted((folder / "networks").glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize(
    ("name", "write", "figures", "used", "options"),
    [
        (
            "forecast",
            write_table,
            {"forecast-0.png", "forecast-1.png", "forecast.csv"},
            {"forecast-0.png", "forecast.csv"},
            (),
        ),
        ("text", write_book, {"text.png", "samples.txt"}, {"samples.txt"}, ("--prompt", "It was")),
        (
            "music",
            write_rolls,
            {"rolls.png", "nll.png", "sampled-1.mid", "real-1.mid"},
            {"rolls.png", "sampled-1.mid"},
            (),
        ),
        ("movies", write_nothing, {"movies.png", "movies.gif"}, {"movies.png", "movies.gif"}, ()),
        ("sweep", write_a_grid, {"sweep.png"}, set(), ()),
    ],
)
def test_an_experiment_trains_saves_and_draws_resumed_says_the_same_and_is_used(
    tmp_path, name, write, figures, used, options
):
    folder, using = tmp_path / "run", tmp_path / "used"
    written = (*write(tmp_path), "--steps", "4", "--eval-every", "2", "--seeds", "2")
    done = experiments(name, "--folder", str(folder), *written)
    assert done.returncode == 0, done.stderr
    figures = figures | {"report.html"}
    assert figures <= {path.name for path in folder.iterdir()}
    assert all((folder / figure).stat().st_size > 0 for figure in figures)
    said = (folder / "metrics.json").read_text()
    assert json.loads(said)
    networks = folder / "networks" / "networks.json"
    kept = read_weights(folder)

    again = experiments(name, "--folder", str(folder), *written)
    assert again.returncode == 2  # nothing is overwritten
    assert "--resume" in again.stderr
    other = experiments(name, "--resume", str(folder), "--seeds", "3")
    assert other.returncode == 2
    assert "--seeds is 3" in other.stderr
    if name != "sweep":  # which also holds times
        (folder / "metrics.json").unlink()
        networks.unlink()
        resumed = experiments(name, "--resume", str(folder))
        assert resumed.returncode == 0, resumed.stderr
        assert (folder / "metrics.json").read_text() == said
        assert read_weights(folder) == kept

    done = experiments(name, "--from", str(folder), "--folder", str(using), *options)
    assert done.returncode == 0, done.stderr
    assert used | {"report.html"} <= {path.name for path in using.iterdir()}
    if name == "forecast":
        assert (using / "forecast.csv").read_bytes() == (folder / "forecast.csv").read_bytes()


def test_help_explains_each_option_with_its_default():
    done = experiments("music", "--help")
    assert done.returncode == 0
    words = " ".join(done.stdout.replace("│", " ").split())
    for option, default in [("--drop-connect", "0.5"), ("--seeds", "5"), ("--resume", "None")]:
        assert option in done.stdout
        assert f"(default: {default})" in words

"""Run an experiment: ``python -m experiments [NAME] [--options]``."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import operator
import sys
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Annotated, Any, Protocol, cast

import tyro
from rich.console import Console

from experiments.shared.devices import present_devices
from experiments.shared.findings import Result, print_findings
from experiments.shared.model_files import read_source
from experiments.shared.options import (
    InputError,
    RunConfig,
    check_config,
    name_option,
    read_config,
)
from experiments.shared.output import CHECKPOINTS, Tick, name_folder, progress_bar, write_run
from experiments.shared.report import FILE as REPORT
from experiments.shared.report import write_report

EXPERIMENTS = (
    "tour",
    "bench",
    "parallel",
    "forecast",
    "text",
    "music",
    "movies",
    "sweep",
    "memory",
    "cognition",
    "gradients",
    "dynamics",
    "online",
    "reservoir",
)
"""The names of the experiments: each is a package with `Config` and `run` and, in its module
`figures`, ``plot(data, folder)``."""


class Experiment(Protocol):
    """What an experiment's package defines."""

    Config: type[RunConfig]

    def run(self, config: RunConfig, progress: Tick) -> Result:
        """Measure."""


def main(arguments: Sequence[str]) -> int:
    """Run the experiment that the arguments name, by default the tour; return the exit code."""
    if list(arguments) == ["--list"]:
        for name in EXPERIMENTS:
            print(f"{name:12} {_summarise(name)}")
        return 0
    arguments = arguments or ["tour"]
    try:
        return _run(arguments, _read_options(arguments))
    except InputError as error:
        print(f"python -m experiments {arguments[0]}: {error}", file=sys.stderr)
        return 2


def _run(arguments: Sequence[str], config: RunConfig) -> int:
    name, resumed = arguments[0], getattr(config, "resume", None)
    folder = resumed or name_folder(name, config.folder)
    if resumed is None and (folder / CHECKPOINTS).exists():
        raise InputError(f"{folder} already holds a run; --resume {folder} continues it")
    if getattr(config, "source", None) is not None and folder.exists() and any(folder.iterdir()):
        raise InputError(f"--folder {folder} is not empty")
    config = dataclasses.replace(config, folder=folder)
    if hasattr(config, "devices"):
        present_devices(config.devices)
    console = Console()
    try:
        with progress_bar(console) as progress:
            result = _load(name).run(config, progress)
            progress(1.0, "drawing figures")
            write_run(folder, config, result)
            # Only now, so that nothing is measured in a process that has loaded matplotlib.
            importlib.import_module(f"experiments.{name}.figures").plot(result.data, folder)
            write_report(folder, _summarise(name), arguments, config, result)
    except KeyboardInterrupt:
        hint = f"; continue with --resume {folder}" if (folder / CHECKPOINTS).exists() else ""
        print(f"stopped{hint}", file=sys.stderr)
        return 130
    if result.findings:
        print_findings(console, _summarise(name), result.findings)
    if result.text:
        print(f"\n{result.text}\n")
    print(f"figures and data: {folder / REPORT}")
    return int(any(finding.required and not finding.holds for finding in result.findings))


def _read_options(arguments: Sequence[str]) -> RunConfig:
    """The options; with --resume or --from, those of that run, which no other may contradict."""
    config = _parse(arguments)
    folder, source = getattr(config, "resume", None), getattr(config, "source", None)
    if folder is not None and source is not None:
        raise InputError("--from and --resume are both given, expected one of them")
    if folder is not None:
        saved = read_config(folder, type(config))
        config = _parse(arguments, dataclasses.replace(cast(Any, saved), resume=folder))
        _refuse_others(config, saved, folder, {"resume", "save_seconds"})
    if source is not None:
        saved = cast(Any, read_source(source, type(config)))
        free = {field.name for field in dataclasses.fields(RunConfig)} | saved.with_source
        given = {name: getattr(config, name) for name in (*free, "source")}
        config = _parse(arguments, dataclasses.replace(saved, **given))
        _refuse_others(config, saved, source, {*free, "source"})
    check_config(config)
    return config


def _refuse_others(config: Any, saved: Any, folder: Path, free: Set[str]) -> None:
    """Refuse an option that differs from the saved one and is not one of `free`."""
    for field in dataclasses.fields(config):
        got, had = getattr(config, field.name), getattr(saved, field.name)
        if got != had and field.name not in free:
            raise InputError(
                f"{name_option(field.name)} is {got}, but the run in {folder} has {had}"
            )


def _parse(arguments: Sequence[str], default: Any = tyro.MISSING_NONPROP) -> Any:
    """The options of the experiment that the first argument names.

    The others are not imported: their commands only show what they are about.
    """
    commands: list[Any] = []
    for name in EXPERIMENTS:
        if name == arguments[0]:
            about = _read_docstring(name)
            command = tyro.conf.subcommand(name, description=about, default=default)
            commands.append(Annotated[_load(name).Config, command])
        else:
            command = tyro.conf.subcommand(name, description=_summarise(name))
            commands.append(Annotated[RunConfig, command])
    return tyro.cli(
        functools.reduce(operator.or_, commands),
        prog="python -m experiments",
        description="Measure what jaxrnn claims. Without arguments: the tour; --list: all names.",
        args=arguments,
    )


def _load(name: str) -> Experiment:
    return cast(Experiment, importlib.import_module(f"experiments.{name}"))


def _read_docstring(name: str) -> str:
    """An experiment's docstring, without importing it."""
    source = (Path(__file__).with_name(name) / "__init__.py").read_text("utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def _summarise(name: str) -> str:
    return _read_docstring(name).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

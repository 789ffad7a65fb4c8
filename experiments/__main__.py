"""Run an experiment: ``python -m experiments [NAME] [--options]``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

import tyro
from rich.console import Console

from experiments._report import (
    Data,
    Result,
    RunConfig,
    Tick,
    open_folder,
    print_findings,
    progress_bar,
    write_run,
)

EXPERIMENTS = ("tour", "bench")
"""The names of the experiments: the modules of this package that keep `Experiment`."""


class Experiment(Protocol):
    """What an experiment's module defines."""

    __doc__: str
    Config: type[RunConfig]

    def run(self, config: RunConfig, progress: Tick) -> Result:
        """Measure."""

    def plot(self, data: Data, folder: Path) -> None:
        """Draw the figures of `data` into `folder`."""


def main(arguments: Sequence[str]) -> int:
    """Run the experiment that the arguments name; return the exit code."""
    name = _read_name(arguments[:1])
    if name is None:
        for known in EXPERIMENTS:
            print(f"{known:12} {_describe(known)}")
        return 0
    experiment = _load(name)
    config = tyro.cli(
        experiment.Config,
        prog=f"python -m experiments {name}",
        description=experiment.__doc__,
        args=arguments[1:],
    )
    console = Console()
    folder = open_folder(name, config.folder)
    with progress_bar(console) as progress:
        result = experiment.run(config, progress)
        progress(1.0, "drawing figures")
        write_run(folder, config, result)
        experiment.plot(result.data, folder)
    print_findings(console, _describe(name), result.findings)
    print(f"figures and data: {folder}")
    return int(any(f.required and not f.holds for f in result.findings))


def _read_name(arguments: Sequence[str]) -> str | None:
    """The name of an experiment, or None where the list is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Measure what jaxrnn claims.",
        epilog="python -m experiments NAME --help shows the options of one experiment.",
    )
    parser.add_argument(
        "name", nargs="?", default="tour", choices=EXPERIMENTS, help="default: tour"
    )
    parser.add_argument("--list", action="store_true", help="name the experiments and exit")
    parsed = parser.parse_args(arguments)
    return None if parsed.list else parsed.name


def _load(name: str) -> Experiment:
    return cast(Experiment, importlib.import_module(f"experiments.{name}"))


def _describe(name: str) -> str:
    """The first line of an experiment's docstring."""
    return _load(name).__doc__.splitlines()[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

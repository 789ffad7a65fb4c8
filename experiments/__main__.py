"""Run an experiment: ``python -m experiments [NAME] [--options]``."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import tyro
from rich.console import Console

from experiments.shared.output import (
    CHECKPOINTS,
    Data,
    InputError,
    Result,
    RunConfig,
    Tick,
    check_config,
    name_folder,
    print_findings,
    progress_bar,
    read_config,
    write_run,
)
from jaxrnn.host import use_cpu_devices

EXPERIMENTS = (
    "tour",
    "bench",
    "forecast",
    "text",
    "music",
    "movies",
    "sweep",
    "memory",
    "gradients",
)
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
    try:
        return _run(name, arguments[1:])
    except InputError as error:
        print(f"python -m experiments {name}: {error}", file=sys.stderr)
        return 2


def _run(name: str, arguments: Sequence[str]) -> int:
    experiment = _load(name)
    config = _read_config(name, experiment, arguments)
    resumed = getattr(config, "resume", None)
    folder = resumed or name_folder(name, config.folder)
    if resumed is None and (folder / CHECKPOINTS).exists():
        raise InputError(f"{folder} holds a run that was cut or ended; --resume {folder} goes on")
    config = dataclasses.replace(config, folder=folder)
    if hasattr(config, "devices"):
        _present_devices(config.devices)
    console = Console()
    try:
        with progress_bar(console) as progress:
            result = experiment.run(config, progress)
            progress(1.0, "drawing figures")
            write_run(folder, config, result)
            experiment.plot(result.data, folder)
    except KeyboardInterrupt:
        hint = f"; go on with --resume {folder}" if (folder / CHECKPOINTS).exists() else ""
        print(f"stopped{hint}", file=sys.stderr)
        return 130
    print_findings(console, _describe(name), result.findings)
    if result.text:
        print(f"\n{result.text}\n")
    print(f"figures and data: {folder}")
    return int(any(f.required and not f.holds for f in result.findings))


def _present_devices(count: int | None) -> None:
    """Let a CPU have so many devices, by default one a core."""
    try:
        use_cpu_devices(count)
    except RuntimeError as error:  # JAX has started: its devices are what they are
        if count is not None:
            raise InputError(f"--devices: {error}") from None


def _read_config(name: str, experiment: Experiment, arguments: Sequence[str]) -> RunConfig:
    """The options; with --resume those of the run to go on with, and no others."""

    def parse(default: RunConfig | None) -> Any:
        return tyro.cli(
            experiment.Config,
            prog=f"python -m experiments {name}",
            description=experiment.__doc__,
            args=arguments,
            default=default,
        )

    config = parse(None)
    folder = getattr(config, "resume", None)
    if folder is not None:
        saved = read_config(folder, experiment.Config)
        config = parse(dataclasses.replace(cast(Any, saved), resume=folder))
        for field in dataclasses.fields(config):
            got, had = getattr(config, field.name), getattr(saved, field.name)
            if got != had and field.name not in ("resume", "save_seconds"):
                option = "--" + field.name.replace("_", "-")
                raise InputError(f"{option} is {got}, but the run in {folder} has {had}")
    check_config(config)
    return config


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

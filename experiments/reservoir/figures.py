"""The figures of `reservoir`: free runs, and the map of the memory capacity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from experiments.data.chaotic_systems import SYSTEMS
from experiments.shared.figures import BLACK, BLUE, saved_figure, say
from experiments.shared.findings import Data


def plot(data: Data, folder: Path) -> None:
    """Draw reservoir.png and memory_capacity.png."""
    free = {name: task for name, task in data["tasks"].items() if "shown" in task}
    with saved_figure(folder / "reservoir.png", (8.0, 6.5)) as figure:
        for axes, (name, task) in zip(figure.subplots(len(free)), free.items(), strict=True):
            _draw_run(axes, name, task)
        valid = np.median(data["tasks"]["lorenz"]["valid"])
        say(
            figure,
            f"Run free, a reservoir forecasts Lorenz-63 for {valid:.1f} Lyapunov times",
            "black: the system; blue: the reservoir; median over test rows and seeds",
        )
    _draw_memory(data["memory"], folder / "memory_capacity.png")


def _draw_run(axes: Axes, name: str, task: Data) -> None:
    lorenz = name == "lorenz"
    time = SYSTEMS["lorenz"].lyapunov_time if lorenz else 1.0
    true, run = (np.asarray(task["shown"][each]) for each in ("true", "run"))
    places = np.arange(1, len(true) + 1) / time
    axes.plot(places, true, color=BLACK, linewidth=1.2)
    axes.plot(places, run, color=BLUE, linewidth=0.9)
    axes.set_ylim(true.min() - 0.3, true.max() + 0.3)
    axes.set_title(f"{name}, {task['units']} units")
    axes.set_xlabel("Lyapunov times" if lorenz else "steps")


def _draw_memory(memory: Data, path: Path) -> None:
    capacity = np.asarray(memory["capacity"])
    with saved_figure(path) as figure:
        axes = figure.subplots()
        image = axes.imshow(capacity.T, origin="lower", aspect="auto", cmap="viridis")
        axes.grid(visible=False)
        axes.set_xticks(range(len(memory["radii"])), [f"{r:g}" for r in memory["radii"]])
        axes.set_yticks(range(len(memory["leaks"])), [f"{a:g}" for a in memory["leaks"]])
        axes.set_xlabel("spectral radius")
        axes.set_ylabel("leak a")
        middle = (np.nanmax(capacity) + np.nanmin(capacity)) / 2
        for (x, y), value in np.ndenumerate(capacity):
            colour = "black" if value > middle else "white"
            axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
        figure.colorbar(image, label="memory capacity, steps")
        say(
            figure,
            f"Memory is longest, {np.nanmax(capacity):.0f} steps, near a spectral radius of 1",
            f"{memory['units']} units; sum over delays of the squared correlation of a linear "
            "readout with the delayed input",
        )

"""The figure of `sweep`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm

from experiments.shared.figures import SERIES, saved_figure, say
from experiments.shared.findings import Data
from experiments.sweep import VARIANCE


def plot(data: Data, folder: Path) -> None:
    """Draw the heat map of the losses, and the validation curve of each network."""
    if "losses" not in data:  # of networks that were not trained here
        return
    losses = np.asarray(data["losses"]).mean(axis=0)
    with saved_figure(folder / "sweep.png", (8.0, 4.8)) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        image = left.imshow(losses, norm=LogNorm(), cmap="viridis_r", origin="lower", aspect="auto")
        left.set_xticks(range(len(data["radii"])), [f"{radius:g}" for radius in data["radii"]])
        left.set_yticks(
            range(len(data["learning_rates"])), [f"{rate:g}" for rate in data["learning_rates"]]
        )
        left.set(xlabel="initial spectral radius", ylabel="learning rate")
        left.grid(visible=False)
        row, column = data["best"]
        left.plot(column, row, marker="*", ms=14, color=SERIES[1], ls="")
        figure.colorbar(image, ax=left, label="best validation loss, mean over seeds")
        curves = data["networks"]["curves"]
        right.plot(curves["steps"], curves["validation"], color=SERIES[0], lw=0.5, alpha=0.4)
        right.axhline(VARIANCE, color=SERIES[1], ls="--", lw=1, label="answering 1")
        right.set(xlabel="training step", ylabel="validation loss", yscale="log")
        right.legend()
        seconds = data["seconds"]
        say(
            figure,
            f"{seconds['networks']} networks in one call, "
            f"{seconds['loop'] / seconds['vmap']:.1f} times as fast as one after another",
            "the adding problem; the star is the cell that validation chose",
        )

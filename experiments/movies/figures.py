"""The figure of `movies`, and a film of one test video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from experiments.shared.figures import BLACK, GREY, SERIES, saved_figure, say
from experiments.shared.findings import Data


def plot(data: Data, folder: Path) -> None:
    """Draw the error of each frame and the curves of the training; write the film as a GIF."""
    _plot_errors(data, folder / "movies.png")
    _plot_film(data["movie"], data["alone_from"], folder / "movies.gif")


def _plot_errors(data: Data, path: Path) -> None:
    trained = all("curves" in network for network in data["networks"].values())
    with saved_figure(path, (8.0, 6.5 if trained else 4.0)) as figure:
        top, *below = np.ravel(figure.subplots(1 + trained, 1))
        for (name, network), colour in zip(data["networks"].items(), SERIES, strict=False):
            parts, alone = np.asarray(network["parts"]), np.asarray(network["alone"])
            shown = np.arange(2, 2 + parts.shape[1])
            top.plot(shown, parts.mean(axis=0), color=colour, label=f"{name} videos")
            shown = data["alone_from"] + 1 + np.arange(alone.shape[1])
            top.plot(shown, alone.mean(axis=0), color=colour, ls=":", label=f"{name}, alone")
            for axes in below:
                curves = network["curves"]
                axes.plot(curves["steps"], curves["validation"], color=colour, lw=1)
                axes.plot(curves["steps"], curves["train"], color=colour, lw=1, alpha=0.4)
                axes.set(xlabel="training step", ylabel="validation (training pale)", yscale="log")
        for (name, error), colour in zip(data["baselines"].items(), (GREY, BLACK), strict=True):
            top.axhline(error, color=colour, lw=1, ls="--", label=name)
        top.set(xlabel="frame", ylabel="squared error per frame", yscale="log")
        top.legend(ncols=3, loc="upper right", bbox_to_anchor=(1.0, 0.86))  # between the lines
        errors = {name: np.mean(network["parts"]) for name, network in data["networks"].items()}
        say(
            figure,
            f"Next frame: error {errors['fresh']:.2f} trained on fresh videos, "
            f"{errors['fixed']:.2f} on fixed ones",
            "squared error summed over 900 pixels, mean over test videos; dotted: after frame "
            f"{data['alone_from']}\nthe network sees only its own predictions",
        )


def _plot_film(movie: Data, alone_from: int, path: Path) -> None:
    """Truth, prediction and the network alone, side by side, ten frames per second."""
    writer = PillowWriter(fps=10)
    figure, images = _begin_film(movie)
    with writer.saving(figure, path, dpi=72):
        for number in range(len(movie["truth"])):
            for (name, frames), image in zip(movie.items(), images, strict=True):
                image.set_data(frames[number])
                seeing = name != "alone" or number < alone_from
                image.axes.set_xlabel(
                    "" if seeing else "sees only its own predictions", color=SERIES[1]
                )
            images[0].axes.set_xlabel(f"frame {number + 1}", color=BLACK)
            writer.grab_frame()


def _begin_film(movie: Data) -> tuple[Figure, list[AxesImage]]:
    figure = Figure(figsize=(7.5, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    images = []
    for axes, (name, frames) in zip(figure.subplots(1, len(movie)), movie.items(), strict=True):
        images.append(axes.imshow(frames[0], cmap="gray", vmin=0, vmax=255))
        axes.set(title=name, xticks=[], yticks=[], xlabel=" ")
    return figure, images

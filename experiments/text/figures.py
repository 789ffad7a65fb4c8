"""The figure of `text`, and its samples as a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.shared.figures import GREY, SERIES, saved_figure, say
from experiments.shared.findings import Data
from experiments.text import PAGE
from jaxrnn.files import write_atomically


def plot(data: Data, folder: Path) -> None:
    """Draw the curves of the training and a page of the held-out text; write the samples."""
    rule = "\n\n" + "-" * 80 + "\n\n"
    samples = rule.join(data["prompt"] + sample for sample in data["samples"])
    write_atomically(folder / "samples.txt", (samples + "\n").encode())
    if "curves" in data.get("network", {}):
        _plot_training(data, folder / "text.png")
    elif "held_out" in data:
        with saved_figure(folder / "text.png", (8.0, 2.8)) as figure:
            _draw_page(figure.subplots(), data["held_out"])
            _say_bits(figure, data, "the text's beginning")


def _plot_training(data: Data, path: Path) -> None:
    with saved_figure(path, (8.0, 6.5)) as figure:
        top, bottom = figure.subplots(2, 1, height_ratios=(3, 2))
        curves = data["network"]["curves"]
        for name, colour in (("train", SERIES[0]), ("validation", SERIES[1])):
            bits = np.asarray(curves[name]) / np.log(2)
            top.plot(curves["steps"], bits[:, 0], color=colour, marker="o", ms=3, label=name)
            top.plot(curves["steps"], bits[:, 1:], color=colour, marker="o", ms=3)
        for (name, nats), style in zip(data["counts"].items(), (":", "-.", "--"), strict=True):
            top.axhline(nats / np.log(2), color=GREY, ls=style, lw=1, label=f"{name} (test)")
        top.set(xlabel="passes over the text", ylabel="bits per character")
        top.legend(ncols=2, loc="upper right", frameon=True, edgecolor="none", framealpha=1.0)
        _draw_page(bottom, data["held_out"])
        _say_bits(figure, data, "below, held-out text")


def _say_bits(figure: Figure, data: Data, page: str) -> None:
    bits = np.mean(data["network"]["test"]) / np.log(2)
    say(
        figure,
        f"{data['text']['name']}: {bits:.2f} bits per character",
        f"{page}: the redder a character, the less it was expected",
    )


def _draw_page(axes: Axes, held_out: Data) -> None:
    columns, rows = PAGE
    nats = np.full(columns * rows, np.nan)
    nats[: len(held_out["nats"])] = held_out["nats"]
    axes.imshow(nats.reshape(rows, columns), cmap="Reds", vmin=0, vmax=8, aspect="auto")
    for place, character in enumerate(held_out["text"]):
        shown = {"\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "$": r"\$"}.get(
            character, character
        )
        colour = "white" if nats[place] > 5 else "black"
        axes.text(
            place % columns, place // columns, shown, color=colour, fontsize=8, ha="center",
            va="center", family="monospace",
        )  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)

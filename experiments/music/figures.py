"""The figures of `music`, and its samples as MIDI files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from experiments.data.midi import write_midi
from experiments.data.piano_rolls import roll_of
from experiments.shared.figures import BLACK, GREY, SKY, VERMILION, saved_figure, say
from experiments.shared.findings import Data


def plot(data: Data, folder: Path) -> None:
    """Draw rolls.png and nll.png; write every sample, and the piece it continues, as MIDI."""
    samples = data["samples"]
    for number in range(len(samples["sampled"])):
        for kind in ("real", "sampled"):
            write_midi(folder / f"{kind}-{number + 1}.mid", roll_of(samples[kind][number]))
    _plot_rolls(data, folder / "rolls.png")
    if "test" in data:
        _plot_scores(data, folder / "nll.png")


def _plot_rolls(data: Data, path: Path) -> None:
    """Draw test pieces beside a network's continuations of their openings."""
    samples = data["samples"]
    rows, primed = len(samples["sampled"]), samples["primed"]
    frames = max(map(len, samples["sampled"]))
    rolls = [*samples["real"], *samples["sampled"]]
    heard = [pitch for roll in rolls for sounding in roll for pitch in sounding]
    low, high = min(heard, default=60) - 1, max(heard, default=72) + 1
    with saved_figure(path, (8.0, 1.0 + 1.6 * rows)) as figure:
        grid = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
        for number, pair in enumerate(grid):
            for axes, kind, colour in zip(
                pair, ("real", "sampled"), (BLACK, VERMILION), strict=True
            ):
                frame, pitch = _dots(samples[kind][number])
                axes.barh(pitch, 1.0, left=frame, height=0.9, color=colour)
                if kind == "sampled":
                    axes.axvspan(0, primed, color=SKY, alpha=0.3, lw=0)
                axes.set(xlim=(0, frames), ylim=(low, high))
            pair[0].set_ylabel("MIDI pitch")
        grid[0, 0].set_title("pieces")
        grid[0, 1].set_title("continued; the shaded part is given")
        for axes in grid[-1]:
            axes.set_xlabel("frame")
        say(figure, f"{data['name']}: pieces, and a network's continuations of their openings")


def _dots(pitches: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The frame and the pitch of every sounding key."""
    dots = [(frame, pitch) for frame, sounding in enumerate(pitches) for pitch in sounding]
    frames, heard = np.array(dots, int).reshape(-1, 2).T
    return frames, heard


def _plot_scores(data: Data, path: Path) -> None:
    """Draw the training curves, and the test NLL of every model."""
    test = data["test"]
    with saved_figure(path) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for name, colour in (("plain", GREY), ("network", SKY), ("joint", VERMILION)):
            curves = data["networks"][name]["curves"]
            for seed, curve in enumerate(np.asarray(curves["validation"]).T):
                label = name if seed == 0 else None
                left.plot(curves["steps"], curve, color=colour, lw=1, alpha=0.7, label=label)
        best = min(np.min(network["validation"]) for network in data["networks"].values())
        left.set(xlabel="training steps", ylabel="validation NLL, nats per frame")
        left.set_ylim(best - 0.2, best + 5.0)
        left.legend()
        _plot_test(right, test)
        say(
            figure,
            f"{data['name']}: {np.mean(np.asarray(test['joint'])[:, 1]):.2f} nats per frame, "
            f"keys apart {np.mean(test['network']):.2f}, plain {np.mean(test['plain']):.2f}",
            f"one line per seed; test NLL of {data['pieces']['test']} pieces that no choice used",
        )


def _plot_test(axes: Axes, test: Data) -> None:
    """The test NLL of every model, the simplest on top."""
    names = list(test)[::-1]
    for position, name in enumerate(names):
        values = np.atleast_1d(test[name])
        if name.startswith("joint"):  # all frames, and all but the first of each piece
            values = np.atleast_1d(np.asarray(test[name])[..., 1])
        colour = VERMILION if name.startswith("joint") else GREY
        axes.plot(values, [position] * len(values), "|", color=colour, ms=9)
        axes.plot(values.mean(), position, "o", color=colour, ms=6)
        axes.annotate(
            f"{values.mean():.2f}",
            (values.mean(), position),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="test NLL, nats per frame", ylim=(-0.5, len(names) - 0.3))
    axes.margins(x=0.15)

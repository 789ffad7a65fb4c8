"""The figure of `gradients`: four reports on a network, before and after training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.gradients.findings import spread
from experiments.shared.figures import BLACK, BLUE, GREY, VERMILION, saved_figure, say
from experiments.shared.findings import Data

_LN10 = math.log(10)
_COLOURS = {"before": BLUE, "after": VERMILION}


def plot(data: Data, folder: Path) -> None:
    """Draw gradients.png: the four reports, before and after training."""
    with saved_figure(folder / "gradients.png", (9.0, 7.8)) as figure:
        panels = figure.subplots(2, 2).ravel()
        for when, colour in _COLOURS.items():
            _draw_norms(panels[0], data[when], data["aligning"], colour)
            _draw_band(panels[1], data[when]["exponents"], colour, label=f"{when} training")
            _draw_products(panels[2], data[when], data["product_steps"], colour)
            _draw_band(panels[3], 100 * np.asarray(data[when]["saturated"]), colour)
        _label(panels)
        _say(figure, data)


def _say(figure: Figure, data: Data) -> None:
    ends = [spread(_relative(data[when], "gradients"))[1, -1] for when in _COLOURS]
    powers = [
        f"$\\mathbf{{10^{{{end:.1f}}}}}$" if np.isfinite(end) else "no finite factor"
        for end in ends
    ]
    sequences, steps = np.shape(data["before"]["saturated"])
    many = f"{data['layers']} layers of " if data["layers"] > 1 else ""
    say(
        figure,
        f"Back to lag {steps} the gradient changes by {powers[0]} before training, by {powers[1]} "
        "after",
        f"{data['task']}, length {data['length']}; {many}{data['hidden_size']} "
        f"{data['activation']} units; lines: median of {sequences} sequences, bands: 10 to 90 %",
    )


def _relative(measured: Data, name: str) -> np.ndarray:
    """Norms [B, T] from lag 1 on, relative to that at lag 1, in powers of ten."""
    logs = np.asarray(measured[name])[:, 1:] / _LN10
    with np.errstate(invalid="ignore"):
        return logs - logs[:, :1]


def _draw_band(axes: Axes, values: Any, colour: str, places: Any = None, **style: Any) -> None:
    """The median of `values` [B, X] as a line over `places` (1 to X), the spread as a band."""
    quantiles = spread(values)
    low, middle, high = np.where(np.isfinite(quantiles), quantiles, np.nan)
    places = np.arange(1, len(middle) + 1) if places is None else places
    axes.fill_between(places, low, high, color=colour, alpha=0.2, lw=0)
    axes.plot(places, middle, color=colour, **style)


def _draw_norms(axes: Axes, measured: Data, aligning: int, colour: str) -> None:
    _draw_band(axes, _relative(measured, "gradients"), colour)
    jacobians = spread(_relative(measured, "jacobians"))[1]
    axes.plot(np.arange(1, len(jacobians) + 1), jacobians, "--", color=colour, lw=1)
    last = len(jacobians) - aligning
    slope = spread(measured["exponents"])[1, 0] / _LN10
    axes.plot([1, last], [0, slope * (last - 1)], ":", color=colour, lw=2)


def _draw_products(axes: Axes, measured: Data, product_steps: list[int], colour: str) -> None:
    values = np.asarray(measured["singular_values"]) / _LN10
    for place, style in ((0, "-"), (values.shape[2] // 2, "--"), (-1, ":")):
        _draw_band(axes, values[:, :, place], colour, product_steps, ls=style, marker="o", ms=3)


def _label(panels: Any) -> None:
    """Titles, axes and legends."""
    norms, exponents, products, saturated = panels
    norms.set(title="Gradient by lag", xlabel="lag k (steps)")
    norms.set(ylabel="norm / norm at lag 1 (power of ten)")
    exponents.set(title="Lyapunov spectrum", xlabel="index", ylabel="exponent (nats per step)")
    exponents.axhline(0, color=GREY, lw=0.8)
    exponents.legend()
    products.set(title="Jacobian products", xlabel="last steps in the product")
    products.set(ylabel="singular value (power of ten)")
    saturated.set(title="Saturation: a slope below a tenth of the largest", xlabel="step t")
    saturated.set(ylabel="saturated units (%)")
    _explain(norms, ("of the loss", "of $h_T$, the largest", "largest exponent"))
    _explain(products, ("largest", "median", "smallest"))
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _explain(axes: Axes, lines: tuple[str, str, str]) -> None:
    for style, label in zip(("-", "--", ":"), lines, strict=True):
        axes.plot([], [], style, color=BLACK, label=label)
    axes.legend()

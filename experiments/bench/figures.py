"""The benchmark's figure."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.bench.findings import ALL, LOOP, OURS, PLAIN, times_of
from experiments.bench.tables import TITLES, list_passes
from experiments.bench.whole_loops import MAPPED
from experiments.shared.figures import BLACK, BLUE, GREY, SKY, VERMILION, saved_figure, say
from experiments.shared.findings import Data

_MARKS = {
    OURS: ("|", BLUE),
    ALL: ("D", BLUE),
    PLAIN: ("o", GREY),
    "flax": ("^", "#009e73"),
    "haiku": ("v", "#cc79a7"),
    "Keras": ("s", "#e69f00"),
    "torch": ("X", VERMILION),
    "onnxruntime": ("P", SKY),
    LOOP: ("p", BLACK),
    MAPPED: ("h", VERMILION),
}
_TICKS = (0.1, 0.3, 0.5, 1, 2, 3, 5, 10, 30, 100, 300)


def plot(data: Data, folder: Path) -> None:
    """Draw bench.png: every contender's time over that of the library, one panel per pass."""
    rows = [row for row in data["rows"] if "milliseconds" in row]
    passes = list_passes(rows)
    if "train" in passes:
        rows += _list_loops(data["loops"])
    cases = list(dict.fromkeys(row["case"] for row in rows))
    names = [name for name in _MARKS if any(row["contender"] == name for row in rows)]
    with saved_figure(folder / "bench.png", (8.0, 2.0 + 0.46 * len(cases))) as figure:
        panels = figure.subplots(1, len(passes), sharey=True, squeeze=False)[0]
        for axes, what in zip(panels, passes, strict=True):
            _draw_panel(axes, [row for row in rows if row["pass"] == what], cases, names)
            axes.set_title(TITLES[what])
        panels[0].set_yticks(range(len(cases)), cases)
        panels[0].invert_yaxis()
        panels[0].set_ylabel("T,B,D,H")
        handles, labels = panels[-1].get_legend_handles_labels()
        for axes in panels[:-1]:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                if label not in labels:
                    handles, labels = [*handles, handle], [*labels, label]
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=5,
            columnspacing=1.0,
            handletextpad=0.1,
        )
        label = f"time over that of jaxrnn on one device\n{_describe_run(data)}"
        panels[(len(panels) - 1) // 2].set_xlabel(label)  # the legend stands where details do
        say(figure, _summarise(rows))


def _list_loops(loops: Data) -> list[Data]:
    """The time of a training step within whole loops, if others took part in them."""
    shape = ",".join(map(str, loops["shape"]))
    times = {
        f"fit {shape}": loops["microseconds"],
        f"sweep of {loops['networks']:,}": loops["swept_microseconds"],
    }
    row = {"kind": "loop", "pass": "train"}
    return [
        {**row, "case": case, "contender": name, "milliseconds": microseconds / 1e3}
        for case, by_name in times.items()
        if len(by_name) > 1
        for name, microseconds in by_name.items()
    ]


def _draw_panel(axes: Axes, rows: list[Data], cases: list[str], names: list[str]) -> None:
    ours = {row["case"]: row["milliseconds"] for row in rows if row["contender"] == OURS}
    axes.axvline(1, color=BLUE, linewidth=1)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(-0.5, len(cases) - 0.5)
    for place in range(1, len(cases), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="#f3f3f3", zorder=0)
    ratios = []
    for name in names:
        offset = 0.8 * ((names.index(name) + 0.5) / len(names) - 0.5)  # beside one another
        points = [
            (row["milliseconds"] / ours[row["case"]], cases.index(row["case"]) + offset)
            for row in rows
            if row["contender"] == name and row["case"] in ours
        ]
        if name == OURS or not points:
            continue
        marker, colour = _MARKS[name]
        axes.plot(
            *zip(*points, strict=True),
            marker,
            color=colour,
            label=name,
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linestyle="",
        )
        ratios += [ratio for ratio, _ in points]
    axes.set_xscale("log")
    axes.set_xlim(min([0.8, *ratios]) / 1.2, max([2.0, *ratios]) * 1.25)
    axes.xaxis.set_major_locator(FixedLocator(_choose_ticks(*axes.get_xlim())))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _choose_ticks(low: float, high: float) -> list[float]:
    """Round numbers inside the limits, the finer ones only where there is room."""
    inside = [tick for tick in _TICKS if low <= tick <= high]
    return inside if len(inside) <= 6 else [tick for tick in inside if tick not in (2, 5, 0.5)]


def _summarise(rows: list[Data]) -> str:
    """The others' training steps, or the last pass that was timed, beside the library's."""
    what = list_passes(rows)[-1]
    own = (OURS, ALL, LOOP)
    times = times_of(rows, what, ("shape", "deep", "ragged"))
    ratios = [
        value / case[OURS]
        for case in times.values()
        for name, value in case.items()
        if name not in own and OURS in case
    ]
    if not ratios:
        return "Time over that of jaxrnn on one device"
    return (
        f"A {TITLES[what]} takes the others {min(ratios):.1f} to {max(ratios):.3g} times as long "
        "as jaxrnn"
    )


def _describe_run(data: Data) -> str:
    jax = data["versions"].get("jax", "")
    return (
        f"medians of interleaved runs, float32, jax {jax}, {data['device']}, {data['cores']} cores"
    )

"""The benchmark's tables and its figure."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.bench.findings import ALL, LOOP, OURS, PLAIN, times_of
from experiments.shared.figures import BLACK, BLUE, GREY, SKY, VERMILION, saved_figure, say
from experiments.shared.findings import Data

_WIDTH = 118
_TITLES = {"forward": "forward pass", "gradient": "gradient", "train": "training step"}
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
}
_HEADS = {ALL: "all\ndevices", PLAIN: "plain\nscan", "onnxruntime": "onnx-\nruntime", LOOP: "loop"}
_TICKS = (0.1, 0.3, 0.5, 1, 2, 3, 5, 10, 30, 100, 300)


def write_tables(data: Data) -> str:
    """Milliseconds of every case and contender; then what compiling took, and memory."""
    file = io.StringIO()
    console = Console(file=file, width=_WIDTH)
    rows = data["rows"]
    for what in _passes(rows):
        chosen = [row for row in rows if row["pass"] == what]
        title = f"{_TITLES[what]}: median ms; % of a large product's rate{_describe_rates(chosen)}"
        _print(console, title, chosen, _describe_time)
    for what in _passes(rows):
        chosen = [row for row in rows if row["pass"] == what and "compile_seconds" in row]
        title = f"{_TITLES[what]}: seconds to compile, temporary MB"
        _print(console, title, chosen, _describe_program)
    for reason in _list_absent(rows):
        console.print(reason)
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    console.print(
        f"{data['cores']} cores, {data['devices']} devices ({data['device']}); {versions}; "
        f"freed memory is {'kept' if data['memory_kept'] else 'not kept'}"
    )
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def draw(data: Data, path: Path) -> None:
    """Every contender's time over that of the library on one device, one panel a pass."""
    rows = [row for row in data["rows"] if "milliseconds" in row]
    passes = _passes(rows)
    cases = list(dict.fromkeys(row["case"] for row in rows))
    names = [name for name in _MARKS if any(row["contender"] == name for row in rows)]
    with saved_figure(path, (8.0, 2.0 + 0.46 * len(cases))) as figure:
        panels = figure.subplots(1, len(passes), sharey=True, squeeze=False)[0]
        for axes, what in zip(panels, passes, strict=True):
            _draw_panel(axes, [row for row in rows if row["pass"] == what], cases, names)
            axes.set_title(_TITLES[what])
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
            ncols=8,
            columnspacing=1.0,
            handletextpad=0.1,
        )
        label = f"time over that of jaxrnn on one device\n{_describe_run(data)}"
        panels[(len(panels) - 1) // 2].set_xlabel(label)  # the legend stands where details do
        say(figure, _summarise(rows))


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


def _print(console: Console, title: str, rows: list[Data], describe: Callable[[Data], str]) -> None:
    names = [name for name in _MARKS if any(row["contender"] == name for row in rows)]
    names = [n for n in names if any("difference" in r for r in rows if r["contender"] == n)]
    table = Table(title=title, title_justify="left", padding=(0, 1, 0, 0), box=SIMPLE_HEAD)
    table.add_column("T,B,D,H", no_wrap=True)
    for name in names:
        table.add_column(_HEADS.get(name, name), justify="right")
    for case in dict.fromkeys(row["case"] for row in rows):
        cells = {row["contender"]: describe(row) for row in rows if row["case"] == case}
        table.add_row(case, *(cells.get(name, "") for name in names))
    console.print(table)


def _describe_time(row: Data) -> str:
    if "milliseconds" not in row:
        return "differs" if "difference" in row else "-"
    low, high = row["quartiles"]
    spread = 50 * (high - low) / row["milliseconds"]
    return f"{_round(row['milliseconds'])}\n{100 * row['fraction']:.0f}% ±{spread:.0f}%"


def _describe_rates(rows: list[Data]) -> str:
    rates = [row["product_gigaflops"] for row in rows if "product_gigaflops" in row]
    listed = f", {min(rates):.0f} to {max(rates):.0f} GFlop/s" if rates else ""
    return f"{listed}; ± half the interquartile range"


def _round(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _describe_program(row: Data) -> str:
    return f"{row['compile_seconds']:.2f} {row['temporary_megabytes']:.1f}"


def _list_absent(rows: list[Data]) -> list[str]:
    """One line a contender and reason: why it was not timed."""
    absent: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "milliseconds" not in row:
            place = f"{row['case']} {_TITLES[row['pass']]}"
            absent.setdefault((row["contender"], row["status"]), []).append(place)
    return [
        f"{name}: {reason}" + (f" ({'; '.join(places)})" if len(places) <= 3 else "")
        for (name, reason), places in absent.items()
    ]


def _passes(rows: list[Data]) -> list[str]:
    return list(dict.fromkeys(row["pass"] for row in rows))


def _summarise(rows: list[Data]) -> str:
    """The others' training steps, or the last pass that was timed, beside the library's."""
    what = _passes(rows)[-1]
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
        f"A {_TITLES[what]} takes the others {min(ratios):.1f} to {max(ratios):.3g} times as long "
        "as jaxrnn"
    )


def _describe_run(data: Data) -> str:
    jax = data["versions"].get("jax", "")
    return (
        f"medians of interleaved runs, float32, jax {jax}, {data['device']}, {data['cores']} cores"
    )

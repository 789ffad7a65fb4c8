"""The benchmark's tables, in text: times, rates, compile times and memory."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.bench.findings import ALL, LOOP, OURS, PLAIN
from experiments.shared.findings import Data

CONTENDERS = (OURS, ALL, PLAIN, "flax", "haiku", "Keras", "torch", "onnxruntime", LOOP)
"""The contenders in the order of tables and figures."""
TITLES = {"forward": "forward pass", "gradient": "gradient", "train": "training step"}
"""The passes, in words."""
_WIDTH = 118
_HEADS = {ALL: "all\ndevices", PLAIN: "plain\nscan", "onnxruntime": "onnx-\nruntime", LOOP: "loop"}


def write_tables(data: Data) -> str:
    """Milliseconds of every case and contender; then compile times and memory."""
    file = io.StringIO()
    console = Console(file=file, width=_WIDTH)
    rows = data["rows"]
    for what in list_passes(rows):
        chosen = [row for row in rows if row["pass"] == what]
        title = f"{TITLES[what]}: median ms; % of a large product's rate{_describe_rates(chosen)}"
        _print(console, title, chosen, _describe_time)
    for what in list_passes(rows):
        chosen = [row for row in rows if row["pass"] == what and "compile_seconds" in row]
        title = f"{TITLES[what]}: seconds to compile, temporary MB"
        _print(console, title, chosen, _describe_program)
    for reason in _list_absent(rows):
        console.print(reason)
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    console.print(
        f"{data['cores']} cores, {data['devices']} devices ({data['device']}); {versions}; "
        f"freed memory is {'kept' if data['memory_kept'] else 'not kept'}"
    )
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def list_passes(rows: list[Data]) -> list[str]:
    """The passes of these rows, in order."""
    return list(dict.fromkeys(row["pass"] for row in rows))


def _print(console: Console, title: str, rows: list[Data], describe: Callable[[Data], str]) -> None:
    names = [name for name in CONTENDERS if any(row["contender"] == name for row in rows)]
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
    """One line per contender and reason why it was not timed."""
    absent: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "milliseconds" not in row:
            place = f"{row['case']} {TITLES[row['pass']]}"
            absent.setdefault((row["contender"], row["status"]), []).append(place)
    return [
        f"{name}: {reason}" + (f" ({'; '.join(places)})" if len(places) <= 3 else "")
        for (name, reason), places in absent.items()
    ]

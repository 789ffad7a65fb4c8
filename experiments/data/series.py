"""Time series: columns of a CSV file, or the yearly sunspot numbers."""

from __future__ import annotations

import csv
import datetime
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from statsmodels.datasets import sunspots  # statsmodels.api would take seconds

from experiments.data.files import read_text
from experiments.shared.options import InputError

_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
_GAP = 1.5  # steps between two rows from which on rows are absent


class Series(NamedTuple):
    """A series of T rows and C columns.

    values: [T, C] float64, NaN where a value is missing. begins: [T] bool, True at the first row
    and at each row before which rows are absent. times: [T] float64, what the rows are plotted
    against.
    """

    name: str
    columns: tuple[str, ...]
    values: np.ndarray
    begins: np.ndarray
    times: np.ndarray
    unit: str = ""


def load_sunspots() -> Series:
    """The yearly sunspot numbers from 1700 to 2008, as statsmodels carries them (public domain)."""
    table = sunspots.load_pandas().data
    years, numbers = (table[name].to_numpy(np.float64) for name in ("YEAR", "SUNACTIVITY"))
    begins = np.arange(len(years)) == 0
    return Series("yearly sunspots", ("number",), numbers[:, None], begins, years, "year")


def read_csv(path: Path, columns: Sequence[str], time: str | None = None) -> Series:
    """Columns of a comma-separated file with a header.

    A missing value is an empty field, or NA, NaN, null, none or ?. A gap, where whole rows are
    absent, is a blank line, or a jump of the column `time`, which holds increasing numbers or ISO
    dates: a jump of more than 1.5 of its usual step.

    Raises:
      InputError: a file that cannot be used, with the line and column.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        wanted = [
            _find_column(path, header, name) for name in [*columns, *([time] if time else [])]
        ]
        values: list[list[float]] = []
        times: list[float] = []
        begins: list[bool] = []
        blank = True
        for row in reader:
            if not row:
                blank = True
                continue
            cells = _pick(path, reader.line_num, header, row, wanted)
            values.append(
                [
                    _read_number(path, reader.line_num, name, cell)
                    for name, cell in zip(columns, cells, strict=False)
                ]
            )
            times.append(_read_time(path, reader.line_num, time, cells[-1], times))
            begins.append(blank)
            blank = False
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from None
    marks = np.array(begins, bool)
    if time is not None and len(times) > 1:
        steps = np.diff(times)
        marks[1:] |= steps > _GAP * np.median(steps)
    array = np.array(values, np.float64).reshape(-1, len(columns))
    _check_values(path, columns, array)
    return Series(path.name, tuple(columns), array, marks, np.array(times), time or "row")


def _find_column(path: Path, header: list[str], name: str) -> int:
    if header.count(name) == 1:
        return header.index(name)
    if not header or header == [""]:
        raise InputError(f"{path}, line 1: no header, expected the columns' names")
    found = f"{header.count(name)} columns" if name in header else "no column"
    raise InputError(f"{path}, line 1: {found} named {name!r}; it has {', '.join(header)}")


def _pick(path: Path, line: int, header: list[str], row: list[str], wanted: list[int]) -> list[str]:
    if len(row) != len(header):
        raise InputError(
            f"{path}, line {line}: {len(row)} fields, expected {len(header)} as the header has"
        )
    return [row[place].strip() for place in wanted]


def _read_number(path: Path, line: int, column: str, cell: str) -> float:
    if cell.lower() in _MISSING:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}, line {line}, column {column!r}: {cell!r} is not a finite number")
    return value


def _read_time(path: Path, line: int, column: str | None, cell: str, before: list[float]) -> float:
    """The time of a row: its number, or that of the column `column`, dates in days."""
    if column is None:
        return float(len(before))
    try:
        time = float(cell)
    except ValueError:
        try:
            date = datetime.datetime.fromisoformat(cell)
        except ValueError:
            date = None
        time = _count_days(date) if date else math.nan
    where = f"{path}, line {line}, column {column!r}: {cell!r}"
    if not math.isfinite(time):
        raise InputError(f"{where} is neither a number nor an ISO date")
    if before and time <= before[-1]:
        raise InputError(f"{where} does not come after the row before")
    return time


def _count_days(date: datetime.datetime) -> float:
    """Days since 1970, of a date without a zone as if it were UTC."""
    zoned = date if date.tzinfo else date.replace(tzinfo=datetime.UTC)
    return zoned.timestamp() / 86400


def _check_values(path: Path, columns: Sequence[str], values: np.ndarray) -> None:
    for column, series in zip(columns, values.T, strict=True):
        known = series[~np.isnan(series)]
        if not known.size:
            raise InputError(f"{path}, column {column!r}: no value")
        if np.ptp(known) == 0:
            raise InputError(f"{path}, column {column!r}: every value is {known[0]:g}")
        if np.abs(known).max() > 1e30:
            worst = known[np.abs(known).argmax()]
            raise InputError(f"{path}, column {column!r}: {worst:g} is too large for float32")

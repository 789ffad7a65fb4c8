"""Time series: columns of a CSV file, or the yearly sunspot numbers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from statsmodels.datasets import sunspots  # statsmodels.api takes seconds to import

from experiments.data.files import read_text
from experiments.shared.options import InputError

_MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
_GAP = 1.5  # times the usual step: a longer one is a gap


class Series(NamedTuple):
    """A series of T rows and C columns.

    values: [T, C] float64, NaN where a value is missing. begins: [T] bool, True at the first row
    and at each row that follows a gap. times: [T] float64, the x axis of plots.
    """

    name: str
    columns: tuple[str, ...]
    values: np.ndarray
    begins: np.ndarray
    times: np.ndarray
    unit: str = ""


def load_sunspots() -> Series:
    """The yearly sunspot numbers from 1700 to 2008 that statsmodels includes (public domain)."""
    table = sunspots.load_pandas().data
    years, numbers = (table[name].to_numpy(np.float64) for name in ("YEAR", "SUNACTIVITY"))
    begins = np.arange(len(years)) == 0
    return Series("yearly sunspots", ("number",), numbers[:, None], begins, years, "year")


def read_csv(path: Path, columns: Sequence[str], time: str | None = None) -> Series:
    """Columns of a comma-separated file with a header.

    A missing value is an empty field, or NA, NaN, null, none or ?. A gap, where whole rows are
    absent, is a blank line, or a step of the column `time` of more than 1.5 times its median step.
    That column holds increasing numbers or ISO dates.

    Raises:
      InputError: the file cannot be used; names the line and the column where there is one.
    """
    fields, begins = _read_fields(path, [*columns, *([time] if time else [])])
    values = np.stack([_read_numbers(path, column) for column in fields[: len(columns)]], axis=1)
    times = _read_times(path, fields[-1]) if time else np.arange(len(values), dtype=np.float64)
    if time and len(times) > 1:
        steps = np.diff(times)
        begins[1:] |= steps > _GAP * np.median(steps)
    _check_values(path, columns, values)
    return Series(path.name, tuple(columns), values, begins, times, time or "row")


def _read_fields(path: Path, columns: Sequence[str]) -> tuple[list[pd.Series], np.ndarray]:
    """The fields of each of `columns`, as text indexed by line; and which rows follow a gap."""
    table = _read_table(path)
    header = [str(name).strip() for name in table.iloc[0].dropna()] if len(table) else []
    places = [_find_column(path, header, name) for name in columns]
    table = table.iloc[1:]
    blank = table.isna().all(axis=1)
    rows = table[~blank]
    sizes = rows.notna().sum(axis=1)
    for line in sizes.index[sizes < len(header)][:1]:
        raise InputError(
            f"{path}, line {line}: {sizes[line]} fields, expected {len(header)} as in the header"
        )
    follows_gap = blank.shift(fill_value=True)[~blank]
    fields = [
        rows[place].str.strip().rename(name) for place, name in zip(places, columns, strict=True)
    ]
    return fields, follows_gap.to_numpy(copy=True)


def _read_table(path: Path) -> pd.DataFrame:
    """Every field as text, indexed by the line its row begins on; NaN where a row has no field."""
    try:
        table = pd.read_csv(
            io.StringIO(read_text(path)),
            header=None,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            engine="python",  # the other one takes absent fields for empty ones
        )
    except pd.errors.ParserError as error:
        raise InputError(f"{path}: {error}") from None
    breaks = table.apply(lambda column: column.str.count("\n")).sum(axis=1)  # inside quotes
    return table.set_axis((1 + np.arange(len(table)) + breaks.cumsum() - breaks).astype(int))


def _find_column(path: Path, header: list[str], name: str) -> int:
    if header.count(name) == 1:
        return header.index(name)
    if not any(header):
        raise InputError(f"{path}, line 1: no header, expected the names of the columns")
    found = f"{header.count(name)} columns" if name in header else "no column"
    raise InputError(f"{path}, line 1: {found} named {name!r}; it has {', '.join(header)}")


def _read_numbers(path: Path, fields: pd.Series) -> np.ndarray:
    missing = fields.str.lower().isin(_MISSING)
    numbers = pd.to_numeric(fields.mask(missing), errors="coerce").to_numpy(np.float64)
    _refuse(path, fields, ~missing & ~np.isfinite(numbers), "is not a finite number")
    return numbers


def _read_times(path: Path, fields: pd.Series) -> np.ndarray:
    """Increasing numbers, or days since 1970 where a field is a date, in UTC if it has no zone."""
    numbers = pd.to_numeric(fields, errors="coerce").astype(np.float64)
    dates = pd.to_datetime(fields, format="ISO8601", utc=True, errors="coerce")
    days = (dates - pd.Timestamp("1970-01-01", tz="UTC")) / pd.Timedelta(days=1)
    times = numbers.fillna(days)
    _refuse(path, fields, ~np.isfinite(times), "is neither a number nor an ISO date")
    _refuse(path, fields, times.diff() <= 0, "does not come after the row before")
    return times.to_numpy()


def _refuse(path: Path, fields: pd.Series, wrong: pd.Series, problem: str) -> None:
    """Raise an error that names the first of the fields that are wrong."""
    for line, field in fields[wrong].head(1).items():
        raise InputError(f"{path}, line {line}, column {fields.name!r}: {field!r} {problem}")


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

"""A series as the models of `forecast` read it: its season, its linear part, features, targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.data.series import Series
from experiments.forecast.linear import (
    Average,
    Column,
    Transform,
    apply_transform,
    choose_average,
    difference,
    forecast_average,
    invert_transform,
)
from experiments.shared.baselines import fill_missing
from experiments.shared.options import InputError
from jaxrnn import Array

_LEAST = 4  # values that each column needs in each part of the series
_MAX_ORIGINS = 512
_CLIP = 6.0  # standard deviations
_LEVEL_ROWS = 16  # that a level is the mean of, or two seasons
_NO_SEASON_HORIZON = 8
_SEASON_LEAST, _SEASON_SHARE, _SEASON_TROUGH = 0.35, 0.8, 0.5
_FLOOR = 0.1  # of the least positive value: what a logarithm is taken of at least


@dataclass(frozen=True)
class Scales:
    """Standard deviations [C] of changes, of levels, and [H, C] of the linear part's errors."""

    change: list[float]
    level: list[float]
    error: list[list[float]]


class PreparedSeries(NamedTuple):
    """A series, split in time, with its linear part.

    season: 1 if there is none. splits: where the rows to fit end, and those to validate on.
    averages: the linear part of each column.
    """

    series: Series
    season: int
    horizon: int
    splits: tuple[int, int]
    columns: tuple[Column, ...]
    averages: tuple[Average, ...]
    scales: Scales

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """In which each column's errors are measured."""
        return tuple(average.best.transform for average in self.averages)

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Values [..., C], transformed column by column."""
        parts = zip(self.transforms, self.columns, np.moveaxis(values, -1, 0), strict=True)
        return np.stack([apply_transform(name, v, c.floor) for name, c, v in parts], axis=-1)

    def invert(self, z: np.ndarray) -> np.ndarray:
        """The values [..., C] whose transforms are `z`."""
        parts = zip(self.transforms, np.moveaxis(z, -1, 0), strict=True)
        return np.stack([invert_transform(name, part) for name, part in parts], axis=-1)


class Stream(NamedTuple):
    """The inputs [T, F] of the network, the mask of its steps [T] and the resets [T]."""

    xs: Array
    mask: Array
    resets: Array


def prepare_series(
    series: Series,
    transform: Transform | None,
    season: int | None,
    horizon: int | None,
    validation: float,
    test: float,
) -> PreparedSeries:
    """Split a series, and choose its season, horizon and linear part where they are None.

    The last share `test` of its rows is for testing, the share `validation` before it for choices.

    Raises:
      InputError: too few rows or values, or values that cannot be transformed.
    """
    rows = len(series.values)
    first, second = splits = int(rows * (1 - validation - test)), int(rows * (1 - test))
    _check_parts(series, splits)
    season = find_season(series, second) if season is None else season
    if horizon is None:
        horizon = season if season > 1 else _NO_SEASON_HORIZON
        horizon = max(min(horizon, (rows - second) // 2, (second - first) // 2), 1)
    if rows - second <= horizon:
        raise InputError(
            f"--horizon is {horizon}, but {series.name} has {rows - second} rows to test on"
        )
    columns = read_columns(series, first)
    origins = choose_origins(series, first - 1, second, min(horizon, second - first))
    averages = []
    for name, column in zip(series.columns, columns, strict=True):
        low = column.values[:second][column.known[:second]].min()
        transforms = _list_transforms(f"{series.name}, {name!r}", low, transform)
        scored = min(horizon, second - first)
        averages.append(choose_average(column, season, transforms, first, origins, scored))
    prepared = PreparedSeries(
        series, season, horizon, splits, columns, tuple(averages), Scales([], [], [])
    )
    return prepared._replace(scales=_measure_scales(prepared))


def read_columns(series: Series, stop: int) -> tuple[Column, ...]:
    """The columns of a series; what is unknown before the first value is the mean up to `stop`."""
    filled, known = fill_missing(series.values, stop), ~np.isnan(series.values)
    segments = np.cumsum(series.begins)
    columns = []
    for values, there in zip(filled.T, known.T, strict=True):
        positive = values[:stop][(values > 0)[:stop] & there[:stop]]
        floor = _FLOOR * positive.min() if positive.size else 1.0
        columns.append(Column(values, there, segments, float(floor)))
    return tuple(columns)


def choose_origins(series: Series, start: int, stop: int, horizon: int) -> np.ndarray:
    """Rows [N] from `start` on whose next `horizon` rows are before `stop`: at most 512, evenly
    spaced, with a value each.

    Raises:
      InputError: there is none.
    """
    rows = np.arange(max(start, 0), stop - horizon)
    rows = rows[~np.isnan(series.values[rows]).all(axis=1)]
    if not rows.size:
        raise InputError(f"{series.name}: no row from {start} on has a value to forecast from")
    return rows[np.unique(np.linspace(0, len(rows) - 1, _MAX_ORIGINS).astype(int))]


def find_season(series: Series, stop: int) -> int:
    """The period of the rows before `stop`, 1 if there is none: the shortest lag at which the
    autocorrelation of the changes has a high peak behind a trough."""
    correlations = []
    for column in read_columns(series, stop):
        changes = np.diff(column.values[:stop])
        changes = changes[np.diff(column.segments[:stop]) == 0]
        changes = changes - changes.mean()
        count, variance = len(changes), max(float(changes.var()), np.finfo(float).tiny)
        products = [
            (changes[lag:] * changes[: count - lag]).mean() for lag in range(count // 3 + 1)
        ]
        correlations.append(np.array(products) / variance)
    found = np.mean(correlations, axis=0)
    inner = found[1:-1]
    peaks = 1 + np.flatnonzero((inner > found[:-2]) & (inner >= found[2:]))
    peaks = np.array([p for p in peaks if p > 1 and found[1:p].min() < _SEASON_TROUGH * found[p]])
    if not peaks.size:
        return 1
    least = max(_SEASON_SHARE * found[peaks].max(), _SEASON_LEAST, 2.5 / np.sqrt(stop))
    high = peaks[found[peaks] >= least]
    return int(high[0]) if high.size else 1


def forecast_linearly(prepared: PreparedSeries, stop: int, origins: np.ndarray) -> np.ndarray:
    """The linear part's forecasts [H, N, C] in units, fitted to the rows before `stop`."""
    parts = zip(prepared.averages, prepared.columns, strict=True)
    forecasts = [forecast_average(a, c, stop, origins, prepared.horizon) for a, c in parts]
    return np.stack(forecasts, axis=-1)


def measure_errors(prepared: PreparedSeries, linear: np.ndarray) -> np.ndarray:
    """The errors [T, H, C] of the linear forecasts [H, T, C] of every row, transformed; NaN where
    the true value is unknown or in another segment, and in the first rows, which have too few
    before them."""
    count = len(prepared.series.values)
    needed = max(form.count_before(prepared.season) for a in prepared.averages for form in a.forms)
    rows = np.arange(count) + 1 + np.arange(prepared.horizon)[:, None]  # [H, T]
    inside = np.minimum(rows, count - 1)
    segments = prepared.columns[0].segments
    there = (rows < count) & (segments[inside] == segments)
    truth = np.where(there[..., None], prepared.series.values[inside], np.nan)
    errors = (prepared.transform(truth) - prepared.transform(linear)).swapaxes(0, 1)
    errors[: min(needed, prepared.splits[0] // 3)] = np.nan
    return errors


def make_stream(prepared: PreparedSeries, errors: np.ndarray) -> Stream:
    """What the network reads at each row: of each column the change, the level beside that of the
    rows before, and the linear part's last error, in standard deviations; whether values are known,
    if any is not; and the phase of the season. A row without any value is masked."""
    known = ~np.isnan(prepared.series.values)
    count, scales = len(known), prepared.scales
    features = []
    for place, (average, column) in enumerate(
        zip(prepared.averages, prepared.columns, strict=True)
    ):
        level, change = _read_level_and_change(prepared, average, column)
        last = np.concatenate([[np.nan], errors[:-1, 0, place]])
        features += [
            change / scales.change[place],
            level / scales.level[place],
            last / scales.error[0][place],
        ]
    xs = np.nan_to_num(np.stack(features, axis=1)).clip(-_CLIP, _CLIP)
    if not known.all():
        xs = np.concatenate([xs, known], axis=1)
    if prepared.season > 1:
        angle = 2 * np.pi * np.arange(count) / prepared.season
        xs = np.concatenate([xs, np.stack([np.sin(angle), np.cos(angle)], axis=1)], axis=1)
    mask = jnp.asarray(known.any(axis=1))
    return Stream(jnp.asarray(xs, jnp.float32), mask, jnp.asarray(prepared.series.begins))


def make_targets(prepared: PreparedSeries, errors: np.ndarray) -> tuple[Array, Array]:
    """The errors [T, H, C] in standard deviations, 0 where unknown, and which of them are known."""
    z = (errors / np.asarray(prepared.scales.error)).clip(-_CLIP, _CLIP)
    return jnp.asarray(np.nan_to_num(z), jnp.float32), jnp.asarray(np.isfinite(errors))


def _check_parts(series: Series, splits: tuple[int, int]) -> None:
    first, second = splits
    for name, part in [
        ("fit", series.values[:first]),
        ("validate on", series.values[first:second]),
        ("test on", series.values[second:]),
    ]:
        if (~np.isnan(part)).sum(axis=0).min(initial=len(part)) < _LEAST:
            raise InputError(
                f"{series.name}: fewer than {_LEAST} values to {name} in {len(part)} rows"
            )


def _list_transforms(name: str, low: float, transform: Transform | None) -> tuple[Transform, ...]:
    """Those to choose among: square root and logarithm need values that they are defined for."""
    if transform is not None:
        if (transform != "none" and low < 0) or (transform == "log" and low == 0):
            raise InputError(f"--transform {transform}: {name} has the value {low:g}")
        return (transform,)
    return ("none", *(("sqrt",) if low >= 0 else ()), *(("log",) if low > 0 else ()))


def _measure_scales(prepared: PreparedSeries) -> Scales:
    first = prepared.splits[0]
    rows = np.arange(len(prepared.series.values))
    errors = measure_errors(prepared, forecast_linearly(prepared, first, rows))[:first]
    fitted = np.arange(first)[:, None] + 1 + np.arange(prepared.horizon) < first
    errors = np.where(fitted[..., None], errors, np.nan)
    change, level = [], []
    for average, column in zip(prepared.averages, prepared.columns, strict=True):
        there, moved = (
            np.nanstd(values[:first])
            for values in _read_level_and_change(prepared, average, column)
        )
        change.append(_positive(moved))
        level.append(_positive(there))
    squares = np.where(np.isfinite(errors), errors, 0.0) ** 2
    counts = np.isfinite(errors).sum(axis=0)
    error = np.sqrt(squares.sum(axis=0) / np.maximum(counts, 1))
    error = np.maximum.accumulate(error, axis=0)  # further ahead is not easier
    return Scales(change, level, [[_positive(value) for value in row] for row in error])


def _positive(value: float) -> float:
    return float(value) if value > 0 else 1.0


def _read_level_and_change(
    prepared: PreparedSeries, average: Average, column: Column
) -> tuple[np.ndarray, np.ndarray]:
    """The level [T] of a column beside the mean of the rows before, and its change, transformed."""
    values = column.transform(average.best.transform)
    size = max(_LEVEL_ROWS, 2 * prepared.season)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - size, 0)
    level = values - (sums[ends] - sums[begins]) / (ends - begins)
    return level, difference(values, average.best, prepared.season)

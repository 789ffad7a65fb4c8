"""A series as the models of `forecast` read it: transformed, standardised, split in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.data.series import Series
from experiments.shared.options import InputError
from jaxrnn import Array

_LEAST = 4  # values that each column needs in each part of the series

_TRANSFORMS: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "none": (lambda values: values, lambda z: z),
    "sqrt": (np.sqrt, lambda z: z.clip(0) ** 2),
    "log": (np.log, np.exp),
}


class PreparedSeries(NamedTuple):
    """A series as the models read it: transformed, and standardised by the rows to fit.

    z: [T, C], NaN where missing. splits: where the rows to fit end, and those to validate on.
    """

    series: Series
    transform: str
    z: np.ndarray
    offset: np.ndarray  # [C]
    scale: np.ndarray  # [C]
    splits: tuple[int, int]


class Stream(NamedTuple):
    """The inputs [T, F] of the network, the mask of its steps [T] and the resets [T]."""

    xs: Array
    mask: Array
    resets: Array


def prepare_series(
    series: Series, transform: str, validation: float, test: float, horizon: int
) -> PreparedSeries:
    """Transform, standardise and split a series.

    The last share `test` of its rows is for testing, the share `validation` before it for choices.

    Raises:
      InputError: too few rows or values, or values that cannot be transformed.
    """
    rows = len(series.values)
    first, second = int(rows * (1 - validation - test)), int(rows * (1 - test))
    low = np.nanmin(series.values)
    if (transform != "none" and low < 0) or (transform == "log" and low == 0):
        raise InputError(f"--transform {transform}: {series.name} has the value {low:g}")
    values = _TRANSFORMS[transform][0](series.values)
    for name, part in [
        ("fit", values[:first]),
        ("validate on", values[first:second]),
        ("test on", values[second:]),
    ]:
        if (~np.isnan(part)).sum(axis=0).min(initial=len(part)) < _LEAST:
            raise InputError(
                f"{series.name}: fewer than {_LEAST} values to {name} in {len(part)} rows"
            )
    if rows - second <= horizon:
        raise InputError(
            f"--horizon is {horizon}, but {series.name} has {rows - second} rows to test on"
        )
    offset, scale = np.nanmean(values[:first], axis=0), np.nanstd(values[:first], axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    z = (values - offset) / scale
    return PreparedSeries(series, transform, z, offset, scale, (first, second))


def to_units(prepared: PreparedSeries, z: np.ndarray) -> np.ndarray:
    """Standardised values in the series' own units."""
    return _TRANSFORMS[prepared.transform][1](z * prepared.scale + prepared.offset)


def make_features(z: np.ndarray) -> np.ndarray:
    """The inputs [T, F]: the values; if any is missing, followed by 1 or 0 for known or missing."""
    known = ~np.isnan(z)
    values = np.where(known, z, 0.0)
    return values if known.all() else np.concatenate([values, known], axis=1)


def make_stream(prepared: PreparedSeries) -> Stream:
    """The series as a network reads it; a row without any value is masked."""
    xs = jnp.asarray(make_features(prepared.z), jnp.float32)
    mask = jnp.asarray(~np.isnan(prepared.z).all(axis=1))
    return Stream(xs, mask, jnp.asarray(prepared.series.begins))

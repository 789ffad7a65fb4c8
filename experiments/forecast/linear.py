"""The linear part of a forecast: autoregressions of a series in several forms, averaged.

A form is a transform (none, square root, logarithm), differences or not, a difference from a season
ago, or from the exponentially weighted average of the same phase of all seasons, or neither, and
lags. Each is fitted by least squares with a small ridge, forecasts recursively, and is
scored on rows that it was not fitted to. The forecast is the mean of those with the best scores and
of the best of each kind of difference: averaging many fits is better than picking one (Bates &
Granger 1969, "The combination of forecasts").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from experiments.shared.options import InputError

Transform = Literal["none", "sqrt", "log"]

_ORDERS = (0, 1, 2, 3, 4, 6, 9, 12, 16, 20)
_RIDGE = 1e-3  # of the lags' weights, in units of the variance
_FOLLOWING = 0.2  # the weight of the last season in its average
_AVERAGED = 40  # forms with the best scores
_SHARPNESS = 5.0  # of the weights of the best form of each kind, by their scores
_ROWS_PER_WEIGHT = 2
_TRANSFORMS: dict[Transform, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "none": (lambda values: values, lambda z: z),
    "sqrt": (lambda values: np.sqrt(values.clip(0)), lambda z: z.clip(0) ** 2),
    "log": (np.log, np.exp),
}


class Form(NamedTuple):
    """What an autoregression is fitted to, and its lags.

    seasonal: the weight of the last season in the average that the values are the difference from:
    1 makes that the last season, and 0 leaves the season in.
    """

    transform: Transform
    differences: int
    seasonal: float
    lags: tuple[int, ...]

    def count_before(self, season: int) -> int:
        """The rows before a row that its regression reads."""
        return max(self.lags, default=0) + self.differences + (season if self.seasonal else 0)


class Column(NamedTuple):
    """One column of a series.

    values: [T] float64, a missing one filled by the last known. known, segments: [T]; a lag does
    not reach into another segment when a form is fitted. floor: the least positive value that a
    logarithm is taken of.
    """

    values: np.ndarray
    known: np.ndarray
    segments: np.ndarray
    floor: float

    def transform(self, name: Transform) -> np.ndarray:
        """The values as `name` transforms them."""
        return apply_transform(name, self.values, self.floor)


class Average(NamedTuple):
    """Forms, their weights, and the season of their differences (1 if there is none)."""

    forms: tuple[Form, ...]
    weights: tuple[float, ...]
    season: int

    @property
    def best(self) -> Form:
        """The form with the best score."""
        return self.forms[0]


def apply_transform(name: Transform, values: np.ndarray, floor: float) -> np.ndarray:
    """The values, transformed; a logarithm is taken of `floor` at least."""
    return _TRANSFORMS[name][0](np.maximum(values, floor) if name == "log" else values)


def invert_transform(name: Transform, z: np.ndarray) -> np.ndarray:
    """The values whose transform is `z`."""
    return _TRANSFORMS[name][1](z)


def choose_average(
    column: Column,
    season: int,
    transforms: tuple[Transform, ...],
    stop: int,
    origins: np.ndarray,
    horizon: int,
) -> Average:
    """The forms to average, fitted to the rows before `stop` and scored on the forecasts from the
    rows `origins`: by the error one step ahead times that over the horizon."""
    scored: list[tuple[float, int, Form]] = []
    rows = origins + 1 + np.arange(horizon)[:, None]
    known = column.known[rows] & (column.segments[rows] == column.segments[origins])
    for form in _list_forms(season, transforms):
        weights = _fit(column, form, season, stop)
        if weights is None:
            continue
        forecasts = _forecast(column, form, season, weights, origins, horizon)
        squares = np.where(known, (forecasts - column.values[rows]) ** 2, np.nan)
        score = _score(squares) + 2 * len(form.lags) / stop
        if np.isfinite(score):
            scored.append((score, len(scored), form))
    scored.sort()
    scores = np.array([score for score, _, _ in scored])
    forms = tuple(form for _, _, form in scored)
    shares = (np.arange(len(forms)) < _AVERAGED).astype(float)
    kinds: dict[tuple[str, int, float], int] = {}
    for place, form in enumerate(forms):
        kinds.setdefault(form[:3], place)
    best = np.zeros(len(forms))
    best[list(kinds.values())] = np.exp(_SHARPNESS * (scores[0] - scores[list(kinds.values())]))
    weights = shares / shares.sum() + best / best.sum()
    used = weights > 0
    chosen = tuple(form for form, kept in zip(forms, used, strict=True) if kept)
    return Average(chosen, tuple((weights[used] / weights.sum()).tolist()), season)


def forecast_average(
    average: Average, column: Column, stop: int, origins: np.ndarray, horizon: int
) -> np.ndarray:
    """Forecasts [H, N] after the rows `origins` [N], of forms fitted to the rows before `stop`.

    Raises:
      InputError: there are too few rows to fit them to.
    """
    total = np.zeros((horizon, len(origins)))
    for form, share in zip(average.forms, average.weights, strict=True):
        weights = _fit(column, form, average.season, stop)
        if weights is None:
            raise InputError(f"{stop} rows are too few to fit {len(form.lags)} lags to")
        total += share * _forecast(column, form, average.season, weights, origins, horizon)
    return total


def difference(values: np.ndarray, form: Form, season: int) -> np.ndarray:
    """Transformed values [T] as the form's regression reads them; NaN where a row lacks those it is
    the difference from."""
    changes = _difference_once(values, form)
    return changes - _follow_season(changes, form, season)[: len(values)]


def _difference_once(values: np.ndarray, form: Form) -> np.ndarray:
    return np.concatenate([[np.nan], np.diff(values)]) if form.differences else values


def _follow_season(changes: np.ndarray, form: Form, season: int) -> np.ndarray:
    """What each row [T + season] is the difference from: its season's average so far."""
    if not form.seasonal:
        return np.zeros(len(changes) + season)
    own = changes[form.differences :]
    seasons = np.pad(own, (0, -len(own) % season)).reshape(-1, season)
    averages = [seasons[0]]
    for count, values in enumerate(seasons[1:], start=2):
        weight = max(form.seasonal, 1 / count)
        averages.append(averages[-1] + weight * (values - averages[-1]))
    unknown = np.full(season + form.differences, np.nan)
    return np.concatenate([unknown, *averages])[: len(changes) + season]


def _list_forms(season: int, transforms: tuple[Transform, ...]) -> list[Form]:
    forms = []
    for transform in transforms:
        for differences in (0, 1):
            for seasonal in (0.0, _FOLLOWING, 1.0) if season > 1 else (0.0,):
                lags = {tuple(range(1, order + 1)) for order in _ORDERS}
                if season > 1:
                    extra = {season, season + 1, 2 * season}
                    lags |= {tuple(sorted({*own, *extra})) for own in lags}
                forms += [Form(transform, differences, seasonal, own) for own in sorted(lags)]
    return forms


def _fit(column: Column, form: Form, season: int, stop: int) -> np.ndarray | None:
    """The weights of the lags and of a constant; None if there are too few rows for them."""
    series = difference(column.transform(form.transform), form, season)
    rows = np.arange(form.count_before(season), stop)
    whole = column.segments[rows] == column.segments[rows - form.count_before(season)]
    rows = rows[whole & column.known[rows]]
    if len(rows) < _ROWS_PER_WEIGHT * (len(form.lags) + 1) + 4:
        return None
    inputs = np.stack([series[rows - lag] for lag in form.lags] + [np.ones(len(rows))], axis=1)
    targets = series[rows]
    penalty = np.full(inputs.shape[1], _RIDGE * len(rows) * targets.var())
    penalty[-1] = 0.0
    normal = inputs.T @ inputs + np.diag(penalty)
    return np.linalg.lstsq(normal, inputs.T @ targets, rcond=None)[0]


def _forecast(
    column: Column,
    form: Form,
    season: int,
    weights: np.ndarray,
    origins: np.ndarray,
    horizon: int,
) -> np.ndarray:
    """Forecasts [H, N] in units; each is the next one's input."""
    values = column.transform(form.transform)
    changes = _difference_once(values, form)
    reference = np.nan_to_num(_follow_season(changes, form, season))
    series = np.nan_to_num(changes - reference[: len(values)])
    past = [series[np.maximum(origins - lag, 0)] for lag in range(max(form.lags, default=1))][::-1]
    ahead = [reference[origins + step] for step in range(1, min(season, horizon) + 1)]
    level = values[origins]
    forecasts = []
    for step in range(horizon):
        now = weights[-1] + sum(w * past[-lag] for w, lag in zip(weights, form.lags, strict=False))
        past.append(np.broadcast_to(now, origins.shape))
        now = now + ahead[step]
        ahead.append(ahead[step] + form.seasonal * (now - ahead[step]))
        level = level + now if form.differences else now
        forecasts.append(np.broadcast_to(level, origins.shape))
    with np.errstate(over="ignore"):
        return invert_transform(form.transform, np.stack(forecasts))


def _score(squares: np.ndarray) -> float:
    """The logarithm of the RMSE one step ahead times that over the horizon."""
    known = np.isfinite(squares)
    if not known[0].any():
        return np.inf
    with np.errstate(all="ignore"):
        return float(np.log(squares[0][known[0]].mean()) + np.log(squares[known].mean())) / 2

"""Ridge regression of a readout, from statistics gathered in one pass over a series."""

# Without `from __future__ import annotations`, for which pdoc cannot show the fields of NamedTuples
# (https://github.com/mitmproxy/pdoc/issues/765).
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn._checks import as_array, check_floating, check_mask, check_shape, check_size
from jaxrnn._types import Array, Params, State, accumulation_dtype
from jaxrnn.layers.contract import Layer, check_layer
from jaxrnn.layers.pointwise import DenseParams
from jaxrnn.params import vary_with
from jaxrnn.recurrence.chunks import scan_chunks
from jaxrnn.recurrence.reference import zero_masked


class Statistics(NamedTuple):
    """What a linear regression needs of its rows, [1, features, targets] of N numbers each."""

    factor: Array
    """[N, N]: the triangular factor R of the rows' QR decomposition, ``R^T R`` being the sum of
    their outer products. Unlike that sum it loses no digits of the rows."""

    num_rows: Array
    """The number of rows, [] floating-point."""


class Readout(NamedTuple):
    """A fitted linear readout."""

    params: DenseParams
    """For `jaxrnn.dense`: w [O, F] and b [O]."""

    penalty: Array
    """The penalty that it was fitted with, []."""

    errors: Array
    """The mean squared error of each penalty, [P], on the validation rows, or without such on those
    that the readout was fitted to."""


def init_statistics(num_features: int, num_targets: int, dtype: Any = jnp.float32) -> Statistics:
    """The statistics of no rows."""
    size = 1 + check_size("num_features", num_features) + check_size("num_targets", num_targets)
    dtype = accumulation_dtype(dtype)
    return Statistics(jnp.zeros((size, size), dtype), jnp.zeros((), dtype))


def add_rows(
    statistics: Statistics, features: Array, targets: Array, mask: Array | None = None
) -> Statistics:
    """`statistics` with the rows of features [*R, F] and targets [*R, O] whose mask [*R] is True.

    What stands in the other rows, NaN included, has no effect.
    """
    features, targets = as_array("features", features), as_array("targets", targets)
    check_floating("features", features)
    check_shape("targets", targets, (*features.shape[:-1], *targets.shape[-1:]))
    size = 1 + features.shape[-1] + targets.shape[-1]
    check_shape("statistics.factor", statistics.factor, (size, size))
    mask = check_mask("mask", mask, features.shape[:-1])
    dtype = statistics.factor.dtype
    ones = jnp.ones((*features.shape[:-1], 1), dtype)
    rows = jnp.concatenate([ones, features.astype(dtype), targets.astype(dtype)], axis=-1)
    rows = zero_masked(mask, rows).reshape(-1, size)
    factor = jnp.linalg.qr(jnp.concatenate([statistics.factor, rows]), mode="r")
    return Statistics(factor, statistics.num_rows + jnp.sum(rows[:, 0]))


def merge_statistics(parts: Statistics) -> Statistics:
    """One of many, whose leaves have a leading axis: what ``vmap``, ``jax.lax.all_gather`` and a
    ``shard_map`` over parts of the rows return."""
    size = parts.factor.shape[-1]
    check_shape("parts.factor", parts.factor, (*parts.num_rows.shape, size, size))
    factor = jnp.linalg.qr(parts.factor.reshape(-1, size), mode="r")
    return Statistics(factor, jnp.sum(parts.num_rows))


def gather_statistics(
    layer: Layer,
    params: Params,
    state: State,
    xs: Array,
    targets: Array,
    *,
    mask: Array | None = None,
    washout: int = 0,
    chunk_size: int | None = None,
    statistics: Statistics | None = None,
) -> tuple[State, Statistics]:
    """Run a layer over a series and gather the statistics of its outputs and the targets.

    One compiled pass over chunks of time: of the outputs, only one chunk is ever in memory.

    Args:
      layer: a causal layer.
      params, state: as in `layer.unroll`; a state of None means the initial state.
      xs: inputs [T, *B, D].
      targets: [T, *B, O].
      mask: as in `layer.unroll`; masked steps are not rows.
      washout: the first steps of this call that are no rows, since the state still depends on
        where it began.
      chunk_size: time steps per chunk, by default for four rows per number in a row.
      statistics: those of earlier calls, to be continued.

    Returns:
      (the last state, the statistics), in the result type of outputs and targets.
    """
    check_layer("layer", layer, causal=True)
    washout = check_size("washout", washout, at_least=0)
    xs, targets = as_array("xs", xs), as_array("targets", targets)
    check_floating("targets", targets)
    steps = xs.shape if layer.reads_tokens else xs.shape[:-1]
    check_shape("targets", targets, (*steps, *targets.shape[-1:]))
    mask = check_mask("mask", mask, targets.shape[:-1])
    after, ys = jax.eval_shape(layer.unroll, params, state, xs)
    if statistics is None:
        dtype = jnp.result_type(ys.dtype, targets.dtype)
        statistics = init_statistics(ys.shape[-1], targets.shape[-1], dtype)
    if chunk_size is None:
        rows_per_step = max(int(np.prod(targets.shape[1:-1])), 1)
        chunk_size = max(4 * statistics.factor.shape[0] // rows_per_step, 1)
    chunk_size = check_size("chunk_size", chunk_size)
    counted = jnp.broadcast_to(
        lax.expand_dims(jnp.arange(xs.shape[0]) >= washout, range(1, targets.ndim - 1)),
        targets.shape[:-1],
    )
    if state is None:
        state = layer.initial_state(params, targets.shape[1:-1])
    state = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), state, after)
    carry = vary_with((state, statistics), (params, xs, targets, mask))

    def run(carry: tuple[State, Statistics], chunk: Any) -> tuple[Any, None]:
        (state, statistics), ((xs, targets, mask, counted), _) = carry, chunk
        state, ys = layer.unroll(params, state, xs, mask=mask)
        rows = counted if mask is None else counted & mask
        return (state, add_rows(statistics, ys, targets, rows)), None

    chunks = (xs, targets, mask, counted)
    return scan_chunks(run, carry, chunks, chunk_size, reverse=False)[0]


def ridge_readout(
    statistics: Statistics,
    penalties: float | Sequence[float] | Array,
    num_targets: int,
    *,
    validation: Statistics | None = None,
) -> Readout:
    """The readout ``y = w x + b`` that minimises the sum over rows of ``|y - target|^2`` plus
    `penalties` times ``|w|^2``, without a penalty on b.

    Solved from the triangular factor, and not from sums of products, of which float32 has too few
    digits for small penalties.

    Args:
      statistics: of the rows to fit, as `gather_statistics` or `add_rows` returned them.
      penalties: one, or several [P], all above 0.
      num_targets: O, the last columns of the rows.
      validation: statistics of other rows, by which the penalty is chosen if there are several.

    Returns:
      The readout with the smallest error.
    """
    num_targets = check_size("num_targets", num_targets)
    # In NumPy, whose numbers are known in ``jit`` too.
    if not any(isinstance(each, jax.core.Tracer) for each in jax.tree.leaves(penalties)):
        known = np.atleast_1d(np.asarray(penalties))
        if not np.all(known > 0):
            raise ValueError(f"penalties is {known}, expected numbers above 0")
    penalties = jnp.atleast_1d(jnp.asarray(penalties, statistics.factor.dtype))
    if penalties.ndim != 1 or (penalties.shape[0] != 1 and validation is None):
        raise ValueError(
            f"penalties has shape {penalties.shape} with validation={validation}, expected one "
            "penalty, or several [P] with rows to choose by"
        )
    factor, size = statistics.factor, statistics.factor.shape[0]
    features = size - 1 - num_targets
    check_size("the number of features", features)
    if validation is not None:
        check_shape("validation.factor", validation.factor, factor.shape)
    # Behind the first row and column, R is that of the rows with their means subtracted.
    centred = factor[1 : features + 1, 1:]
    scored = statistics if validation is None else validation

    def fit(penalty: Array) -> tuple[Array, Array, Array]:
        ridge = jnp.sqrt(penalty) * jnp.eye(features, size - 1, dtype=factor.dtype)
        r = jnp.linalg.qr(jnp.concatenate([centred, ridge]), mode="r")
        w = jax.scipy.linalg.solve_triangular(r[:features, :features], r[:features, features:])
        b = (factor[0, features + 1 :] - factor[0, 1 : features + 1] @ w) / factor[0, 0]
        unit = jnp.eye(num_targets, dtype=factor.dtype)
        residual = scored.factor @ jnp.concatenate([b[None], w, -unit])
        return w, b, jnp.sum(residual**2) / (scored.num_rows * num_targets)

    ws, bs, errors = lax.map(fit, penalties)
    best = jnp.argmin(jnp.where(jnp.isnan(errors), jnp.inf, errors))
    return Readout(DenseParams(ws[best].T, bs[best]), penalties[best], errors)


def fit_readout(
    layer: Layer,
    params: Params,
    xs: Array,
    targets: Array,
    *,
    penalties: float | Sequence[float] | Array,
    validation: tuple[Array, Array] | None = None,
    state: State = None,
    washout: int = 0,
    mask: Array | None = None,
) -> tuple[State, Readout]:
    """Run a layer over inputs and targets and fit a readout of its outputs.

    `gather_statistics`, and then `ridge_readout`. The inputs and targets of `validation` follow on
    those that are fitted: the layer runs on from its last state.

    Returns:
      (the last state, behind the validation rows if there are such, and the readout).
    """
    state, rows = gather_statistics(layer, params, state, xs, targets, mask=mask, washout=washout)
    others = None
    if validation is not None:
        state, others = gather_statistics(layer, params, state, *validation)
    return state, ridge_readout(rows, penalties, targets.shape[-1], validation=others)

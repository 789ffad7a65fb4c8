"""Ragged and long sequences: lengths, masks, padding, packing, windows, masked means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._checks import as_array, check_bool, check_floating, check_size
from jaxrnn._types import Array, accumulation_dtype


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["xs", "resets", "mask"],
    meta_fields=["rows", "starts", "lengths"],
)
@dataclass(frozen=True, eq=False)
class PackedSequences:
    """Sequences laid end to end, in one row or in several of about the same length.

    A pytree of its arrays; the places of the sequences are static, and a jitted function is
    compiled anew for others.

    xs:      [T, *F], or [T, R, *F] in R rows.
    resets:  [T] or [T, R] bool, True at each sequence's first step.
    mask:    [T] or [T, R] bool, False only behind the end of the shorter rows.
    rows:    for each sequence, in the order given, its row; starts: its first step; lengths.
    """

    xs: Array
    resets: Array
    mask: Array
    rows: tuple[int, ...]
    starts: tuple[int, ...]
    lengths: tuple[int, ...]


def mask_from_lengths(lengths: Any, num_steps: int) -> Array:
    """The mask [T, *B] of right-padded sequences: True at the first `lengths` [*B] of T steps.

    Raises:
      ValueError: lengths that are not integers, or (where their values are known) below 0 or above
        `num_steps`.
    """
    num_steps = check_size("num_steps", num_steps, at_least=0)
    lengths = jnp.asarray(lengths) if isinstance(lengths, list | tuple) else lengths
    lengths = as_array("lengths", lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"lengths has dtype {lengths.dtype}, expected integers")
    if not isinstance(lengths, jax.core.Tracer) and lengths.size:
        known = np.asarray(lengths)  # NumPy, since jnp.min would be compiled
        low, high = int(known.min()), int(known.max())
        if low < 0 or high > num_steps:
            raise ValueError(f"lengths are {low} to {high}, expected 0 to num_steps = {num_steps}")
    steps = jnp.arange(num_steps).reshape((num_steps,) + (1,) * lengths.ndim)
    return steps < lengths[None].astype(steps.dtype)


def pad_sequences(sequences: Sequence[Any], *, num_steps: int | None = None) -> tuple[Array, Array]:
    """Pad sequences [T_i, *F] with zeros at the end.

    Args:
      sequences: at least one, of equal dtype and features; any may have length 0.
      num_steps: T, at least the longest length, which is the default. A fixed T spares compiling
        anew for every batch.

    Returns:
      (xs [T, N, *F], mask [T, N]).
    """
    arrays = _check_sequences(sequences)
    lengths = [len(a) for a in arrays]
    num_steps = (
        max(lengths) if num_steps is None else check_size("num_steps", num_steps, at_least=0)
    )
    if max(lengths) > num_steps:
        raise ValueError(f"num_steps is {num_steps}, expected at least {max(lengths)}, the longest")
    padded = np.zeros((num_steps, len(arrays), *arrays[0].shape[1:]), arrays[0].dtype)
    for position, array in enumerate(arrays):
        padded[: len(array), position] = array
    return jnp.asarray(padded), mask_from_lengths(np.asarray(lengths), num_steps)


def pack_sequences(sequences: Sequence[Any], *, num_rows: int | None = None) -> PackedSequences:
    """Lay sequences [T_i, *F] end to end, so that next to nothing is padded.

    Args:
      sequences: at least one, of equal dtype and features; any may have length 0.
      num_rows: None lays all in one row without a batch axis and without padding. A number R fills
        R rows, longest sequence first, each time the row that is shortest so far; only the ends of
        the shorter rows are padding.

    Returns:
      PackedSequences; give its `xs`, `resets` and `mask` to a layer, and the outputs to
      `unpack_sequences`.
    """
    arrays = _check_sequences(sequences)
    rows_given = 1 if num_rows is None else check_size("num_rows", num_rows)
    ends = [0] * rows_given
    rows, starts = [0] * len(arrays), [0] * len(arrays)
    order = list(range(len(arrays)))
    if num_rows is not None:
        order.sort(key=lambda position: -len(arrays[position]))
    for position in order:
        row = ends.index(min(ends))
        rows[position], starts[position] = row, ends[row]
        ends[row] += len(arrays[position])
    xs = np.zeros((max(ends), rows_given, *arrays[0].shape[1:]), arrays[0].dtype)
    resets = np.zeros(xs.shape[:2], bool)
    for array, row, start in zip(arrays, rows, starts, strict=True):
        xs[start : start + len(array), row] = array
        resets[start : start + 1, row] |= len(array) > 0
    mask = np.arange(max(ends))[:, None] < np.asarray(ends)[None]
    if num_rows is None:
        xs, resets, mask = xs[:, 0], resets[:, 0], mask[:, 0]
    lengths = tuple(len(a) for a in arrays)
    return PackedSequences(
        jnp.asarray(xs), jnp.asarray(resets), jnp.asarray(mask), tuple(rows), tuple(starts), lengths
    )


def unpack_sequences(ys: Array, packed: PackedSequences) -> list[Array]:
    """Cut outputs [T, *O] or [T, R, *O] of packed sequences into a list of [T_i, *O], in the order
    in which the sequences were given."""
    ys = as_array("ys", ys)
    if not isinstance(packed, PackedSequences):
        raise TypeError(f"packed is a {type(packed).__name__}, expected PackedSequences")
    layout = packed.resets.shape
    if ys.shape[: len(layout)] != layout:
        raise ValueError(f"ys has shape {ys.shape}, expected to start with {layout} as packed")
    pieces = zip(packed.rows, packed.starts, packed.lengths, strict=True)
    if len(layout) == 1:
        return [ys[start : start + length] for _, start, length in pieces]
    return [ys[start : start + length, row] for row, start, length in pieces]


def sliding_windows(series: Array, size: int, *, stride: int = 1) -> Array:
    """All windows of `size` steps of a long series [N, *F], `stride` apart.

    Returns:
      [size, W, *F], time-major with the windows as the batch; W = (N - size) // stride + 1.
    """
    series = as_array("series", series)
    size, stride = check_size("size", size), check_size("stride", stride)
    if series.ndim == 0 or series.shape[0] < size:
        raise ValueError(f"series has shape {series.shape}, expected at least size = {size} steps")
    starts = jnp.arange(0, series.shape[0] - size + 1, stride)
    return series[jnp.arange(size)[:, None] + starts[None, :]]


def masked_mean(values: Array, mask: Array | None = None) -> Array:
    """The mean of `values` [T, *B, ...] over the steps where `mask` [T, *B] is True, a scalar.

    Masked values are never read, NaN included. Where the mask holds no True, or there are no
    values, the mean is 0.
    """
    values = as_array("values", values)
    check_floating("values", values)
    if mask is None:
        return jnp.mean(values) if values.size else jnp.zeros((), values.dtype)
    mask = as_array("mask", mask)
    check_bool("mask", mask)
    if mask.shape != values.shape[: mask.ndim]:
        raise ValueError(
            f"mask has shape {mask.shape}, expected the leading axes of values, {values.shape}"
        )
    full = jnp.broadcast_to(
        mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values.shape
    )
    accumulator = accumulation_dtype(values.dtype)
    total = jnp.sum(jnp.where(full, values, jnp.zeros_like(values)), dtype=accumulator)
    count = jnp.maximum(jnp.sum(full), 1).astype(accumulator)
    return (total / count).astype(values.dtype)


def _check_sequences(sequences: Any) -> list[np.ndarray]:
    if not isinstance(sequences, list | tuple) or not sequences:
        raise ValueError(f"sequences is {sequences!r:.60}, expected a list of at least one array")
    arrays: list[np.ndarray] = []
    for position, sequence in enumerate(sequences):
        array = np.asarray(as_array(f"sequences[{position}]", sequence))
        if array.ndim == 0:
            raise ValueError(f"sequences[{position}] has shape (), expected [T, *F]")
        first = arrays[0] if arrays else array
        if (array.shape[1:], array.dtype) != (first.shape[1:], first.dtype):
            raise ValueError(
                f"sequences[{position}] has features {array.shape[1:]} of {array.dtype}, "
                f"expected {first.shape[1:]} of {first.dtype} as sequences[0]"
            )
        arrays.append(array)
    return arrays

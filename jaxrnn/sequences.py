"""Ragged and long sequences: lengths, masks, padding, packing, windows, masked means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._checks import as_array, check_bool, check_floating, check_key, check_size
from jaxrnn._types import Array, Key, accumulation_dtype


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["xs", "resets", "mask"],
    meta_fields=["rows", "starts", "lengths"],
)
@dataclass(frozen=True, eq=False)
class PackedSequences:
    """Sequences concatenated in time, in one row or in several of similar length.

    A pytree of the three arrays. The layout (rows, starts, lengths) is static: a jitted function is
    recompiled for every new layout.
    """

    xs: Array
    """[T, *F], or [T, R, *F] in R rows."""

    resets: Array
    """[T] or [T, R] bool: True at the first step of each sequence."""

    mask: Array
    """[T] or [T, R] bool: False in the padding that ends the shorter rows."""

    rows: tuple[int, ...]
    """The row of each sequence, in the order given."""

    starts: tuple[int, ...]
    """The first step of each sequence in its row."""

    lengths: tuple[int, ...]
    """The length of each sequence."""


def mask_from_lengths(lengths: Any, num_steps: int) -> Array:
    """The mask [T, *B] of right-padded sequences: True at the first `lengths` [*B] of T steps.

    Args:
      lengths: integers in [0, T]; an array, a list or an int.
      num_steps: T.

    Raises:
      ValueError: `lengths` are not integers, or (if they are not traced) out of range.
    """
    num_steps = check_size("num_steps", num_steps, at_least=0)
    lengths = jnp.asarray(lengths) if isinstance(lengths, list | tuple) else lengths
    lengths = as_array("lengths", lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"lengths has dtype {lengths.dtype}, expected integers")
    if not isinstance(lengths, jax.core.Tracer) and lengths.size:
        known = np.asarray(lengths)  # in NumPy, as jnp.min would be compiled
        low, high = int(known.min()), int(known.max())
        if low < 0 or high > num_steps:
            raise ValueError(f"lengths are {low} to {high}, expected 0 to num_steps = {num_steps}")
    steps = jnp.arange(num_steps).reshape((num_steps,) + (1,) * lengths.ndim)
    return steps < lengths[None].astype(steps.dtype)


def pad_sequences(sequences: Sequence[Any], *, num_steps: int | None = None) -> tuple[Array, Array]:
    """Pad sequences [T_i, *F] with zeros at the end.

    Args:
      sequences: at least one, with the same dtype and features; any may have length 0.
      num_steps: T, by default the greatest length. A fixed T avoids recompilation for every batch.

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
    """Concatenate sequences [T_i, *F] in time, with little or no padding.

    Args:
      sequences: at least one, with the same dtype and features; any may have length 0.
      num_rows: None makes one row, without a batch axis and without padding. A number R makes R
        rows: each sequence, the longest first, is appended to the row that is shortest so far, and
        only the ends of the shorter rows are padded.

    Returns:
      PackedSequences. Pass its `xs`, `resets` and `mask` to a layer, and the outputs to
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
    """Split the outputs of packed sequences into those of each sequence.

    Args:
      ys: [T, *O] or [T, R, *O].
      packed: the PackedSequences whose outputs `ys` are.

    Returns:
      A list of arrays [T_i, *O], in the order in which the sequences were given.
    """
    ys = as_array("ys", ys)
    if not isinstance(packed, PackedSequences):
        raise TypeError(f"packed is a {type(packed).__name__}, expected PackedSequences")
    layout = packed.resets.shape
    if ys.shape[: len(layout)] != layout:
        raise ValueError(f"ys has shape {ys.shape}, expected to start with {layout} as packed")
    places = zip(packed.rows, packed.starts, packed.lengths, strict=True)
    if len(layout) == 1:
        return [ys[start : start + length] for _, start, length in places]
    return [ys[start : start + length, row] for row, start, length in places]


def sliding_windows(series: Array, size: int, *, stride: int = 1) -> Array:
    """All windows of `size` steps in a series [N, *F], starting every `stride` steps.

    Returns:
      [size, W, *F], time-major with the windows as the batch; W = (N - size) // stride + 1.
    """
    series = as_array("series", series)
    size, stride = check_size("size", size), check_size("stride", stride)
    if series.ndim == 0 or series.shape[0] < size:
        raise ValueError(f"series has shape {series.shape}, expected at least size = {size} steps")
    starts = jnp.arange(0, series.shape[0] - size + 1, stride)
    return series[jnp.arange(size)[:, None] + starts[None, :]]


def random_windows(key: Key, series: Any, size: int, count: int) -> Any:
    """`count` windows of `size` steps of a series, whose starts are independent and uniform.

    For ``make_batch`` of `jaxrnn.fit`:

        def make_batch(key, step):
            return jaxrnn.random_windows(key, (xs, targets), 200, 32)

    Args:
      key: draws the starts.
      series: [N, *F], or a pytree of such with the same N, whose windows begin together.
      size, count: both at least 1.

    Returns:
      [size, count, *F] for each array of the series: time-major, with the windows as the batch.
    """
    check_key("key", key)
    size, count = check_size("size", size), check_size("count", count)
    leaves = [as_array("series", leaf) for leaf in jax.tree.leaves(series)]
    lengths = {leaf.shape[:1] for leaf in leaves}
    if len(lengths) != 1 or min(lengths) < (size,):
        shapes = [leaf.shape for leaf in leaves]
        raise ValueError(
            f"series has shapes {shapes}, expected the same number of steps, at least size = {size}"
        )
    starts = jax.random.randint(key, (count,), 0, leaves[0].shape[0] - size + 1)
    steps = jnp.arange(size)[:, None] + starts[None, :]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[steps], series)


def masked_mean(
    values: Array, mask: Array | None = None, *, axis: int | tuple[int, ...] | None = None
) -> Array:
    """The mean of `values` [T, *B, ...] where `mask` [T, *B] is True.

    Masked values, NaN included, affect neither the mean nor its gradient. The mean of no values is
    0.

    Args:
      values: floating-point, of any shape.
      mask: bool, over the leading axes of `values`; None masks nothing.
      axis: the axes of `values` to average over, as in ``jnp.mean``; all by default.

    Returns:
      `values` without the axes averaged over, in its dtype. 16-bit values are summed in float32.
    """
    values = as_array("values", values)
    check_floating("values", values)
    mask = jnp.ones_like(values, bool) if mask is None else as_array("mask", mask)
    check_bool("mask", mask)
    if mask.shape != values.shape[: mask.ndim]:
        raise ValueError(
            f"mask has shape {mask.shape}, expected the leading axes of values, {values.shape}"
        )
    mask = jnp.broadcast_to(
        mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values.shape
    )
    dtype = accumulation_dtype(values.dtype)
    total = jnp.sum(jnp.where(mask, values, jnp.zeros_like(values)), axis=axis, dtype=dtype)
    count = jnp.maximum(jnp.sum(mask, axis=axis), 1).astype(dtype)
    return (total / count).astype(values.dtype)


def last_valid(values: Array, mask: Array | None = None) -> Array:
    """The value at the last step that the mask does not skip, of each sequence: [*B, ...].

    With ``masked_mean(ys, mask, axis=0)`` what a sequence's label is read from. Other steps, NaN
    included, affect neither the value nor the gradient. A sequence without a step gives 0.

    Args:
      values: [T, *B, ...], such as a layer's outputs.
      mask: [T, *B] bool, any pattern; None masks nothing.
    """
    values = as_array("values", values)
    if values.ndim == 0:
        raise ValueError("values has shape (), expected [T, *B, ...]")
    mask = jnp.ones(values.shape[:1], bool) if mask is None else as_array("mask", mask)
    check_bool("mask", mask)
    if mask.ndim == 0 or mask.shape != values.shape[: mask.ndim]:
        raise ValueError(
            f"mask has shape {mask.shape}, expected the leading axes of values, {values.shape}"
        )
    steps = jnp.arange(1, len(mask) + 1).reshape(-1, *[1] * (mask.ndim - 1))
    steps = jnp.where(mask, jnp.broadcast_to(steps, mask.shape), 0)
    last = mask & (steps == jnp.broadcast_to(jnp.max(steps, axis=0, initial=0), mask.shape))
    last = jnp.broadcast_to(
        last.reshape(last.shape + (1,) * (values.ndim - mask.ndim)), values.shape
    )
    return jnp.sum(jnp.where(last, values, jnp.zeros_like(values)), axis=0, dtype=values.dtype)


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

"""Long matrix products whose entries neither overflow nor underflow.

A vector, or each row of a matrix, is stored as ordinary numbers times a power of two with an
integer exponent. Scaling by powers of two does not round, and integers carry no derivative, so that
results remain exactly differentiable.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn._types import Array
from jaxrnn.params import vary_with

_MAX_SWEEPS = 40  # far more than Jacobi's method needs: it converges quadratically


class Scaled(NamedTuple):
    """``values * 2**exponent``; the exponent is an int32, one for all values or one per row."""

    values: Array
    exponent: Array


def rescale(values: Array, exponent: Array) -> Scaled:
    """The same number with the largest absolute value in [1/2, 1). Zero keeps its exponent."""
    axes = tuple(range(exponent.ndim, values.ndim))
    largest = lax.stop_gradient(jnp.max(jnp.abs(values), axis=axes))
    limit = -int(jnp.finfo(values.dtype).minexp)
    shift = jnp.clip(_frexp(largest)[1], -limit, limit)
    return Scaled(
        values * _power_of_two(-shift, values)[(..., *(None,) * len(axes))], exponent + shift
    )


def align(first: Scaled, second: Scaled) -> tuple[Array, Array, Array]:
    """The values of two numbers at a common exponent, the larger one, and this exponent."""
    lowest = jnp.iinfo(jnp.int32).min
    exponents = [jnp.where(jnp.any(a.values != 0), a.exponent, lowest) for a in (first, second)]
    top = jnp.maximum(*exponents)
    top = jnp.where(top == lowest, jnp.maximum(first.exponent, second.exponent), top)
    one, other = (a.values * _power_of_two(a.exponent - top, a.values) for a in (first, second))
    return one, other, top


def log_norm(scaled: Scaled) -> Array:
    """The logarithm of the Euclidean norm of a vector; its derivative is 0 where it is -inf."""
    square = jnp.sum(scaled.values**2)
    return _log_of_square(square, scaled.exponent)


def log_spectral_norm(scaled: Scaled) -> Array:
    """The logarithm of the largest singular value of a square matrix A, differentiable.

    A right singular vector v is found from ``(A^T A)^p``, p = 2^60, by repeated squaring. |A v| is
    then the singular value up to a factor of N^(1/p), and its derivative with v held constant is
    that of the singular value. (If the largest singular value is repeated, one of its copies is
    differentiated.)
    """
    matrix = lax.stop_gradient(scaled.values)

    def square(_: int, power: Array) -> Array:
        power = power @ power
        largest = jnp.max(jnp.diagonal(power))
        return power / jnp.where(largest == 0, jnp.ones_like(largest), largest)

    power = lax.fori_loop(0, 60, square, matrix.T @ matrix)
    v = power[:, jnp.argmax(jnp.diagonal(power))]
    largest = jnp.max(jnp.abs(v))
    v = v / jnp.where(largest == 0, jnp.ones_like(largest), largest)
    stretched = jnp.sum((scaled.values @ v) ** 2) / jnp.maximum(jnp.sum(v**2), 1)
    return _log_of_square(stretched, scaled.exponent)


def orthogonalize(columns: Array) -> tuple[Array, Array]:
    """``columns = q r`` for `columns` [N, M]: q [N, M] orthonormal, r [M, M] upper triangular.

    Gram-Schmidt with every column orthogonalised twice. It uses matrix products alone, because
    batched LAPACK factorisations that run concurrently in one program can deadlock (see
    `jaxrnn.initializers.orthogonal`). A column of which at most 4 sqrt(N) eps remains counts as
    dependent on the preceding ones: its q and its diagonal entry of r are 0.
    """
    size, count = columns.shape
    epsilon = 4 * math.sqrt(size) * float(jnp.finfo(columns.dtype).eps)
    largest = jnp.max(jnp.abs(columns), axis=0)
    largest = jnp.where(largest == 0, jnp.ones_like(largest), largest)
    columns = columns / largest[None, :]
    lengths = jnp.linalg.norm(columns, axis=0)

    def add(j: Array, done: tuple[Array, Array]) -> tuple[Array, Array]:
        q, r = done
        first = columns[:, j] @ q
        rest = columns[:, j] - q @ first
        second = rest @ q
        rest = rest - q @ second
        length = jnp.linalg.norm(rest)
        dependent = length <= epsilon * lengths[j]
        unit = jnp.where(dependent, 0, rest / jnp.where(dependent, 1, length))
        entry = jnp.where(dependent, 0, length)
        return q.at[:, j].set(unit), r.at[:, j].set((first + second).at[j].set(entry))

    start = jnp.zeros((size, count), columns.dtype), jnp.zeros((count, count), columns.dtype)
    q, r = lax.fori_loop(0, count, add, vary_with(start, columns))
    return q, r * largest[None, :]


def multiply_rows(matrix: Array, rows: Scaled) -> Scaled:
    """``matrix @ rows``, for a matrix [M, N] and rows [N, K] with one exponent per row."""
    left = rescale(matrix, jnp.zeros(matrix.shape[:1], jnp.int32))
    mantissa, shift = _frexp(left.values)
    exponents = shift + rows.exponent[None, :]
    lowest = jnp.iinfo(jnp.int32).min
    nonzero = (mantissa != 0) & jnp.any(rows.values != 0, axis=1)[None, :]
    top = jnp.max(jnp.where(nonzero, exponents, lowest), axis=1)
    top = jnp.where(top == lowest, jnp.zeros_like(top), top)
    shifts = jnp.where(nonzero, exponents - top[:, None], 0)
    weights = jnp.where(nonzero, mantissa * _power_of_two(shifts, matrix), 0)
    return rescale(weights @ rows.values, left.exponent + top)


def log_singular_values(rows: Scaled) -> Array:
    """The logarithms of the singular values, descending, of a matrix [N, K] scaled row by row.

    One-sided Jacobi: pairs of rows are rotated until all rows are orthogonal; their norms are then
    the singular values. For two rows of very different norms, the rotation is a Gram-Schmidt step
    on the smaller one. Each singular value has a small relative error provided that the rows,
    scaled to unit length, are well conditioned.

    Source: Demmel & Veselic 1992, "Jacobi's method is more accurate than QR".
    """
    count = rows.values.shape[0]
    if count % 2:
        rows = Scaled(jnp.pad(rows.values, ((0, 1), (0, 0))), jnp.pad(rows.exponent, (0, 1)))
    schedule = jnp.asarray(_round_robin(count + count % 2))
    tolerance = math.sqrt(count) * float(jnp.finfo(rows.values.dtype).eps)

    def rotate(rows: Scaled, pairs: Array) -> tuple[Scaled, Array]:
        first, second = (jax.tree.map(lambda leaf, at=at: leaf[at], rows) for at in pairs)
        first, second, cosine = jax.vmap(_rotate_pair)(first, second)
        return Scaled(
            *(
                leaf.at[pairs[0]].set(one).at[pairs[1]].set(other)
                for leaf, one, other in zip(rows, first, second, strict=True)
            )
        ), jnp.max(cosine)

    def sweep(carry: tuple[Scaled, Array, Array]) -> tuple[Scaled, Array, Array]:
        rows, cosines = lax.scan(rotate, carry[0], schedule)
        return rows, jnp.max(cosines), carry[2] + 1

    def unfinished(carry: tuple[Scaled, Array, Array]) -> Array:
        return (carry[1] > tolerance) & (carry[2] < _MAX_SWEEPS)

    start = rescale(*rows), jnp.full((), jnp.inf, rows.values.dtype), jnp.zeros((), jnp.int32)
    rows, _, _ = lax.while_loop(unfinished, sweep, vary_with(start, rows))
    return -jnp.sort(-jax.vmap(log_norm)(rows))[:count]


def _rotate_pair(first: Scaled, second: Scaled) -> tuple[Scaled, Scaled, Array]:
    """Rotate two rows until they are orthogonal; also return the cosine between them before."""
    swap = jax.vmap(log_norm)(Scaled(*map(jnp.stack, zip(first, second, strict=True))))
    swap = swap[1] > swap[0]
    large, small = (
        jax.tree.map(lambda one, other, s=s: jnp.where(s, one, other), second, first)
        for s in (swap, ~swap)
    )
    norms = jnp.linalg.norm(large.values), jnp.linalg.norm(small.values)
    safe = [jnp.where(norm == 0, jnp.ones_like(norm), norm) for norm in norms]
    u, v = large.values / safe[0], small.values / safe[1]
    cosine = u @ v
    shift = jnp.where(norms[1] == 0, 0, small.exponent - large.exponent)
    ratio = jnp.minimum(norms[1] / safe[0] * _power_of_two(shift, u), 1)
    # tangent / ratio, which remains finite where the ratio underflows
    gap = 1 - ratio**2
    below = gap + jnp.sqrt(gap**2 + (2 * ratio * cosine) ** 2)
    tangent = -2 * cosine / jnp.where(below == 0, jnp.ones_like(below), below)
    scale = lax.rsqrt(1 + (ratio * tangent) ** 2)
    large = rescale(safe[0] * scale * (u - ratio**2 * tangent * v), large.exponent)
    small = rescale(safe[1] * scale * (v + tangent * u), small.exponent)
    pair = [
        jax.tree.map(lambda one, other, s=s: jnp.where(s, one, other), small, large)
        for s in (swap, ~swap)
    ]
    return pair[0], pair[1], jnp.abs(cosine)


def _round_robin(count: int) -> np.ndarray:
    """Rounds that pair each of an even `count` with every other once: [rounds, 2, count / 2]."""
    seats = np.arange(count)
    rounds = []
    for _ in range(count - 1):
        rounds.append([seats[: count // 2], seats[: count // 2 - 1 : -1]])
        seats = np.concatenate([seats[:1], seats[-1:], seats[1:-1]])
    return np.array(rounds, np.int32)


def _frexp(x: Array) -> tuple[Array, Array]:
    """``jnp.frexp``, which in jax 0.12 loses the axes that `x` varies over in ``jax.shard_map``.

    As there, what is below the normal range becomes 0. What is not finite has exponent 0. Selects
    between no constants, which fails under ``vmap`` on an explicit mesh in jax 0.10.0."""
    info = jnp.finfo(x.dtype)
    bias = 1 - int(info.minexp)
    bits = lax.bitcast_convert_type(x, jnp.int64 if info.bits == 64 else jnp.int32)
    biased = (bits >> info.nmant) & (2 * bias + 1)
    exponent = biased - (bias - 1)
    mantissa = lax.bitcast_convert_type(bits - (exponent << info.nmant), x.dtype)
    normal, finite = biased != 0, jnp.isfinite(x)
    exponent = exponent * (normal & finite).astype(bits.dtype)
    return jnp.where(finite, mantissa * normal.astype(x.dtype), x), exponent.astype(jnp.int32)


def _power_of_two(exponent: Array, like: Array) -> Array:
    """2**exponent, exact, in the dtype of `like`: below its range 0, above it the largest power."""
    info = jnp.finfo(like.dtype)
    bias = 1 - int(info.minexp)
    whole = jnp.int64 if info.bits == 64 else jnp.int32
    biased = jnp.clip(exponent + bias, 0, 2 * bias).astype(whole)
    return lax.bitcast_convert_type(biased << info.nmant, like.dtype)


def _log_of_square(square: Array, exponent: Array) -> Array:
    """``log(sqrt(square) * 2**exponent)``; where `square` is 0, -inf with a derivative of 0."""
    zero = square == 0
    log = jnp.log(jnp.where(zero, jnp.ones_like(square), square)) / 2
    log = log + exponent.astype(log.dtype) * math.log(2)
    return jnp.where(zero, -jnp.inf, log)

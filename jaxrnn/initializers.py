"""Initializers for the recurrent matrix, in the protocol of ``jax.nn.initializers``.

Each function returns an initializer ``(key, shape, dtype=float32) -> array`` (`fixed_fan_in`: a
`jaxrnn.FixedFanIn`). Its argument may be a
traced scalar, so that ``vmap`` draws networks with many gains or radii. For the input matrix, use
``jax.nn.initializers``: `jaxrnn.init_rnn` calls them with the shape ``(D, H)`` that they expect.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn._checks import (
    check_floating_dtype,
    check_fraction,
    check_function,
    check_positive,
    check_size,
)
from jaxrnn._types import Array, Initializer, Key, Shape, accumulation_dtype
from jaxrnn.matrices import FixedFanIn


def orthogonal(gain: float | Array = 1.0) -> Initializer:
    """A random orthogonal matrix times `gain`; with gain 1 it preserves norms.

    The default for the recurrent matrix, as in flax and Keras. Uniformly distributed over the
    orthogonal group, as a product of H - 1 reflections (Stewart 1980, "The efficient generation of
    random orthogonal matrices", theorem 3.3). QR is avoided because batched factorisations that run
    concurrently in one CPU program, as those of several layers do when ``init`` is mapped over
    seeds, can deadlock (jaxlib 0.10.2). Dtypes below float32 are drawn in float32 and rounded.

    Source: Saxe, McClelland & Ganguli 2014, "Exact solutions to the nonlinear dynamics of learning
    in deep linear neural networks", section 3.
    """
    gain = check_positive("gain", gain)

    def init(key: Key, shape: Shape, dtype: Any = jnp.float32) -> Array:
        _check_square(shape)
        dtype = check_floating_dtype("dtype", dtype)
        size = shape[0]
        gaussian = jax.random.normal(key, shape, accumulation_dtype(dtype))

        def reflect(k: Array, q: Array) -> Array:
            column = jnp.where(jnp.arange(size) >= k, gaussian[:, k], jnp.zeros_like(gaussian[0]))
            length = jnp.linalg.norm(column)
            normal = column.at[k].add(jnp.where(column[k] < 0, -length, length))
            return q - jnp.outer(q @ normal, normal) * (2 / (normal @ normal))

        q = lax.fori_loop(0, size - 1, reflect, jnp.eye(size, dtype=gaussian.dtype))
        signs = jnp.where(jnp.diagonal(gaussian) < 0, -1.0, 1.0).at[:-1].multiply(-1)
        return (jnp.asarray(gain, q.dtype) * q * signs.astype(q.dtype)[None, :]).astype(dtype)

    return init


def identity(gain: float | Array = 1.0) -> Initializer:
    """The identity matrix times `gain`; with relu, the IRNN.

    Source: Le, Jaitly & Hinton 2015, "A simple way to initialize recurrent networks of rectified
    linear units", section 3.
    """
    gain = check_positive("gain", gain)

    def init(key: Key, shape: Shape, dtype: Any = jnp.float32) -> Array:
        del key
        _check_square(shape)
        dtype = check_floating_dtype("dtype", dtype)
        return jnp.asarray(gain, dtype) * jnp.eye(shape[0], dtype=dtype)

    return init


def scaled_spectral_radius(radius: float | Array) -> Initializer:
    """A random normal matrix, scaled so that its largest absolute eigenvalue is `radius`.

    With a radius below 1 the state is forgotten; above 1 it can grow. The eigenvalue is computed by
    Gelfand's formula, ``lim ||W^k||^(1/k)``, with ``k = 2^24`` by squaring 24 times. This consists
    of matrix products alone, which run on every device and batch under ``vmap``. The relative error
    in float32 is about 1e-5.

    Source: Jaeger 2001, "The echo state approach to analysing and training recurrent neural
    networks", section 3.
    """
    radius = check_positive("radius", radius)

    def init(key: Key, shape: Shape, dtype: Any = jnp.float32) -> Array:
        _check_square(shape)
        dtype = check_floating_dtype("dtype", dtype)
        w = jax.random.normal(key, shape, accumulation_dtype(dtype))
        return _scale_to_radius(w, jnp.asarray(radius, w.dtype)).astype(dtype)

    return init


def with_spectral_radius(radius: float | Array, init: Initializer) -> Initializer:
    """What `init` draws, scaled so that its largest absolute eigenvalue is `radius`, as in
    `scaled_spectral_radius`. A matrix whose powers vanish is left as it is. That of a
    `jaxrnn.FixedFanIn` is found by 1,000 products with a vector, to about 1 %."""
    radius = check_positive("radius", radius)
    check_function("init", init)

    def scaled(key: Key, shape: Shape, dtype: Any = jnp.float32) -> Any:
        _check_square(shape)
        dtype = check_floating_dtype("dtype", dtype)
        w: Any = init(key, shape, accumulation_dtype(dtype))
        if isinstance(w, FixedFanIn):
            own = _growth_rate(w)
            scale = jnp.where(own > 0, radius / jnp.where(own > 0, own, 1), 1)
            return w._replace(values=(w.values * scale).astype(dtype))
        return _scale_to_radius(w, jnp.asarray(radius, w.dtype)).astype(dtype)

    return scaled


def sparse(density: float | Array, init: Initializer) -> Initializer:
    """What `init` draws, with each entry kept with probability `density`, and those divided by
    ``sqrt(density)``, so that the variance of the sum of a unit's inputs remains."""
    density = check_positive("density", density)
    check_function("init", init)
    if isinstance(density, float) and density > 1:
        raise ValueError(f"density is {density}, expected a number above 0 and at most 1")

    def thinned(key: Key, shape: Shape, dtype: Any = jnp.float32) -> Array:
        key_init, key_kept = jax.random.split(key)
        w = init(key_init, shape, dtype)
        kept = jax.random.bernoulli(key_kept, density, shape)
        return jnp.where(kept, w / jnp.sqrt(jnp.asarray(density, w.dtype)), jnp.zeros_like(w))

    return thinned


def fixed_fan_in(fan_in: int) -> Callable[..., Any]:
    """A `jaxrnn.FixedFanIn`: each unit has `fan_in` different inputs, drawn uniformly, with
    independent normal weights of standard deviation ``1 / sqrt(fan_in)``.

    The spectral radius tends to 1 as H grows; see `with_spectral_radius`. Of `fan_in` equal parts
    of the units, each has one input of every unit in it.
    """
    fan_in = check_size("fan_in", fan_in)

    def init(key: Key, shape: Shape, dtype: Any = jnp.float32) -> FixedFanIn:
        _check_square(shape)
        units = shape[0]
        if fan_in > units:
            raise ValueError(f"fan_in is {fan_in}, expected at most {units}, the number of units")
        dtype = check_floating_dtype("dtype", dtype)
        key_values, key_indices = jax.random.split(key)
        values = jax.random.normal(key_values, (units, fan_in), dtype) / math.sqrt(fan_in)
        edges = np.arange(fan_in + 1) * units // fan_in
        starts, ends = (jnp.asarray(edge, jnp.int32)[None] for edge in (edges[:-1], edges[1:]))
        indices = jax.random.randint(key_indices, (units, fan_in), starts, ends, jnp.int32)
        return FixedFanIn(values, indices)

    return init


def ring(weight: float | Array = 0.9) -> Initializer:
    """Units in a ring: unit i has `weight` times unit i - 1 as its input, and no other.

    Its powers are those of a shift; the spectral radius is `weight`. Source: Rodan & Tino 2011,
    "Minimum complexity echo state network", "simple cycle reservoir".
    """
    weight = check_positive("weight", weight)

    def init(key: Key, shape: Shape, dtype: Any = jnp.float32) -> Array:
        _check_square(shape)
        dtype = check_floating_dtype("dtype", dtype)
        return jnp.roll(jnp.eye(shape[0], dtype=dtype), 1, axis=0) * jnp.asarray(weight, dtype)

    return init


def dale(fraction: float, init: Initializer) -> Initializer:
    """Excitatory and inhibitory units: a matrix whose columns have one sign each.

    The first ``round(fraction * H)`` columns are at least 0 and the others at most 0, with the
    absolute values of what `init` draws; inhibition is scaled so that it balances excitation in the
    sum, and then everything so that the spectral radius remains.

    Source: Song, Yang & Wang 2016, "Training excitatory-inhibitory recurrent neural networks for
    cognitive tasks: a simple and flexible framework", "Initialization".
    """
    check_positive("fraction", fraction)
    check_fraction("fraction", fraction)
    check_function("init", init)

    def signed(key: Key, shape: Shape, dtype: Any = jnp.float32) -> Array:
        _check_square(shape)
        dtype = check_floating_dtype("dtype", dtype)
        w = init(key, shape, accumulation_dtype(dtype))
        signs = jnp.where(jnp.arange(shape[0]) < round(fraction * shape[0]), 1.0, -1.0)
        return balance(w, signs).astype(dtype)

    return signed


def balance(w: Array, signs: Any) -> Array:
    """The absolute values of `w` [H, H] with the sign of each column, inhibition scaled so that it
    balances excitation in the sum, and everything so that the spectral radius remains."""
    dtype, w = w.dtype, w.astype(accumulation_dtype(w.dtype))
    signs = jnp.asarray(signs, w.dtype)
    sizes = jnp.abs(w)
    sums = jnp.sum(sizes, axis=0)
    excitation, inhibition = (jnp.sum(jnp.where(signs == s, sums, 0)) for s in (1, -1))
    both = (excitation > 0) & (inhibition > 0)
    ratio = jnp.where(both, excitation / jnp.where(both, inhibition, 1), 1)
    scales = jnp.where(signs > 0, 1, -ratio)
    signed = sizes * jnp.broadcast_to(scales, w.shape)
    return _scale_to_radius(signed, spectral_radius(w)).astype(dtype)


def spectral_radius(w: Array) -> Array:
    """The largest absolute eigenvalue of a matrix; 0 for one whose powers vanish."""
    return _largest_absolute_eigenvalue(w.astype(accumulation_dtype(w.dtype))).astype(w.dtype)


def normal(stddev: float | Array | None = None) -> Initializer:
    """Independent normal entries of standard deviation `stddev`, by default 1/sqrt(H).

    With the default, the spectral radius tends to 1 as H grows (Girko's circular law).
    """
    stddev = None if stddev is None else check_positive("stddev", stddev)

    def init(key: Key, shape: Shape, dtype: Any = jnp.float32) -> Array:
        dtype = check_floating_dtype("dtype", dtype)
        scale = _one_over_sqrt_units(shape) if stddev is None else stddev
        return jnp.asarray(scale, dtype) * jax.random.normal(key, shape, dtype)

    return init


def uniform(bound: float | Array | None = None) -> Initializer:
    """Independent uniform entries in [-bound, bound), by default with a bound of 1/sqrt(H).

    The default of ``torch.nn.RNN`` for the recurrent matrix.
    """
    bound = None if bound is None else check_positive("bound", bound)

    def init(key: Key, shape: Shape, dtype: Any = jnp.float32) -> Array:
        dtype = check_floating_dtype("dtype", dtype)
        limit = _one_over_sqrt_units(shape) if bound is None else bound
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def _check_square(shape: Shape) -> None:
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"shape is {tuple(shape)}, expected a square matrix (H, H)")


def _one_over_sqrt_units(shape: Shape) -> float:
    if not shape:
        raise ValueError(f"shape is {shape}, expected a matrix (H, H)")
    return 1 / math.sqrt(shape[-1])


def _scale_to_radius(w: Array, radius: Array) -> Array:
    own = _largest_absolute_eigenvalue(w)
    return w * jnp.where(own > 0, radius / jnp.where(own > 0, own, 1), 1)


def _largest_absolute_eigenvalue(w: Array, squarings: int = 24) -> Array:
    """Gelfand's formula. After each squaring the norm is divided out and added as a logarithm."""

    def square(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        power, log_norm = carry  # W^k = exp(log_norm) * power
        squared = power @ power
        norm = jnp.linalg.norm(squared)
        return (divide(squared, norm), 2 * log_norm + jnp.log(norm)), None

    def divide(power: Array, norm: Array) -> Array:
        return power / jnp.where(norm > 0, norm, 1)

    norm = jnp.linalg.norm(w)
    (_, log_norm), _ = lax.scan(square, (divide(w, norm), jnp.log(norm)), length=squarings)
    return jnp.exp(log_norm / 2**squarings)


def _growth_rate(w: FixedFanIn, steps: int = 500) -> Array:
    """The factor per product by which the norm of a vector grows, after as many products again."""

    def advance(v: Array, _: None) -> tuple[Array, Array]:
        v = w.multiply(v)
        norm = jnp.linalg.norm(v)
        return v / jnp.where(norm > 0, norm, 1), norm

    start = w.zeros() + 1 / math.sqrt(w.values.shape[0])
    _, norms = lax.scan(advance, start, length=2 * steps)
    return jnp.exp(jnp.mean(jnp.log(norms[steps:])))

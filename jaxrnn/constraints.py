"""Recurrent matrices under constraints, kept by construction while the network trains.

A `Constraint` computes a layer's parameters from free ones, which any optimizer may change in any
way. `jaxrnn.constrained` puts it around a layer, and `compose` joins several. A constraint acts on
every `RNNParams` within the parameters, of a single layer, a stack or any other.

A network of 100 leaky units with noise, of which 80 excite and 20 inhibit all others:

    signs = jnp.where(jnp.arange(100) < 80, 1, -1)
    rnn = jaxrnn.vanilla_rnn(8, 100, activation=jax.nn.relu, leak=0.2, noise=0.05)
    net = jaxrnn.constrained(rnn, jaxrnn.constraints.dale(signs))
    free = net.init(jax.random.key(0))
    h, hs = net.unroll(free, None, jnp.ones((50, 16, 8)), key=jax.random.key(1))

What takes a network's own parameters (`jaxrnn.interop`, `jaxrnn.diagnostics`, `jaxrnn.generate`)
takes the layer without its constraint, and ``constraint.apply(free)``.
"""

# Without `from __future__ import annotations`, for which pdoc cannot show the fields of NamedTuples
# (https://github.com/mitmproxy/pdoc/issues/765).
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn import initializers
from jaxrnn._checks import (
    as_given,
    check_bool,
    check_fraction,
    check_function,
    check_shape,
    check_size,
)
from jaxrnn._products import product
from jaxrnn._types import Array, Key, Params, accumulation_dtype
from jaxrnn.matrices import LowRank, as_dense
from jaxrnn.params import RNNParams, split_key


class Constraint(NamedTuple):
    """A record of pure functions."""

    init: Callable[[Key, Params], Params]
    """``(key, params) -> free``: free parameters whose `apply` are near `params`, the layer's own
    initial ones, and within the constraint."""

    apply: Callable[..., Params]
    """``(free, *, key=None) -> params``; the key draws what is random in training, and without it
    nothing is drawn."""


def compose(*constraints: Constraint) -> Constraint:
    """Several constraints; `apply` begins with the first one.

    Later ones see what earlier ones make, so that the last holds in any case: a sign and a zero
    hold in either order.
    """
    if not constraints:
        raise ValueError("constraints is empty, expected at least one")
    for position, constraint in enumerate(constraints):
        check_constraint(f"constraints[{position}]", constraint)

    def init(key: Key, params: Params) -> Params:
        keys = jax.random.split(key, len(constraints))
        for constraint, k in zip(reversed(constraints), keys, strict=True):
            params = constraint.init(k, params)
        return params

    def apply(free: Params, *, key: Key | None = None) -> Params:
        for constraint, k in zip(constraints, split_key(key, len(constraints)), strict=True):
            free = constraint.apply(free, key=k)
        return free

    return Constraint(init, apply)


def on_recurrent(
    init: Callable[[Key, Array], Any], apply: Callable[[Any, Key | None], Any]
) -> Constraint:
    """A constraint on W alone, of every `RNNParams` within the parameters.

    Args:
      init: ``(key, w_hh) -> free``, from the drawn matrix [H, H].
      apply: ``(free, key) -> w_hh``.
    """
    check_function("init", init)
    check_function("apply", apply)

    def change(params: Params, key: Key | None, function: Callable[[Any, Key | None], Any]) -> Any:
        cells, structure = jax.tree.flatten(params, is_leaf=_is_cell)
        if not any(map(_is_cell, cells)):
            raise TypeError(f"params is {structure}, expected RNNParams, or a tree that has some")
        keys = split_key(key, len(cells))
        changed = [
            cell._replace(w_hh=function(cell.w_hh, k)) if _is_cell(cell) else cell
            for cell, k in zip(cells, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, changed)

    def init_all(key: Key, params: Params) -> Params:
        return change(params, key, lambda w, k: init(k, as_dense(w)))  # type: ignore[arg-type]

    def apply_all(free: Params, *, key: Key | None = None) -> Params:
        return change(free, key, apply)

    return Constraint(init_all, apply_all)


def dale(signs: Array | np.ndarray) -> Constraint:
    """Dale's law: every unit excites or inhibits all units it projects to.

    The columns of W are ``|free| * signs``. Initially every row's excitation and inhibition balance
    in the mean, and the spectral radius is that of the layer's own initial W. A weight that starts
    at exactly zero stays there, because ``|free|`` has no slope at zero: fix the zeros that are
    wanted with `connectivity`, and start the others elsewhere.

    Args:
      signs: [H], 1 for a unit that excites and -1 for one that inhibits.

    Source: Song, Yang & Wang 2016, "Training excitatory-inhibitory recurrent neural networks for
    cognitive tasks: a simple and flexible framework", equations 12 to 14 (with the absolute value
    for their rectification, under which a weight that reached zero no longer learns).
    """
    given = as_given("signs", signs)
    if isinstance(given, jax.core.Tracer):
        raise TypeError("signs is traced, expected known numbers")
    numbers = any(jnp.issubdtype(given.dtype, kind) for kind in (jnp.integer, jnp.floating))
    known = np.asarray(given, float) if numbers else np.zeros(())
    if known.ndim != 1 or not np.all(np.abs(known) == 1):
        raise ValueError(f"signs is {signs!r:.60}, expected an array [H] of 1 and -1")

    def init(key: Key, w: Array) -> Array:
        del key
        check_shape("params.w_hh", w, (known.size, known.size))
        return jnp.abs(initializers.balance(w, known))

    def apply(free: Array, key: Key | None) -> Array:
        del key
        free = as_dense(free)
        check_shape("params.w_hh", free, (known.size, known.size))
        return jnp.abs(free) * jnp.broadcast_to(jnp.asarray(known, free.dtype), free.shape)

    return on_recurrent(init, apply)


def connectivity(mask: Array | np.ndarray) -> Constraint:
    """Only some connections exist: W is exactly 0 where `mask` [H, H] (to, from) is False.

    Initially the remaining weights are scaled up, so that W keeps its Frobenius norm.
    """
    exists = as_given("mask", mask)
    check_bool("mask", exists)
    if exists.ndim != 2 or exists.shape[0] != exists.shape[1]:
        raise ValueError(f"mask has shape {exists.shape}, expected [H, H]")

    def apply(free: Array, key: Key | None = None) -> Array:
        del key
        free = as_dense(free)
        check_shape("params.w_hh", free, exists.shape)
        return jnp.where(exists, free, jnp.zeros_like(free))

    def init(key: Key, w: Array) -> Array:
        del key
        kept = apply(w)
        norm = jnp.linalg.norm(kept)
        return kept * jnp.where(norm > 0, jnp.linalg.norm(w) / jnp.where(norm > 0, norm, 1), 1)

    return on_recurrent(init, apply)


def low_rank(rank: int) -> Constraint:
    """``W = m n^T`` with m and n [H, rank], which the loop multiplies with as two thin matrices.

    Initially m and n are normal, scaled so that W has about the spectral radius of the layer's own
    initial matrix. Source: see `jaxrnn.LowRank`.
    """
    rank = check_size("rank", rank)

    def init(key: Key, w: Array) -> LowRank:
        units = w.shape[0]
        if rank > units:
            raise ValueError(f"rank is {rank}, expected at most {units}, the hidden size")
        # The eigenvalues of m n^T are those of n^T m, of independent entries of variance s^4 H.
        scale = jnp.sqrt(initializers.spectral_radius(w) / math.sqrt(units * rank))
        m, n = scale * jax.random.normal(key, (2, units, rank), w.dtype)
        return LowRank(m, n)

    return on_recurrent(init, lambda free, key: free)


def orthogonal() -> Constraint:
    """An orthogonal W, the exponential of the skew-symmetric matrix ``free - free^T``.

    Its gradients neither vanish nor explode where f' is 1. It is a rotation, and every rotation can
    be reached. Initially its angles are uniform, in a random basis. The exponential consists of 19
    matrix products (scaling and squaring), and its gradient of 38 more; two steps of Newton's
    method remove what rounding leaves. A skew-symmetric matrix of a Frobenius norm above 2,896 is
    scaled down to it.

    Source: Lezcano-Casado & Martinez-Rubio 2019, "Cheap orthogonal constraints in neural networks:
    a simple parametrization of the orthogonal and unitary group", section 3.
    """

    def init(key: Key, w: Array) -> Array:
        units = w.shape[0]
        key_basis, key_angles = jax.random.split(key)
        basis = initializers.orthogonal()(key_basis, (units, units), w.dtype)
        angles = jax.random.uniform(key_angles, (units // 2,), w.dtype, -math.pi, math.pi)
        even = 2 * jnp.arange(units // 2)
        planes = jnp.zeros_like(w).at[even, even + 1].set(angles)
        return product(product(basis, planes, axis=0).astype(w.dtype), basis).astype(w.dtype)

    def apply(free: Array, key: Key | None) -> Array:
        del key
        free = as_dense(free)
        wide = free.astype(accumulation_dtype(free.dtype))
        return _exponential(wide - wide.T).astype(free.dtype)

    return on_recurrent(init, apply)


def antisymmetric(gamma: float | Array = 0.0) -> Constraint:
    """``W = free - free^T - gamma I``, for a leaky layer whose states neither grow nor are lost.

    With a small leak the eigenvalues of a step's Jacobian have a modulus near 1. `gamma` damps.

    Source: Chang, Chen, Haber & Chi 2019, "AntisymmetricRNN: a dynamical system view on recurrent
    neural networks", equation 10.
    """
    gamma = check_fraction("gamma", gamma)

    def init(key: Key, w: Array) -> Array:
        del key
        return w / math.sqrt(2)

    def apply(free: Array, key: Key | None) -> Array:
        del key
        free = as_dense(free)
        return free - free.T - jnp.asarray(gamma, free.dtype) * jnp.eye(len(free), dtype=free.dtype)

    return on_recurrent(init, apply)


def drop_connect(rate: float | Array) -> Constraint:
    """With a key, set recurrent weights to zero with probability `rate`, the same ones at every
    step, and scale the others by 1 / (1 - rate); without one, W is as it is.

    `rate` may be a traced scalar. Source: Wan et al. 2013, "Regularization of neural networks using
    DropConnect"; on recurrent weights, Merity, Keskar & Socher 2018, "Regularizing and optimizing
    LSTM language models", section 2.
    """
    rate = check_fraction("rate", rate)

    def apply(free: Array, key: Key | None) -> Array:
        if key is None:
            return free
        free = as_dense(free)
        kept = jax.random.bernoulli(key, 1 - rate, free.shape)
        return jnp.where(kept, free / jnp.asarray(1 - rate, free.dtype), jnp.zeros_like(free))

    return on_recurrent(lambda key, w: w, apply)


def _exponential(skew: Array, squarings: int = 12) -> Array:
    """exp(skew), orthogonal, of a skew-symmetric matrix scaled down to a norm of at most 2^11."""
    times = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    eye = jnp.eye(len(skew), dtype=skew.dtype)
    largest = math.sqrt(2) * 2.0**squarings / 2  # whose eigenvalues come in pairs
    a = skew / (2**squarings * jnp.sqrt(jnp.maximum(jnp.sum(skew**2) / largest**2, 1)))
    a2 = times(a, a)
    a3 = times(a2, a)
    # Taylor's series to the sixth power, in three products (Paterson & Stockmeyer 1973).
    q = eye + a + a2 / 2 + times(a3, eye / 6 + a / 24 + a2 / 120 + a3 / 720)
    for _ in range(squarings):
        q = times(q, q)
    for _ in range(2):  # towards the nearest orthogonal matrix (Bjorck & Bowie 1971)
        q = 1.5 * q - 0.5 * times(q, times(q.T, q))
    return q


def _is_cell(node: Any) -> bool:
    return isinstance(node, RNNParams)


def check_constraint(name: str, constraint: Any) -> None:
    """Refuse what is not a `Constraint`."""
    if not isinstance(constraint, Constraint):
        raise TypeError(f"{name} is a {type(constraint).__name__}, expected a Constraint")

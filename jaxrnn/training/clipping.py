"""Gradient clipping that neither overflows nor underflows."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax

from jaxrnn._checks import check_positive
from jaxrnn._types import Array


def clip_by_global_norm(max_norm: float | Array) -> optax.GradientTransformation:
    """Scale the gradient down to a global norm of `max_norm` if its norm is larger.

    ``optax.clip_by_global_norm`` squares the gradient as it is: if a square overflows (an entry of
    1e20 in float32), the update becomes zero; if all of them underflow, nothing is clipped. Here
    the gradient is divided by its largest entry first. A gradient that is not finite remains
    non-finite, and the train step rejects it.

    Source: Pascanu, Mikolov & Bengio 2013, "On the difficulty of training recurrent neural
    networks", algorithm 1.
    """
    max_norm = check_positive("max_norm", max_norm)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        leaves = jax.tree.leaves(updates)
        dtype = functools.reduce(jnp.promote_types, [leaf.dtype for leaf in leaves], jnp.float32)
        sizes = [jnp.max(jnp.abs(leaf), initial=0).astype(dtype) for leaf in leaves]
        largest = functools.reduce(jnp.maximum, sizes, jnp.zeros((), dtype))
        # XLA multiplies by 1 / unit, which must not be subnormal.
        most = jnp.finfo(dtype).max.astype(dtype) / 8
        unit = jnp.where(largest == 0, jnp.ones_like(largest), jnp.minimum(largest, most))
        squares = [jnp.sum(jnp.square(leaf.astype(dtype) / unit)) for leaf in leaves]
        norm = jnp.sqrt(sum(squares, start=jnp.zeros((), dtype)))  # at least 1 unless all are 0
        factor = jnp.minimum(jnp.asarray(max_norm, dtype) / norm, unit)

        def scale(leaf: Array) -> Array:
            return (leaf.astype(dtype) / unit * factor).astype(leaf.dtype)

        return jax.tree.map(scale, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

"""Nonlinear least squares by damped Gauss-Newton steps."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

from jaxrnn._types import Array
from jaxrnn.diagnostics.log_products import orthogonalize
from jaxrnn.params import vary_with

_MOST_REFUSED = 12


def levenberg_marquardt(residual: Callable[[Array], Array], start: Array, num_steps: int) -> Array:
    """A local minimum of ``||residual(v)||^2``, from `start` [N], after at most `num_steps` steps.

    Each step solves min ||J d + residual||^2 + damping ||d||^2 by QR. It is accepted, and the
    damping reduced, if the sum of squares decreases; otherwise the damping grows. A step to NaN is
    never accepted. It ends when twelve steps in a row were not accepted: rounding is reached.

    Source: Marquardt 1963, "An algorithm for least-squares estimation of nonlinear parameters".
    """
    size = start.size
    eye = jnp.eye(size, dtype=start.dtype)
    eps = float(jnp.finfo(start.dtype).eps)

    def searching(carry: tuple[Array, Array, Array, Array]) -> Array:
        return (carry[2] < num_steps) & (carry[3] < _MOST_REFUSED)

    def body(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        at, damping, step, refused = carry
        error = residual(at)
        jacobian = jax.jacfwd(residual)(at)
        root = jnp.sqrt(damping) * jnp.max(jnp.abs(jacobian))
        q, r = orthogonalize(jnp.concatenate([jacobian, root * eye]))
        trial = at - solve_triangular(r, error @ q[:size])
        better = jnp.sum(residual(trial) ** 2) < jnp.sum(error**2)
        # 1/8 or 4, not by selection, which fails under vmap on an explicit mesh (jax 0.10.0).
        factor = 4 - 3.875 * better.astype(damping.dtype)
        damping = jnp.clip(damping * factor, eps**2, 1 / eps)
        refused = (refused + 1) * (~better).astype(refused.dtype)
        return jnp.where(better, trial, at), damping, step + 1, refused

    counts = jnp.int32(0), jnp.int32(0)
    initial = (start, jnp.asarray(1e-2, start.dtype), *counts)
    return lax.while_loop(searching, body, vary_with(initial, residual(start)))[0]

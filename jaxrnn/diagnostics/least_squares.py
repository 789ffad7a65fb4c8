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


def levenberg_marquardt(residual: Callable[[Array], Array], start: Array, num_steps: int) -> Array:
    """A local minimum of ``||residual(v)||^2``, from `start` [N].

    Each step solves min ||J d + residual||^2 + damping ||d||^2 by QR. It is accepted, and the
    damping reduced, if the sum of squares decreases; otherwise the damping grows. A step to NaN is
    never accepted.

    Source: Marquardt 1963, "An algorithm for least-squares estimation of nonlinear parameters".
    """
    size = start.size
    eye = jnp.eye(size, dtype=start.dtype)
    eps = float(jnp.finfo(start.dtype).eps)

    def body(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        at, damping = carry
        error = residual(at)
        jacobian = jax.jacfwd(residual)(at)
        root = jnp.sqrt(damping) * jnp.max(jnp.abs(jacobian))
        q, r = orthogonalize(jnp.concatenate([jacobian, root * eye]))
        trial = at - solve_triangular(r, error @ q[:size])
        better = jnp.sum(residual(trial) ** 2) < jnp.sum(error**2)
        # 1/8 or 4, not by selection, which fails under vmap on an explicit mesh (jax 0.10.0).
        factor = 4 - 3.875 * better.astype(damping.dtype)
        damping = jnp.clip(damping * factor, eps**2, 1 / eps)
        return (jnp.where(better, trial, at), damping), None

    initial = start, jnp.asarray(1e-2, start.dtype)
    return lax.scan(body, vary_with(initial, residual(start)), length=num_steps)[0][0]

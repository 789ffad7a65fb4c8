"""Fixed and slow points of a network under constant input."""

# Without `from __future__ import annotations`, for which pdoc cannot show the fields of NamedTuples
# (https://github.com/mitmproxy/pdoc/issues/765).
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._checks import as_array, check_positive, check_size
from jaxrnn._types import Array, Params, State
from jaxrnn.diagnostics.flat_state import FlatState, flatten_step, make_zero_input
from jaxrnn.diagnostics.least_squares import levenberg_marquardt
from jaxrnn.layers.contract import Layer


class FixedPoints(NamedTuple):
    """The points that `fixed_points` reaches from K starts."""

    states: State
    """The points h; every leaf has a leading axis K."""

    speeds: Array
    """||F(h) - h||, [K]."""

    eigenvalues: Array
    """Eigenvalues of dF/dh at each point, by descending modulus: [K, N], complex."""

    converged: Array
    """Whether the speed is at most the tolerance: [K] bool."""

    stable: Array
    """Whether every eigenvalue has a modulus below 1: [K] bool."""


def fixed_points(
    layer: Layer,
    params: Params,
    x: Array | None,
    starts: State,
    *,
    num_steps: int = 100,
    tolerance: float | None = None,
) -> FixedPoints:
    """Fixed and slow points of the network under a constant input, and their stability.

    Minimises ``||F(h) - h||^2 / 2`` by the Levenberg-Marquardt method from all starts in parallel,
    where F(h) is the state one step after h. A local minimum that is not a fixed point is a slow
    point. Several starts may reach the same point.

    Args:
      layer: a causal layer.
      params: its parameters.
      x: the input [D]; None means zero.
      starts: initial states of the search; every leaf has a leading axis K, at least 1.
      num_steps: iterations of the minimisation.
      tolerance: the largest speed at which a point counts as converged. Default: eps^(3/4), which
        is 1.8e-12 in float64 and 6.4e-6 in float32.

    Source: Sussillo & Barak 2013, "Opening the black box: low-dimensional dynamics in
    high-dimensional recurrent neural networks", with other minimisers.
    """
    num_steps = check_size("num_steps", num_steps)
    if tolerance is not None:
        check_positive("tolerance", tolerance)
    x = make_zero_input(layer, params) if x is None else as_array("x", x)
    _check_starts(starts)
    example = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), starts)
    flat = flatten_step(layer, params, example, x, name="x")
    all_starts = jax.vmap(flat.flatten)(starts)
    if tolerance is None:
        tolerance = float(jnp.finfo(all_starts.vector.dtype).eps) ** 0.75

    def find(start: FlatState) -> tuple[State, Array, Array]:
        def after(vector: Array) -> Array:
            return flat.outputs(start, x, vector)[0]

        vector = levenberg_marquardt(lambda v: after(v) - v, start.vector, num_steps)
        values = jnp.linalg.eigvals(jax.jacfwd(after)(vector))
        values = values[jnp.argsort(-jnp.abs(values))]
        speed = jnp.linalg.norm(after(vector) - vector)
        return flat.unflatten(start._replace(vector=vector)), speed, values

    states, speeds, values = jax.vmap(find)(all_starts)
    stable = jnp.all(jnp.abs(values) < 1, axis=-1)
    return FixedPoints(states, speeds, values, speeds <= tolerance, stable)


def _check_starts(starts: Any) -> None:
    """Reject states without a common leading axis."""
    leaves = [as_array("starts", leaf) for leaf in jax.tree.leaves(starts)]
    counts = {leaf.shape[:1] for leaf in leaves}
    if len(counts) != 1 or counts <= {(), (0,)}:
        shapes = [leaf.shape for leaf in leaves]
        raise ValueError(f"starts has shapes {shapes}, expected [K, ...] with the same K >= 1")

"""Fixed and slow points of a network under constant input."""

# Without `from __future__ import annotations`, for which pdoc cannot show the fields of NamedTuples
# (https://github.com/mitmproxy/pdoc/issues/765).
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn._checks import as_array, check_positive, check_size
from jaxrnn._types import Array, Params, State
from jaxrnn.diagnostics.flat_state import (
    flatten_step,
    is_floating,
    make_zero_input,
)
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

    at_minimum: Array
    """Whether the speed is at a local minimum: [K] bool. One that has not converged is where states
    are slowest; what is neither is still on its way along slow states."""


def fixed_points(
    layer: Layer,
    params: Params,
    x: Array | None,
    starts: State,
    *,
    num_steps: int = 100,
    tolerance: float | None = None,
    settle: int = 0,
) -> FixedPoints:
    """Fixed and slow points of the network under a constant input, and their stability.

    Minimises ``||F(h) - h||^2 / 2`` by the Levenberg-Marquardt method from all starts in parallel,
    where F(h) is the state one step after h. Several starts may reach the same point: see
    `distinct_points`.

    Args:
      layer: a causal layer.
      params: its parameters.
      x: the input [D]; None means zero.
      starts: initial states of the search; every leaf has a leading axis K, at least 1.
      num_steps: iterations of the minimisation at most; it ends when nothing improves any more.
      tolerance: the largest speed at which a point counts as converged. Default: eps^(3/4), which
        is 1.8e-12 in float64 and 6.4e-6 in float32.
      settle: time steps that the network runs from each start before the search. A start that is
        far from any point then begins near an attractor, but unstable points are left behind.

    Source: Sussillo & Barak 2013, "Opening the black box: low-dimensional dynamics in
    high-dimensional recurrent neural networks", with other minimisers.
    """
    num_steps = check_size("num_steps", num_steps)
    settle = check_size("settle", settle, at_least=0)
    if tolerance is not None:
        check_positive("tolerance", tolerance)
    x = make_zero_input(layer, params) if x is None else as_array("x", x)
    _check_starts(layer, params, starts)

    def find(state: State) -> FixedPoints:
        flat = flatten_step(layer, params, state, x, name="x")
        start = lax.fori_loop(0, settle, lambda _, at: flat.advance(at, x)[0], flat.start)

        def after(vector: Array) -> Array:
            return flat.outputs(start, x, vector)[0]

        vector = levenberg_marquardt(lambda v: after(v) - v, start.vector, num_steps)
        jacobian = jax.jacfwd(after)(vector)
        values = jnp.linalg.eigvals(jacobian)
        values = values[jnp.argsort(-jnp.abs(values))]
        velocity = after(vector) - vector
        speed = jnp.linalg.norm(velocity)
        eps = float(jnp.finfo(vector.dtype).eps)
        converged = speed <= (eps**0.75 if tolerance is None else tolerance)
        # The gradient of half the squared speed, relative to what a Jacobian of this size allows.
        gradient = jnp.linalg.norm(velocity @ jacobian - velocity)
        at_minimum = gradient <= eps**0.25 * (1 + jnp.linalg.norm(jacobian)) * speed
        point = flat.unflatten(start._replace(vector=vector))
        stable = jnp.all(jnp.abs(values) < 1)
        return FixedPoints(point, speed, values, converged, stable, at_minimum | converged)

    return jax.vmap(find)(starts)


def distinct_points(found: FixedPoints, *, radius: float | None = None) -> FixedPoints:
    """The points without those that lie near a slower one, in the order of their speeds.

    For concrete points, outside ``jit``: their number is not known before.

    Args:
      found: what `fixed_points` returned.
      radius: points nearer than this, by the Euclidean distance of the floating-point entries of
        their states, are one. Default: a thousandth of the root mean square norm of the points.
    """
    if not isinstance(found, FixedPoints):
        raise TypeError(f"found is a {type(found).__name__}, expected FixedPoints")
    if radius is not None:
        check_positive("radius", radius)
    leaves = [leaf for leaf in jax.tree.leaves(found.states) if is_floating(leaf)]
    points = np.concatenate(
        [np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in leaves], axis=1
    )
    if radius is None:
        radius = 1e-3 * float(np.sqrt(np.mean(np.sum(points**2, axis=1))))
    kept: list[int] = []
    for place in np.argsort(np.asarray(found.speeds), kind="stable").tolist():
        if not any(np.linalg.norm(points[place] - points[other]) <= radius for other in kept):
            kept.append(place)
    return jax.tree.map(lambda leaf: leaf[np.asarray(kept)], found)


def _check_starts(layer: Layer, params: Params, starts: Any) -> None:
    """Reject states without a common leading axis, or that are not states of the layer."""
    leaves = [as_array("starts", leaf) for leaf in jax.tree.leaves(starts)]
    counts = {leaf.shape[:1] for leaf in leaves}
    if len(counts) != 1 or counts <= {(), (0,)}:
        shapes = [leaf.shape for leaf in leaves]
        raise ValueError(f"starts has shapes {shapes}, expected [K, ...] with the same K >= 1")
    one = jax.eval_shape(lambda: layer.initial_state(params))
    expected = jax.tree.map(lambda leaf: f"[K, {', '.join(map(str, leaf.shape))}]", one)
    got_shapes = [leaf.shape[1:] for leaf in leaves]
    same = str(jax.tree.structure(starts)) == str(jax.tree.structure(one))
    if not same or got_shapes != [leaf.shape for leaf in jax.tree.leaves(one)]:
        got = jax.tree.map(lambda leaf: str(list(jnp.shape(leaf))), starts)
        raise ValueError(f"starts is {got}, expected {expected}, as states of the layer")

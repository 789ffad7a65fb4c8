"""Growth rates of perturbations: Lyapunov spectra, and spectral radii of matrices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._checks import as_array, check_floating, check_size
from jaxrnn._types import Array, Params, State, accumulation_dtype
from jaxrnn.diagnostics.flat_state import FlatState, flatten_step, make_zero_input
from jaxrnn.diagnostics.log_products import orthogonalize
from jaxrnn.layers.contract import Layer
from jaxrnn.params import vary_with


def lyapunov_spectrum(
    layer: Layer,
    params: Params,
    state: State,
    xs: Array | None = None,
    *,
    num_exponents: int | None = None,
    num_steps: int | None = None,
    discard: int = 0,
) -> Array:
    """The largest Lyapunov exponents along a trajectory, in nats per step.

    The average logarithmic growth rates of tangent vectors, which are orthogonalised after every
    step. They start from a fixed generic frame.

    Args:
      layer: a causal layer.
      params: its parameters.
      state: the state before the first step; None means the initial state.
      xs: the inputs [T, D] that drive the network, or None for inputs of zero.
      num_exponents: the number m of exponents, and of tangent vectors carried; N by default.
      num_steps: T, if xs is None.
      discard: the number of initial steps that are left out of the averages, while the state and
        the frame settle; less than T.

    Returns:
      [m], descending. A direction that is lost, as in `jacobian_singular_values`, gives -inf.

    Source: Benettin, Galgani, Giorgilli & Strelcyn 1980, "Lyapunov characteristic exponents for
    smooth dynamical systems"; for recurrent networks Engelken, Wolf & Abbott 2023, "Lyapunov
    spectra of chaotic recurrent neural networks".
    """
    if (xs is None) == (num_steps is None):
        given = "neither" if xs is None else "both"
        raise ValueError(f"xs and num_steps are {given} given, expected one of them")
    if xs is None:
        num_steps = check_size("num_steps", num_steps)
        xs = jnp.broadcast_to(make_zero_input(layer, params), (num_steps, layer.input_size))
    flat = flatten_step(layer, params, state, xs)
    size = flat.start.vector.size
    count = size if num_exponents is None else check_size("num_exponents", num_exponents)
    if count > size:
        raise ValueError(f"num_exponents is {count}, expected at most {size}, the state's size")
    discard = check_size("discard", discard, at_least=0)
    steps = flat.inputs.shape[0]
    if discard >= steps:
        raise ValueError(f"discard is {discard}, expected less than the number of steps, {steps}")

    def body(carry: tuple[FlatState, Array], x: Array) -> tuple[tuple[FlatState, Array], Array]:
        at, q = carry
        q, r = orthogonalize(flat.push_forward(at, x, q))
        return (flat.advance(at, x)[0], q), jnp.log(jnp.diagonal(r))

    frame = jax.random.normal(jax.random.key(0), (size, count), jnp.float32)  # one for all dtypes
    frame = vary_with(frame.astype(flat.start.vector.dtype), flat.start.vector)
    frame, _ = orthogonalize(frame)
    logs = lax.scan(body, (flat.start, frame), flat.inputs)[1]
    return -jnp.sort(-jnp.mean(logs[discard:], axis=0))


def spectral_radius(w: Array) -> Array:
    """The largest absolute eigenvalue of each matrix in `w` [..., N, N]: [...], of its dtype."""
    w = as_array("w", w)
    check_floating("w", w)
    if w.ndim < 2 or w.shape[-1] != w.shape[-2] or w.shape[-1] == 0:
        raise ValueError(f"w has shape {w.shape}, expected square matrices [..., N, N]")
    values = jnp.linalg.eigvals(w.astype(accumulation_dtype(w.dtype)))
    return jnp.max(jnp.abs(values), axis=-1).astype(w.dtype)

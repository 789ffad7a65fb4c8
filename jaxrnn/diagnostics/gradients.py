"""Gradient flow through time: Jacobians, their long products, and saturation."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._checks import (
    as_array,
    check_activation,
    check_floating,
    check_fraction,
    check_function,
)
from jaxrnn._types import Activation, Array, Params, State, accumulation_dtype
from jaxrnn.diagnostics import log_products
from jaxrnn.diagnostics.flat_state import FlatState, FlatStep, flatten_step
from jaxrnn.diagnostics.log_products import Scaled
from jaxrnn.layers.contract import Layer
from jaxrnn.params import vary_with
from jaxrnn.recurrence.tangents import SLOPES


def state_jacobians(layer: Layer, params: Params, state: State, xs: Array) -> Array:
    """The Jacobian of every step along a trajectory, J_t = d h_t / d h_{t-1}.

    Args:
      layer: a causal layer.
      params: its parameters.
      state: the state before the first step; None means the initial state.
      xs: inputs [T, D], or tokens [T] for a layer that reads tokens. T may be 0.

    Returns:
      [T, N, N]; rows index the entries of h_t, columns those of h_{t-1}.
    """
    flat = flatten_step(layer, params, state, xs)

    def body(at: FlatState, x: Array) -> tuple[FlatState, Array]:
        eye = jnp.eye(at.vector.size, dtype=at.vector.dtype)
        return flat.advance(at, x)[0], flat.push_forward(at, x, eye)

    return lax.scan(body, flat.start, flat.inputs)[1]


def gradient_norms_by_lag(
    layer: Layer,
    params: Params,
    state: State,
    xs: Array,
    loss_fn: Callable[[State, Array], Array] | None = None,
) -> Array:
    """The norm of the gradient with respect to every earlier state, as a natural logarithm.

    Entry k belongs to lag k, the state h_{T-k}; entry T to the state before the first step.

    With a `loss_fn`, an entry is the logarithm of the Euclidean norm of d loss / d h_{T-k}; one
    backward pass gives all of them. Without one, it is the logarithm of the largest singular value
    of d h_T / d h_{T-k}, which is 0 at lag 0; this propagates N vectors instead of one. Neither
    overflows or underflows. A norm of zero gives -inf.

    The gradient with respect to a state counts its use by the next step only, not the output
    computed together with it: for a loss of the last output alone, lag 0 is -inf.

    The result is differentiable, with respect to params and xs too; where it is -inf its derivative
    is 0. For a loss of the last state alone and finite norms, it yields the regulariser of Pascanu,
    Mikolov & Bengio 2013, "On the difficulty of training recurrent neural networks", equation 9:

        logs = gradient_norms_by_lag(layer, params, None, xs, loss_fn)
        penalty = jnp.sum((jnp.exp(logs[1:] - logs[:-1]) - 1) ** 2)

    (They use only part of its gradient, equation 10, which treats the states and the incoming
    gradients as constants.)

    Args:
      layer: a causal layer.
      params: its parameters.
      state: the state before the first step; None means the initial state.
      xs: inputs [T, D], or tokens [T]. T may be 0.
      loss_fn: ``(state, ys) -> scalar``, of the last state and the outputs [T, O].

    Returns:
      [T + 1].
    """
    flat = flatten_step(layer, params, state, xs)
    last, before, ys = flat.trajectory()
    if loss_fn is None:
        return _log_spectral_norms_by_lag(flat, before)
    check_function("loss_fn", loss_fn)

    def loss(vector: Array, ys: Array) -> Array:
        return loss_fn(flat.unflatten(last._replace(vector=vector)), ys)

    shape = getattr(jax.eval_shape(loss, last.vector, ys), "shape", None)
    if shape != ():
        raise ValueError(f"loss_fn returns shape {shape}, expected a scalar")
    g_last, g_ys = jax.grad(loss, argnums=(0, 1))(last.vector, ys)

    def body(g_state: Scaled, step: tuple[FlatState, Array, Array]) -> tuple[Scaled, Array]:
        at, x, g_y = step
        (_, y), pull_back = jax.vjp(lambda vector: flat.outputs(at, x, vector), at.vector)
        scaled = log_products.rescale(g_y.astype(at.vector.dtype), jnp.zeros_like(g_state.exponent))
        into_state, into_y, exponent = log_products.align(g_state, scaled)
        (g_before,) = pull_back((into_state, into_y.astype(y.dtype)))
        g_state = log_products.rescale(g_before, exponent)
        return g_state, log_products.log_norm(g_state)

    g_state = log_products.rescale(g_last, jnp.zeros((), jnp.int32))
    logs = lax.scan(body, g_state, (before, flat.inputs, g_ys), reverse=True)[1]
    return jnp.concatenate([log_products.log_norm(g_state)[None], logs[::-1]])


def _log_spectral_norms_by_lag(flat: FlatStep, before: FlatState) -> Array:
    """`gradient_norms_by_lag` without a loss; the product is accumulated from the left."""

    def body(product: Scaled, step: tuple[FlatState, Array]) -> tuple[Scaled, Array]:
        at, x = step
        product = log_products.rescale(flat.pull_back(at, x, product.values), product.exponent)
        return product, log_products.log_spectral_norm(product)

    vector = flat.start.vector
    identity = Scaled(jnp.eye(vector.size, dtype=vector.dtype), jnp.zeros((), jnp.int32))
    identity = vary_with(identity, vector)
    logs = lax.scan(body, identity, (before, flat.inputs), reverse=True)[1]
    return jnp.concatenate([jnp.zeros((1,), vector.dtype), logs[::-1]])


def jacobian_singular_values(layer: Layer, params: Params, state: State, xs: Array) -> Array:
    """All singular values of d h_T / d h_0 = J_T ... J_1, as natural logarithms, descending.

    For the product over k steps, pass k inputs and the state before them. Nothing overflows or
    underflows, however long the sequence and however widely spread the values.

    A backward sweep of QR factorisations finds directions in which the product is graded; a forward
    sweep from them accumulates it in triangular form, whose singular values one-sided Jacobi finds
    (Demmel & Veselic 1992, "Jacobi's method is more accurate than QR"). Each J_t carries a rounding
    error of eps times its norm, so directions that a single step shrinks by more than eps are not
    resolved.

    A direction is lost, and gives -inf, at the first step at which all but 4 sqrt(N) eps of its
    image lies in the span of the preceding directions' images. This detects dead units. A matrix
    that is singular only up to rounding may instead give the logarithm of the rounding error.

    Args:
      layer: a causal layer.
      params: its parameters.
      state: the state before the first step; None means the initial state.
      xs: inputs [T, D], or tokens [T]. T may be 0.

    Returns:
      [N].
    """
    flat = flatten_step(layer, params, state, xs)
    _, before, _ = flat.trajectory()
    vector = flat.start.vector

    def backward(q: Array, step: tuple[FlatState, Array]) -> tuple[Array, Array]:
        q, r = log_products.orthogonalize(flat.pull_back(*step, q.T).T)
        return q, jnp.log(jnp.diagonal(r))

    def forward(
        carry: tuple[Array, Scaled], step: tuple[FlatState, Array]
    ) -> tuple[tuple[Array, Scaled], None]:
        q, rows = carry
        q, r = log_products.orthogonalize(flat.push_forward(*step, q))
        return (q, log_products.multiply_rows(r, rows)), None

    eye = vary_with(jnp.eye(vector.size, dtype=vector.dtype), vector)
    q, logs = lax.scan(backward, eye, (before, flat.inputs), reverse=True)
    q = q[:, jnp.argsort(-jnp.sum(logs, axis=0))]
    rows = log_products.rescale(eye, jnp.zeros(vector.shape, jnp.int32))
    (_, rows), _ = lax.scan(forward, (q, rows), (before, flat.inputs))
    return log_products.log_singular_values(rows)


def saturated_fraction(
    hs: Array,
    *,
    activation: Activation = jnp.tanh,
    threshold: float = 0.1,
    axis: int | tuple[int, ...] | None = None,
) -> Array:
    """The fraction of saturated units: those whose activation is flat, so little gradient passes.

    A unit is saturated where the slope of the activation is below `threshold` times its largest
    value. The slope follows from the output h: 1 - h^2 for tanh, h (1 - h) for sigmoid, 0 or 1 for
    relu, 1 for identity, and 1 - exp(-h) for softplus.

    Args:
      hs: outputs of the activation, [..., H].
      activation: tanh, sigmoid, relu, identity or softplus, from ``jax.numpy`` or ``jax.nn``.
      threshold: a number in [0, 1).
      axis: the axes to average over, as in ``jnp.mean``; all by default, which gives a scalar.
    """
    check_activation(activation)
    if activation not in SLOPES:
        raise ValueError(
            f"activation is {activation!r:.60}, expected one of jax.numpy or jax.nn: "
            + ", ".join(known.__name__ for known in SLOPES)
        )
    check_fraction("threshold", threshold)
    hs = as_array("hs", hs)
    check_floating("hs", hs)
    hs = hs.astype(accumulation_dtype(hs.dtype))
    saturated = SLOPES[activation](hs) < threshold * _LARGEST_SLOPES.get(activation, 1.0)
    return jnp.mean(saturated.astype(hs.dtype), axis=axis)


_LARGEST_SLOPES: dict[Activation, float] = {jax.nn.sigmoid: 0.25}
"""The largest slope of an activation, if it is not 1."""

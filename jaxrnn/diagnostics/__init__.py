"""What a network's dynamics do: gradient flow, Jacobians, Lyapunov spectra, fixed points.

Every function is pure, works under ``jit`` and ``vmap``, and takes a causal `Layer` and one
sequence, without batch axes. A state of None means the initial state. The state is flattened by
``jax.flatten_util.ravel_pytree``, in its order, into N numbers; integers and bools in it (a
counter, a mark) are carried along and take no part. Results are in the dtype of the state, in
float32 at least. In a docstring h_t is the state after t steps, and J_t = d h_t / d h_{t-1}.

Bad input is refused with a TypeError or ValueError that names the argument; the layer itself
refuses parameters, states and inputs that do not fit it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._checks import (
    as_array,
    check_activation,
    check_floating,
    check_fraction,
    check_function,
    check_positive,
    check_size,
)
from jaxrnn._types import Activation, Array, Params, State, accumulation_dtype
from jaxrnn.diagnostics import log_products as products
from jaxrnn.diagnostics.flat_state import FlatState, FlatStep, check_starts, flat_step, zero_input
from jaxrnn.diagnostics.least_squares import levenberg_marquardt
from jaxrnn.diagnostics.log_products import Scaled
from jaxrnn.layers.contract import Layer


class FixedPoints(NamedTuple):
    """What `fixed_points` finds from K starts.

    states: the points h; every leaf has a leading axis K.
    speeds: ||F(h) - h||, [K].
    eigenvalues: of dF/dh at the point, complex [K, N], by descending modulus.
    converged, stable: [K] bool; whether the speed is at most the tolerance, and whether every
      eigenvalue is below 1 in modulus.
    """

    states: State
    speeds: Array
    eigenvalues: Array
    converged: Array
    stable: Array


def state_jacobians(layer: Layer, params: Params, state: State, xs: Array) -> Array:
    """The Jacobian of every step along a trajectory, J_t = d h_t / d h_{t-1}.

    Args:
      layer: a causal layer.
      params: its parameters.
      state: the state before the first step; None means the initial state.
      xs: inputs [T, D] (tokens [T] for a layer that reads tokens). T may be 0.

    Returns:
      [T, N, N]; a row belongs to an entry of h_t, a column to one of h_{t-1}.
    """
    flat = flat_step(layer, params, state, xs)

    def body(at: FlatState, x: Array) -> tuple[FlatState, Array]:
        eye = jnp.eye(at.vector.size, dtype=at.vector.dtype)
        return flat.advance(at, x)[0], flat.push(at, x, eye)

    return lax.scan(body, flat.start, flat.inputs)[1]


def gradient_norms_by_lag(
    layer: Layer,
    params: Params,
    state: State,
    xs: Array,
    loss_fn: Callable[[State, Array], Array] | None = None,
) -> Array:
    """How large the gradient is that reaches each earlier state, as a natural logarithm.

    Entry k belongs to lag k, the state h_{T-k}; entry T to the state before the first step. With a
    `loss_fn` it is the logarithm of the Euclidean norm of d loss / d h_{T-k}, for all k from one
    backward pass of one vector. Without one it is that of the largest singular value of
    d h_T / d h_{T-k}, which is 0 at lag 0 and costs N vectors a step. Neither overflows or
    underflows; a norm of zero gives -inf.

    The gradient is with respect to the state as the next step reads it, so that the output of the
    step that made it is not counted: of a loss of the last output alone lag 0 is -inf.

    It can be differentiated, with respect to params and xs too; where it is -inf its derivative is
    0. So, of a loss of the last state alone, it makes the regulariser of Pascanu, Mikolov & Bengio
    2013, "On the difficulty of training recurrent neural networks", equation 9, for norms that are
    finite::

        logs = gradient_norms_by_lag(layer, params, None, xs, loss_fn)
        penalty = jnp.sum((jnp.exp(logs[1:] - logs[:-1]) - 1) ** 2)

    (They differentiate it in part, equation 10, with states and incoming gradients held.)

    Args:
      layer, params, state, xs: as in `state_jacobians`.
      loss_fn: ``(state, ys) -> scalar`` of the last state and the outputs [T, O].

    Returns:
      [T + 1].
    """
    flat = flat_step(layer, params, state, xs)
    last, before, ys = flat.trajectory()
    if loss_fn is None:
        return _spectral_norms(flat, before)
    check_function("loss_fn", loss_fn)

    def loss(vector: Array, ys: Array) -> Array:
        return loss_fn(flat.unflatten(last._replace(vector=vector)), ys)

    shape = getattr(jax.eval_shape(loss, last.vector, ys), "shape", None)
    if shape != ():
        raise ValueError(f"loss_fn returns shape {shape}, expected a scalar")
    g_last, g_ys = jax.grad(loss, argnums=(0, 1))(last.vector, ys)

    def body(carry: Scaled, piece: Any) -> tuple[Scaled, Array]:
        at, x, g_y = piece
        (_, y), pull = jax.vjp(lambda vector: flat.outputs(at, x, vector), at.vector)
        g_y = products.rescale(g_y.astype(at.vector.dtype), jnp.zeros_like(carry.exponent))
        into_state, into_y, exponent = products.align(carry, g_y)
        (pulled,) = pull((into_state, into_y.astype(y.dtype)))
        carry = products.rescale(pulled, exponent)
        return carry, products.log_norm(carry)

    carry = products.rescale(g_last, jnp.zeros((), jnp.int32))
    pieces = (before, flat.inputs, g_ys)
    logs = lax.scan(body, carry, pieces, reverse=True)[1]
    return jnp.concatenate([products.log_norm(carry)[None], logs[::-1]])


def _spectral_norms(flat: FlatStep, before: FlatState) -> Array:
    """`gradient_norms_by_lag` without a loss: the product is carried from the left, row by row."""

    def body(carry: Scaled, piece: tuple[FlatState, Array]) -> tuple[Scaled, Array]:
        carry = products.rescale(flat.pull(*piece, carry.values), carry.exponent)
        return carry, products.log_spectral_norm(carry)

    dtype = flat.start.vector.dtype
    carry = Scaled(jnp.eye(flat.start.vector.size, dtype=dtype), jnp.zeros((), jnp.int32))
    logs = lax.scan(body, carry, (before, flat.inputs), reverse=True)[1]
    return jnp.concatenate([jnp.zeros((1,), dtype), logs[::-1]])


def jacobian_singular_values(layer: Layer, params: Params, state: State, xs: Array) -> Array:
    """All singular values of d h_T / d h_0 = J_T ... J_1, as natural logarithms, descending.

    For a product over k steps pass k inputs and the state before them. Nothing overflows or
    underflows, however long the sequence and however far apart the values. A backward sweep of QR
    finds the directions in which the product is graded, a forward sweep from them a triangular
    product, and one-sided Jacobi its singular values. Each J_t enters with a rounding error of eps
    times its norm, so of the values that one step alone shrinks below eps nothing is known.

    A direction is lost, and gives -inf, at the first step where its image lies in the span of the
    images before it but for 4 sqrt(N) eps of its length. So dead units are found. A matrix singular
    up to rounding is not always, and may give the logarithm of the rounding error instead.

    Arguments as in `state_jacobians`. Returns [N].

    Source: of Jacobi's method Demmel & Veselic 1992, "Jacobi's method is more accurate than QR".
    """
    flat = flat_step(layer, params, state, xs)
    _, before, _ = flat.trajectory()
    vector = flat.start.vector
    pieces = (before, flat.inputs)

    def backward(q: Array, piece: tuple[FlatState, Array]) -> tuple[Array, Array]:
        q, r = products.orthogonalize(flat.pull(*piece, q.T).T)
        return q, jnp.log(jnp.diagonal(r))

    def forward(
        carry: tuple[Array, Scaled], piece: tuple[FlatState, Array]
    ) -> tuple[tuple[Array, Scaled], None]:
        q, rows = carry
        q, r = products.orthogonalize(flat.push(*piece, q))
        return (q, products.multiply_rows(r, rows)), None

    eye = jnp.eye(vector.size, dtype=vector.dtype)
    q, logs = lax.scan(backward, eye, pieces, reverse=True)
    q = q[:, jnp.argsort(-jnp.sum(logs, axis=0))]
    rows = products.rescale(eye, jnp.zeros(vector.shape, jnp.int32))
    (_, rows), _ = lax.scan(forward, (q, rows), pieces)
    return products.log_singular_values(rows)


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
    """The largest Lyapunov exponents along a trajectory, in nats a step.

    The mean logarithms of the growth of tangent vectors that are made orthogonal again at every
    step. They start in a fixed generic frame.

    Args:
      layer, params, state: as in `state_jacobians`.
      xs: the inputs [T, D] that drive the network, or None for inputs of zero.
      num_exponents: m, how many; all N by default. Only m tangent vectors are carried.
      num_steps: T where xs is None.
      discard: how many first steps only align the frame, and settle the state; below T.

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
        xs = jnp.broadcast_to(zero_input(layer, params), (num_steps, layer.input_size))
    flat = flat_step(layer, params, state, xs)
    size = flat.start.vector.size
    count = size if num_exponents is None else check_size("num_exponents", num_exponents)
    if count > size:
        raise ValueError(f"num_exponents is {count}, expected at most {size}, the state's size")
    discard = check_size("discard", discard, at_least=0)
    steps = flat.inputs.shape[0]
    if discard >= steps:
        raise ValueError(f"discard is {discard}, expected less than {steps}, the steps in all")

    def body(carry: tuple[FlatState, Array], x: Array) -> tuple[tuple[FlatState, Array], Array]:
        at, q = carry
        q, r = products.orthogonalize(flat.push(at, x, q))
        return (flat.advance(at, x)[0], q), jnp.log(jnp.diagonal(r))

    frame = jax.random.normal(jax.random.key(0), (size, count), jnp.float32)  # one for all dtypes
    frame, _ = products.orthogonalize(frame.astype(flat.start.vector.dtype))
    logs = lax.scan(body, (flat.start, frame), flat.inputs)[1]
    return -jnp.sort(-jnp.mean(logs[discard:], axis=0))


def spectral_radius(w: Array) -> Array:
    """The largest absolute eigenvalue of each matrix, [..., N, N] -> [...], in the dtype of `w`."""
    w = as_array("w", w)
    check_floating("w", w)
    if w.ndim < 2 or w.shape[-1] != w.shape[-2] or w.shape[-1] == 0:
        raise ValueError(f"w has shape {w.shape}, expected square matrices [..., N, N]")
    values = jnp.linalg.eigvals(w.astype(accumulation_dtype(w.dtype)))
    return jnp.max(jnp.abs(values), axis=-1).astype(w.dtype)


def saturated_fraction(
    hs: Array,
    *,
    activation: Activation = jnp.tanh,
    threshold: float = 0.1,
    axis: int | tuple[int, ...] | None = None,
) -> Array:
    """The fraction of outputs where the activation is flat, so that little gradient passes.

    An output counts where the slope f'(a) is below `threshold` times the activation's largest
    slope. The slope is taken from the output h = f(a): tanh 1 - h^2, sigmoid h (1 - h), relu 0
    where h <= 0 and else 1, identity 1.

    Args:
      hs: outputs of the activation, [..., H].
      activation: ``jnp.tanh``, ``jax.nn.sigmoid``, ``jax.nn.relu`` or ``jax.nn.identity``.
      threshold: from 0 up to but not including 1.
      axis: over which axes, as in ``jnp.mean``; by default over all, which gives [].
    """
    check_activation(activation)
    if activation not in _RELATIVE_SLOPES:
        raise ValueError(
            f"activation is {activation!r:.60}, expected tanh, sigmoid, relu or "
            "identity from jax.numpy or jax.nn"
        )
    check_fraction("threshold", threshold)
    hs = as_array("hs", hs)
    check_floating("hs", hs)
    hs = hs.astype(accumulation_dtype(hs.dtype))
    saturated = _RELATIVE_SLOPES[activation](hs) < threshold
    return jnp.mean(saturated.astype(hs.dtype), axis=axis)


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

    From every start at once it minimises ``||F(h) - h||^2 / 2``, F(h) the state after a step from
    h, by Levenberg and Marquardt's method. A local minimum that has not converged is a slow point.
    Several starts may end in the same point.

    Args:
      layer, params: as in `state_jacobians`.
      x: the input [D]; None means zero.
      starts: states to start from; every leaf has a leading axis K, at least 1.
      num_steps: steps of the minimisation.
      tolerance: the speed up to which a point counts as converged. Default: eps^(3/4), which is
        1.8e-12 in float64 and 6.4e-6 in float32.

    Source: Sussillo & Barak 2013, "Opening the black box: low-dimensional dynamics in
    high-dimensional recurrent neural networks"; they minimise by other methods.
    """
    num_steps = check_size("num_steps", num_steps)
    if tolerance is not None:
        check_positive("tolerance", tolerance)
    x = zero_input(layer, params) if x is None else as_array("x", x)
    check_starts(starts)
    flat = flat_step(layer, params, jax.tree.map(lambda leaf: leaf[0], starts), x, name="x")
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


_RELATIVE_SLOPES: dict[Activation, Activation] = {
    jnp.tanh: lambda h: 1 - h * h,
    jax.nn.sigmoid: lambda h: 4 * h * (1 - h),
    jax.nn.relu: lambda h: (h > 0).astype(h.dtype),
    jax.nn.identity: jnp.ones_like,
}
"""f' over its largest value, as a function of the output f(a)."""

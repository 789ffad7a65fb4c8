"""The cell over time, and its one linearisation.

Everything in a vanilla network that is not the recurrence is one large matrix product::

    forward   zs = xs U^T + b                  one product over all steps
              h_t = f(zs_t + W h_{t-1})        a scan: one small product, one activation
    tangent   dz = dzs + hprev dW^T            one product over all steps
              dh_t = f'(a_t) (dz_t + W dh_{t-1})          a linear scan

`_recur` is the scan, and its ``custom_jvp`` rule the two lines of the tangent. Forward mode is the
rule as it stands; reverse mode is JAX's own transpose of it, which is back-propagation through time
in its best form: the backward scan carries only the state's cotangent, each weight gradient is one
product over all steps, and only the states are stored. Because the rule is ordinary JAX it can be
differentiated, mapped and transposed again.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxrnn._checks import (
    as_array,
    check_activation,
    check_elementwise,
    check_features,
    check_flag,
    check_marks,
    check_numeric,
    check_size,
)
from jaxrnn._scanning import plan_chunks, replacement_marks, scan_chunks
from jaxrnn._types import Activation, Array, accumulation_dtype
from jaxrnn.cell import (
    RNNParams,
    cast_params,
    check_params,
    check_state,
    initial_or_given,
    initial_unit_state,
    input_product,
    product,
    result_dtype,
    step,
)


def unroll(
    params: RNNParams,
    h0: Array | None,
    xs: Array,
    *,
    activation: Activation = jnp.tanh,
    mask: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
    chunk_size: int | None = None,
    remat: bool = False,
) -> tuple[Array, Array]:
    """Run the network over a sequence: `step` at every t, as ``lax.scan`` of it would.

    Args:
      params: RNNParams with sizes D and H.
      h0: the state before the first step, [*B, H]; None means the initial state.
      xs: inputs, [T, *B, D], floating-point, integer or bool. T and any of B may be 0.
      activation: any elementwise function. It must be hashable and hold no traced value; one
        defined once is traced once.
      mask: [T, *B] bool. Where it is False the step is not taken: the state is held, the output is
        0, and the input is never read, NaN included.
      resets: [T, *B] bool. Where it is True a new segment begins: the state before that step is the
        initial state. The mark belongs to the input: with `reverse` the state is replaced at the
        last step of the segment before. A mark on a masked step does nothing.
      reverse: run from the last step to the first. Outputs stay in input order.
      chunk_size: steps a chunk. Chunks change memory traffic only, never the result. By default, on
        a CPU, states of up to 4 MiB stay one chunk, and larger ones are cut into chunks of about
        1.5 MiB; on accelerators there is one chunk, and where T is symbolic (``jax.export``).
      remat: recompute a chunk's states in the backward pass, so that only the states between chunks
        are stored. The default chunk then has about sqrt(T) steps, which stores least.

    Returns:
      (h_last [*B, H], hs [T, *B, H]) in the result type of params and inputs.

    Raises:
      TypeError, ValueError: an argument is not as described.
    """
    check_flag("reverse", reverse)
    check_flag("remat", remat)
    if chunk_size is not None:
        check_size("chunk_size", chunk_size)
    params, h0, xs, mask, resets = _check_sequence(params, h0, xs, mask, resets, activation)
    dtype = h0.dtype
    plan = plan_chunks(h0, xs.shape[0], chunk_size, remat)
    if mask is not None:
        xs = jnp.where(mask[..., None], xs, jnp.zeros_like(xs))  # NaN must not reach a product
    if resets is not None:
        resets = replacement_marks(resets, mask, reverse)
    # Transposed once, out of every loop: the product of a row-major state with it is the fast one.
    w_t = params.w_hh.T
    # Spread out of every loop, so that its cotangent is summed over the batch once, not every step.
    initial = jnp.broadcast_to(initial_unit_state(params, dtype), h0.shape)

    weights = _Weights(params.w_hh, w_t, initial)
    how = _How(activation, reverse, plan.inner_unroll)

    def run(h: Array, piece: _Piece) -> tuple[Array, Array]:
        zs = input_product(params, piece.xs)
        return _recur(how, weights, h, zs, piece.mask, piece.resets)

    pieces = _Piece(xs, mask, resets)
    h_last, states = scan_chunks(run, h0, pieces, plan.chunk_size, reverse=reverse, remat=remat)
    if mask is not None:
        states = jnp.where(mask[..., None], states, jnp.zeros_like(states))
    return h_last, states


def unroll_plain(
    params: RNNParams,
    h0: Array | None,
    xs: Array,
    *,
    activation: Activation = jnp.tanh,
    mask: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """The definition of `unroll`: ``lax.scan`` of `step`, differentiated by plain autodiff.

    Slower, and the reference that `unroll` must equal. Arguments and results are those of `unroll`.
    """
    check_flag("reverse", reverse)
    params, h0, xs, mask, resets = _check_sequence(params, h0, xs, mask, resets, activation)
    if mask is not None:
        xs = jnp.where(mask[..., None], xs, jnp.zeros_like(xs))
    if resets is not None:
        resets = replacement_marks(resets, mask, reverse)
    initial = jnp.broadcast_to(initial_unit_state(params, h0.dtype), h0.shape)

    def body(h: Array, piece: _Piece) -> tuple[Array, Array]:
        before = h if piece.resets is None else jnp.where(piece.resets[..., None], initial, h)
        after = step(params, before, piece.xs, activation=activation)
        if piece.mask is None:
            return after, after
        taken = piece.mask[..., None]
        return jnp.where(taken, after, h), jnp.where(taken, after, jnp.zeros_like(after))

    return lax.scan(body, h0, _Piece(xs, mask, resets), reverse=reverse)


class _Piece(NamedTuple):
    """Some steps of a sequence: xs [T, *B, D], mask and resets [T, *B] or None."""

    xs: Array
    mask: Array | None
    resets: Array | None


class _Weights(NamedTuple):
    """What the recurrence multiplies with: w [H, H] and its transpose w_t; and the initial state
    [*B, H].

    `w_t` stands beside `w` for speed alone: the rule takes the derivative through `w`. No
    ``stop_gradient`` on `w_t`: inside a scan JAX may differentiate an already differentiated
    `_recur` without its rule, and then the derivative comes through `w_t`."""

    w: Array
    w_t: Array
    initial: Array


class _How(NamedTuple):
    """The static side of the recurrence."""

    activation: Activation
    reverse: bool
    inner_unroll: int


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _recur(
    how: _How,
    weights: _Weights,
    h0: Array,
    zs: Array,
    mask: Array | None,
    resets: Array | None,
) -> tuple[Array, Array]:
    """``h_t = f(zs_t + W h_{t-1})``: (h_last [*B, H], states [T, *B, H], held where masked)."""

    def body(h: Array, piece: _Piece) -> tuple[Array, Array]:
        before = _replace(piece.resets, weights.initial, h)
        after = how.activation(piece.xs + product(before, weights.w_t, axis=0)).astype(h.dtype)
        after = _hold(piece.mask, after, h)
        return after, after

    return lax.scan(
        body, h0, _Piece(zs, mask, resets), reverse=how.reverse, unroll=how.inner_unroll
    )


def _recur_jvp(how: _How, primals: Any, tangents: Any) -> Any:
    weights, h0, zs, mask, resets = primals
    d_weights, d_h0, d_zs, *_ = tangents
    h_last, states = _recur(how, *primals)
    before = _states_before(how, weights, h0, states, resets)
    dz = _materialise(d_zs)
    if not isinstance(d_weights.w, SymbolicZero):
        dz = dz + product(before, d_weights.w)
    d_initial = _materialise(d_weights.initial)
    slope = _SLOPES.get(how.activation)
    if slope is None:  # f' needs the pre-activation: one more product over all steps
        at = zs + product(before, weights.w, axis=1)
        slope = functools.partial(_slope_at, how.activation)
    else:
        at = states

    # Without the checkpoint, f' would be stored beside the states; it is cheaper to recompute.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def tangent_step(dh: Array, at: Array, dz: Array, mask: Any, resets: Any) -> Array:
        d_before = _replace(resets, d_initial, dh)
        da = dz + product(d_before, weights.w)
        after = (slope(at.astype(da.dtype)) * da).astype(dh.dtype)
        return _hold(mask, after, dh)

    def body(dh: Array, piece: Any) -> tuple[Array, Array]:
        dh = tangent_step(dh, *piece)
        return dh, dh

    d_out = lax.scan(
        body,
        _materialise(d_h0),
        (at, dz, mask, resets),
        reverse=how.reverse,
        unroll=how.inner_unroll,
    )
    return (h_last, states), d_out


_recur.defjvp(_recur_jvp, symbolic_zeros=True)


def _states_before(
    how: _How, weights: _Weights, h0: Array, states: Array, resets: Array | None
) -> Array:
    """The state that each step multiplied with W, [T, *B, H]."""
    pieces = [states[1:], h0[None]] if how.reverse else [h0[None], states[:-1]]
    return _replace(resets, weights.initial, jnp.concatenate(pieces))


def _replace(marks: Array | None, initial: Array, h: Array) -> Array:
    """The initial state where marked, by selection, so that NaN in `h` does not survive."""
    if marks is None:
        return h
    return jnp.where(marks[..., None], jnp.broadcast_to(initial, h.shape), h)


def _hold(mask: Array | None, after: Array, before: Array) -> Array:
    return after if mask is None else jnp.where(mask[..., None], after, before)


def _materialise(tangent: Any) -> Array:
    if isinstance(tangent, SymbolicZero):
        return jnp.zeros(tangent.shape, tangent.dtype)
    return tangent


def _slope_at(activation: Activation, a: Array) -> Array:
    """f'(a) for an elementwise f."""
    return jax.jvp(activation, (a,), (jnp.ones_like(a),))[1]


_SLOPES: dict[Activation, Activation] = {
    jnp.tanh: lambda h: 1 - h * h,
    jax.nn.relu: lambda h: (h > 0).astype(h.dtype),
    jax.nn.identity: jnp.ones_like,
}
"""f' as a function of the output f(a), where it is one."""


def _check_sequence(
    params: Any, h0: Any, xs: Any, mask: Any, resets: Any, activation: Any
) -> tuple[RNNParams, Array, Array, Array | None, Array | None]:
    """The arguments of `unroll` as arrays of one dtype, with the initial state filled in."""
    check_activation(activation)
    params = check_params(params)
    xs = as_array("xs", xs)
    check_numeric("xs", xs)
    hidden_size, input_size = params.w_ih.shape
    check_features("xs", xs, input_size, "[T, *B, D]")
    mask = check_marks("mask", mask, xs.shape[:-1])
    resets = check_marks("resets", resets, xs.shape[:-1])
    dtype = result_dtype(params, xs)
    shape = (*xs.shape[1:-1], hidden_size)
    h0 = check_state("h0", h0, shape, dtype)
    check_elementwise(activation, shape, accumulation_dtype(dtype))
    params = cast_params(params, dtype)
    h0 = initial_or_given(params, h0, xs.shape[1:-1], dtype)
    return params, h0, xs.astype(dtype), mask, resets

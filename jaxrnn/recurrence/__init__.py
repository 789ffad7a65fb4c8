"""The cell over time, and its one linearisation.

Everything in a vanilla network that is not the recurrence is one large matrix product::

    forward   zs = xs U^T + b                  one product over all steps; if small, in each
              h_t = f(zs_t + W h_{t-1})        a scan: one small product, one activation
    tangent   dz = dzs + hprev dW^T            one product over all steps
              dh_t = f'(a_t) (dz_t + W dh_{t-1})          a linear scan

`_recur` is the first two lines, chunk by chunk, and its ``custom_jvp`` rule the other two. Forward
mode is the rule as it stands; reverse mode is JAX's own transpose of it, which is back-propagation
through time in its best form: the backward scan carries only the state's cotangent, each weight
gradient is one product over the steps of a chunk, and only the states are stored, once. Because the
rule is ordinary JAX it can be differentiated, mapped and transposed again.
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
from jaxrnn._products import Products, choose_products, column_product, column_product_of, product
from jaxrnn._types import Activation, Array, accumulation_dtype
from jaxrnn.cell import (
    RNNParams,
    add_bias,
    cast_params,
    check_params,
    check_state,
    initial_or_given,
    initial_unit_state,
    input_product,
    result_dtype,
    step,
)
from jaxrnn.recurrence.chunks import (
    choose_chunk_size,
    replacement_marks,
    scan_chunks,
    states_before_chunks,
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
    shape, dtype, num_steps = h0.shape, h0.dtype, xs.shape[0]
    if all(size == 1 for size in shape[:-1]):  # such axes only make XLA copy between layouts
        h0, xs = h0.reshape(shape[-1]), xs.reshape(num_steps, xs.shape[-1])
        mask = None if mask is None else mask.reshape(num_steps)
        resets = None if resets is None else resets.reshape(num_steps)
    size = choose_chunk_size(h0, num_steps, chunk_size, remat)
    if mask is not None:
        xs = jnp.where(mask[..., None], xs, jnp.zeros_like(xs))  # NaN must not reach a product
    if resets is not None:
        resets = replacement_marks(resets, mask, reverse)
    # Spread out of every loop, so that its cotangent is summed over the batch once, not every step.
    initial = jnp.broadcast_to(initial_unit_state(params, dtype), h0.shape)

    weights = _Weights(params._replace(h0=None), initial)
    pieces = _Piece(xs, mask, resets)
    how = _How(activation, reverse, size, choose_products(h0, xs.shape[-1]))
    if remat:

        def run(h: Array, chunk: tuple[_Piece, Any]) -> tuple[Array, Array]:
            return _recur(how, weights, h, chunk[0])

        h_last, states = scan_chunks(run, h0, pieces, size, reverse=reverse, remat=True)
    else:
        h_last, states = _recur(how, weights, h0, pieces)
    if mask is not None:
        states = jnp.where(mask[..., None], states, jnp.zeros_like(states))
    return h_last.reshape(shape), states.reshape(num_steps, *shape)


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
    """The parameters, without their initial state, and the initial state [*B, H]."""

    params: RNNParams
    initial: Array


class _How(NamedTuple):
    """The static side of the recurrence."""

    activation: Activation
    reverse: bool
    chunk_size: int
    products: Products


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _recur(how: _How, weights: _Weights, h0: Array, pieces: _Piece) -> tuple[Array, Array]:
    """``h_t = f(U x_t + b + W h_{t-1})``: (h_last [*B, H], states [T, *B, H] held where masked)."""
    params = weights.params
    before_all, joined = (how.products.inputs == place for place in ("before", "joined"))
    w = jnp.concatenate([params.w_ih, params.w_hh], axis=1) if joined else params.w_hh
    # Transposed once, out of every loop: the product of a row-major state with it is the fast one.
    w_t = w.T

    def multiply(x: Array) -> Array:
        return column_product(x, w) if how.products.columns else product(x, w_t, axis=0)

    def run(h: Array, chunk: tuple[_Piece, Any]) -> tuple[Array, Array]:
        piece = chunk[0]
        if before_all:
            piece = piece._replace(xs=input_product(params, piece.xs))
        return lax.scan(body, h, piece, reverse=how.reverse)

    def body(h: Array, piece: _Piece) -> tuple[Array, Array]:
        x, mask, resets = piece
        before = _replace(resets, weights.initial, h)
        if joined:
            a = add_bias(params, multiply(jnp.concatenate([x, before], axis=-1)))
        else:
            a = (x if before_all else input_product(params, x)) + multiply(before)
        after = _hold(mask, how.activation(a).astype(h.dtype), h)
        return after, after

    # Only what is multiplied before all steps is kept in cache by chunks.
    size = how.chunk_size if before_all else pieces.xs.shape[0]
    return scan_chunks(run, h0, pieces, size, reverse=how.reverse)


def _recur_jvp(how: _How, primals: Any, tangents: Any) -> Any:
    weights, h0, pieces = primals
    d_weights, d_h0, d_pieces = tangents
    h_last, states = _recur(how, *primals)
    d_initial = _materialise(d_weights.initial)
    slope = _SLOPES.get(how.activation)
    w, w_t = weights.params.w_hh, weights.params.w_hh.T

    # The rule stands outside the chunks, so that their states are stored once, as outputs, and not
    # again for the backward pass; and what a chunk makes of them is recomputed there.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def run(dh: Array, chunk: Any) -> tuple[Array, Array]:
        (states, d_xs, (xs, mask, resets)), start = chunk
        before = _replace(resets, weights.initial, _shift(how, start, states))
        at = states if slope is not None else _pre_activations(weights.params, xs, before)
        dz = _input_tangent(weights.params, d_weights.params, before, xs, d_xs)
        return lax.scan(body, dh, (at, dz, mask, resets), reverse=how.reverse)

    # Without the checkpoint, f' would be stored beside the states; it is cheaper to recompute.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def tangent_step(dh: Array, at: Array, dz: Array, mask: Any, resets: Any) -> Array:
        d_before = _replace(resets, d_initial, dh)
        columns = how.products.columns
        da = dz + (column_product_of(d_before, w_t) if columns else product(d_before, w))
        at = at.astype(da.dtype)
        f_slope = _slope_at(how.activation, at) if slope is None else slope(at)
        return _hold(mask, (f_slope * da).astype(dh.dtype), dh)

    def body(dh: Array, piece: Any) -> tuple[Array, Array]:
        dh = tangent_step(dh, *piece)
        return dh, dh

    d_xs = None if isinstance(d_pieces.xs, SymbolicZero) else d_pieces.xs
    size = how.chunk_size
    d_out = scan_chunks(
        run,
        _materialise(d_h0),
        (states, d_xs, pieces),
        size,
        reverse=how.reverse,
        starts=states_before_chunks(h0, states, size, reverse=how.reverse),
    )
    return (h_last, states), d_out


_recur.defjvp(_recur_jvp, symbolic_zeros=True)


def _shift(how: _How, start: Array, states: Array) -> Array:
    """The state before each step of a chunk, [T, *B, H]."""
    pieces = [states[1:], start[None]] if how.reverse else [start[None], states[:-1]]
    return jnp.concatenate(pieces)


def _pre_activations(params: RNNParams, xs: Array, before: Array) -> Array:
    return input_product(params, xs) + product(before, params.w_hh)


def _input_tangent(
    params: RNNParams, d_params: RNNParams, before: Array, xs: Array, d_xs: Array | None
) -> Array:
    """What enters each step's tangent beside the state's, ``dU x + U dx + db + dW h``."""
    dtype = accumulation_dtype(before.dtype)
    dz = jnp.zeros(before.shape, dtype) if d_xs is None else product(d_xs, params.w_ih)
    if not isinstance(d_params.w_ih, SymbolicZero):
        dz = dz + product(xs, d_params.w_ih)
    if not isinstance(d_params.w_hh, SymbolicZero):
        dz = dz + product(before, d_params.w_hh)
    if d_params.b is not None and not isinstance(d_params.b, SymbolicZero):
        dz = dz + jnp.broadcast_to(d_params.b.astype(dtype), dz.shape)
    return dz


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

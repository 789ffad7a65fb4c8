"""Vanilla layers that carry what their parameters do to their states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._types import Activation, Array, Key, Shape, accumulation_dtype
from jaxrnn.cell import add_noise, input_product, move
from jaxrnn.layers import Layer, make_layer, vanilla_rnn
from jaxrnn.layers.contract import Inputs
from jaxrnn.matrices import FixedFanIn, LowRank, as_dense, recurrent_product
from jaxrnn.online.attached import attach
from jaxrnn.params import Cell, RNNParams, cast_call, cast_floating, check_params, match_batch
from jaxrnn.recurrence.reference import Steps, make_steps, restart, where_unmasked


class OnlineState(NamedTuple):
    """The state of `rtrl`, `snap1` and `rflo`.

    h: [*B, H]. influence: its derivatives by the parameters, in float32 at least; [*B, H, K, H] of
    `rtrl`, whose last axis is that of h, and [*B, H, K] of the others. K counts the parameters of
    a unit: its weights, its bias, and what else of it is learned.
    """

    h: Array
    influence: Array


class _Moved(NamedTuple):
    """One step, taken apart: h [*B, H] after it, and the derivatives of each h_i."""

    h: Array
    gain: Array
    """By the argument of f, [*B, H]."""

    kept: Array | None
    """By h_i before the step, past f: 1 - a, [*B, H], or None for zeros."""

    direct: Array
    """By the parameters of unit i, h before the step held: [*B, H, K]."""


class _Rule(NamedTuple):
    """What there is of an influence, and how it moves."""

    start: Callable[[Array], Array]
    """From the derivatives of each h0_i by the parameters of unit i, [H, K]."""

    move: Callable[[Any, Array, _Moved], Array]
    """``(W, influence, moved) -> influence``."""

    push: Callable[[Array, Array], Array]
    """``(influence, a tangent of the parameters [H, K]) -> that of h [*B, H]``."""


def rtrl(input_size: int, hidden_size: int, **options: Any) -> Layer:
    """Real-time recurrent learning: the exact gradient.

    For each sequence the influence holds H^2 (D + H) numbers, and a step multiplies all of it with
    W, in one product.

    Args:
      input_size, hidden_size, options: those of `jaxrnn.vanilla_rnn`, but for what cuts time into
        chunks. W may be structured; for `LowRank` the influence is that of the full matrix.

    Returns:
      A layer with the parameters and outputs of `vanilla_rnn`, and `OnlineState` for its state.

    Raises:
      TypeError, ValueError: an argument is not as described.

    Source: Williams & Zipser 1989, "A learning algorithm for continually running fully recurrent
    neural networks".
    """
    return _online_layer(_FULL, input_size, hidden_size, options)


def snap1(input_size: int, hidden_size: int, **options: Any) -> Layer:
    """Sparse n-step approximation with n = 1: what a parameter does to its own unit alone.

    The influence holds H (D + H) numbers, and a step costs about what the network's own does. It
    equals `rtrl` where W is diagonal. Arguments, results and errors are those of `rtrl`.

    Source: Menick, Elsen, Evci, Osindero, Simonyan & Graves 2020, "A practical sparse approximation
    for real time recurrent learning", section 3.
    """
    return _online_layer(_OWN_UNIT, input_size, hidden_size, options)


def rflo(input_size: int, hidden_size: int, **options: Any) -> Layer:
    """Random-feedback local online learning: the influence decays with the leak, whatever W is.

    It is ``p_ij(t) = (1 - a) p_ij(t - 1) + a f'(z_i) h_j(t - 1)`` for W, and so on. Without a leak
    nothing of the past is in it. The random feedback of the name is `feedback_alignment` of the
    readout. Arguments, results and errors are those of `rtrl`.

    Source: Murray 2019, "Local online learning in recurrent networks with random feedback".
    """
    return _online_layer(_LEAK, input_size, hidden_size, options)


def _online_layer(rule: _Rule, input_size: int, hidden_size: int, options: Any) -> Layer:
    _refuse_chunks(options)
    plain = vanilla_rnn(input_size, hidden_size, **options)
    activation: Activation = options.get("activation", jnp.tanh)
    leak, noise = options.get("leak"), options.get("noise")

    def initial_state(params: RNNParams, batch_shape: Shape) -> OnlineState:
        h = plain.initial_state(params, batch_shape)
        influence = rule.start(_initial_columns(params))
        return OnlineState(h, jnp.broadcast_to(influence, (*batch_shape, *influence.shape)))

    def run(params: Any, state: OnlineState, inputs: Inputs, key: Key | None) -> Any:
        xs, mask, resets, reverse, single = inputs
        h, influence = state
        extras: Any = {"leak": leak, "noise": noise, "key": key}
        cell, h, xs = cast_call(params, h, xs, h.shape[:-1], activation, **extras)
        learned = cell if params.leak is not None else cell._replace(leak=None)
        weights, cell = _columns(learned), lax.stop_gradient(cell)
        rank = h.ndim - 1
        influence = influence.astype(accumulation_dtype(h.dtype))
        influence = match_batch(influence, xs, xs.ndim - 1 - rank, rank, cell)

        def step(state: OnlineState, x: Array, key: Key | None) -> tuple[OnlineState, Array]:
            h, influence = lax.stop_gradient(state)
            moved = _move(cell, h, x, activation, key, learned.leak is not None)
            influence = lax.stop_gradient(rule.move(cell.w_hh, influence, moved))
            h = attach(rule.push, moved.h, weights, influence)
            return OnlineState(h, influence), h

        state = OnlineState(h, influence)
        if single:
            return step(state, xs, key)
        initial = None
        if resets is not None:
            first = initial_state(params, resets.shape[1:])
            initial = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), first, state)

        def body(state: OnlineState, now: Steps) -> tuple[OnlineState, Array]:
            after, h = step(restart(now.resets, initial, state), now.xs, now.keys)
            return where_unmasked(now.mask, after, state), h

        steps = make_steps(cell, xs, mask, resets, reverse, key)
        return lax.scan(body, state, steps, reverse=reverse)

    return make_layer(input_size, hidden_size, plain.init, initial_state, run)


def _refuse_chunks(options: Any) -> None:
    for name in ("chunk_size", "remat", "parallel"):
        if options.get(name):
            raise ValueError(
                f"{name} is {options[name]!r}, expected none: nothing goes back in time"
            )


def _columns(params: RNNParams | Cell) -> Array:
    """The parameters of each unit, [H, K]."""
    w = params.w_hh.values if isinstance(params.w_hh, FixedFanIn) else as_dense(params.w_hh)
    columns = [w, params.w_ih]
    for leaf in (params.b, params.h0, params.leak):
        if leaf is not None:
            columns.append(jnp.broadcast_to(leaf, w.shape[:1])[:, None])
    return jnp.concatenate(columns, axis=1)


def _initial_columns(params: RNNParams) -> Array:
    """The derivatives of each h0_i by the parameters of unit i, [H, K]."""
    zeros = jax.tree.map(jnp.zeros_like, check_params(params))
    if zeros.h0 is not None:
        zeros = zeros._replace(h0=jnp.ones_like(zeros.h0))
    columns = _columns(zeros)
    return columns.astype(accumulation_dtype(columns.dtype))


def _move(
    cell: Cell, h: Array, x: Array, activation: Activation, key: Key | None, learn_leak: bool
) -> _Moved:
    """One step and its derivatives, from the cell and the state without theirs."""
    z = recurrent_product(cell.w_hh, h) + input_product(cell, x)
    noisy = add_noise(cell, z, key)
    after = move(cell, h, activation(noisy))
    noisy, z, x, h = lax.stop_gradient((noisy, z, x, h))
    f, slope = jax.jvp(activation, (noisy,), (jnp.ones_like(noisy),))
    a = None if cell.leak is None else jnp.broadcast_to(cell.leak.astype(f.dtype), f.shape)
    gain = slope if a is None else a * slope
    sparse = isinstance(cell.w_hh, FixedFanIn)
    sources = h[..., cell.w_hh.indices] if sparse else lax.expand_dims(h, [h.ndim - 1])
    shape = (*h.shape, sources.shape[-1])
    columns = [jnp.broadcast_to(sources.astype(f.dtype), shape)]
    columns.append(jnp.broadcast_to(x[..., None, :].astype(f.dtype), (*h.shape, x.shape[-1])))
    if cell.b is not None:
        columns.append(jnp.ones_like(f)[..., None])
    if cell.h0 is not None:
        columns.append(jnp.zeros_like(f)[..., None])
    direct = jnp.concatenate(columns, axis=-1) * gain[..., None]
    if learn_leak:  # the noise is in proportion to a^(-1/2)
        by_leak = f - h.astype(f.dtype) - slope * (noisy - z) / 2
        direct = jnp.concatenate([direct, by_leak[..., None]], axis=-1)
    return _Moved(after, gain, None if a is None else 1 - a, direct)


def _own(columns: Array) -> Array:
    """[*B, H, K] of each unit to [*B, H, K, H]: what its parameters do to itself alone."""
    units = columns.shape[-2]
    eye = jnp.eye(units, dtype=columns.dtype)[:, None]
    columns = columns[..., None]
    return columns * jnp.broadcast_to(eye, (*columns.shape[:-1], units))


def _move_full(w: Any, influence: Array, moved: _Moved) -> Array:
    w = jax.tree.map(lambda leaf: cast_floating(leaf, influence.dtype), w)
    after = recurrent_product(w, influence) * moved.gain[..., None, None, :]
    if moved.kept is not None:
        after = after + moved.kept[..., None, None, :] * influence
    return after + _own(moved.direct)


def _move_own_unit(w: Any, influence: Array, moved: _Moved) -> Array:
    diagonal = _diagonal(w).astype(moved.gain.dtype)
    own = moved.gain * jnp.broadcast_to(diagonal, moved.gain.shape)
    factor = own if moved.kept is None else moved.kept + own
    return factor[..., None] * influence + moved.direct


def _move_leak(w: Any, influence: Array, moved: _Moved) -> Array:
    return moved.direct if moved.kept is None else moved.kept[..., None] * influence + moved.direct


def _diagonal(w: Any) -> Array:
    """The diagonal of W, [H]."""
    if isinstance(w, LowRank):
        return jnp.sum(w.m * w.n, axis=1)
    if isinstance(w, FixedFanIn):
        own = w.indices == jnp.arange(w.indices.shape[0])[:, None]
        return jnp.sum(jnp.where(own, w.values, 0), axis=1)
    return jnp.diagonal(w)


def _push(subscripts: str) -> Callable[[Array, Array], Array]:
    def push(influence: Array, tangent: Array) -> Array:
        return jnp.einsum(subscripts, influence, tangent.astype(influence.dtype))

    return push


_FULL = _Rule(_own, _move_full, _push("...kjh,kj->...h"))
_OWN_UNIT = _Rule(lambda columns: columns, _move_own_unit, _push("...hj,hj->...h"))
_LEAK = _OWN_UNIT._replace(move=_move_leak)

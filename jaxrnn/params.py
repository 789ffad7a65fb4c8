"""Parameters of the vanilla network: their checks, their dtype, and the initial state."""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxrnn._checks import (
    as_array,
    check_elementwise,
    check_floating,
    check_function,
    check_key,
    check_shape,
)
from jaxrnn._types import Activation, Array, Initializer, Key, Shape, accumulation_dtype


class RNNParams(NamedTuple):
    """Parameters of one layer, stored as in the formula ``h = f(W h + U x + b)``.

    w_ih: U [H, D], input to hidden.
    w_hh: W [H, H], hidden to hidden.
    b:    [H], or None for a layer without a bias.
    h0:   [H] or None, the learned initial state; None means zeros.
    """

    w_ih: Array
    w_hh: Array
    b: Array | None = None
    h0: Array | None = None


def check_params(params: Any) -> RNNParams:
    """Return `params` with its leaves as arrays; refuse parameters that do not fit together."""
    if not isinstance(params, RNNParams):
        raise TypeError(f"params is a {type(params).__name__}, expected RNNParams")
    for name, leaf in params._asdict().items():
        if leaf is not None or name.startswith("w_"):
            params = params._replace(**{name: as_array(f"params.{name}", leaf)})
            check_floating(f"params.{name}", getattr(params, name))
            _check_whole(f"params.{name}", getattr(params, name))
    if params.w_ih.ndim != 2:
        raise ValueError(f"params.w_ih has shape {params.w_ih.shape}, expected [H, D]")
    units = params.w_ih.shape[0]
    check_shape("params.w_hh", params.w_hh, (units, units))
    for name in ("b", "h0"):
        if getattr(params, name) is not None:
            check_shape(f"params.{name}", getattr(params, name), (units,))
    return params


def _check_whole(name: str, weights: Array) -> None:
    """Refuse weights that are sharded over explicit mesh axes: each step would need all of them."""
    spec = jax.typeof(weights).sharding.spec
    if any(spec):
        raise ValueError(
            f"{name} is sharded over explicit mesh axes, {spec}, expected whole weights: "
            "use jax.sharding.reshard(params, jax.P()), or shard hidden units over AxisType.Auto"
        )


def cast_call(
    params: RNNParams,
    h: Any,
    x: Array,
    batch_shape: Shape,
    activation: Activation,
    *,
    name: str = "state",
) -> tuple[RNNParams, Array, Array]:
    """Checked parameters, the state `h` called `name`, and inputs, in their result dtype.

    That is the result type of the parameters and, if it is floating-point, the input. A state of
    None becomes the initial state; one whose shape or dtype does not fit is refused, and so is an
    activation that is not elementwise."""
    arrays = [leaf for leaf in params if leaf is not None]
    if jnp.issubdtype(x.dtype, jnp.floating):
        arrays.append(x)
    dtype = jnp.result_type(*arrays)
    shape = (*batch_shape, params.w_hh.shape[0])
    if h is not None:
        h = as_array(name, h)
        check_floating(name, h)
        check_shape(name, h, shape)
        if h.dtype != dtype and jnp.finfo(h.dtype).bits >= jnp.finfo(dtype).bits:
            raise ValueError(
                f"{name} has dtype {h.dtype}, expected {dtype}, the result type of params and "
                "inputs"
            )
    check_elementwise(activation, shape, accumulation_dtype(dtype))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), params)
    h = jnp.broadcast_to(initial_unit_state(params), shape) if h is None else h.astype(dtype)
    rank = len(batch_shape)
    return params, match_batch(h, x, x.ndim - 1 - rank, rank, params), x.astype(dtype)


def match_batch(state: Any, x: Array, first: int, rank: int, others: Any = ()) -> Any:
    """`state` [*B, ...] with the device types of inputs `x`, whose `rank` batch axes begin at axis
    `first`, since a scan carries one type: sharded over the explicit mesh axes that the batch is
    sharded over, and varying over the axes of ``jax.shard_map`` that `x` or `others` vary over."""
    spec = jax.typeof(x).sharding.spec[first : first + rank]
    varying = frozenset[str]().union(
        *(jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves((x, others)))
    )

    def place(leaf: Array) -> Array:
        missing = varying - jax.typeof(leaf).manual_axis_type.varying
        if missing:
            leaf = lax.pcast(leaf, tuple(sorted(missing)), to="varying")
        full = P(*spec, *[None] * (leaf.ndim - rank))
        return leaf if jax.typeof(leaf).sharding.spec == full else jax.sharding.reshard(leaf, full)

    return jax.tree.map(place, state)


def vary_with(values: Any, like: Any) -> Any:
    """`values`, as if computed from `like`: a loop that starts from them under ``vmap`` or in
    ``jax.shard_map`` then carries one type, whatever its body mixes them with."""
    zero = functools.reduce(operator.or_, map(jnp.any, jax.tree.leaves(like))) & False
    return jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), values)


def initial_unit_state(params: RNNParams) -> Array:
    """The initial state of one sequence, [H]: the learned one, or zeros."""
    return jnp.zeros_like(params.w_hh[0]) if params.h0 is None else params.h0


def draw_weights(name: str, init: Initializer, key: Key, shape: Shape, dtype: Any) -> Array:
    """What the initializer called `name` returns, checked."""
    check_function(name, init)
    check_key("key", key)
    value = as_array(f"the result of {name}", init(key, shape, dtype))
    check_shape(f"the result of {name}", value, shape)
    return value.astype(dtype)

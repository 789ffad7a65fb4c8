"""Parameters of the vanilla network: their checks, their dtype, and the initial state."""

# Without `from __future__ import annotations`, for which pdoc cannot show the fields of NamedTuples
# (https://github.com/mitmproxy/pdoc/issues/765).
import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxrnn._checks import (
    as_array,
    check_call,
    check_elementwise,
    check_floating,
    check_function,
    check_key,
    check_per_unit,
    check_shape,
)
from jaxrnn._types import Activation, Array, Initializer, Key, Shape, accumulation_dtype
from jaxrnn.matrices import as_weights, is_structured


class RNNParams(NamedTuple):
    """Parameters of one layer, stored as in the formula ``h = f(W h + U x + b)``."""

    w_ih: Array
    """U [H, D], input to hidden."""

    w_hh: Any
    """W [H, H], hidden to hidden: an array, `LowRank` or `FixedFanIn`."""

    b: Array | None = None
    """[H], or None for a layer without a bias."""

    h0: Array | None = None
    """[H] or None, the learned initial state; None means zeros."""

    leak: Array | None = None
    """[] or [H], the logit of a learned leak (see `step`); None for none."""


class Cell(NamedTuple):
    """What a call makes of `RNNParams` and its options: arrays of one dtype."""

    w_ih: Array
    w_hh: Any
    b: Array | None
    h0: Array | None
    leak: Array | None
    """a itself, [] or [H]."""

    noise: Array | None
    """The standard deviation of the noise inside f, [] or [H]."""


def check_params(params: Any) -> RNNParams:
    """Return `params` with its leaves as arrays; refuse parameters that do not fit together."""
    if not isinstance(params, RNNParams):
        raise TypeError(f"params is a {type(params).__name__}, expected RNNParams")
    leaves = params._asdict()
    w_hh = leaves.pop("w_hh")
    for name, leaf in leaves.items():
        if leaf is not None or name == "w_ih":
            params = params._replace(**{name: as_weights(f"params.{name}", leaf)})
    if params.w_ih.ndim != 2:
        raise ValueError(f"params.w_ih has shape {params.w_ih.shape}, expected [H, D]")
    units = params.w_ih.shape[0]
    if is_structured(w_hh):
        params = params._replace(w_hh=w_hh.check("params.w_hh", units))
    else:
        params = params._replace(w_hh=as_weights("params.w_hh", w_hh))
        check_shape("params.w_hh", params.w_hh, (units, units))
    for name in ("b", "h0", "leak"):
        leaf = getattr(params, name)
        if leaf is not None and not (name == "leak" and leaf.shape == ()):
            check_shape(f"params.{name}", leaf, (units,))
    return params


def cast_call(
    params: RNNParams,
    h: Any,
    x: Array,
    batch_shape: Shape,
    activation: Activation,
    *,
    name: str = "state",
    leak: Any = None,
    noise: Any = None,
    key: Key | None = None,
) -> tuple[Cell, Array, Array]:
    """The cell of checked parameters, the state `h` called `name`, and inputs, in their result
    dtype.

    That is the result type of the parameters and, if it is floating-point, the input. A state of
    None becomes the initial state; one whose shape or dtype does not fit is refused, and so is an
    activation that is not elementwise. Without a key the cell has no noise."""
    arrays = [leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if jnp.issubdtype(x.dtype, jnp.floating):
        arrays.append(x)
    dtype = jnp.result_type(*arrays)
    shape = (*batch_shape, params.w_ih.shape[0])
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
    params = jax.tree.map(lambda leaf: cast_floating(leaf, dtype), params)
    cell = _make_cell(params, leak, noise, key)
    h = jnp.broadcast_to(initial_unit_state(params), shape) if h is None else h.astype(dtype)
    rank = len(batch_shape)
    return cell, match_batch(h, x, x.ndim - 1 - rank, rank, cell), x.astype(dtype)


def cast_floating(leaf: Any, dtype: Any) -> Array:
    """`leaf` in `dtype`, but integers as they are."""
    leaf = jnp.asarray(leaf)
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _make_cell(params: RNNParams, leak: Any, noise: Any, key: Key | None) -> Cell:
    """The cell with a learned or a fixed leak, and with noise of sqrt(2 / a) times `noise`, if
    there is a key."""
    units, dtype = params.w_ih.shape[0], params.w_ih.dtype
    a: Array | None = None
    if params.leak is not None:
        if leak is not None:
            raise ValueError("leak is given beside params.leak, expected one of them")
        a = jax.nn.sigmoid(params.leak)
    elif leak is not None:
        a = jnp.asarray(check_per_unit("leak", leak, units, "(0, 1]")).astype(dtype)
    scale: Array | None = None
    if noise is not None:
        sigma = check_per_unit("noise", noise, units, "[0, inf)")
        if key is not None:
            scale = jnp.asarray(sigma).astype(dtype)
            scale = scale * jnp.sqrt(2 / (jnp.ones((), dtype) if a is None else a))
    return Cell(*params[:4], a, scale)


def match_batch(state: Any, x: Array, first: int, rank: int, others: Any = ()) -> Any:
    """`state` [*B, ...] with the device types of inputs `x`, whose `rank` batch axes begin at axis
    `first`, since a scan carries one type: sharded over the explicit mesh axes that the batch is
    sharded over, and varying over the axes of ``jax.shard_map`` that `x` or `others` vary over."""
    spec = jax.typeof(x).sharding.spec[first : first + rank]

    def place(leaf: Array) -> Array:
        full = P(*spec, *[None] * (leaf.ndim - rank))
        return leaf if jax.typeof(leaf).sharding.spec == full else jax.sharding.reshard(leaf, full)

    return jax.tree.map(place, vary_over(state, (x, others)))


def vary_over(values: Any, like: Any) -> Any:
    """`values`, varying over the axes of ``jax.shard_map`` that a leaf of `like` varies over."""
    varying = frozenset[str]().union(
        *(jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(like))
    )

    def cast(leaf: Array) -> Array:
        missing = varying - jax.typeof(leaf).manual_axis_type.varying
        return lax.pcast(leaf, tuple(sorted(missing)), to="varying") if missing else leaf

    return jax.tree.map(cast, values)


def vary_with(values: Any, like: Any) -> Any:
    """`values`, as if computed from `like`: a loop that starts from them under ``vmap`` or in
    ``jax.shard_map`` then carries one type, whatever its body mixes them with."""
    zero = functools.reduce(operator.or_, map(jnp.any, jax.tree.leaves(like))) & False

    def vary(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf + zero.astype(leaf.dtype)
        data = jax.random.key_data(leaf)
        return jax.random.wrap_key_data(
            data + zero.astype(data.dtype), impl=jax.random.key_impl(leaf)
        )

    return jax.tree.map(vary, values)


def initial_unit_state(params: RNNParams | Cell) -> Array:
    """The initial state of one sequence, [H]: the learned one, or zeros."""
    if params.h0 is not None:
        return params.h0
    return params.w_hh.zeros() if is_structured(params.w_hh) else jnp.zeros_like(params.w_hh[0])


def draw_weights(name: str, init: Initializer, key: Key, shape: Shape, dtype: Any) -> Any:
    """What the initializer called `name` returns, checked."""
    check_function(name, init)
    check_key("key", key)
    check_call(name, init, "(key, shape, dtype)", 3)
    value = init(key, shape, dtype)
    if is_structured(value):
        return jax.tree.map(lambda leaf: cast_floating(leaf, dtype), value)
    value = as_array(f"the result of {name}", value)
    check_shape(f"the result of {name}", value, shape)
    return value.astype(dtype)


def split_key(key: Key | None, count: int) -> list[Any]:
    """`count` keys of one; without one, None for each."""
    return [None] * count if key is None else list(jax.random.split(key, count))

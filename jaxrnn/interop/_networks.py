"""The networks that formats can hold: stacks of vanilla, bidirectional and dense layers."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrnn._checks import check_floating, check_floating_dtype, check_shape
from jaxrnn._types import Array, Params, Shape
from jaxrnn.layers.pointwise import DenseParams
from jaxrnn.matrices import as_dense
from jaxrnn.params import RNNParams, check_params


class RecurrentParams(NamedTuple):
    """The parameters of a recurrent layer: of one direction, or of forward and backward."""

    directions: tuple[RNNParams, ...]


LayerParams = RecurrentParams | DenseParams
"""The parameters of one layer of a stack."""


def split_stack(params: Params) -> list[LayerParams]:
    """The parameters of each layer of a stack; layers without any (dropout) are omitted.

    An entry of `params` is `RNNParams`, a pair of them (a `bidirectional` layer), or `DenseParams`.
    The parameters of a single layer, not in a tuple, count as a stack of one.

    Raises:
      TypeError: an entry is anything else. ValueError: the layers' sizes do not match.
    """
    entries = params if type(params) is tuple else (params,)
    parts: list[LayerParams] = []
    for position, entry in enumerate(entries):
        if isinstance(entry, tuple) and not entry:
            continue
        name = f"params[{position}]"
        if isinstance(entry, DenseParams):
            parts.append(_check_dense(name, entry))
        elif isinstance(entry, RNNParams):
            parts.append(RecurrentParams((_check_rnn(name, entry),)))
        elif is_pair(entry):
            pair = (_check_rnn(f"{name}[{index}]", rnn) for index, rnn in enumerate(entry))
            parts.append(RecurrentParams(tuple(pair)))
        else:
            raise TypeError(
                f"{name} is a {type(entry).__name__}, expected RNNParams, a pair of RNNParams "
                "(a bidirectional layer) or DenseParams"
            )
    if not parts:
        raise ValueError("params has no layer with parameters, expected at least one")
    for position, (below, above) in enumerate(itertools.pairwise(parts)):
        if get_sizes(below)[1] != get_sizes(above)[0]:
            raise ValueError(
                f"layer {position} of params has {get_sizes(below)[1]} outputs but layer "
                f"{position + 1} has {get_sizes(above)[0]} inputs, expected equal sizes"
            )
    return parts


def join_stack(parts: list[LayerParams]) -> tuple[Params, ...]:
    """A stack's parameters, one entry per layer; the inverse of `split_stack`."""
    return tuple(
        part
        if isinstance(part, DenseParams)
        else part.directions[0]
        if len(part.directions) == 1
        else part.directions
        for part in parts
    )


def get_sizes(part: LayerParams) -> tuple[int, int]:
    """The numbers of input and output features."""
    if isinstance(part, DenseParams):
        return part.w.shape[1], part.w.shape[0]
    return part.directions[0].w_ih.shape[1], sum(one.w_hh.shape[0] for one in part.directions)


def check_no_h0(part: RecurrentParams, format: str) -> RecurrentParams:
    """Reject a learned initial state, which `format` cannot store."""
    if any(one.h0 is not None for one in part.directions):
        raise ValueError(
            f"params has a learned initial state h0, expected None: {format} cannot store it "
            "(remove it with params._replace(h0=None) and pass it as the initial state)"
        )
    return part


def _as_numpy(value: Any) -> np.ndarray:
    """An array of any framework as a NumPy array, without importing the framework."""
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # a dtype that NumPy itself lacks
            return value.float().numpy().astype(jnp.bfloat16)
        return value.numpy()
    if hasattr(value, "numpy") and callable(value.numpy):  # a Keras variable
        value = value.numpy()
    elif hasattr(value, "get_value"):  # flax's nnx.Variable
        value = value.get_value()
    return np.asarray(value)


def as_param(name: str, value: Any, shape: Shape | None = None) -> Array:
    """A foreign tensor as a parameter. It must be floating-point, of a dtype that JAX can store."""
    array: Any = _as_numpy(value)
    if array.dtype == object:
        raise TypeError(f"{name} is a {type(value).__name__}, expected an array")
    check_floating(name, array)
    check_floating_dtype(f"the dtype of {name}", array.dtype)
    if shape is not None:
        check_shape(name, array, shape)
    return jnp.array(array)  # a copy, because a framework may overwrite its own array


def is_pair(entry: Any) -> bool:
    """Whether `entry` can be the parameters of a bidirectional layer."""
    return (
        type(entry) is tuple
        and len(entry) == 2
        and all(isinstance(one, RNNParams) for one in entry)
        and entry[0].w_ih.shape[1:] == entry[1].w_ih.shape[1:]
    )


def _check_rnn(name: str, params: RNNParams) -> RNNParams:
    try:
        params = check_params(params)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("params", name, 1)) from None
    if params.leak is not None:
        raise ValueError(f"{name} has a leak, expected None: other formats have no leaky cell")
    return params._replace(w_hh=as_dense(params.w_hh))


def _check_dense(name: str, params: DenseParams) -> DenseParams:
    w = as_param(f"{name}.w", params.w)
    if w.ndim != 2:
        raise ValueError(f"{name}.w has shape {w.shape}, expected [O, D]")
    b = None if params.b is None else as_param(f"{name}.b", params.b, w.shape[:1])
    return DenseParams(w, b)

"""What every format here can hold: recurrent layers, in one direction or two, and dense ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrnn._checks import check_floating, check_floating_dtype, check_shape
from jaxrnn._types import Array, Params, Shape
from jaxrnn.layers.pointwise import DenseParams
from jaxrnn.params import RNNParams, check_params


class Recurrent(NamedTuple):
    """A recurrent layer: one direction, or the forward and the backward one."""

    directions: tuple[RNNParams, ...]


Part = Recurrent | DenseParams


def parts_of(params: Params) -> list[Part]:
    """The layers of a stack's parameters, those without any (dropout) left out.

    An entry is `RNNParams`, a pair of them (a `bidirectional` layer), or `DenseParams`; parameters
    of one such layer alone, not in a tuple, are a stack of one.

    Raises:
      TypeError: an entry is anything else. ValueError: parameters do not fit together.
    """
    entries = params if type(params) is tuple else (params,)
    parts: list[Part] = []
    for position, entry in enumerate(entries):
        if isinstance(entry, tuple) and not entry:
            continue
        name = f"params[{position}]"
        if isinstance(entry, DenseParams):
            parts.append(_dense(name, entry))
        elif isinstance(entry, RNNParams):
            parts.append(Recurrent((_named(name, entry),)))
        elif is_pair(entry):
            pair = [_named(f"{name}[{index}]", one) for index, one in enumerate(entry)]
            parts.append(Recurrent(tuple(pair)))
        else:
            raise TypeError(
                f"{name} is a {type(entry).__name__}, expected RNNParams, a pair of RNNParams "
                "(a bidirectional layer) or DenseParams"
            )
    if not parts:
        raise ValueError("params hold no layer with parameters, expected at least one")
    for position, (below, above) in enumerate(itertools.pairwise(parts)):
        if sizes_of(below)[1] != sizes_of(above)[0]:
            raise ValueError(
                f"layer {position} of params has {sizes_of(below)[1]} outputs but layer "
                f"{position + 1} has {sizes_of(above)[0]} inputs, expected equal sizes"
            )
    return parts


def params_of(parts: list[Part]) -> tuple[Params, ...]:
    """A stack's parameters, one entry a layer; the inverse of `parts_of`."""
    return tuple(
        part
        if isinstance(part, DenseParams)
        else part.directions[0]
        if len(part.directions) == 1
        else part.directions
        for part in parts
    )


def sizes_of(part: Part) -> tuple[int, int]:
    """(features in, features out)."""
    if isinstance(part, DenseParams):
        return part.w.shape[1], part.w.shape[0]
    return part.directions[0].w_ih.shape[1], sum(one.w_hh.shape[0] for one in part.directions)


def without_h0(part: Recurrent, format: str) -> Recurrent:
    """Refuse a learned initial state, which a format has no place for."""
    if any(one.h0 is not None for one in part.directions):
        raise ValueError(
            f"params hold a learned initial state h0, expected None: {format} has no place for it "
            "(take it out with params._replace(h0=None) and hand it over as the initial state)"
        )
    return part


def as_numpy(value: Any) -> np.ndarray:
    """A NumPy array of an array of any framework; nothing is imported for it."""
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # which NumPy itself does not have
            return value.float().numpy().astype(jnp.bfloat16)
        return value.numpy()
    if hasattr(value, "numpy") and callable(value.numpy):  # a Keras variable
        value = value.numpy()
    elif hasattr(value, "get_value"):  # flax's nnx.Variable
        value = value.get_value()
    return np.asarray(value)


def as_param(name: str, value: Any, shape: Shape | None = None) -> Array:
    """A foreign tensor as a parameter: floating-point, of a dtype that JAX can hold as it is."""
    array: Any = as_numpy(value)
    if array.dtype == object:
        raise TypeError(f"{name} is a {type(value).__name__}, expected an array")
    check_floating(name, array)
    check_floating_dtype(f"the dtype of {name}", array.dtype)
    if shape is not None:
        check_shape(name, array, shape)
    return jnp.array(array)  # a copy: a framework may write to its own


def take(weights: Mapping[str, Any], name: str, shape: Shape | None = None) -> Array:
    """The named tensor of a mapping as a parameter, or an error that says what there is."""
    if name not in weights:
        raise ValueError(f"there is no {name!r}, expected it among {sorted(weights)}")
    return as_param(repr(name), weights[name], shape)


def is_pair(entry: Any) -> bool:
    """Whether parameters can be those of a bidirectional layer."""
    return (
        type(entry) is tuple
        and len(entry) == 2
        and all(isinstance(one, RNNParams) for one in entry)
        and entry[0].w_ih.shape[1:] == entry[1].w_ih.shape[1:]
    )


def _named(name: str, params: RNNParams) -> RNNParams:
    try:
        return check_params(params)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("params", name, 1)) from None


def _dense(name: str, params: DenseParams) -> DenseParams:
    w = as_param(f"{name}.w", params.w)
    if w.ndim != 2:
        raise ValueError(f"{name}.w has shape {w.shape}, expected [O, D]")
    b = None if params.b is None else as_param(f"{name}.b", params.b, w.shape[:1])
    return DenseParams(w, b)

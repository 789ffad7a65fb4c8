"""Reading layers from flat mappings of named tensors, and writing them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn._types import Array, Params, Shape
from jaxrnn.interop._networks import LayerParams, RecurrentParams, as_param, join_stack, split_stack
from jaxrnn.layers.pointwise import DenseParams
from jaxrnn.params import RNNParams

Weights = dict[str, Any]
"""Tensors by path; the readers remove what they have read."""

_GATED = {3: "a GRU", 4: "an LSTM"}


def flatten(name: str, tree: Any, *, skip: str | None = None) -> Weights:
    """The leaves of nested mappings by path, "a/b/c", except those under the key `skip`."""
    if not isinstance(tree, Mapping):
        raise TypeError(f"{name} is a {type(tree).__name__}, expected a mapping of arrays")
    weights = dict(_leaves("", tree, skip))
    if not weights:
        raise ValueError(f"{name} holds no tensors, expected those of at least one layer")
    return weights


def _leaves(path: str, tree: Any, skip: str | None) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if key != skip:
                yield from _leaves(join(path, key), value, skip)
    else:
        yield path, tree


def join(*components: Any) -> str:
    """A path from its components; empty ones, of modules without a name, are dropped."""
    return "/".join(str(component) for component in components if component != "")


def read_vanilla(
    weights: Weights,
    w_ih: str,
    w_hh: str,
    biases: Sequence[str],
    *,
    shape: Shape | None = None,
    transposed: bool = True,
) -> RNNParams:
    """Remove a vanilla layer from `weights` and return it; its biases are summed.

    `shape` is the shape that w_ih [H, D] must have, if it is known. `transposed` means that the
    matrices are stored as [D, H].
    """
    recurrent = _read_matrix(weights, w_hh, transposed)
    _check_not_gated(w_hh, recurrent.shape)
    units = recurrent.shape[0] if shape is None else shape[0]
    _check_matrix(w_hh, recurrent, (units, units), transposed)
    matrix = _read_matrix(weights, w_ih, transposed)
    _check_matrix(w_ih, matrix, (units, matrix.shape[1]) if shape is None else shape, transposed)
    summands = [np.asarray(_pop(weights, name, (units,))) for name in biases]
    b = jnp.asarray(functools.reduce(np.add, summands)) if summands else None
    return RNNParams(matrix, recurrent, b)


def read_dense(weights: Weights, w: str, b: str, *, transposed: bool = True) -> DenseParams:
    """Remove a dense layer, with or without a bias, from `weights` and return it."""
    matrix = _read_matrix(weights, w, transposed)
    return DenseParams(matrix, _pop(weights, b, matrix.shape[:1]) if b in weights else None)


def _pop(weights: Weights, name: str, shape: Shape | None = None) -> Array:
    if name not in weights:
        raise ValueError(f"there is no {name!r}, expected it among {sorted(weights)}")
    array = as_param(repr(name), weights[name], shape)
    del weights[name]
    return array


def _read_matrix(weights: Weights, name: str, transposed: bool) -> Array:
    matrix = _pop(weights, name)
    if matrix.ndim != 2:
        raise ValueError(f"{name!r} has shape {matrix.shape}, expected a matrix")
    return jnp.array(np.asarray(matrix).T) if transposed else matrix


def _check_matrix(name: str, matrix: Array, expected: Shape, transposed: bool) -> None:
    if matrix.shape != expected:
        order = -1 if transposed else 1
        raise ValueError(
            f"{name!r} has shape {matrix.shape[::order]}, expected {expected[::order]}"
        )


def _check_not_gated(name: str, shape: Shape) -> None:
    for gates, network in _GATED.items():
        if shape[0] == gates * shape[1] > 0:
            raise ValueError(
                f"{name!r} holds {gates} matrices of {shape[1]} units, those of {network}, "
                "expected one: a vanilla network"
            )


def make_bidirectional(name: str, forward: RNNParams, backward: RNNParams) -> RecurrentParams:
    """The parameters of a bidirectional layer, checked."""
    sizes = [one.w_ih.shape[1] for one in (forward, backward)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the directions of {name} have {sizes[0]} and {sizes[1]} inputs, "
            "expected equal numbers"
        )
    return RecurrentParams((forward, backward))


def check_all_read(weights: Weights, known: str) -> None:
    """Reject tensors that belong to no layer."""
    if weights:
        raise ValueError(f"unknown tensors {sorted(weights)}, expected only those of {known}")


def make_stack(parts: list[LayerParams]) -> tuple[Params, ...]:
    """A stack's parameters, after checking that the layers' sizes match."""
    params = join_stack(parts)
    split_stack(params)
    return params


def write_tensor(
    weights: Weights, name: str, array: Array | np.ndarray, *, transposed: bool = True
) -> None:
    """Add a copy of a parameter, in C order, to `weights`."""
    if name in weights:
        raise ValueError(f"names gives {name!r} twice, expected distinct names")
    stored = np.asarray(array)
    weights[name] = np.array(stored.T if transposed else stored, order="C")


def no_bias(params: RNNParams) -> np.ndarray:
    """A bias [H] that changes no bit of its summand: adding -0.0 preserves the sign of zeros."""
    return np.full(params.w_hh.shape[:1], -0.0, params.w_hh.dtype)


def check_names(names: Any, expected: Sequence[str]) -> Sequence[Any]:
    """Reject anything but a list of names, one for each of the `expected` ones."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"names is {names!r:.60}, expected a list of names")
    if len(names) != len(expected):
        raise ValueError(f"names has {len(names)} entries, expected {len(expected)}: {expected}")
    for position, name in enumerate(names):
        if not isinstance(name, str):
            raise TypeError(f"names[{position}] is {name!r:.60}, expected a string")
    return names

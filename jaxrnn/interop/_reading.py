"""One vanilla or dense layer out of, or into, a flat mapping of named tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn._types import Array, Params, Shape
from jaxrnn.interop._networks import Part, Recurrent, params_of, parts_of, take
from jaxrnn.layers.pointwise import DenseParams
from jaxrnn.params import RNNParams

Weights = dict[str, Any]
"""Tensors by their paths; the readers take out what they have read."""

_GATED = {3: "a GRU", 4: "an LSTM"}


def flatten(name: str, tree: Any, *, skip: str | None = None) -> Weights:
    """The leaves of nested mappings by their paths, "a/b/c"; what is under a key `skip` is not."""
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


def join(*parts: Any) -> str:
    """A path of its parts; that of a module without a name is empty."""
    return "/".join(str(part) for part in parts if part != "")


def read_vanilla(
    weights: Weights,
    w_ih: str,
    w_hh: str,
    biases: Sequence[str],
    *,
    shape: Shape | None = None,
    transposed: bool = True,
) -> RNNParams:
    """Take a vanilla layer out of `weights`; its biases are summed.

    `shape` is what w_ih [H, D] must have, where that is known; `transposed` says that the matrices
    are stored the other way round, [D, H].
    """
    recurrent = _read_matrix(weights, w_hh, transposed)
    _refuse_gates(w_hh, recurrent.shape)
    units = recurrent.shape[0] if shape is None else shape[0]
    _check_matrix(w_hh, recurrent, (units, units), transposed)
    matrix = _read_matrix(weights, w_ih, transposed)
    _check_matrix(w_ih, matrix, (units, matrix.shape[1]) if shape is None else shape, transposed)
    summands = [np.asarray(_pop(weights, name, (units,))) for name in biases]
    b = jnp.asarray(functools.reduce(np.add, summands)) if summands else None
    return RNNParams(matrix, recurrent, b)


def read_dense(weights: Weights, w: str, b: str, *, transposed: bool = True) -> DenseParams:
    """Take a dense layer, with a bias or without one, out of `weights`."""
    matrix = _read_matrix(weights, w, transposed)
    return DenseParams(matrix, _pop(weights, b, matrix.shape[:1]) if b in weights else None)


def _pop(weights: Weights, name: str, shape: Shape | None = None) -> Array:
    array = take(weights, name, shape)
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


def _refuse_gates(name: str, shape: Shape) -> None:
    for gates, network in _GATED.items():
        if shape[0] == gates * shape[1] > 0:
            raise ValueError(
                f"{name!r} holds {gates} matrices of {shape[1]} units, those of {network}, "
                "expected one: a vanilla network"
            )


def both(name: str, forward: RNNParams, backward: RNNParams) -> Recurrent:
    """A bidirectional layer."""
    sizes = [one.w_ih.shape[1] for one in (forward, backward)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the directions of {name} have {sizes[0]} and {sizes[1]} inputs, "
            "expected equal numbers"
        )
    return Recurrent((forward, backward))


def refuse_rest(weights: Weights, known: str) -> None:
    """Refuse tensors that no layer has taken."""
    if weights:
        raise ValueError(f"unknown tensors {sorted(weights)}, expected only those of {known}")


def stack_of(parts: list[Part]) -> tuple[Params, ...]:
    """Parameters of a stack, once the layers are seen to fit together."""
    params = params_of(parts)
    parts_of(params)
    return params


def put(weights: Weights, name: str, array: Array | np.ndarray, *, transposed: bool = True) -> None:
    """Write a copy of a parameter, in C order."""
    if name in weights:
        raise ValueError(f"names give {name!r} twice, expected different names")
    stored = np.asarray(array)
    weights[name] = np.array(stored.T if transposed else stored, order="C")


def no_bias(params: RNNParams) -> np.ndarray:
    """A bias [H] that changes no bit of what it is added to: -0.0 keeps the sign of a zero."""
    return np.full(params.w_hh.shape[:1], -0.0, params.w_hh.dtype)


def check_names(names: Any, expected: Sequence[str]) -> Sequence[Any]:
    """Refuse what is not a list of names, one for each that is `expected`."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"names is {names!r:.60}, expected a list of names")
    if len(names) != len(expected):
        raise ValueError(f"names has {len(names)} entries, expected {len(expected)}: {expected}")
    for position, name in enumerate(names):
        if not isinstance(name, str):
            raise TypeError(f"names[{position}] is {name!r:.60}, expected a string")
    return names

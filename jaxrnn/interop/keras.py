"""Keras 3: parameters of ``SimpleRNN``, ``Bidirectional`` of it, and ``Dense``.

    rnn = stack(vanilla_rnn(3, 8), bidirectional(vanilla_rnn(8, 4), vanilla_rnn(8, 4)), dense(8, 2))
    params = from_keras(model)
    model.set_weights(list(to_keras(params).values()))

Keras itself is not needed here. What its variables do not say, the layers must: the activation of
``SimpleRNN`` (tanh by default) is that of `vanilla_rnn`; every recurrent layer but the last must
return sequences, ``Bidirectional`` must concatenate (``merge_mode="concat"``, the default), and
sequences, batch-major there, are time-major here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrnn._types import Params
from jaxrnn.interop._networks import Part, Recurrent, parts_of, without_h0
from jaxrnn.interop._reading import (
    Weights,
    both,
    flatten,
    join,
    put,
    read_dense,
    read_vanilla,
    refuse_rest,
    stack_of,
)
from jaxrnn.params import RNNParams


def from_keras(weights: Any) -> tuple[Params, ...]:
    """Parameters of a stack from the variables of a Keras model.

    Args:
      weights: a model or layer that is built, or a mapping of its variables' paths to their values:
        ``{v.path: v for v in model.weights}``. A path ends in kernel [D, H], recurrent_kernel
        [H, H] or bias [H] of a ``SimpleRNN`` (of one direction where ``Bidirectional`` has named it
        forward_NAME or backward_NAME), or in kernel [D, O] or bias [O] of a ``Dense``. The layers
        stand in the order in which the data pass them, as those of ``Sequential`` do.

    Returns:
      A tuple with one entry a layer: `RNNParams`, for ``Bidirectional`` a pair of them, or
      `DenseParams`. Dtypes are kept.

    Raises:
      TypeError: `weights` is neither a model nor a mapping of arrays.
      ValueError: a variable is missing, unknown or misshapen, of a dtype that JAX does not hold as
        it is configured, or shares its path with another; the network is an LSTM or a GRU; two
        layers do not fit.
    """
    if not isinstance(weights, Mapping) and hasattr(weights, "weights"):
        weights = _by_path(weights.weights)
    left = flatten("weights", weights)
    layers = list(dict.fromkeys(path.rpartition("/")[0] for path in left))
    parts: list[Part] = []
    while layers:
        layer = layers.pop(0)
        backward = _backward(layer)
        if backward is None:
            parts.append(_read(left, layer))
            continue
        if not layers or layers.pop(0) != backward:
            raise ValueError(
                f"{layer!r} is a forward direction that {backward!r} does not follow, expected a "
                "Bidirectional layer of two that have the same name (and forward_ before no other "
                "layer's name)"
            )
        parts.append(both(repr(layer), *(_read_vanilla(left, one) for one in (layer, backward))))
    refuse_rest(left, "SimpleRNN, Bidirectional and Dense")
    return stack_of(parts)


def to_keras(params: Params) -> dict[str, np.ndarray]:
    """Keras' weights from a stack's parameters.

    Args:
      params: of a stack of vanilla, bidirectional vanilla and dense layers, or of one such layer.

    Returns:
      Copies of the parameters, of their dtypes, in the order of ``model.get_weights()``: the list
      of the values is what ``model.set_weights`` takes. The paths are those of the first
      ``Sequential`` that a process makes, of layers without names.

    Raises:
      TypeError: `params` are of other layers. ValueError: there is a learned h0.
    """
    weights: Weights = {}
    counts: dict[str, int] = {}

    def number(kind: str) -> str:
        counts[kind] = counts.get(kind, -1) + 1
        return f"{kind}_{counts[kind]}" if counts[kind] else kind

    for part in parts_of(params):
        if isinstance(part, Recurrent):
            name = number("simple_rnn")
            layers = [name]
            if len(without_h0(part, "Keras' SimpleRNN").directions) > 1:
                around = number("bidirectional")
                layers = [f"{around}/forward_{name}", f"{around}/backward_{name}"]
            for layer, one in zip(layers, part.directions, strict=True):
                path = f"sequential/{layer}/simple_rnn_cell"
                put(weights, f"{path}/kernel", one.w_ih)
                put(weights, f"{path}/recurrent_kernel", one.w_hh)
                if one.b is not None:
                    put(weights, f"{path}/bias", one.b)
        else:
            path = f"sequential/{number('dense')}"
            put(weights, f"{path}/kernel", part.w)
            if part.b is not None:
                put(weights, f"{path}/bias", part.b)
    return weights


def _by_path(variables: Any) -> dict[str, Any]:
    by_path: dict[str, Any] = {}
    for variable in variables:
        if variable.path in by_path:
            raise ValueError(f"two variables have the path {variable.path!r}, expected one")
        by_path[variable.path] = variable
    return by_path


def _backward(layer: str) -> str | None:
    """The path of the backward cell that belongs to a forward one."""
    around, sep, inner = layer.rpartition("/forward_")
    return f"{around}/backward_{inner}" if sep else None


def _read(weights: Weights, layer: str) -> Part:
    named = layer.rpartition("/")[2].startswith("simple_rnn_cell")
    if named or join(layer, "recurrent_kernel") in weights:
        return Recurrent((_read_vanilla(weights, layer),))
    return read_dense(weights, join(layer, "kernel"), join(layer, "bias"))


def _read_vanilla(weights: Weights, layer: str) -> RNNParams:
    names = [join(layer, name) for name in ("kernel", "recurrent_kernel", "bias")]
    return read_vanilla(weights, names[0], names[1], [n for n in names[2:] if n in weights])

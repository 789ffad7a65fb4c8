"""Keras 3: parameters of ``SimpleRNN``, ``Bidirectional`` of it, and ``Dense``.

    rnn = stack(vanilla_rnn(3, 8), bidirectional(vanilla_rnn(8, 4), vanilla_rnn(8, 4)), dense(8, 2))
    params = from_keras(model)
    model.set_weights(list(to_keras(params).values()))

Keras itself is not required. Pass what its variables do not record to the layers: the activation of
``SimpleRNN`` (tanh by default) to `jaxrnn.vanilla_rnn`. All recurrent layers but the last must
return sequences, and ``Bidirectional`` must concatenate (``merge_mode="concat"``, the default).
Sequences are batch-major in Keras, and time-major here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrnn._types import Params
from jaxrnn.interop._networks import LayerParams, RecurrentParams, check_no_h0, split_stack
from jaxrnn.interop._tensors import (
    Weights,
    check_all_read,
    flatten,
    join,
    make_bidirectional,
    make_stack,
    read_dense,
    read_vanilla,
    write_tensor,
)
from jaxrnn.params import RNNParams


def from_keras(weights: Any) -> tuple[Params, ...]:
    """The parameters of a stack from the variables of a Keras model.

    Args:
      weights: a built model or layer, or a mapping from its variables' paths to their values:
        ``{v.path: v for v in model.weights}``. The paths of a ``SimpleRNN`` end in kernel [D, H],
        recurrent_kernel [H, H] and bias [H]; ``Bidirectional`` names its directions forward_NAME
        and backward_NAME. Those of a ``Dense`` end in kernel [D, O] and bias [O]. The layers must
        be in the order in which they are applied, as in a ``Sequential``.

    Returns:
      A tuple with one entry per layer: `RNNParams`, a pair of them for ``Bidirectional``, or
      `DenseParams`. Dtypes are preserved.

    Raises:
      TypeError: `weights` is neither a model nor a mapping of arrays.
      ValueError: a variable is missing, unknown, of the wrong shape, of a dtype that JAX cannot
        store under its current configuration, or has the path of another; the network is an LSTM or
        a GRU; the sizes of two layers do not match.
    """
    if not isinstance(weights, Mapping) and hasattr(weights, "weights"):
        weights = _by_path(weights.weights)
    left = flatten("weights", weights)
    layers = list(dict.fromkeys(path.rpartition("/")[0] for path in left))
    parts: list[LayerParams] = []
    while layers:
        layer = layers.pop(0)
        backward = _backward(layer)
        if backward is None:
            parts.append(_read(left, layer))
            continue
        if not layers or layers.pop(0) != backward:
            raise ValueError(
                f"{layer!r} is a forward direction that {backward!r} does not follow, expected the "
                "two directions of a Bidirectional layer, under the same name (and no other layer "
                "whose name starts with forward_)"
            )
        directions = [_read_vanilla(left, path) for path in (layer, backward)]
        parts.append(make_bidirectional(repr(layer), *directions))
    check_all_read(left, "SimpleRNN, Bidirectional and Dense")
    return make_stack(parts)


def to_keras(params: Params) -> dict[str, np.ndarray]:
    """The weights of a Keras model from the parameters of a stack.

    Args:
      params: the parameters of a stack of vanilla, bidirectional vanilla and dense layers, or of
        one such layer.

    Returns:
      Copies of the parameters, with their dtypes, in the order of ``model.get_weights()``: pass the
      list of values to ``model.set_weights``. The keys are the paths in the first ``Sequential``
      created by a process, if its layers are unnamed.

    Raises:
      TypeError: `params` has other layers.
      ValueError: there is a learned h0.
    """
    weights: Weights = {}
    counts: dict[str, int] = {}

    def number(kind: str) -> str:
        counts[kind] = counts.get(kind, -1) + 1
        return f"{kind}_{counts[kind]}" if counts[kind] else kind

    for part in split_stack(params):
        if isinstance(part, RecurrentParams):
            name = number("simple_rnn")
            layers = [name]
            if len(check_no_h0(part, "Keras' SimpleRNN").directions) > 1:
                around = number("bidirectional")
                layers = [f"{around}/forward_{name}", f"{around}/backward_{name}"]
            for layer, one in zip(layers, part.directions, strict=True):
                path = f"sequential/{layer}/simple_rnn_cell"
                write_tensor(weights, f"{path}/kernel", one.w_ih)
                write_tensor(weights, f"{path}/recurrent_kernel", one.w_hh)
                if one.b is not None:
                    write_tensor(weights, f"{path}/bias", one.b)
        else:
            path = f"sequential/{number('dense')}"
            write_tensor(weights, f"{path}/kernel", part.w)
            if part.b is not None:
                write_tensor(weights, f"{path}/bias", part.b)
    return weights


def _by_path(variables: Any) -> dict[str, Any]:
    by_path: dict[str, Any] = {}
    for variable in variables:
        if variable.path in by_path:
            raise ValueError(f"two variables have the path {variable.path!r}, expected one")
        by_path[variable.path] = variable
    return by_path


def _backward(layer: str) -> str | None:
    """The path of the backward cell that pairs with a forward one; None for other layers."""
    around, sep, inner = layer.rpartition("/forward_")
    return f"{around}/backward_{inner}" if sep else None


def _read(weights: Weights, layer: str) -> LayerParams:
    is_cell = layer.rpartition("/")[2].startswith("simple_rnn_cell")
    if is_cell or join(layer, "recurrent_kernel") in weights:
        return RecurrentParams((_read_vanilla(weights, layer),))
    return read_dense(weights, join(layer, "kernel"), join(layer, "bias"))


def _read_vanilla(weights: Weights, layer: str) -> RNNParams:
    names = [join(layer, name) for name in ("kernel", "recurrent_kernel", "bias")]
    return read_vanilla(weights, names[0], names[1], [n for n in names[2:] if n in weights])

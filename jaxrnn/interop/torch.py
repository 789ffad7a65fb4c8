"""torch: parameters of ``nn.RNN`` and ``nn.Linear``, as a ``state_dict`` holds them.

    rnn = stack(vanilla_rnn(3, 8), vanilla_rnn(8, 8), dense(8, 2))
    params = from_torch(model.state_dict())
    tensors = {name: torch.from_numpy(array) for name, array in to_torch(params).items()}
    model.load_state_dict(tensors)

torch itself is not needed here. What a ``state_dict`` does not say, the layers must: ``nn.RNN``'s
nonlinearity (tanh, or relu) is the activation of `vanilla_rnn`, and sequences are time-major here
whatever ``batch_first`` was.

``torch.from_numpy`` does not know NumPy's bfloat16, but its bits:
``torch.from_numpy(array.view("int16")).view(torch.bfloat16)``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrnn._types import Params, Shape
from jaxrnn.interop._networks import Part, Recurrent, parts_of, sizes_of, without_h0
from jaxrnn.interop._reading import (
    Weights,
    check_names,
    flatten,
    no_bias,
    put,
    read_dense,
    read_vanilla,
    refuse_rest,
    stack_of,
)
from jaxrnn.params import RNNParams

_OF_AN_RNN = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)_l([0-9]+)(_reverse)?")


def from_torch(state_dict: Mapping[str, Any]) -> tuple[Params, ...]:
    """Parameters of a stack from a torch ``state_dict``.

    Args:
      state_dict: tensors, or arrays, by name: of any number of ``nn.RNN`` (weight_ih_l0 [H, D],
        weight_hh_l0 [H, H], bias_ih_l0 [H], ...; any number of layers, one or both directions,
        with biases or without) and of ``nn.Linear`` (weight [O, D], bias [O]), each under any
        prefix. The modules stand in the order in which the data pass them: a model whose modules
        were registered in another order needs its entries put in this one.

    Returns:
      A tuple with one entry a layer: `RNNParams`, for both directions a pair of them, or
      `DenseParams`. b is bias_ih + bias_hh. Dtypes are kept.

    Raises:
      TypeError: `state_dict` is not a mapping of arrays.
      ValueError: a tensor is missing, unknown or misshapen, or of a dtype that JAX does not hold as
        it is configured; the network is an LSTM, a GRU or projected; two layers do not fit.
    """
    weights = flatten("state_dict", state_dict)
    parts: list[Part] = []
    for prefix in dict.fromkeys(_prefix(name) for name in weights):
        own = {name: tensor for name, tensor in weights.items() if _prefix(name) == prefix}
        if any(_OF_AN_RNN.fullmatch(name.removeprefix(prefix)) for name in own):
            parts += _read_rnn(own, prefix)
        elif f"{prefix}weight" in own:
            parts.append(read_dense(own, f"{prefix}weight", f"{prefix}bias", transposed=False))
        refuse_rest(own, "nn.RNN and nn.Linear")
    return stack_of(parts)


def to_torch(params: Params, *, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """A torch ``state_dict`` of NumPy arrays from a stack's parameters.

    Neighbouring recurrent layers go into one ``nn.RNN`` where it can hold them: they have the same
    number of units, the same directions, and all a bias or none. (Layers of different activations
    need modules of their own: name each.)

    Args:
      params: of a stack of vanilla, bidirectional vanilla and dense layers, or of one such layer.
      names: of the modules, or of as many modules as there are layers, each of which is then a
        module of its own. By default those of ``nn.ModuleList``, "0", "1", ..., and for a module
        alone no name: its tensors have no prefix.

    Returns:
      Copies, in the order of ``module.state_dict()`` and of the parameters' dtypes. bias_ih is b,
      and bias_hh zeros (-0.0, so that their sum is b to the bit).

    Raises:
      TypeError: `params` are of other layers, or names are not strings.
      ValueError: there is a learned h0; the directions of a layer differ in units or in having a
        bias; the number of names is neither that of modules nor of layers, or they repeat.
    """
    parts = parts_of(params)
    for position, part in enumerate(parts):
        if isinstance(part, Recurrent):
            _check_alike(position, without_h0(part, "torch's nn.RNN"))
    modules = _modules(parts)
    prefixes = [f"{index}." for index in range(len(modules))] if len(modules) > 1 else [""]
    if names is not None:
        if isinstance(names, Sequence) and len(names) == len(parts):
            modules = [[part] for part in parts]
        checked = check_names(names, [_describe(module) for module in modules])
        prefixes = [f"{name}." if name else "" for name in checked]
    weights: Weights = {}
    for prefix, module in zip(prefixes, modules, strict=True):
        for layer, part in enumerate(module):
            if isinstance(part, Recurrent):
                _write_layer(weights, prefix, layer, part)
            else:
                put(weights, f"{prefix}weight", part.w, transposed=False)
                if part.b is not None:
                    put(weights, f"{prefix}bias", part.b)
    return weights


def _prefix(name: str) -> str:
    return name[: name.rfind(".") + 1]


def _names(prefix: str, layer: int, direction: str, bias: bool) -> list[str]:
    """Names of the tensors of one direction of a layer: of w_ih, w_hh and the biases."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return [f"{prefix}{kind}_{of}_l{layer}{direction}" for kind in kinds for of in ("ih", "hh")]


def _read_rnn(weights: Weights, prefix: str) -> list[Part]:
    """Take the layers of one nn.RNN out of `weights`."""
    found = [match for name in weights if (match := _OF_AN_RNN.fullmatch(name, len(prefix)))]
    directions = ("", "_reverse") if any(match[2] for match in found) else ("",)
    bias = any(name.startswith(f"{prefix}bias") for name in weights)
    projected = [match[0] for match in found if "_hr_" in match[0]]
    if projected:
        raise ValueError(
            f"{projected[0]!r} projects the state (proj_size), expected a network that does not"
        )
    layers: list[Part] = []
    shape: Shape | None = None
    for layer in range(1 + max(int(match[1]) for match in found)):
        read: list[RNNParams] = []
        for direction in directions:
            w_ih, w_hh, *biases = _names(prefix, layer, direction, bias)
            read.append(read_vanilla(weights, w_ih, w_hh, biases, shape=shape, transposed=False))
            shape = read[-1].w_ih.shape
        layers.append(Recurrent(tuple(read)))
        shape = (read[0].w_hh.shape[0], sizes_of(layers[-1])[1])
    return layers


def _write_layer(weights: Weights, prefix: str, layer: int, part: Recurrent) -> None:
    for one, direction in zip(part.directions, ("", "_reverse"), strict=False):
        biases: list[Any] = [] if one.b is None else [one.b, no_bias(one)]
        names = _names(prefix, layer, direction, one.b is not None)
        for name, value in zip(names, [one.w_ih, one.w_hh, *biases], strict=True):
            put(weights, name, value, transposed=False)


def _check_alike(position: int, part: Recurrent) -> None:
    """Refuse two directions that one nn.RNN cannot hold."""
    if len({_kind(one) for one in part.directions}) > 1:
        described = " and ".join(
            f"{one.w_hh.shape[0]} units with{'out' if one.b is None else ''} a bias"
            for one in part.directions
        )
        raise ValueError(
            f"the directions of layer {position} of params have {described}, expected them alike: "
            "nn.RNN has one hidden_size and bias for both"
        )


def _kind(params: RNNParams) -> tuple[int, bool]:
    return params.w_hh.shape[0], params.b is not None


def _modules(parts: list[Part]) -> list[list[Part]]:
    """Neighbouring layers that one nn.RNN can hold, together; every other layer by itself."""

    def kind(numbered: tuple[int, Part]) -> Any:
        position, part = numbered
        if isinstance(part, Recurrent):
            return [_kind(one) for one in part.directions]
        return position

    groups = itertools.groupby(enumerate(parts), kind)
    return [[part for _, part in group] for _, group in groups]


def _describe(module: list[Part]) -> str:
    inputs, outputs = sizes_of(module[0])[0], sizes_of(module[-1])[1]
    return f"{'RNN' if isinstance(module[0], Recurrent) else 'Linear'}({inputs} -> {outputs})"

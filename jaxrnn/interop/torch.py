"""torch: parameters of ``nn.RNN`` and ``nn.Linear``, as in a ``state_dict``.

    rnn = stack(vanilla_rnn(3, 8), vanilla_rnn(8, 8), dense(8, 2))
    params = from_torch(model.state_dict())
    tensors = {name: torch.from_numpy(array) for name, array in to_torch(params).items()}
    model.load_state_dict(tensors)

torch itself is not required. Pass what a ``state_dict`` does not record to the layers: the
nonlinearity of ``nn.RNN`` (tanh or relu) is the activation of `jaxrnn.vanilla_rnn`. Sequences are
time-major here, whatever ``batch_first`` was.

``torch.from_numpy`` does not accept bfloat16 arrays of NumPy, but can reinterpret their bits:
``torch.from_numpy(array.view("int16")).view(torch.bfloat16)``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrnn._types import Params, Shape
from jaxrnn.interop._networks import (
    LayerParams,
    RecurrentParams,
    check_no_h0,
    get_sizes,
    split_stack,
)
from jaxrnn.interop._tensors import (
    Weights,
    check_all_read,
    check_names,
    flatten,
    make_stack,
    no_bias,
    read_dense,
    read_vanilla,
    write_tensor,
)
from jaxrnn.params import RNNParams

_OF_AN_RNN = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)_l([0-9]+)(_reverse)?")


def from_torch(state_dict: Mapping[str, Any]) -> tuple[Params, ...]:
    """The parameters of a stack from a torch ``state_dict``.

    Args:
      state_dict: tensors or arrays by name, of any number of ``nn.RNN`` (weight_ih_l0 [H, D],
        weight_hh_l0 [H, H], bias_ih_l0 [H], ...; with any number of layers, one direction or two,
        with or without biases) and ``nn.Linear`` (weight [O, D], bias [O]), each under any prefix.
        The modules must be in the order in which they are applied; reorder the entries if they were
        registered in another.

    Returns:
      A tuple with one entry per layer: `RNNParams`, a pair of them for a bidirectional layer, or
      `DenseParams`. b is bias_ih + bias_hh. Dtypes are preserved.

    Raises:
      TypeError: `state_dict` is not a mapping of arrays.
      ValueError: a tensor is missing, unknown, of the wrong shape, or of a dtype that JAX cannot
        store under its current configuration; the network is an LSTM, a GRU or has projections; the
        sizes of two layers do not match.
    """
    weights = flatten("state_dict", state_dict)
    parts: list[LayerParams] = []
    for prefix in dict.fromkeys(_prefix(name) for name in weights):
        own = {name: tensor for name, tensor in weights.items() if _prefix(name) == prefix}
        if any(_OF_AN_RNN.fullmatch(name.removeprefix(prefix)) for name in own):
            parts += _read_rnn(own, prefix)
        elif f"{prefix}weight" in own:
            parts.append(read_dense(own, f"{prefix}weight", f"{prefix}bias", transposed=False))
        check_all_read(own, "nn.RNN and nn.Linear")
    return make_stack(parts)


def to_torch(params: Params, *, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """A torch ``state_dict`` of NumPy arrays from the parameters of a stack.

    Consecutive recurrent layers become one ``nn.RNN`` if they have the same number of units and
    directions, and all or none of them have a bias. Layers of different activations need separate
    modules: give one name per layer.

    Args:
      params: the parameters of a stack of vanilla, bidirectional vanilla and dense layers, or of
        one such layer.
      names: the names of the modules, or one name per layer, which makes every layer a module. The
        default is the names in an ``nn.ModuleList``, "0", "1", ..., and no prefix for a single
        module.

    Returns:
      Copies with the parameters' dtypes, in the order of ``module.state_dict()``. bias_ih is b, and
      bias_hh is zero (-0.0, so that their sum is exactly b).

    Raises:
      TypeError: `params` has other layers, or a name is not a string.
      ValueError: there is a learned h0; the two directions of a layer differ in their number of
        units or in having a bias; `names` has repetitions or the wrong length.
    """
    parts = split_stack(params)
    for position, part in enumerate(parts):
        if isinstance(part, RecurrentParams):
            _check_directions(position, check_no_h0(part, "torch's nn.RNN"))
    modules = _group_modules(parts)
    prefixes = [f"{index}." for index in range(len(modules))] if len(modules) > 1 else [""]
    if names is not None:
        if isinstance(names, Sequence) and len(names) == len(parts):
            modules = [[part] for part in parts]
        checked = check_names(names, [_describe(module) for module in modules])
        prefixes = [f"{name}." if name else "" for name in checked]
    weights: Weights = {}
    for prefix, module in zip(prefixes, modules, strict=True):
        for layer, part in enumerate(module):
            if isinstance(part, RecurrentParams):
                _write_layer(weights, prefix, layer, part)
            else:
                write_tensor(weights, f"{prefix}weight", part.w, transposed=False)
                if part.b is not None:
                    write_tensor(weights, f"{prefix}bias", part.b)
    return weights


def _prefix(name: str) -> str:
    return name[: name.rfind(".") + 1]


def _names(prefix: str, layer: int, direction: str, bias: bool) -> list[str]:
    """The tensors' names for one direction of a layer: of w_ih, w_hh and the biases."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return [f"{prefix}{kind}_{of}_l{layer}{direction}" for kind in kinds for of in ("ih", "hh")]


def _read_rnn(weights: Weights, prefix: str) -> list[LayerParams]:
    """Remove the layers of one nn.RNN from `weights` and return them."""
    found = [match for name in weights if (match := _OF_AN_RNN.fullmatch(name, len(prefix)))]
    directions = ("", "_reverse") if any(match[2] for match in found) else ("",)
    bias = any(name.startswith(f"{prefix}bias") for name in weights)
    projected = [match[0] for match in found if "_hr_" in match[0]]
    if projected:
        raise ValueError(
            f"{projected[0]!r} projects the state (proj_size), expected a network without it"
        )
    layers: list[LayerParams] = []
    shape: Shape | None = None
    for layer in range(1 + max(int(match[1]) for match in found)):
        read: list[RNNParams] = []
        for direction in directions:
            w_ih, w_hh, *biases = _names(prefix, layer, direction, bias)
            read.append(read_vanilla(weights, w_ih, w_hh, biases, shape=shape, transposed=False))
            shape = read[-1].w_ih.shape
        layers.append(RecurrentParams(tuple(read)))
        shape = (read[0].w_hh.shape[0], get_sizes(layers[-1])[1])
    return layers


def _write_layer(weights: Weights, prefix: str, layer: int, part: RecurrentParams) -> None:
    for one, direction in zip(part.directions, ("", "_reverse"), strict=False):
        biases: list[Any] = [] if one.b is None else [one.b, no_bias(one)]
        names = _names(prefix, layer, direction, one.b is not None)
        for name, value in zip(names, [one.w_ih, one.w_hh, *biases], strict=True):
            write_tensor(weights, name, value, transposed=False)


def _check_directions(position: int, part: RecurrentParams) -> None:
    """Reject two directions that do not fit into one nn.RNN."""
    if len({_kind(one) for one in part.directions}) > 1:
        described = " and ".join(
            f"{one.w_hh.shape[0]} units with{'out' if one.b is None else ''} a bias"
            for one in part.directions
        )
        raise ValueError(
            f"the directions of layer {position} of params have {described}, expected equal ones: "
            "nn.RNN has a single hidden_size and bias option for both"
        )


def _kind(params: RNNParams) -> tuple[int, bool]:
    return params.w_hh.shape[0], params.b is not None


def _group_modules(parts: list[LayerParams]) -> list[list[LayerParams]]:
    """Group consecutive layers that fit into one nn.RNN; all others form groups of one."""

    def kind(numbered: tuple[int, LayerParams]) -> Any:
        position, part = numbered
        if isinstance(part, RecurrentParams):
            return [_kind(one) for one in part.directions]
        return position

    groups = itertools.groupby(enumerate(parts), kind)
    return [[part for _, part in group] for _, group in groups]


def _describe(module: list[LayerParams]) -> str:
    inputs, outputs = get_sizes(module[0])[0], get_sizes(module[-1])[1]
    return f"{'RNN' if isinstance(module[0], RecurrentParams) else 'Linear'}({inputs} -> {outputs})"

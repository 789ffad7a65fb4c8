"""haiku: parameters of ``hk.VanillaRNN`` and ``hk.Linear``.

    rnn = stack(vanilla_rnn(3, 8, activation=jax.nn.relu), dense(8, 2))
    params = from_haiku(haiku_params)
    haiku_params = to_haiku(params)

haiku itself is not required. The activation of ``hk.VanillaRNN`` is relu, which its parameters do
not record: pass it to `jaxrnn.vanilla_rnn`. Sequences are time-major in both libraries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrnn._types import Params
from jaxrnn.interop._networks import LayerParams, RecurrentParams, check_no_h0, split_stack
from jaxrnn.interop._ordering import FoundLayer, sort_layers
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

_NAMES = "names=[...] of the VanillaRNN and Linear modules in the order in which they are applied"


def from_haiku(
    params: Mapping[str, Any], *, names: Sequence[str] | None = None
) -> tuple[Params, ...]:
    """The parameters of a stack from those of a haiku model.

    Args:
      params: ``{module: {tensor: array}}``. An ``hk.VanillaRNN`` called NAME, with one bias or two,
        consists of NAME/linear and NAME/linear_1; an ``hk.Linear`` of w [D, O] and an optional
        b [O].
      names: the names of these modules (not of the two inside a ``VanillaRNN``) in the order in
        which they are applied. Required if the numbers in the names and the layers' sizes do not
        determine the order, or if a ``VanillaRNN`` has a custom name, because it then looks like
        two ``hk.Linear``.

    Returns:
      A tuple with one entry per layer, `RNNParams` or `DenseParams`; b is the sum of the biases.
      Dtypes are preserved.

    Raises:
      TypeError: `params` is not a mapping of arrays, or `names` is not a list of strings.
      ValueError: a tensor is missing, unknown, of the wrong shape, or of a dtype that JAX cannot
        store under its current configuration; the network is an LSTM or a GRU; `names` is required
        or does not match; the sizes of two layers do not match.
    """
    weights = flatten("params", params)
    layers = _find(weights) if names is None else check_names(names, names)
    parts = [_read(weights, layer) for layer in layers]
    check_all_read(weights, "VanillaRNN and Linear")
    if names is None:
        found = [FoundLayer(layer, part) for layer, part in zip(layers, parts, strict=True)]
        parts = sort_layers(found, _NAMES)
    return make_stack(parts)


def to_haiku(
    params: Params, *, names: Sequence[str] | None = None, double_bias: bool = True
) -> dict[str, dict[str, np.ndarray]]:
    """The parameters of a haiku model from those of a stack.

    Args:
      params: the parameters of a stack of vanilla and dense layers, or of one such layer.
      names: the names of the modules, one per layer. The default is haiku's: vanilla_rnn,
        vanilla_rnn_1, ..., and linear, linear_1, ...
      double_bias: as in ``hk.VanillaRNN``, whether there is a second bias. It is zero (-0.0, so
        that the sum is exactly b). As every ``VanillaRNN`` has a bias, a layer without one gets
        zeros.

    Returns:
      ``{module: {tensor: array}}``, copies with the parameters' dtypes.

    Raises:
      TypeError: `params` has other layers, or `names` is not a list of strings.
      ValueError: a layer is bidirectional or has a learned h0; `names` has repetitions or the wrong
        length.
    """
    parts = split_stack(params)
    defaults = _default_names(parts)
    names = defaults if names is None else check_names(names, defaults)
    weights: Weights = {}
    for name, part in zip(names, parts, strict=True):
        if not isinstance(part, RecurrentParams):
            write_tensor(weights, f"{name}/w", part.w)
            if part.b is not None:
                write_tensor(weights, f"{name}/b", part.b)
            continue
        if len(part.directions) > 1:
            raise ValueError(
                f"the layer for {name!r} is bidirectional, expected one direction: haiku has no "
                "such module (export each direction separately)"
            )
        one = check_no_h0(part, "haiku's VanillaRNN").directions[0]
        write_tensor(weights, f"{name}/linear/w", one.w_ih)
        write_tensor(weights, f"{name}/linear/b", no_bias(one) if one.b is None else one.b)
        write_tensor(weights, f"{name}/linear_1/w", one.w_hh)
        if double_bias:
            write_tensor(weights, f"{name}/linear_1/b", no_bias(one))
    nested: dict[str, dict[str, np.ndarray]] = {}
    for path, array in weights.items():
        module, _, tensor = path.rpartition("/")
        nested.setdefault(module, {})[tensor] = array
    return nested


def _default_names(parts: list[LayerParams]) -> list[str]:
    """The names that haiku gives to unnamed modules."""
    names: list[str] = []
    for part in parts:
        kind = "vanilla_rnn" if isinstance(part, RecurrentParams) else "linear"
        count = sum(name.startswith(kind) for name in names)
        names.append(f"{kind}_{count}" if count else kind)
    return names


def _find(weights: Weights) -> list[str]:
    """The names of the modules; a VanillaRNN is recognised by its default name."""
    modules = dict.fromkeys(path.rpartition("/")[0] for path in weights)
    names: dict[str, None] = {}
    for module in modules:
        outer = module.rpartition("/")[0]
        inner = outer.rpartition("/")[2]
        if re.fullmatch(r"lstm(_[0-9]+)?", inner):
            raise ValueError(f"{module!r} belongs to an LSTM, expected VanillaRNN or Linear")
        two = {f"{outer}/linear", f"{outer}/linear_1"}
        if module in two and re.fullmatch(r"vanilla_rnn(_[0-9]+)?", inner):
            names[outer] = None
        elif module in two and two <= modules.keys() and inner != "~":
            raise ValueError(
                f"{outer!r} may be a VanillaRNN or contain two Linear layers, expected {_NAMES}"
            )
        else:
            names[module] = None
    return list(names)


def _read(weights: Weights, name: str) -> LayerParams:
    core = (f"{name}/linear/", f"{name}/linear_1/")
    if f"{name}/w" in weights or not any(path.startswith(core) for path in weights):
        return read_dense(weights, f"{name}/w", f"{name}/b")
    second = f"{name}/linear_1/b"
    biases = [f"{name}/linear/b", *([second] if second in weights else [])]
    rnn = read_vanilla(weights, f"{name}/linear/w", f"{name}/linear_1/w", biases)
    return RecurrentParams((rnn,))

"""haiku: parameters of ``hk.VanillaRNN`` and ``hk.Linear``.

    rnn = stack(vanilla_rnn(3, 8, activation=jax.nn.relu), dense(8, 2))
    params = from_haiku(haiku_params)
    haiku_params = to_haiku(params)

haiku itself is not needed here. The activation of ``hk.VanillaRNN`` is relu, and is not among its
parameters: give it to `vanilla_rnn`. Sequences are time-major in both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrnn._types import Params
from jaxrnn.interop._networks import Part, Recurrent, parts_of, without_h0
from jaxrnn.interop._ordering import Found, in_order
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

_NAMES = "names=[...] of the VanillaRNN and Linear modules in the order in which the data pass them"


def from_haiku(
    params: Mapping[str, Any], *, names: Sequence[str] | None = None
) -> tuple[Params, ...]:
    """Parameters of a stack from haiku's.

    Args:
      params: ``{module: {tensor: array}}``: of each ``hk.VanillaRNN`` NAME, with one bias or two,
        NAME/linear and NAME/linear_1, and of each ``hk.Linear`` its w [D, O] and, where it has one,
        b [O].
      names: of these modules (not of the two within a ``VanillaRNN``) in the order in which the
        data pass them. It is needed where the names' numbers and the layers' sizes allow more than
        one order, and where a ``VanillaRNN`` has a name of its own, since it looks like two
        ``hk.Linear``.

    Returns:
      A tuple with one entry a layer, `RNNParams` or `DenseParams`. b is the sum of two biases.
      Dtypes are kept.

    Raises:
      TypeError: `params` is not a mapping of arrays, or `names` no list of strings.
      ValueError: a tensor is missing, unknown or misshapen, or of a dtype that JAX does not hold as
        it is configured; the network is an LSTM or a GRU; `names` is needed, or names no module;
        two layers do not fit.
    """
    weights = flatten("params", params)
    layers = _find(weights) if names is None else check_names(names, names)
    parts = [_read(weights, layer) for layer in layers]
    refuse_rest(weights, "VanillaRNN and Linear")
    if names is None:
        found = [Found(layer, part) for layer, part in zip(layers, parts, strict=True)]
        parts = in_order(found, _NAMES)
    return stack_of(parts)


def to_haiku(
    params: Params, *, names: Sequence[str] | None = None, double_bias: bool = True
) -> dict[str, dict[str, np.ndarray]]:
    """haiku's parameters from a stack's.

    Args:
      params: of a stack of vanilla and dense layers, or of one such layer.
      names: of the modules, one a layer. By default haiku's own: vanilla_rnn, vanilla_rnn_1, ...,
        and linear, linear_1, ...
      double_bias: that of ``hk.VanillaRNN``: whether there is a second bias. It is zero (-0.0, so
        that the sum of both is b to the bit). A layer without a bias gets zeros, for a
        ``VanillaRNN`` always has one.

    Returns:
      ``{module: {tensor: array}}``, copies of the parameters' dtypes.

    Raises:
      TypeError: `params` are of other layers, or `names` is no list of strings.
      ValueError: a layer is bidirectional or has a learned h0; `names` are not as many as the
        layers, or repeat.
    """
    parts = parts_of(params)
    own = _own_names(parts)
    weights: Weights = {}
    for name, part in zip(own if names is None else check_names(names, own), parts, strict=True):
        if not isinstance(part, Recurrent):
            put(weights, f"{name}/w", part.w)
            if part.b is not None:
                put(weights, f"{name}/b", part.b)
            continue
        if len(part.directions) > 1:
            raise ValueError(
                f"the layer for {name!r} is bidirectional, expected one direction: haiku has no "
                "such module (hand over its directions one by one)"
            )
        one = without_h0(part, "haiku's VanillaRNN").directions[0]
        put(weights, f"{name}/linear/w", one.w_ih)
        put(weights, f"{name}/linear/b", no_bias(one) if one.b is None else one.b)
        put(weights, f"{name}/linear_1/w", one.w_hh)
        if double_bias:
            put(weights, f"{name}/linear_1/b", no_bias(one))
    nested: dict[str, dict[str, np.ndarray]] = {}
    for path, array in weights.items():
        module, _, tensor = path.rpartition("/")
        nested.setdefault(module, {})[tensor] = array
    return nested


def _own_names(parts: list[Part]) -> list[str]:
    """The names that haiku gives to modules without one."""
    names: list[str] = []
    for part in parts:
        kind = "vanilla_rnn" if isinstance(part, Recurrent) else "linear"
        count = sum(name.startswith(kind) for name in names)
        names.append(f"{kind}_{count}" if count else kind)
    return names


def _find(weights: Weights) -> list[str]:
    """The modules that are there; those of a VanillaRNN are known by its name."""
    modules = dict.fromkeys(path.rpartition("/")[0] for path in weights)
    names: dict[str, None] = {}
    for module in modules:
        outer = module.rpartition("/")[0]
        within = outer.rpartition("/")[2]
        if re.fullmatch(r"lstm(_[0-9]+)?", within):
            raise ValueError(f"{module!r} is of an LSTM, expected VanillaRNN or Linear")
        two = {f"{outer}/linear", f"{outer}/linear_1"}
        if module in two and re.fullmatch(r"vanilla_rnn(_[0-9]+)?", within):
            names[outer] = None
        elif module in two and two <= modules.keys() and within != "~":
            raise ValueError(
                f"{outer!r} may be a VanillaRNN or hold two Linear layers, expected {_NAMES}"
            )
        else:
            names[module] = None
    return list(names)


def _read(weights: Weights, name: str) -> Part:
    inner = (f"{name}/linear/", f"{name}/linear_1/")
    if f"{name}/w" in weights or not any(path.startswith(inner) for path in weights):
        return read_dense(weights, f"{name}/w", f"{name}/b")
    second = f"{name}/linear_1/b"
    biases = [f"{name}/linear/b", *([second] if second in weights else [])]
    return Recurrent((read_vanilla(weights, f"{name}/linear/w", f"{name}/linear_1/w", biases),))

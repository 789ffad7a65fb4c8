"""flax: parameters of ``SimpleCell`` under ``RNN`` and ``Bidirectional``, and of dense layers.

    rnn = stack(vanilla_rnn(3, 8), bidirectional(vanilla_rnn(8, 4), vanilla_rnn(8, 4)), dense(8, 2))
    params = from_flax(nnx.state(model, nnx.Param))
    nnx.update(model, jax.tree.map(jnp.asarray, to_flax(params)))

    params = from_flax(variables)  # of a linen module
    module.apply(to_flax(params, api="linen"), xs)

flax itself is not needed here. What its variables do not say, the layers must: the activation of
``SimpleCell`` (tanh by default) is that of `vanilla_rnn`; a cell with ``residual=True`` and a
``Bidirectional`` that does not concatenate are not to be had; sequences are time-major here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxrnn._types import Params
from jaxrnn.interop._networks import Part, Recurrent, parts_of, without_h0
from jaxrnn.interop._ordering import Found, in_order
from jaxrnn.interop._reading import (
    Weights,
    both,
    flatten,
    join,
    no_bias,
    put,
    read_dense,
    read_vanilla,
    refuse_rest,
    stack_of,
)
from jaxrnn.layers.pointwise import DenseParams
from jaxrnn.params import RNNParams

Name = str | tuple[str, str]
_CELLS = {"nnx": ("dense_i", "dense_h"), "linen": ("i", "h")}
_FORWARD, _BACKWARD = "forward_rnn/cell", "backward_rnn/cell"
_NAMES = (
    "names=[...] of the cells and dense layers in the order in which the data pass them, "
    "with a pair for both directions"
)


def from_flax(
    variables: Mapping[Any, Any], *, names: Sequence[Name] | None = None
) -> tuple[Params, ...]:
    """Parameters of a stack from flax's.

    Args:
      variables: nested mappings: a linen module's variables or their "params", or the state of an
        nnx one (``nnx.state(model, nnx.Param)``; what is under "rngs" is passed over). They hold
        cells, each i (nnx: dense_i), with kernel [D, H] and bias [H], and h (nnx: dense_h), with
        kernel [H, H], and dense layers, each kernel [D, O] and, where it has one, bias [O].
      names: the paths of the cells and dense layers in the order in which the data pass them, a
        pair of them for both directions: ``["layers_0/cell", ("layers_1/forward_rnn/cell",
        "layers_1/backward_rnn/cell"), "layers_2"]``. It is needed where the names' numbers and the
        layers' sizes allow more than one order, for the mappings have none.

    Returns:
      A tuple with one entry a layer: `RNNParams`, for ``Bidirectional`` a pair of them, or
      `DenseParams`. Dtypes are kept.

    Raises:
      TypeError: `variables` are not mappings of arrays, or an entry of `names` is neither a string
        nor a pair of them.
      ValueError: a tensor is missing, unknown or misshapen, or of a dtype that JAX does not hold as
        it is configured; the network is an LSTM or a GRU; `names` is needed, or names nothing that
        is there; two layers do not fit.
    """
    if isinstance(variables, Mapping) and "params" in variables:
        if len(variables) > 1:
            raise ValueError(f"variables hold {sorted(variables)}, expected 'params' alone")
        variables = variables["params"]
    weights = flatten("variables", variables, skip="rngs")
    layers = _find(weights) if names is None else _check_names(names)
    parts = [_read(weights, layer) for layer in layers]
    refuse_rest(weights, "SimpleCell and dense layers")
    if names is None:
        found = [_found(name, part) for name, part in zip(layers, parts, strict=True)]
        parts = in_order(found, _NAMES)
    return stack_of(parts)


def to_flax(
    params: Params, *, api: Literal["nnx", "linen"] = "nnx", names: Sequence[Name] | None = None
) -> dict[Any, Any]:
    """flax's parameters from a stack's.

    Args:
      params: of a stack of vanilla, bidirectional vanilla and dense layers, or of one such layer.
      api: "nnx" or "linen".
      names: of the cells and dense layers, as for `from_flax`. By default those of a ``Sequential``
        of ``RNN``, ``Bidirectional`` and dense layers. A linen module that makes its cells in a
        compact method has them beside the dense layers:
        ``["SimpleCell_0", ("SimpleCell_1", "SimpleCell_2"), "Dense_0"]``.

    Returns:
      Nested dicts of arrays, copies of the parameters' dtypes: what ``nnx.update(model, ...)``
      takes (a number in a name is a place in a list), or the variables of a linen module,
      ``{"params": ...}``. A layer without a bias gets zeros (-0.0, which change no bit), for a
      ``SimpleCell`` always has one.

    Raises:
      TypeError: `params` are of other layers, or an entry of `names` is neither a string nor a
        pair of them.
      ValueError: there is a learned h0; `api` is another; `names` are not as many as the layers, or
        repeat, or are a pair for one direction, or none for two.
    """
    if api not in _CELLS:
        raise ValueError(f"api is {api!r}, expected 'nnx' or 'linen'")
    parts = parts_of(params)
    own = [_own_name(api, position, part) for position, part in enumerate(parts)]
    names = own if names is None else _check_names(names, own)
    weights: Weights = {}
    for name, part in zip(names, parts, strict=True):
        paths = (name,) if isinstance(name, str) else name
        if isinstance(part, Recurrent):
            directions = without_h0(part, "flax's SimpleCell").directions
            for path, one in zip(paths, directions, strict=True):
                _write_cell(weights, path, one, _CELLS[api])
        else:
            put(weights, join(*paths, "kernel"), part.w)
            if part.b is not None:
                put(weights, join(*paths, "bias"), part.b)
    nested = _nest(weights, numbers=api == "nnx")
    return nested if api == "nnx" else {"params": nested}


def _find(weights: Weights) -> list[Name]:
    """The cells and dense layers that are there."""
    single: dict[str, None] = {}
    for path in dict.fromkeys(path.rpartition("/")[0] for path in weights):
        outer, _, last = path.rpartition("/")
        if last in ("ii", "ir"):
            raise ValueError(f"{path!r} is of an LSTM or a GRU, expected SimpleCell")
        single[outer if any(last in names for names in _CELLS.values()) else path] = None
    pairs = {
        name: name[: -len(_FORWARD)] + _BACKWARD
        for name in single
        if f"/{name}".endswith(f"/{_FORWARD}") and name[: -len(_FORWARD)] + _BACKWARD in single
    }
    return [
        (name, pairs[name]) if name in pairs else name
        for name in single
        if name not in pairs.values()
    ]


def _read(weights: Weights, name: Name) -> Part:
    if not isinstance(name, str):
        return both(repr(name), *(_read_cell(weights, path) for path in name))
    if join(name, "kernel") in weights:
        return read_dense(weights, join(name, "kernel"), join(name, "bias"))
    return Recurrent((_read_cell(weights, name),))


def _read_cell(weights: Weights, path: str) -> RNNParams:
    for inner, hidden in _CELLS.values():
        w_ih, w_hh = (join(path, name, "kernel") for name in (inner, hidden))
        if w_ih in weights or w_hh in weights:
            return read_vanilla(weights, w_ih, w_hh, [join(path, inner, "bias")])
    raise ValueError(f"there is no cell or dense layer {path!r}, expected it in {sorted(weights)}")


def _write_cell(weights: Weights, path: str, params: RNNParams, names: tuple[str, str]) -> None:
    inner, hidden = names
    put(weights, join(path, inner, "kernel"), params.w_ih)
    put(weights, join(path, inner, "bias"), no_bias(params) if params.b is None else params.b)
    put(weights, join(path, hidden, "kernel"), params.w_hh)


def _found(name: Name, part: Part) -> Found:
    """A layer by the path of its RNN, Bidirectional or dense module.

    A cell without an RNN around it, as a compact linen module has it, may be one of two directions.
    """
    if not isinstance(name, str):
        return Found(name[0][: -len(_FORWARD)].removesuffix("/"), part)
    module = "" if name == "cell" else name.removesuffix("/cell")
    return Found(module, part, may_pair=module == name and isinstance(part, Recurrent))


def _own_name(api: str, position: int, part: Part) -> Name:
    """The name in a Sequential."""
    layer = f"layers/{position}" if api == "nnx" else f"layers_{position}"
    if isinstance(part, DenseParams):
        return layer
    if len(part.directions) == 1:
        return f"{layer}/cell"
    return f"{layer}/{_FORWARD}", f"{layer}/{_BACKWARD}"


def _check_names(names: Any, expected: Sequence[Name] | None = None) -> Sequence[Name]:
    """Refuse what is not a list of names and pairs, those alike that are `expected`."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"names is {names!r:.60}, expected a list of names and pairs of names")
    if expected is not None and len(names) != len(expected):
        raise ValueError(f"names has {len(names)} entries, expected {len(expected)}: {expected}")
    for position, name in enumerate(names):
        pair = isinstance(name, tuple) and len(name) == 2
        if not all(isinstance(path, str) for path in (name if pair else (name,))):
            raise TypeError(f"names[{position}] is {name!r:.60}, expected a string or a pair")
        if expected is not None and pair == isinstance(expected[position], str):
            raise ValueError(
                f"names[{position}] is {name!r}, expected {'a pair' if not pair else 'one name'}: "
                f"layer {position} of params has {'two directions' if not pair else 'but one'}"
            )
    return names


def _nest(weights: Weights, *, numbers: bool) -> dict[Any, Any]:
    nested: dict[Any, Any] = {}
    for path, array in weights.items():
        *outer, last = path.split("/")
        inside = nested
        for key in outer:
            inside = inside.setdefault(int(key) if numbers and key.isdecimal() else key, {})
        inside[last] = array
    return nested

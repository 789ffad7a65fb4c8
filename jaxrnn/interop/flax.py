"""flax: parameters of ``SimpleCell`` under ``RNN`` and ``Bidirectional``, and of dense layers.

    rnn = stack(vanilla_rnn(3, 8), bidirectional(vanilla_rnn(8, 4), vanilla_rnn(8, 4)), dense(8, 2))
    params = from_flax(nnx.state(model, nnx.Param))
    nnx.update(model, jax.tree.map(jnp.asarray, to_flax(params)))

    params = from_flax(variables)  # of a linen module
    module.apply(to_flax(params, api="linen"), xs)

flax itself is not required. Pass what its variables do not record to the layers: the activation of
``SimpleCell`` (tanh by default) to `jaxrnn.vanilla_rnn`. Cells with ``residual=True`` and a
``Bidirectional`` that does not concatenate are not supported. Sequences are time-major here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxrnn._types import Params
from jaxrnn.interop._networks import LayerParams, RecurrentParams, check_no_h0, split_stack
from jaxrnn.interop._ordering import FoundLayer, sort_layers
from jaxrnn.interop._tensors import (
    Weights,
    check_all_read,
    flatten,
    join,
    make_bidirectional,
    make_stack,
    no_bias,
    read_dense,
    read_vanilla,
    write_tensor,
)
from jaxrnn.layers.pointwise import DenseParams
from jaxrnn.params import RNNParams

Name = str | tuple[str, str]
_CELLS = {"nnx": ("dense_i", "dense_h"), "linen": ("i", "h")}
_FORWARD, _BACKWARD = "forward_rnn/cell", "backward_rnn/cell"
_NAMES = (
    "names=[...] of the cells and dense layers in the order in which they are applied, "
    "with a pair for a bidirectional layer"
)


def from_flax(
    variables: Mapping[Any, Any], *, names: Sequence[Name] | None = None
) -> tuple[Params, ...]:
    """The parameters of a stack from those of a flax model.

    Args:
      variables: nested mappings: the variables of a linen module or their "params", or the state of
        an nnx module (``nnx.state(model, nnx.Param)``; entries under "rngs" are ignored). A cell
        consists of i (nnx: dense_i) with kernel [D, H] and bias [H], and of h (nnx: dense_h) with
        kernel [H, H]; a dense layer of kernel [D, O] and an optional bias [O].
      names: the paths of the cells and dense layers in the order in which they are applied, with a
        pair for a bidirectional layer: ``["layers_0/cell", ("layers_1/forward_rnn/cell",
        "layers_1/backward_rnn/cell"), "layers_2"]``. Required if the numbers in the names and the
        layers' sizes do not determine the order, since that of the mappings is lost.

    Returns:
      A tuple with one entry per layer: `RNNParams`, a pair of them for ``Bidirectional``, or
      `DenseParams`. Dtypes are preserved.

    Raises:
      TypeError: `variables` is not a nested mapping of arrays, or an entry of `names` is neither a
        string nor a pair of strings.
      ValueError: a tensor is missing, unknown, of the wrong shape, or of a dtype that JAX cannot
        store under its current configuration; the network is an LSTM or a GRU; `names` is required
        or does not match; the sizes of two layers do not match.
    """
    if isinstance(variables, Mapping) and "params" in variables:
        if len(variables) > 1:
            raise ValueError(f"variables hold {sorted(variables)}, expected 'params' alone")
        variables = variables["params"]
    weights = flatten("variables", variables, skip="rngs")
    layers = _find(weights) if names is None else _check_names(names)
    parts = [_read(weights, layer) for layer in layers]
    check_all_read(weights, "SimpleCell and dense layers")
    if names is None:
        found = [_found(name, part) for name, part in zip(layers, parts, strict=True)]
        parts = sort_layers(found, _NAMES)
    return make_stack(parts)


def to_flax(
    params: Params, *, api: Literal["nnx", "linen"] = "nnx", names: Sequence[Name] | None = None
) -> dict[Any, Any]:
    """The parameters of a flax model from those of a stack.

    Args:
      params: the parameters of a stack of vanilla, bidirectional vanilla and dense layers, or of
        one such layer.
      api: "nnx" or "linen".
      names: the paths of the cells and dense layers, as for `from_flax`. The default is those of a
        ``Sequential`` of ``RNN``, ``Bidirectional`` and dense layers. A linen module that creates
        its cells in a compact method has them next to the dense layers:
        ``["SimpleCell_0", ("SimpleCell_1", "SimpleCell_2"), "Dense_0"]``.

    Returns:
      Nested dicts of arrays, copies with the parameters' dtypes: the argument for
      ``nnx.update(model, ...)``, where numbers in names are list indices, or the variables of a
      linen module, ``{"params": ...}``. As every ``SimpleCell`` has a bias, a layer without one
      gets zeros (-0.0, which leave every sum unchanged).

    Raises:
      TypeError: `params` has other layers, or an entry of `names` is neither a string nor a pair of
        strings.
      ValueError: there is a learned h0; `api` is unknown; `names` has repetitions, the wrong
        length, a pair for a single direction or a single name for two.
    """
    if api not in _CELLS:
        raise ValueError(f"api is {api!r}, expected 'nnx' or 'linen'")
    parts = split_stack(params)
    defaults = [_default_name(api, position, part) for position, part in enumerate(parts)]
    names = defaults if names is None else _check_names(names, defaults)
    weights: Weights = {}
    for name, part in zip(names, parts, strict=True):
        paths = (name,) if isinstance(name, str) else name
        if isinstance(part, RecurrentParams):
            directions = check_no_h0(part, "flax's SimpleCell").directions
            for path, one in zip(paths, directions, strict=True):
                _write_cell(weights, path, one, _CELLS[api])
        else:
            write_tensor(weights, join(*paths, "kernel"), part.w)
            if part.b is not None:
                write_tensor(weights, join(*paths, "bias"), part.b)
    nested = _nest(weights, numbers=api == "nnx")
    return nested if api == "nnx" else {"params": nested}


def _find(weights: Weights) -> list[Name]:
    """The names of the cells and dense layers."""
    single: dict[str, None] = {}
    for path in dict.fromkeys(path.rpartition("/")[0] for path in weights):
        outer, _, last = path.rpartition("/")
        if last in ("ii", "ir"):
            raise ValueError(f"{path!r} belongs to an LSTM or a GRU, expected SimpleCell")
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


def _read(weights: Weights, name: Name) -> LayerParams:
    if not isinstance(name, str):
        return make_bidirectional(repr(name), *(_read_cell(weights, path) for path in name))
    if join(name, "kernel") in weights:
        return read_dense(weights, join(name, "kernel"), join(name, "bias"))
    return RecurrentParams((_read_cell(weights, name),))


def _read_cell(weights: Weights, path: str) -> RNNParams:
    for inner, hidden in _CELLS.values():
        w_ih, w_hh = (join(path, name, "kernel") for name in (inner, hidden))
        if w_ih in weights or w_hh in weights:
            return read_vanilla(weights, w_ih, w_hh, [join(path, inner, "bias")])
    raise ValueError(f"there is no cell or dense layer {path!r}, expected it in {sorted(weights)}")


def _write_cell(weights: Weights, path: str, params: RNNParams, names: tuple[str, str]) -> None:
    inner, hidden = names
    write_tensor(weights, join(path, inner, "kernel"), params.w_ih)
    bias = no_bias(params) if params.b is None else params.b
    write_tensor(weights, join(path, inner, "bias"), bias)
    write_tensor(weights, join(path, hidden, "kernel"), params.w_hh)


def _found(name: Name, part: LayerParams) -> FoundLayer:
    """A layer under the path of its RNN, Bidirectional or dense module.

    A cell outside of an RNN module, as in a compact linen module, may be one of two directions.
    """
    if not isinstance(name, str):
        return FoundLayer(name[0][: -len(_FORWARD)].removesuffix("/"), part)
    module = "" if name == "cell" else name.removesuffix("/cell")
    return FoundLayer(module, part, may_pair=module == name and isinstance(part, RecurrentParams))


def _default_name(api: str, position: int, part: LayerParams) -> Name:
    """The name of a layer in a Sequential."""
    layer = f"layers/{position}" if api == "nnx" else f"layers_{position}"
    if isinstance(part, DenseParams):
        return layer
    if len(part.directions) == 1:
        return f"{layer}/cell"
    return f"{layer}/{_FORWARD}", f"{layer}/{_BACKWARD}"


def _check_names(names: Any, expected: Sequence[Name] | None = None) -> Sequence[Name]:
    """Reject anything but a list of names and pairs, matching the `expected` ones."""
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
                f"names[{position}] is {name!r}, expected {'one name' if pair else 'a pair'}: "
                f"layer {position} of params has {'one direction' if pair else 'two directions'}"
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

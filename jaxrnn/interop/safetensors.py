"""Parameters of any layer in safetensors files, checked against the layer on the way in and out.

A tensor's name is its path in the parameters: "0.w_ih" for a stack's first layer, "1.0.w_hh" for
the forward direction of a bidirectional second one, "params" where the parameters are one array.
The metadata say

    format           "jaxrnn"
    format_version   "1"
    jaxrnn_version   that of the library which wrote the file
    layer            JSON: input_size, output_size, causal, and each tensor's dtype and shape

Files of other writers, whose metadata name no such format, are read by their tensors alone.
The format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn._types import Params, Shape
from jaxrnn.files import FileFormatError, StrPath, write_atomically
from jaxrnn.layers.contract import Layer

_FORMAT, _FORMAT_VERSION = "jaxrnn", "1"
_LISTED = 8  # differences in one message
_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
}
_DTYPES = {code: name for name, code in _CODES.items()}


class _Spec(NamedTuple):
    """What is known of a tensor before it is read."""

    dtype: str
    shape: Shape


def save_params(path: StrPath, layer: Layer, params: Params) -> None:
    """Write a layer's parameters, whole or not at all (`jaxrnn.files.write_atomically`).

    Args:
      path: the file, which is replaced.
      layer: the layer. Its functions are not saved: who loads the file builds it again.
      params: parameters as ``layer.init`` gives them, in names, shapes and dtypes: floating-point
        of 8 (e4m3fn, e5m2) to 64 bits, bfloat16, and integers. Every bit is kept.

    Raises:
      TypeError, ValueError: `params` are not the layer's; the message lists the tensors that
        differ, and nothing is written. OSError: the file cannot be written; the old one is kept.
      ImportError: safetensors is not installed.
    """
    library = _library()
    expected = _specs("layer", _template(layer))
    differences = _differences(_specs("params", params), expected)
    if differences:
        raise ValueError(f"params are not those of layer: {_listed(differences)}")
    tensors = {name: np.asarray(leaf, order="C") for name, leaf in _named("params", params).items()}
    metadata = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "jaxrnn_version": jaxrnn.__version__,
        "layer": json.dumps(_describe(layer, expected), separators=(",", ":")),
    }
    write_atomically(path, library.numpy.save(tensors, metadata))


def load_params(path: StrPath, layer: Layer) -> Params:
    """Read parameters for a layer from a file of `save_params`, or of any other writer.

    Names, shapes and dtypes are those of the layer, nothing is cast; in a file of `save_params`
    input_size, output_size and causal are too. What the numbers are is not checked: the format
    holds no checksum.

    Args:
      path: the file. It is read whole, in about three times its size of memory (thirty times for
        a file that is all names and no numbers).
      layer: the layer that the parameters are for.

    Returns:
      Parameters as ``layer.init`` gives them.

    Raises:
      FileFormatError (a ValueError): the file is not a safetensors file, is damaged, has a name
        twice, a newer format version, or other tensors than the layer; the message names the file
        and lists the tensors that differ.
      OSError: the file is missing or cannot be read. ImportError: safetensors is not installed.
      TypeError, ValueError: `layer` is not a layer, or has parameters of other dtypes.
    """
    template = _template(layer)
    expected = _specs("layer", template)
    tensors, metadata = _read(path)
    ours = metadata.get("format") == _FORMAT
    if ours:
        _check_version(path, metadata)
    got = {name: _spec(tensor) for name, tensor in tensors.items()}
    differences = _differences(got, expected)
    if ours and not differences:
        differences = _layer_differences(metadata, _describe(layer, expected))
    if differences:
        raise FileFormatError(f"{path} does not hold params of layer: {_listed(differences)}")
    leaves = [
        jnp.asarray(np.frombuffer(tensors[name]["data"], jnp.dtype(dtype)).reshape(shape))
        for name, (dtype, shape) in expected.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _library() -> ModuleType:
    try:
        import safetensors.numpy  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            "safetensors files need the safetensors library: pip install 'jaxrnn[interop]'"
        ) from error
    return safetensors


def _template(layer: Layer) -> Params:
    """The layer's parameters without their values."""
    if not isinstance(layer, Layer):
        raise TypeError(f"layer is a {type(layer).__name__}, expected a Layer")
    return jax.eval_shape(layer.init, jax.random.key(0))


def _named(argument: str, params: Params) -> dict[str, Any]:
    """The leaves by name, in their order."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator=".") if path else "params"
        if name in named:
            raise ValueError(f"{argument} has two tensors named {name!r}, expected one")
        if name == "__metadata__":
            raise ValueError(f"{argument} has a tensor named {name!r}, which the format reserves")
        named[name] = leaf
    return named


def _specs(argument: str, params: Params) -> dict[str, _Spec]:
    specs = {}
    for name, leaf in _named(argument, params).items():
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)):
            raise TypeError(f"{name!r} of {argument} is a {type(leaf).__name__}, expected an array")
        specs[name] = _Spec(str(leaf.dtype), leaf.shape)
        if specs[name].dtype not in _CODES:
            expected = ", ".join(_CODES)
            raise ValueError(f"{name!r} of {argument} has dtype {leaf.dtype}, expected {expected}")
    return specs


def _spec(tensor: dict[str, Any]) -> _Spec:
    code = tensor["dtype"]
    return _Spec(_DTYPES.get(code, code), tuple(tensor["shape"]))


def _describe(layer: Layer, specs: dict[str, _Spec]) -> dict[str, Any]:
    return {
        "input_size": int(layer.input_size),
        "output_size": int(layer.output_size),
        "causal": bool(layer.causal),
        "tensors": {name: [dtype, list(shape)] for name, (dtype, shape) in specs.items()},
    }


def _differences(got: dict[str, _Spec], expected: dict[str, _Spec]) -> list[str]:
    differences = []
    for name, (dtype, shape) in expected.items():
        if name not in got:
            differences.append(f"{_brief(name)} is missing")
            continue
        if got[name].shape != shape:
            differences.append(
                f"{_brief(name)} has shape {_brief(got[name].shape)}, expected {shape}"
            )
        if got[name].dtype != dtype:
            differences.append(f"{_brief(name)} has dtype {got[name].dtype}, expected {dtype}")
    return differences + [f"{_brief(name)} is not expected" for name in got if name not in expected]


def _layer_differences(metadata: dict[str, str], expected: dict[str, Any]) -> list[str]:
    """How the layer that a file of `save_params` describes differs."""
    try:
        described = _parse(metadata.get("layer", ""))
    except ValueError as error:
        return [f"its description of the layer cannot be read: {error}"]
    return [
        f"{name} is {_brief(described.get(name))}, expected {_brief(value)}"
        for name, value in expected.items()
        if described.get(name) != value
    ]


def _check_version(path: StrPath, metadata: dict[str, str]) -> None:
    version = metadata.get("format_version")
    if version != _FORMAT_VERSION:
        raise FileFormatError(
            f"{path} has format version {_brief(version)}, expected {_FORMAT_VERSION!r} "
            f"(jaxrnn {_brief(metadata.get('jaxrnn_version'))} wrote it)"
        )


def _read(path: StrPath) -> tuple[dict[str, Any], dict[str, str]]:
    """(tensors by name as the library gives them, metadata)."""
    library = _library()
    if Path(path).exists() and not Path(path).is_file():  # a device or a pipe may never end
        raise FileFormatError(f"{path} is not a regular file")
    content = Path(path).read_bytes()
    try:
        tensors = dict(library.deserialize(content))
        header = _parse(content[8 : 8 + int.from_bytes(content[:8], "little")].decode())
    except (library.SafetensorError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read as safetensors: {error!s:.300}") from None
    return tensors, header.get("__metadata__") or {}


def _parse(text: str) -> dict[str, Any]:
    """A JSON object in which no name stands twice."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it is {_brief(value)}, expected an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        (name, times), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {_brief(name)} stands {times} times")
    return result


def _listed(differences: list[str]) -> str:
    more = len(differences) - _LISTED
    return "; ".join(differences[:_LISTED]) + (f"; and {more} more" if more > 0 else "")


def _brief(value: Any) -> str:
    return f"{value!r:.80}"

"""safetensors files of the parameters of any layer, checked against the layer in both directions.

A tensor is named by its path in the parameters: "0.w_ih" in the first layer of a stack, "1.0.w_hh"
in the forward direction of a bidirectional second layer, "params" if the parameters are one array.
The metadata are

    format           "jaxrnn"
    format_version   "1"
    jaxrnn_version   the version of this library that wrote the file
    layer            JSON: input_size, output_size, causal, and the dtype and shape of each tensor

Of files from other writers, which do not have this format in their metadata, only the tensors are
checked. The format: https://github.com/huggingface/safetensors
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
_MAX_LISTED = 8  # differences per message
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
    """The dtype and shape of a tensor."""

    dtype: str
    shape: Shape


def save_params(path: StrPath, layer: Layer, params: Params) -> None:
    """Write the parameters of a layer atomically (`jaxrnn.files.write_atomically`).

    Args:
      path: the file. An existing one is replaced.
      layer: the layer. Its functions are not saved: to load the file, build the layer again.
      params: parameters with the names, shapes and dtypes of those of ``layer.init``: integers and
        floating-point numbers of 8 (e4m3fn, e5m2) to 64 bits, bfloat16 included. Every bit is
        preserved.

    Raises:
      TypeError, ValueError: `params` do not fit `layer`. The message lists the tensors that differ,
        and nothing is written.
      OSError: the file cannot be written; an existing one is unchanged.
      ImportError: safetensors is not installed.
    """
    library = _import_library()
    expected = _read_specs("layer", _make_template(layer))
    differences = _find_differences(_read_specs("params", params), expected)
    if differences:
        raise ValueError(f"params do not fit layer: {_list(differences)}")
    tensors = {
        name: np.asarray(leaf, order="C") for name, leaf in _name_leaves("params", params).items()
    }
    metadata = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "jaxrnn_version": jaxrnn.__version__,
        "layer": json.dumps(_describe(layer, expected), separators=(",", ":")),
    }
    write_atomically(path, library.numpy.save(tensors, metadata))


def load_params(path: StrPath, layer: Layer) -> Params:
    """Read the parameters of a layer from a file of `save_params` or of another writer.

    Names, shapes and dtypes must be those of the layer; nothing is cast. In a file of
    `save_params`, input_size, output_size and causal must match too. The values are not verified:
    the format has no checksum.

    Args:
      path: the file. Reading takes about three times its size in memory (thirty times for a file of
        names without data).
      layer: the layer that the parameters belong to.

    Returns:
      Parameters with the structure of those of ``layer.init``.

    Raises:
      FileFormatError: (a ValueError) the file is damaged or not a safetensors file, has a name
        twice or a newer format version, or its tensors do not fit the layer. The message names the
        file and lists the tensors that differ.
      OSError: the file is missing or cannot be read.
      ImportError: safetensors is not installed.
      TypeError, ValueError: `layer` is not a layer, or has parameters of unsupported dtypes.
    """
    template = _make_template(layer)
    expected = _read_specs("layer", template)
    tensors, metadata = _read(path)
    ours = metadata.get("format") == _FORMAT
    if ours:
        _check_version(path, metadata)
    got = {name: _read_spec(tensor) for name, tensor in tensors.items()}
    differences = _find_differences(got, expected)
    if ours and not differences:
        differences = _find_layer_differences(metadata, _describe(layer, expected))
    if differences:
        raise FileFormatError(f"{path} does not hold params of layer: {_list(differences)}")
    leaves = [
        jnp.asarray(np.frombuffer(tensors[name]["data"], jnp.dtype(dtype)).reshape(shape))
        for name, (dtype, shape) in expected.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _import_library() -> ModuleType:
    try:
        import safetensors.numpy  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            "safetensors files need the safetensors library: pip install 'jaxrnn[interop]'"
        ) from error
    return safetensors


def _make_template(layer: Layer) -> Params:
    """The structure of the layer's parameters, without values."""
    if not isinstance(layer, Layer):
        raise TypeError(f"layer is a {type(layer).__name__}, expected a Layer")
    return jax.eval_shape(layer.init, jax.random.key(0))


def _name_leaves(argument: str, params: Params) -> dict[str, Any]:
    """The leaves by name, in tree order."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator=".") if path else "params"
        if name in named:
            raise ValueError(f"{argument} has two tensors named {name!r}, expected one")
        if name == "__metadata__":
            raise ValueError(f"{argument} has a tensor named {name!r}, a name the format reserves")
        named[name] = leaf
    return named


def _read_specs(argument: str, params: Params) -> dict[str, _Spec]:
    specs = {}
    for name, leaf in _name_leaves(argument, params).items():
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)):
            raise TypeError(f"{name!r} of {argument} is a {type(leaf).__name__}, expected an array")
        specs[name] = _Spec(str(leaf.dtype), leaf.shape)
        if specs[name].dtype not in _CODES:
            expected = ", ".join(_CODES)
            raise ValueError(f"{name!r} of {argument} has dtype {leaf.dtype}, expected {expected}")
    return specs


def _read_spec(tensor: dict[str, Any]) -> _Spec:
    code = tensor["dtype"]
    return _Spec(_DTYPES.get(code, code), tuple(tensor["shape"]))


def _describe(layer: Layer, specs: dict[str, _Spec]) -> dict[str, Any]:
    return {
        "input_size": int(layer.input_size),
        "output_size": int(layer.output_size),
        "causal": bool(layer.causal),
        "tensors": {name: [dtype, list(shape)] for name, (dtype, shape) in specs.items()},
    }


def _find_differences(got: dict[str, _Spec], expected: dict[str, _Spec]) -> list[str]:
    differences = []
    for name, (dtype, shape) in expected.items():
        if name not in got:
            differences.append(f"{_shorten(name)} is missing")
            continue
        if got[name].shape != shape:
            differences.append(
                f"{_shorten(name)} has shape {_shorten(got[name].shape)}, expected {shape}"
            )
        if got[name].dtype != dtype:
            differences.append(f"{_shorten(name)} has dtype {got[name].dtype}, expected {dtype}")
    return differences + [
        f"{_shorten(name)} is not expected" for name in got if name not in expected
    ]


def _find_layer_differences(metadata: dict[str, str], expected: dict[str, Any]) -> list[str]:
    """The differences from the layer described in a file of `save_params`."""
    try:
        described = _parse(metadata.get("layer", ""))
    except ValueError as error:
        return [f"the description of the layer cannot be read: {error}"]
    return [
        f"{name} is {_shorten(described.get(name))}, expected {_shorten(value)}"
        for name, value in expected.items()
        if described.get(name) != value
    ]


def _check_version(path: StrPath, metadata: dict[str, str]) -> None:
    version = metadata.get("format_version")
    if version != _FORMAT_VERSION:
        raise FileFormatError(
            f"{path} has format version {_shorten(version)}, expected {_FORMAT_VERSION!r} "
            f"(written by jaxrnn {_shorten(metadata.get('jaxrnn_version'))})"
        )


def _read(path: StrPath) -> tuple[dict[str, Any], dict[str, str]]:
    """(The tensors by name, in the library's representation, and the metadata)."""
    library = _import_library()
    if Path(path).exists() and not Path(path).is_file():  # reading a device or a pipe may never end
        raise FileFormatError(f"{path} is not a regular file")
    content = Path(path).read_bytes()
    try:
        tensors = dict(library.deserialize(content))
        header = _parse(content[8 : 8 + int.from_bytes(content[:8], "little")].decode())
    except (library.SafetensorError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read as safetensors: {error!s:.300}") from None
    return tensors, header.get("__metadata__") or {}


def _parse(text: str) -> dict[str, Any]:
    """Parse a JSON object, rejecting duplicate names."""
    try:
        value = json.loads(text, object_pairs_hook=_reject_duplicates)
    except RecursionError:
        raise ValueError("it is too deeply nested") from None
    if not isinstance(value, dict):
        raise ValueError(f"it is {_shorten(value)}, expected an object")
    return value


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        (name, times), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {_shorten(name)} occurs {times} times")
    return result


def _list(differences: list[str]) -> str:
    more = len(differences) - _MAX_LISTED
    return "; ".join(differences[:_MAX_LISTED]) + (f"; and {more} more" if more > 0 else "")


def _shorten(value: Any) -> str:
    return f"{value!r:.80}"

"""ONNX: stacks of layers as models of standard operators, and such models as stacks.

Sequences are time-major in layers and in the models of `to_onnx`. Other models may be batch-major,
in their RNN operators (``layout`` 1) or around them; `from_onnx` makes time-major layers of them.

The CPU provider of onnxruntime supports RNN operators in float32 and float16 with ``layout`` 0, but
not in float64.

Source: https://onnx.ai/onnx/operators/onnx__RNN.html
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import jax
import numpy as np

from jaxrnn._checks import check_flag, check_size
from jaxrnn._types import Params
from jaxrnn.interop._networks import LayerParams, is_pair, split_stack
from jaxrnn.interop.onnx.activations import OnnxActivation
from jaxrnn.interop.onnx.comparison import check_specs
from jaxrnn.interop.onnx.exporting import ExportOptions, build_graph
from jaxrnn.interop.onnx.graph import read_graph
from jaxrnn.interop.onnx.importing import read_network
from jaxrnn.interop.onnx.layer_specs import make_specs
from jaxrnn.layers.combinators import stack
from jaxrnn.layers.contract import Layer

__all__ = ["OnnxActivation", "from_onnx", "to_onnx"]

_FIRST_OPSET = 14  # the first in which RNN has a `layout`


def to_onnx(
    layer: Layer,
    params: Params,
    *,
    activation: Any = "Tanh",
    lengths: bool = False,
    initial_states: bool = False,
    reverse: bool = False,
    opset: int = _FIRST_OPSET,
) -> Any:
    """Export a network as an ONNX model.

    Args:
      layer: a stack of `jaxrnn.vanilla_rnn`, `jaxrnn.bidirectional` of two of them of equal size,
        and `jaxrnn.dense`, or one such layer. `jaxrnn.dropout` is omitted, and `jaxrnn.chunked`
        makes no difference.
      params: its parameters, all float32 or all float64.
      activation: the activation that `layer` was built with, which a layer does not record. Either
        one for all recurrent layers, or a tuple or list with an entry per recurrent layer, which
        may be a pair for a bidirectional one. An entry is a function of ``jax.numpy`` or ``jax.nn``
        or its name (tanh, relu, sigmoid, soft_sign, softplus, identity, leaky_relu, elu,
        hard_sigmoid), ONNX's name, or an `OnnxActivation`.
      lengths: whether the lengths of the sequences are an input of the model. They act as the mask
        ``mask_from_lengths(lengths, T)``.
      initial_states: whether the initial states are inputs of the model. Otherwise they are those
        in `params`, or zeros.
      reverse: export ``layer.unroll(..., reverse=True)``.
      opset: the version of ONNX's operators, at least 14. More runtimes support older versions.

    Returns:
      A checked ``onnx.ModelProto``. Its inputs are xs [T, B, D]; lengths [B] int32, if requested;
      and h0_0, h0_1, ... [directions, B, H], one per recurrent layer, if requested. Its outputs are
      ys [T, B, O], which is 0 beyond the length of a sequence, and the final states h_0, h_1, ...,
      shaped like the initial ones. Directions are in the order of `params`. T and B are free, with
      T at least 1.

    Raises:
      TypeError, ValueError: an argument is invalid, ONNX cannot express a layer, or the outputs of
        `layer` on random inputs differ from those that `params` and `activation` imply.
      ImportError: onnx is not installed.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"layer is a {type(layer).__name__}, expected a Layer")
    check_flag("lengths", lengths)
    check_flag("initial_states", initial_states)
    check_flag("reverse", reverse)
    onnx = _import_onnx()
    check_size("opset", opset, at_least=_FIRST_OPSET)
    if opset > onnx.defs.onnx_opset_version():
        raise ValueError(
            f"opset is {opset}, expected at most {onnx.defs.onnx_opset_version()}, this onnx's"
        )
    if not layer.causal and is_pair(params):  # a single bidirectional layer, not a stack of two
        layer, params = stack(layer), (params,)
    parts = split_stack(params)
    dtype = _find_dtype(parts)
    specs = make_specs(parts, activation, reverse)
    check_specs(layer, params, specs, reverse)
    element = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    graph = build_graph(onnx, specs, ExportOptions(lengths, initial_states, dtype, element))
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(
        graph,
        producer_name="jaxrnn",
        opset_imports=opsets,
        ir_version=onnx.helper.find_min_ir_version_for(opsets),
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def from_onnx(model: Any) -> tuple[Layer, Params]:
    """Import an ONNX model that is a chain of RNN and dense operators.

    Args:
      model: an ``onnx.ModelProto``, its bytes, or the path of its file. An input with three axes
        must lead to an output with a time axis, of which the first is used, through a chain of RNN
        (of any direction, activation and layout), MatMul with Add, and Gemm operators with constant
        weights, with transpositions, reshapes and masks in between. The model may have other
        inputs, for sequence lengths and initial states, and other outputs, such as final states.

    Returns:
      (layer, params): a stack of `jaxrnn.vanilla_rnn`, `jaxrnn.bidirectional` and `jaxrnn.dense`,
      and a tuple with the parameters of each. The layer is time-major, [T, B, D], even if the model
      is not. ONNX's two biases are summed; if only one direction has a bias or h0, that of the
      other is zero. A constant initial state becomes the learned h0; one that is an input of the
      model corresponds to the layer's `state`, and the lengths to its `mask`. A layer of direction
      "reverse" runs from the last step to the first, and cannot be stepped.

    Raises:
      TypeError: `model` is of another type.
      ValueError: the model is invalid, has a ``clip``, or computes, on random inputs, something
        other than such a chain. The message names the node.
      OSError: the file does not exist.
      ImportError: onnx is not installed.
    """
    onnx = _import_onnx()
    return read_network(read_graph(onnx, _load(onnx, model)))


def _find_dtype(parts: list[LayerParams]) -> np.dtype:
    dtypes = {np.dtype(leaf.dtype) for leaf in jax.tree.leaves(parts)}
    if dtypes not in ({np.dtype(np.float32)}, {np.dtype(np.float64)}):
        raise ValueError(
            f"params have dtypes {sorted(map(str, dtypes))}, expected float32 for all "
            "or float64 for all"
        )
    return dtypes.pop()


def _load(onnx: Any, model: Any) -> Any:
    """A model that passes ONNX's checker and contains its weights."""
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    try:
        if isinstance(model, (str, os.PathLike)):
            model = onnx.load(model)
        elif isinstance(model, (bytes, bytearray, memoryview)):
            model = onnx.load_from_string(bytes(model))
        elif not isinstance(model, onnx.ModelProto):
            raise TypeError(
                f"model is a {type(model).__name__}, expected an onnx.ModelProto, bytes or a path"
            )
        onnx.checker.check_model(model)
    except (decode_error, onnx.checker.ValidationError) as error:
        raise ValueError(f"model is not a valid ONNX model: {error}") from error
    tensors = [
        *model.graph.initializer,
        *(one.t for node in model.graph.node for one in node.attribute),
    ]
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError(
                f"the weights {tensor.name!r} are in another file, expected them in the model, or "
                "the path of the model"
            )
    return model


def _import_onnx() -> Any:
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise ImportError("ONNX models need onnx: pip install 'jaxrnn[interop]'") from error

"""ONNX: a stack of layers as a model of standard operators, and such a model as a stack.

Sequences are time-major on both sides of `to_onnx`. A model from elsewhere may be batch-major, in
its RNN operators (``layout`` 1) or around them; the layer that `from_onnx` makes of it is
time-major, as every layer is.

onnxruntime's CPU has RNN operators in float32 and float16, with ``layout`` 0, and not in float64.

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
from jaxrnn.interop._networks import is_pair, parts_of
from jaxrnn.interop.onnx.activations import OnnxActivation
from jaxrnn.interop.onnx.comparison import check_description
from jaxrnn.interop.onnx.exporting import Options, build_graph, describe
from jaxrnn.interop.onnx.graph import read_graph
from jaxrnn.interop.onnx.importing import read_network
from jaxrnn.layers.combinators import stack
from jaxrnn.layers.contract import Layer

__all__ = ["OnnxActivation", "from_onnx", "to_onnx"]

_FIRST_OPSET = 14  # since which the RNN operator has its `layout`


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
    """A network as an ONNX model, of RNN, MatMul and Add operators and what goes between them.

    Args:
      layer: a stack of `vanilla_rnn`, `bidirectional` of two such of equal size, and `dense`
        (`dropout` is left out, as it is without a key; `chunked` changes nothing), or one alone.
      params: its parameters, all float32 or all float64.
      activation: which one `layer` was built with, since a `Layer` does not tell: for all recurrent
        layers, or a tuple or list with one entry for each, which for a `bidirectional` layer may be
        a pair. An entry is a function of `jax.numpy` or `jax.nn` or its name (tanh, relu, sigmoid,
        soft_sign, softplus, identity, leaky_relu, elu, hard_sigmoid), ONNX's name, or an
        `OnnxActivation`. ONNX keeps the numbers alpha and beta in float32.
      lengths: whether the model takes the sequences' lengths, which are the mask
        ``mask_from_lengths(lengths, T)``.
      initial_states: whether the model takes the states before the first step. Else they are those
        that `params` hold, or zeros.
      reverse: export ``layer.unroll(..., reverse=True)``.
      opset: the version of ONNX's operators, 14 or later. The oldest runs in the most runtimes.

    Returns:
      an ``onnx.ModelProto``, checked. Its inputs are xs [T, B, D]; lengths [B] int32, if asked for;
      and h0_0, h0_1, ... [directions, B, H], one a recurrent layer, if asked for. Its outputs are
      ys [T, B, O], 0 beyond a sequence's length, and the final states h_0, h_1, ..., of the same
      shapes. A state's directions are in the order of `params`. T and B are free, T at least 1.

    Raises:
      TypeError, ValueError: an argument is not as described, ONNX has no operator for a layer, or
        `layer` gives other outputs than `params` and `activation` describe, on drawn inputs.
      ImportError: onnx is not installed.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"layer is a {type(layer).__name__}, expected a Layer")
    for name, flag in (("lengths", lengths), ("initial_states", initial_states)):
        check_flag(name, flag)
    check_flag("reverse", reverse)
    onnx = _import_onnx()
    check_size("opset", opset, at_least=_FIRST_OPSET)
    if opset > onnx.defs.onnx_opset_version():
        raise ValueError(
            f"opset is {opset}, expected at most {onnx.defs.onnx_opset_version()}, this onnx's"
        )
    if not layer.causal and is_pair(params):  # a bidirectional layer alone, no stack of two
        layer, params = stack(layer), (params,)
    parts = parts_of(params)
    dtypes = {np.dtype(leaf.dtype) for leaf in jax.tree.leaves(parts)}
    if dtypes not in ({np.dtype(np.float32)}, {np.dtype(np.float64)}):
        raise ValueError(
            f"params have dtypes {sorted(map(str, dtypes))}, expected float32 for all "
            "or float64 for all"
        )
    (dtype,) = dtypes
    network = describe(parts, activation, reverse)
    check_description(layer, params, network, reverse)
    element = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    graph = build_graph(onnx, network, Options(lengths, initial_states, dtype, element))
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
    """The layer, and its parameters, of an ONNX model that is a chain of RNN and dense operators.

    Args:
      model: an ``onnx.ModelProto``, its bytes, or the path of its file. From an input of three axes
        a chain of RNN (any direction, activation and layout), MatMul with Add, and Gemm operators
        leads to an output with a time axis, the first such one; transpositions, reshapes and masks
        stand between them. Their weights are constants. The model may have other inputs, for
        sequence lengths and initial states, and other outputs, such as final states.

    Returns:
      (layer, params): a `stack` of `vanilla_rnn`, `bidirectional` and `dense`, and a tuple with the
      parameters of each. The layer is time-major, [T, B, D], whatever the model is. ONNX's two
      biases are summed, and a bias or h0 of one direction alone is zeros in the other. An initial
      state that the model holds is the learned one, h0; one that it takes as an input is the
      layer's `state`. Lengths are the layer's `mask`, and its outputs beyond them 0. A layer of
      direction "reverse" runs from the last step to the first, and has no `step`.

    Raises:
      TypeError: `model` is of another type. ImportError: onnx is not installed. OSError: there is
        no such file.
      ValueError: the model is not valid, does more than such a chain, which is tried on drawn
        inputs, or has a `clip`; the message names the node.
    """
    onnx = _import_onnx()
    return read_network(read_graph(onnx, _load(onnx, model)))


def _load(onnx: Any, model: Any) -> Any:
    """A model that has passed ONNX's checker, its weights inside it."""
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
        raise ValueError(f"model is no valid ONNX model: {error}") from error
    tensors = [
        *model.graph.initializer,
        *(one.t for node in model.graph.node for one in node.attribute),
    ]
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError(
                f"the weights {tensor.name!r} stand in another file, expected them in the model, "
                "or the model's path"
            )
    return model


def _import_onnx() -> Any:
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise ImportError("ONNX models need onnx: pip install 'jaxrnn[interop]'") from error

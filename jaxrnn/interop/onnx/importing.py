"""The chain of RNN, MatMul and Add operators in an ONNX graph, and the layer that it represents.

The operators between them (transpositions, reshapes, masks) are not interpreted. Instead, the graph
is evaluated on random inputs and compared with the layer.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn._types import Array, Params
from jaxrnn.interop._networks import RecurrentParams, as_param, get_sizes
from jaxrnn.interop.onnx.comparison import agree, draw_inputs
from jaxrnn.interop.onnx.graph import (
    PASS_THROUGH,
    Graph,
    check_operators,
    evaluate,
    evaluate_constant,
    find_sources,
    is_constant,
    label,
    read_attributes,
    read_operator,
)
from jaxrnn.interop.onnx.layer_specs import LayerSpec, build_stack
from jaxrnn.layers.contract import Layer
from jaxrnn.layers.pointwise import DenseParams
from jaxrnn.params import RNNParams


def read_network(graph: Graph) -> tuple[Layer, Params]:
    """The layer that computes the model's first output with a time axis, and its parameters."""
    failures = []
    for output in graph.outputs:
        try:
            source, chain = _find_chain(graph, output)
        except ValueError as error:
            failures.append(f"output {output!r}: {error}")
            continue
        specs, rnn_nodes = _read_chain(graph, chain)
        return _build_checked(graph, source, output, specs, rnn_nodes)
    raise ValueError("; ".join(failures) or "the model has no output")


def _find_chain(graph: Graph, name: str) -> tuple[str, list[Any]]:
    """The input of the model that leads to a tensor, and the nodes in between, first to last."""
    chain: list[Any] = []
    while name not in graph.inputs:
        if name not in graph.producers:
            raise ValueError(f"{name!r} is a constant, expected a tensor computed from an input")
        node = graph.nodes[graph.producers[name]]
        if node.op_type == "RNN" and node.output[0] != name:
            raise ValueError(f"{label(node)} gives a final state, expected outputs at every step")
        if node.op_type in ("MatMul", "Add"):
            computed = [one for one in node.input if not is_constant(graph, one)]
            if len(computed) != 1:
                raise ValueError(
                    f"{label(node)} has {len(computed)} computed inputs, expected one and weights"
                )
            name = computed[0]
        elif node.op_type in (*PASS_THROUGH, "RNN", "Gemm", "Where"):
            name = node.input[1 if node.op_type == "Where" else 0]
        else:
            known = sorted((*PASS_THROUGH, "Add", "Gemm", "MatMul", "RNN", "Where"))
            raise ValueError(
                f"{label(node)} stands between the model's input and its output, expected "
                f"operators among {known}"
            )
        chain.append(node)
    return name, chain[::-1]


def _read_chain(graph: Graph, chain: list[Any]) -> tuple[list[LayerSpec], list[Any]]:
    """The specification of each layer, without initial states, and its RNN node or None."""
    specs: list[LayerSpec] = []
    rnn_nodes: list[Any] = []
    for node in chain:
        if node.op_type in ("RNN", "MatMul", "Gemm"):
            recurrent = node.op_type == "RNN"
            specs.append((_read_rnn if recurrent else _read_dense)(graph, node))
            rnn_nodes.append(node if recurrent else None)
        elif node.op_type == "Add":
            below = specs.pop().part if specs else None
            if not isinstance(below, DenseParams) or below.b is not None:
                raise ValueError(f"{label(node)} adds weights to something other than a product")
            specs.append(LayerSpec(below._replace(b=_read_bias(graph, node, below))))
        elif node.op_type == "Gather" and specs:
            specs[-1] = _swap_directions(graph, node, specs[-1])
    if not any(rnn_nodes):
        raise ValueError("there is no RNN operator before the output, expected at least one")
    return specs, rnn_nodes


def _read_rnn(graph: Graph, node: Any) -> LayerSpec:
    operator = read_operator(graph, node)
    inputs = [*node.input, "", "", ""][:4]
    where = f"{label(node)}: "
    w_hh = as_param(where + "R", evaluate_constant(graph, node, inputs[2]))
    if w_hh.ndim != 3 or w_hh.shape != (operator.directions, *w_hh.shape[1:2] * 2):
        raise ValueError(f"{where}R has shape {w_hh.shape}, expected [{operator.directions}, H, H]")
    size = w_hh.shape[1]
    w_ih = as_param(where + "W", evaluate_constant(graph, node, inputs[1]))
    if w_ih.ndim != 3 or w_ih.shape[:2] != w_hh.shape[:2]:
        raise ValueError(
            f"{where}W has shape {w_ih.shape}, expected [{operator.directions}, {size}, D]"
        )
    if operator.hidden_size not in (None, size):
        raise ValueError(f"{where}hidden_size is {operator.hidden_size} but R has {size} units")
    biases: list[Any] = [None] * operator.directions
    if inputs[3]:
        shape = (operator.directions, 2 * size)
        biases = [
            _add_biases(b)
            for b in as_param(where + "B", evaluate_constant(graph, node, inputs[3]), shape)
        ]
    directions = tuple(RNNParams(*one) for one in zip(w_ih, w_hh, biases, strict=True))
    return LayerSpec(RecurrentParams(directions), operator.activations, operator.reverse)


def _add_biases(biases: Array) -> Array:
    """The sum of ONNX's two biases; where the second is 0 it is the first exactly, even -0."""
    first, second = jnp.split(biases, 2)
    return jnp.where(second == 0, first, first + second)


def _read_dense(graph: Graph, node: Any) -> LayerSpec:
    where = f"{label(node)}: "
    attributes = read_attributes(graph, node)
    expected = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    for name, value in expected.items():
        if attributes.get(name, value) != value:
            raise ValueError(f"{where}{name} is {attributes[name]}, expected {value}")
    w = as_param(where + "the second input", evaluate_constant(graph, node, node.input[1]))
    if w.ndim != 2:
        raise ValueError(f"{where}the second input has shape {w.shape}, expected [D, O]")
    params = DenseParams(w if attributes.get("transB") else w.T)
    if len(node.input) > 2 and node.input[2]:
        params = params._replace(b=_read_bias(graph, node, params))
    return LayerSpec(params)


def _read_bias(graph: Graph, node: Any, params: DenseParams) -> Array:
    """The bias [O] that an Add or Gemm node adds to a product."""
    names = node.input[2:] if node.op_type == "Gemm" else node.input
    (name,) = [one for one in names if is_constant(graph, one)] or names[:1]
    value, size = evaluate_constant(graph, node, name), params.w.shape[0]
    if value.size != max(value.shape[-1:], default=1) or value.size not in (1, size):
        raise ValueError(f"{label(node)} adds weights of shape {value.shape}, expected [{size}]")
    flat = as_param(f"{label(node)}: the bias", value).reshape(-1)
    return jnp.broadcast_to(flat, (size,))


def _swap_directions(graph: Graph, node: Any, spec: LayerSpec) -> LayerSpec:
    """The layer below a Gather node that swaps its two directions: it is unrolled in reverse."""
    order = evaluate_constant(graph, node, node.input[1]).tolist()
    if len(spec.activations) != 2 or order != [1, 0]:
        raise ValueError(f"{label(node)} does not swap the two directions of an RNN operator")
    assert isinstance(spec.part, RecurrentParams)
    return LayerSpec(RecurrentParams(spec.part.directions[::-1]), spec.activations[::-1], True)


def _build_checked(
    graph: Graph, source: str, output: str, specs: list[LayerSpec], rnn_nodes: list[Any]
) -> tuple[Layer, Params]:
    """The specified layer, after checking that the graph computes the same, time-major or not."""
    h0_names = [node.input[5] if node and len(node.input) > 5 else "" for node in rnn_nodes]
    wanted = [output, *filter(None, h0_names)]
    check_operators(graph, wanted)
    failure = ""
    for batch_major in (False, True):
        xs, mask, feeds = _draw_feeds(graph, source, wanted, specs[0], batch_major)
        try:
            values = evaluate(graph, wanted, feeds)
        except Exception as error:  # an inconsistent graph can raise anything
            failure = failure or f"it cannot be evaluated: {error}"
            continue
        complete = [
            _with_h0(graph, spec, node, values[name]) if name else spec
            for spec, node, name in zip(specs, rnn_nodes, h0_names, strict=True)
        ]
        layer, params = build_stack(complete)
        _, ys = layer.unroll(params, None, jnp.asarray(xs), mask=jnp.asarray(mask))
        got = values[output]
        orders = [got, got.swapaxes(0, 1)] if got.ndim == 3 else []
        if any(one.shape == ys.shape and agree(one[mask], ys[mask]) for one in orders):
            return layer, params
        failure = "its outputs differ from those of its RNN, MatMul and Add nodes in a chain"
    raise ValueError(f"the model is not a stack of layers up to output {output!r}: {failure}")


def _draw_feeds(
    graph: Graph, source: str, wanted: list[str], first: LayerSpec, batch_major: bool
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Random time-major inputs of the sizes that the model declares; their mask, ragged if lengths
    are an input of the model; and the values of all of the model's inputs."""
    dims, size = _dims(graph, source), get_sizes(first.part)[0]
    if len(dims) != 3 or dims[2].dim_value not in (0, size):
        axes = [dim.dim_param or dim.dim_value for dim in dims]
        raise ValueError(
            f"input {source!r} has the axes {axes}, expected three, the last of {size}"
        )
    time, batch = (dims[1], dims[0]) if batch_major else (dims[0], dims[1])
    num_steps, count = time.dim_value or 4, batch.dim_value or 3
    xs, lengths, mask = draw_inputs(num_steps, count, size, _dtype(graph, source))
    feeds = {source: xs.swapaxes(0, 1) if batch_major else xs}
    nodes = [graph.nodes[index] for index in find_sources(graph, wanted).nodes]
    recurrent = [[*node.input, "", "", ""] for node in nodes if node.op_type == "RNN"]
    of_lengths, of_states = (
        find_sources(graph, [inputs[position] for inputs in recurrent]).inputs
        for position in (4, 5)
    )
    for name in find_sources(graph, wanted).inputs - {source}:
        if name in of_lengths:
            feeds[name] = lengths.astype(_dtype(graph, name))
        elif name in of_states:
            known = {time.dim_param: num_steps}
            shape = [dim.dim_value or known.get(dim.dim_param, count) for dim in _dims(graph, name)]
            feeds[name] = np.zeros(shape, _dtype(graph, name))
        else:
            raise ValueError(
                f"input {name!r} contributes to the outputs, expected only {source!r}, sequence "
                "lengths and initial states"
            )
    ragged = not of_lengths.isdisjoint(feeds)
    return xs, mask if ragged else np.ones_like(mask), feeds


def _dims(graph: Graph, name: str) -> Any:
    return graph.inputs[name].type.tensor_type.shape.dim


def _dtype(graph: Graph, name: str) -> Any:
    return _numpy_dtype(graph, graph.inputs[name].type.tensor_type.elem_type)


def _numpy_dtype(graph: Graph, element: int) -> Any:
    return graph.onnx.helper.tensor_dtype_to_np_dtype(element)


def _with_h0(graph: Graph, spec: LayerSpec, node: Any, value: np.ndarray) -> LayerSpec:
    """A layer with the initial state [directions, B, H] that its graph computes; zeros that do not
    come from weights are not a learned state."""
    assert isinstance(spec.part, RecurrentParams)
    weights = find_sources(graph, [node.input[5]]).weights
    floating = any(
        jnp.issubdtype(_numpy_dtype(graph, graph.weights[name].data_type), jnp.floating)
        for name in weights
    )
    if not floating and not np.any(value):
        return spec
    batch_major = read_operator(graph, node).batch_major
    rows = value[0] if batch_major else value[:, 0]
    swapped = spec.reverse and len(spec.activations) == 2
    h0s = [as_param(f"{label(node)}: initial_h", row) for row in rows[:: -1 if swapped else 1]]
    directions = [
        params._replace(h0=h0) for params, h0 in zip(spec.part.directions, h0s, strict=True)
    ]
    return spec._replace(part=RecurrentParams(tuple(directions)))

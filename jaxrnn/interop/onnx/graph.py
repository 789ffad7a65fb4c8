"""Queries on an ONNX model: its nodes, their attributes, and the values of its tensors."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrnn.interop.onnx.activations import OnnxActivation, from_attributes, to_jax
from jaxrnn.params import RNNParams
from jaxrnn.recurrence import unroll

PASS_THROUGH = ("Cast", "Gather", "Identity", "Mul", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators through which a chain of layers passes by the first input; by the second in `Where`."""

_SUPPORTED = {*PASS_THROUGH, "Add", "And", "Concat", "Constant", "ConstantOfShape", "Div", "Equal"}
_SUPPORTED |= {"Expand", "Gemm", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "MatMul"}
_SUPPORTED |= {"Not", "RNN", "Range", "Shape", "Size", "Slice", "Split", "Sub", "Tile", "Where"}
"""Operators of layers, and those that compute shapes, masks and initial states."""


class Graph(NamedTuple):
    """An indexed valid model. `inputs` excludes initializers; `producers` maps each computed tensor
    to the position of its node."""

    onnx: Any
    opsets: Any
    weights: dict[str, Any]
    inputs: dict[str, Any]
    outputs: list[str]
    nodes: list[Any]
    producers: dict[str, int]


class RNNOperator(NamedTuple):
    """The attributes of an RNN node."""

    directions: int
    reverse: bool
    activations: tuple[OnnxActivation, ...]
    hidden_size: int | None
    batch_major: bool


class Sources(NamedTuple):
    """The positions of the nodes, and the inputs and weights, that tensors depend on."""

    nodes: set[int]
    inputs: set[str]
    weights: set[str]


def read_graph(onnx: Any, model: Any) -> Graph:
    """Index a valid model."""
    weights = {one.name: one for one in model.graph.initializer}
    nodes = list(model.graph.node)
    return Graph(
        onnx,
        model.opset_import,
        weights,
        {one.name: one for one in model.graph.input if one.name not in weights},
        [one.name for one in model.graph.output],
        nodes,
        {name: index for index, node in enumerate(nodes) for name in node.output if name},
    )


def label(node: Any) -> str:
    """A node as messages refer to it: by its name, or else its first output."""
    return f"the {node.op_type} node {node.name or node.output[0]!r}"


def read_attributes(graph: Graph, node: Any) -> dict[str, Any]:
    """A node's attributes, with text decoded."""

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [decode(one) for one in value]
        return value.decode() if isinstance(value, bytes) else value

    read = graph.onnx.helper.get_attribute_value
    return {one.name: decode(read(one)) for one in node.attribute}


def read_operator(graph: Graph, node: Any) -> RNNOperator:
    """The attributes of an RNN node; `clip` is rejected."""
    attributes = read_attributes(graph, node)
    if "clip" in attributes:
        raise ValueError(
            f"{label(node)} has clip {attributes['clip']}, expected none: layers here do "
            "not clip the input of their activation"
        )
    direction = attributes.get("direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ValueError(
            f"{label(node)} has direction {direction!r}, expected forward, reverse or bidirectional"
        )
    count = 2 if direction == "bidirectional" else 1
    try:
        activations = from_attributes(attributes, count)
    except ValueError as error:
        raise ValueError(f"{label(node)}: {error}") from error
    layout = attributes.get("layout", 0)
    if layout not in (0, 1):
        raise ValueError(f"{label(node)} has layout {layout}, expected 0 or 1")
    hidden_size = attributes.get("hidden_size")
    return RNNOperator(count, direction == "reverse", activations, hidden_size, layout == 1)


def find_sources(graph: Graph, names: Iterable[str]) -> Sources:
    """Everything that the tensors depend on, including themselves."""
    found, pending = Sources(set(), set(), set()), list(names)
    while pending:
        name = pending.pop()
        if name in graph.inputs:
            found.inputs.add(name)
        elif name in graph.weights:
            found.weights.add(name)
        elif name in graph.producers and graph.producers[name] not in found.nodes:
            found.nodes.add(graph.producers[name])
            pending.extend(one for one in graph.nodes[graph.producers[name]].input if one)
    return found


def is_constant(graph: Graph, name: str) -> bool:
    """Whether a tensor does not depend on the model's inputs."""
    return not find_sources(graph, [name]).inputs


def check_operators(graph: Graph, names: Iterable[str]) -> None:
    """Reject tensors that depend on unsupported operators."""
    for index in sorted(find_sources(graph, names).nodes):
        node = graph.nodes[index]
        if node.op_type not in _SUPPORTED or node.domain not in ("", "ai.onnx"):
            raise ValueError(
                f"{label(node)} contributes to the outputs, expected operators among "
                f"{sorted(_SUPPORTED)}"
            )


def evaluate_constant(graph: Graph, node: Any, name: str) -> np.ndarray:
    """The value of an input of a node; it must not depend on the model's inputs."""
    inputs = find_sources(graph, [name]).inputs
    if inputs:
        raise ValueError(
            f"{label(node)}: {name!r} is computed from {sorted(inputs)}, expected weights"
        )
    check_operators(graph, [name])
    try:
        return np.asarray(evaluate(graph, [name], {})[name])
    except Exception as error:  # an inconsistent graph can raise anything
        raise ValueError(f"{label(node)}: {name!r} cannot be computed: {error}") from error


def evaluate(
    graph: Graph, names: list[str], feeds: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The values of tensors, by ONNX's reference evaluator with `jaxrnn.unroll` as RNN."""
    onnx, needed = graph.onnx, find_sources(graph, names)
    subgraph = onnx.helper.make_graph(
        [graph.nodes[index] for index in sorted(needed.nodes)],
        "subgraph",
        [graph.inputs[name] for name in needed.inputs],
        [onnx.helper.make_empty_tensor_value_info(name) for name in names],
        [graph.weights[name] for name in needed.weights],
    )
    model = onnx.helper.make_model(subgraph, opset_imports=graph.opsets)
    reference = importlib.import_module("onnx.reference")
    evaluator = reference.ReferenceEvaluator(model, new_ops=[_rnn_operator(graph)])
    return dict(zip(names, evaluator.run(None, dict(feeds)), strict=True))


def _rnn_operator(graph: Graph) -> Any:
    """The RNN operator for the reference evaluator."""

    def run(
        self: Any,
        x: Any,
        w: Any,
        r: Any,
        b: Any = None,
        lengths: Any = None,
        initial: Any = None,
        **attributes: Any,
    ) -> tuple[Any, Any]:
        del attributes
        operator = read_operator(graph, self.onnx_node)
        if operator.batch_major:
            x, initial = x.swapaxes(0, 1), None if initial is None else initial.swapaxes(0, 1)
        mask = None if lengths is None else np.arange(len(x))[:, None] < lengths[None]
        finals, outputs = [], []
        for index, activation in enumerate(operator.activations):
            bias = None if b is None else jnp.asarray(b[index].reshape(2, -1).sum(0))
            final, ys = unroll(
                RNNParams(jnp.asarray(w[index]), jnp.asarray(r[index]), bias),
                None if initial is None else initial[index],
                x,
                activation=to_jax(activation),
                mask=mask,
                reverse=operator.reverse or index == 1,
            )
            finals.append(final)
            outputs.append(ys)
        batch_axis = 0 if operator.batch_major else 1
        joined = np.stack(outputs, 1)  # [T, directions, B, H]
        joined = joined.transpose(2, 0, 1, 3) if operator.batch_major else joined
        return joined, np.stack(finals, 1 - batch_axis)

    base = importlib.import_module("onnx.reference.op_run").OpRun
    return type("RNN", (base,), {"op_domain": "", "_run": run})

"""An ONNX model as what an importer asks of it: nodes, weights, and the values of its tensors."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrnn.interop.onnx.activations import OnnxActivation, from_attributes, in_jax
from jaxrnn.params import RNNParams
from jaxrnn.recurrence import unroll

MOVES = ("Cast", "Gather", "Identity", "Mul", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that carry their first input on; `Where` carries its second."""

_EVALUATED = {*MOVES, "Add", "And", "Concat", "Constant", "ConstantOfShape", "Div", "Equal"}
_EVALUATED |= {"Expand", "Gemm", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "MatMul"}
_EVALUATED |= {"Not", "RNN", "Range", "Shape", "Size", "Slice", "Split", "Sub", "Tile", "Where"}
"""These, and those from which shapes, masks and initial states are computed."""


class Graph(NamedTuple):
    """A valid model: its initializers, its inputs without those, its outputs, its nodes in order,
    and for each tensor that a node makes the position of that node."""

    onnx: Any
    opsets: Any
    weights: dict[str, Any]
    inputs: dict[str, Any]
    outputs: list[str]
    nodes: list[Any]
    makers: dict[str, int]


class Operator(NamedTuple):
    """What an RNN node's attributes say."""

    directions: int
    backwards: bool
    activations: tuple[OnnxActivation, ...]
    hidden_size: int | None
    batch_major: bool


class Sources(NamedTuple):
    """What a tensor is computed from."""

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


def named(node: Any) -> str:
    """A node as messages call it; one without a name goes by its first output."""
    return f"the {node.op_type} node {node.name or node.output[0]!r}"


def attributes_of(graph: Graph, node: Any) -> dict[str, Any]:
    """A node's attributes, text decoded."""

    def decoded(value: Any) -> Any:
        if isinstance(value, list):
            return [decoded(one) for one in value]
        return value.decode() if isinstance(value, bytes) else value

    read = graph.onnx.helper.get_attribute_value
    return {one.name: decoded(read(one)) for one in node.attribute}


def operator_of(graph: Graph, node: Any) -> Operator:
    """An RNN node's attributes; clip is refused."""
    attributes = attributes_of(graph, node)
    if "clip" in attributes:
        raise ValueError(
            f"{named(node)} has clip {attributes['clip']}, expected none: no layer here bounds "
            "what goes into its activation"
        )
    direction = attributes.get("direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ValueError(
            f"{named(node)} has direction {direction!r}, expected forward, reverse or bidirectional"
        )
    count = 2 if direction == "bidirectional" else 1
    try:
        activations = from_attributes(attributes, count)
    except ValueError as error:
        raise ValueError(f"{named(node)}: {error}") from error
    layout = attributes.get("layout", 0)
    if layout not in (0, 1):
        raise ValueError(f"{named(node)} has layout {layout}, expected 0 or 1")
    backwards = direction == "reverse"
    return Operator(count, backwards, activations, attributes.get("hidden_size"), layout == 1)


def sources_of(graph: Graph, names: Iterable[str]) -> Sources:
    """All that some tensors are computed from, themselves included."""
    found, left = Sources(set(), set(), set()), list(names)
    while left:
        name = left.pop()
        if name in graph.inputs:
            found.inputs.add(name)
        elif name in graph.weights:
            found.weights.add(name)
        elif name in graph.makers and graph.makers[name] not in found.nodes:
            found.nodes.add(graph.makers[name])
            left.extend(one for one in graph.nodes[graph.makers[name]].input if one)
    return found


def is_constant(graph: Graph, name: str) -> bool:
    """Whether a tensor is the same for all of the model's inputs."""
    return not sources_of(graph, [name]).inputs


def check_operators(graph: Graph, names: Iterable[str]) -> None:
    """Refuse to evaluate what an importer does not expect before some tensors."""
    for index in sorted(sources_of(graph, names).nodes):
        node = graph.nodes[index]
        if node.op_type not in _EVALUATED or node.domain not in ("", "ai.onnx"):
            raise ValueError(
                f"{named(node)} has a part in the outputs, expected operators among "
                f"{sorted(_EVALUATED)}"
            )


def constant(graph: Graph, node: Any, name: str) -> np.ndarray:
    """The value of a node's input that does not depend on the model's inputs."""
    inputs = sources_of(graph, [name]).inputs
    if inputs:
        raise ValueError(
            f"{named(node)}: {name!r} is computed from {sorted(inputs)}, expected weights"
        )
    check_operators(graph, [name])
    try:
        return np.asarray(evaluate(graph, [name], {})[name])
    except Exception as error:  # whatever a graph of wrong shapes runs into
        raise ValueError(f"{named(node)}: {name!r} cannot be computed: {error}") from error


def evaluate(
    graph: Graph, names: list[str], feeds: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The values of some tensors, by ONNX's reference evaluator with `jaxrnn.unroll` for RNN."""
    onnx, needed = graph.onnx, sources_of(graph, names)
    part = onnx.helper.make_graph(
        [graph.nodes[index] for index in sorted(needed.nodes)],
        "part",
        [graph.inputs[name] for name in needed.inputs],
        [onnx.helper.make_empty_tensor_value_info(name) for name in names],
        [graph.weights[name] for name in needed.weights],
    )
    model = onnx.helper.make_model(part, opset_imports=graph.opsets)
    reference = importlib.import_module("onnx.reference")
    evaluator = reference.ReferenceEvaluator(model, new_ops=[_rnn_operator(graph)])
    return dict(zip(names, evaluator.run(None, dict(feeds)), strict=True))


def _rnn_operator(graph: Graph) -> Any:
    """The RNN operator, for the reference evaluator."""

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
        operator = operator_of(graph, self.onnx_node)
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
                activation=in_jax(activation),
                mask=mask,
                reverse=operator.backwards or index == 1,
            )
            finals.append(final)
            outputs.append(ys)
        batch_axis = 0 if operator.batch_major else 1
        joined = np.stack(outputs, 1)  # [T, directions, B, H]
        joined = joined.transpose(2, 0, 1, 3) if operator.batch_major else joined
        return joined, np.stack(finals, 1 - batch_axis)

    base = importlib.import_module("onnx.reference.op_run").OpRun
    return type("RNN", (base,), {"op_domain": "", "_run": run})

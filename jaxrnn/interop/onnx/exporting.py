"""A network as a graph of standard ONNX operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.interop._networks import LayerParams, RecurrentParams, get_sizes
from jaxrnn.interop.onnx.activations import to_attributes
from jaxrnn.interop.onnx.layer_specs import LayerSpec
from jaxrnn.layers.pointwise import DenseParams
from jaxrnn.params import RNNParams


class ExportOptions(NamedTuple):
    """The model's inputs besides xs, and the dtype of its arrays, in NumPy and as ONNX's number."""

    lengths: bool
    initial_states: bool
    dtype: np.dtype
    element: int


class _Graph(NamedTuple):
    """The nodes and weights of a graph under construction."""

    onnx: Any
    nodes: list[Any]
    weights: list[Any]

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        node = self.onnx.helper.make_node(operator, inputs, [output], name=output, **attributes)
        self.nodes.append(node)
        return output

    def add_constant(self, name: str, value: Any) -> str:
        array = np.ascontiguousarray(value)
        self.weights.append(self.onnx.numpy_helper.from_array(array, name))
        return name


def build_graph(onnx: Any, specs: Sequence[LayerSpec], options: ExportOptions) -> Any:
    """The GraphProto of a network, with the inputs and outputs that `to_onnx` documents."""
    graph = _Graph(onnx, [], [])
    info = onnx.helper.make_tensor_value_info
    inputs = [info("xs", options.element, ["T", "B", get_sizes(specs[0].part)[0]])]
    if options.lengths:
        inputs.append(info("lengths", onnx.TensorProto.INT32, ["B"]))
    _add_shared_tensors(graph, specs, options)
    ys, states = "xs", list[Any]()
    for index, spec in enumerate(specs):
        if isinstance(spec.part, DenseParams):
            ys = _add_dense(graph, index, spec.part, ys, options)
            continue
        number = len(states)
        count, size = len(spec.activations), spec.part.directions[0].w_hh.shape[0]
        if options.initial_states:
            inputs.append(info(f"h0_{number}", options.element, [count, "B", size]))
        ys = _add_recurrent(graph, number, spec, ys, options)
        states.append(info(f"h_{number}", options.element, [count, "B", size]))
    graph.add("Identity", [ys], "ys")
    outputs = [info("ys", options.element, ["T", "B", get_sizes(specs[-1].part)[1]]), *states]
    return onnx.helper.make_graph(graph.nodes, "jaxrnn", inputs, outputs, graph.weights)


def _add_shared_tensors(graph: _Graph, specs: Sequence[LayerSpec], options: ExportOptions) -> None:
    """Add those tensors that several layers use: `batch_axes` (1, B, 1); `not_empty` [1, B, 1],
    whether a sequence has any step; `mask` [T, B, 1]; `swap`, the order of swapped directions."""
    learned = not options.initial_states and any(_has_h0(spec.part) for spec in specs)
    masked = options.lengths and any(isinstance(spec.part, DenseParams) for spec in specs)
    if any(_is_swapped(spec) for spec in specs):
        graph.add_constant("swap", np.array([1, 0]))
    if learned or masked:
        graph.add("Shape", ["xs"], "shape")
    if learned:
        one = graph.add_constant("one", np.array([1]))
        two = graph.add_constant("two", np.array([2]))
        batch = graph.add("Slice", ["shape", one, two], "batch_size")
        graph.add("Concat", [one, batch, one], "batch_axes", axis=0)
    if options.lengths and (learned or options.initial_states or masked):
        axes = graph.add_constant("outer_axes", np.array([0, 2]))
        graph.add("Unsqueeze", ["lengths", axes], "lengths_3d")
    if options.lengths and (learned or options.initial_states):
        zero = graph.add_constant("no_steps", np.int32(0))
        graph.add("Greater", ["lengths_3d", zero], "not_empty")
    if masked:
        _add_mask(graph)
        graph.add_constant("zero", np.zeros((), options.dtype))


def _add_mask(graph: _Graph) -> None:
    start = graph.add_constant("start", np.int64(0))
    stride = graph.add_constant("stride", np.int64(1))
    limit = graph.add("Gather", ["shape", start], "num_steps", axis=0)
    steps = graph.add("Range", [start, limit, stride], "steps")
    steps = graph.add("Cast", [steps], "steps_int32", to=graph.onnx.TensorProto.INT32)
    inner = graph.add_constant("inner_axes", np.array([1, 2]))
    steps = graph.add("Unsqueeze", [steps, inner], "steps_3d")
    graph.add("Less", [steps, "lengths_3d"], "mask")


def _add_dense(
    graph: _Graph, index: int, params: DenseParams, xs: str, options: ExportOptions
) -> str:
    prefix = f"dense_{index}"
    weights = graph.add_constant(f"{prefix}.w", np.asarray(params.w).T)
    ys = graph.add("MatMul", [xs, weights], f"{prefix}.product")
    if params.b is not None:
        bias = graph.add_constant(f"{prefix}.b", np.asarray(params.b))
        ys = graph.add("Add", [ys, bias], f"{prefix}.sum")
    if options.lengths:
        ys = graph.add("Where", ["mask", ys, "zero"], f"{prefix}.masked")
    return ys


def _add_recurrent(
    graph: _Graph, number: int, spec: LayerSpec, xs: str, options: ExportOptions
) -> str:
    """Add an RNN operator. Its directions are (forward, backward), so that those of a bidirectional
    layer unrolled in reverse are swapped before and after."""
    assert isinstance(spec.part, RecurrentParams)
    prefix, count = f"rnn_{number}", len(spec.activations)
    order = slice(None, None, -1 if spec.reverse else 1)
    weights = _add_weights(graph, prefix, spec.part.directions[order])
    initial = _add_initial_state(graph, number, spec, options)
    outputs = [f"{prefix}.Y", f"{prefix}.Y_h"]
    node = graph.onnx.helper.make_node(
        "RNN",
        [xs, *weights, "lengths" if options.lengths else "", initial],
        outputs,
        name=prefix,
        hidden_size=spec.part.directions[0].w_hh.shape[0],
        direction="bidirectional" if count == 2 else "reverse" if spec.reverse else "forward",
        **to_attributes(spec.activations[order]),
    )
    graph.nodes.append(node)
    ys, last = outputs
    if initial and options.lengths:  # ONNX leaves the last state of an empty sequence undefined
        last = graph.add("Where", ["not_empty", last, initial], f"{prefix}.Y_h_or_initial")
    if _is_swapped(spec):
        ys = graph.add("Gather", [ys, "swap"], f"{prefix}.Y_swapped", axis=1)
        last = graph.add("Gather", [last, "swap"], f"{prefix}.Y_h_swapped", axis=0)
    graph.add("Identity", [last], f"h_{number}")
    return _add_joined(graph, prefix, ys, spec.part)


def _add_weights(graph: _Graph, prefix: str, directions: tuple[RNNParams, ...]) -> list[str]:
    """Add W, R and, if there is a bias, B: ONNX has two biases per direction, ours and zeros."""
    weights = [
        graph.add_constant(f"{prefix}.W", np.stack([rnn.w_ih for rnn in directions])),
        graph.add_constant(f"{prefix}.R", np.stack([rnn.w_hh for rnn in directions])),
    ]
    if all(rnn.b is None for rnn in directions):
        return [*weights, ""]
    zeros = np.zeros_like(directions[0].w_hh[0])
    biases = [zeros if rnn.b is None else rnn.b for rnn in directions]
    stacked = [np.concatenate([b, zeros]) for b in biases]
    return [*weights, graph.add_constant(f"{prefix}.B", stacked)]


def _add_initial_state(graph: _Graph, number: int, spec: LayerSpec, options: ExportOptions) -> str:
    """The name of the initial state [directions, B, H]: an input, a learned state, or ""."""
    assert isinstance(spec.part, RecurrentParams)
    if options.initial_states:
        given = f"h0_{number}"
        if not _is_swapped(spec):
            return given
        return graph.add("Gather", [given, "swap"], f"{given}_swapped", axis=0)
    if not _has_h0(spec.part):
        return ""
    zeros = np.zeros_like(spec.part.directions[0].w_hh[0])
    learned = [zeros if params.h0 is None else params.h0 for params in spec.part.directions]
    rows = np.stack(learned)[:: -1 if _is_swapped(spec) else 1, None]
    value = graph.add_constant(f"rnn_{number}.h0", rows)
    return graph.add("Expand", [value, "batch_axes"], f"rnn_{number}.h0_expanded")


def _add_joined(graph: _Graph, prefix: str, ys: str, part: RecurrentParams) -> str:
    """Reshape [T, directions, B, H] to [T, B, directions * H]."""
    if len(part.directions) == 1:
        axis = graph.add_constant(f"{prefix}.axis", np.array([1]))
        return graph.add("Squeeze", [ys, axis], f"{prefix}.ys")
    ys = graph.add("Transpose", [ys], f"{prefix}.transposed", perm=[0, 2, 1, 3])
    shape = graph.add_constant(f"{prefix}.shape", np.array([0, 0, get_sizes(part)[1]]))
    return graph.add("Reshape", [ys, shape], f"{prefix}.ys")


def _has_h0(part: LayerParams) -> bool:
    return isinstance(part, RecurrentParams) and any(rnn.h0 is not None for rnn in part.directions)


def _is_swapped(spec: LayerSpec) -> bool:
    return spec.reverse and len(spec.activations) == 2

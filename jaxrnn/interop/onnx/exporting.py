"""A network as a graph of standard ONNX operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn._types import Params
from jaxrnn.interop._networks import Part, Recurrent, params_of, sizes_of
from jaxrnn.interop.onnx.activations import OnnxActivation, in_jax, in_onnx, to_attributes
from jaxrnn.layers.combinators import bidirectional, stack
from jaxrnn.layers.contract import Layer
from jaxrnn.layers.pointwise import DenseParams, dense
from jaxrnn.layers.recurrent import vanilla_rnn
from jaxrnn.params import RNNParams


class Described(NamedTuple):
    """A layer with parameters: its part, and for a recurrent one the activation of each direction,
    and whether it runs backwards (and then, where it has two directions, both are turned round)."""

    part: Part
    activations: tuple[OnnxActivation, ...] = ()
    backwards: bool = False


class Options(NamedTuple):
    """The inputs that a model has beside xs, and ONNX's number of the arrays' dtype."""

    lengths: bool
    initial_states: bool
    dtype: np.dtype
    element: int


def describe(parts: list[Part], activation: Any, reverse: bool) -> list[Described]:
    """The network that `to_onnx` is told of; a ValueError for what ONNX cannot hold."""
    count = sum(isinstance(part, Recurrent) for part in parts)
    each = list(activation) if isinstance(activation, (tuple, list)) else [activation] * count
    if len(each) != count:
        raise ValueError(
            f"activation has {len(each)} entries, expected {count}, one a recurrent layer"
        )
    described, entries = [], iter(each)
    for position, part in enumerate(parts):
        if isinstance(part, DenseParams):
            described.append(Described(part))
            continue
        widths = [one.w_hh.shape[0] for one in part.directions]
        if len(set(widths)) > 1:
            raise ValueError(
                f"layer {position} of params has {widths} hidden units in its two directions, "
                "expected equal numbers: ONNX's RNN operator has one hidden_size"
            )
        entry = next(entries)
        pair = tuple(entry) if isinstance(entry, (tuple, list)) else (entry,) * len(widths)
        if len(pair) != len(widths):
            raise ValueError(f"activation has the entry {entry!r}, expected {len(widths)} of them")
        described.append(Described(part, tuple(map(in_onnx, pair)), reverse))
    return described


def build_layer(network: Sequence[Described]) -> tuple[Layer, Params]:
    """The jaxrnn layer that a description is of, and its parameters."""
    return stack(*map(_build_one, network)), params_of([one.part for one in network])


def _build_one(one: Described) -> Layer:
    dtype = jax.tree.leaves(tuple(one.part))[0].dtype
    if isinstance(one.part, DenseParams):
        return dense(*sizes_of(one.part), use_bias=one.part.b is not None, dtype=dtype)
    directions = [
        vanilla_rnn(
            *params.w_ih.shape[::-1],
            activation=in_jax(activation),
            use_bias=params.b is not None,
            learn_h0=params.h0 is not None,
            dtype=dtype,
        )
        for params, activation in zip(one.part.directions, one.activations, strict=True)
    ]
    layer = directions[0] if len(directions) == 1 else bidirectional(*directions)
    return _turned_round(layer) if one.backwards else layer


def _turned_round(layer: Layer) -> Layer:
    """The layer unrolled from the last step to the first, where its caller does not reverse it."""

    def step(params: Params, state: Any, x: Any) -> Any:
        raise ValueError("step of a layer that runs backwards was called, expected unroll")

    def unroll(
        params: Params, state: Any, xs: Any, *, reverse: bool = False, **options: Any
    ) -> Any:
        return layer.unroll(params, state, xs, reverse=not reverse, **options)

    return layer._replace(step=step, unroll=unroll, causal=False)


class _Graph(NamedTuple):
    """What is added to while a graph is built."""

    onnx: Any
    nodes: list[Any]
    weights: list[Any]

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        node = self.onnx.helper.make_node(operator, inputs, [output], name=output, **attributes)
        self.nodes.append(node)
        return output

    def constant(self, name: str, value: Any) -> str:
        array = np.ascontiguousarray(value)
        self.weights.append(self.onnx.numpy_helper.from_array(array, name))
        return name


def build_graph(onnx: Any, network: Sequence[Described], options: Options) -> Any:
    """The GraphProto of a network; its inputs and outputs are those that `to_onnx` documents."""
    graph = _Graph(onnx, [], [])
    info = onnx.helper.make_tensor_value_info
    inputs = [info("xs", options.element, ["T", "B", sizes_of(network[0].part)[0]])]
    if options.lengths:
        inputs.append(info("lengths", onnx.TensorProto.INT32, ["B"]))
    _add_shared(graph, network, options)
    ys, states = "xs", list[Any]()
    for index, one in enumerate(network):
        if isinstance(one.part, DenseParams):
            ys = _add_dense(graph, index, one.part, ys, options)
            continue
        number = len(states)
        count, size = len(one.activations), one.part.directions[0].w_hh.shape[0]
        if options.initial_states:
            inputs.append(info(f"h0_{number}", options.element, [count, "B", size]))
        ys = _add_recurrent(graph, number, one, ys, options)
        states.append(info(f"h_{number}", options.element, [count, "B", size]))
    graph.add("Identity", [ys], "ys")
    outputs = [info("ys", options.element, ["T", "B", sizes_of(network[-1].part)[1]]), *states]
    return onnx.helper.make_graph(graph.nodes, "jaxrnn", inputs, outputs, graph.weights)


def _add_shared(graph: _Graph, network: Sequence[Described], options: Options) -> None:
    """What a network needs of T, B and the lengths, and only that: `batch_axes` (1, B, 1);
    `not_empty` [1, B, 1], the sequences with a step; `taken` [T, B, 1], the mask."""
    learned = not options.initial_states and any(_learned(one.part) for one in network)
    masked = options.lengths and any(isinstance(one.part, DenseParams) for one in network)
    if any(one.backwards and len(one.activations) == 2 for one in network):
        graph.constant("exchanged", np.array([1, 0]))
    if learned or masked:
        graph.add("Shape", ["xs"], "shape")
    if learned:
        one, two = graph.constant("one", np.array([1])), graph.constant("two", np.array([2]))
        batch = graph.add("Slice", ["shape", one, two], "batch_size")
        graph.add("Concat", [one, batch, one], "batch_axes", axis=0)
    if options.lengths and (learned or options.initial_states or masked):
        axes = graph.constant("outer_axes", np.array([0, 2]))
        graph.add("Unsqueeze", ["lengths", axes], "lengths_3d")
    if options.lengths and (learned or options.initial_states):
        zero = graph.constant("no_steps", np.int32(0))
        graph.add("Greater", ["lengths_3d", zero], "not_empty")
    if masked:
        start, stride = graph.constant("start", np.int64(0)), graph.constant("stride", np.int64(1))
        limit = graph.add("Gather", ["shape", start], "num_steps", axis=0)
        steps = graph.add("Range", [start, limit, stride], "steps")
        steps = graph.add("Cast", [steps], "steps_int32", to=graph.onnx.TensorProto.INT32)
        inner = graph.constant("inner_axes", np.array([1, 2]))
        steps = graph.add("Unsqueeze", [steps, inner], "steps_3d")
        graph.add("Less", [steps, "lengths_3d"], "taken")
        graph.constant("zero", np.zeros((), options.dtype))


def _add_dense(graph: _Graph, index: int, params: DenseParams, xs: str, options: Options) -> str:
    prefix = f"dense_{index}"
    weights = graph.constant(f"{prefix}.w", np.asarray(params.w).T)
    ys = graph.add("MatMul", [xs, weights], f"{prefix}.product")
    if params.b is not None:
        bias = graph.constant(f"{prefix}.b", np.asarray(params.b))
        ys = graph.add("Add", [ys, bias], f"{prefix}.sum")
    if options.lengths:
        ys = graph.add("Where", ["taken", ys, "zero"], f"{prefix}.masked")
    return ys


def _add_recurrent(graph: _Graph, number: int, one: Described, xs: str, options: Options) -> str:
    """An RNN operator. Its two directions are (forward, backward), so those of a layer that is
    turned round are exchanged before it and after it."""
    assert isinstance(one.part, Recurrent)
    prefix, count = f"rnn_{number}", len(one.activations)
    order = slice(None, None, -1 if one.backwards else 1)
    weights = _add_weights(graph, prefix, one.part.directions[order])
    initial = _add_initial_state(graph, number, one, options)
    outputs = [f"{prefix}.Y", f"{prefix}.Y_h"]
    node = graph.onnx.helper.make_node(
        "RNN",
        [xs, *weights, "lengths" if options.lengths else "", initial],
        outputs,
        name=prefix,
        hidden_size=one.part.directions[0].w_hh.shape[0],
        direction="bidirectional" if count == 2 else "reverse" if one.backwards else "forward",
        **to_attributes(one.activations[order]),
    )
    graph.nodes.append(node)
    ys, last = outputs
    if initial and options.lengths:  # ONNX does not say what the state of an empty sequence is
        last = graph.add("Where", ["not_empty", last, initial], f"{prefix}.Y_h_held")
    if count == 2 and one.backwards:
        ys = graph.add("Gather", [ys, "exchanged"], f"{prefix}.Y_exchanged", axis=1)
        last = graph.add("Gather", [last, "exchanged"], f"{prefix}.Y_h_exchanged", axis=0)
    graph.add("Identity", [last], f"h_{number}")
    return _add_joined(graph, prefix, ys, one.part)


def _add_weights(graph: _Graph, prefix: str, directions: tuple[RNNParams, ...]) -> list[str]:
    """W, R, and B if there is one: ONNX has two biases a direction, ours and zeros."""
    weights = [
        graph.constant(f"{prefix}.W", np.stack([one.w_ih for one in directions])),
        graph.constant(f"{prefix}.R", np.stack([one.w_hh for one in directions])),
    ]
    if all(one.b is None for one in directions):
        return [*weights, ""]
    zeros = np.zeros_like(directions[0].w_hh[0])
    ours = [zeros if one.b is None else one.b for one in directions]
    return [*weights, graph.constant(f"{prefix}.B", [np.concatenate([b, zeros]) for b in ours])]


def _add_initial_state(graph: _Graph, number: int, one: Described, options: Options) -> str:
    """The name of the state [directions, B, H] before the first step: an input, learned, or ""."""
    assert isinstance(one.part, Recurrent)
    exchanged = one.backwards and len(one.activations) == 2
    if options.initial_states:
        given = f"h0_{number}"
        if not exchanged:
            return given
        return graph.add("Gather", [given, "exchanged"], f"{given}_exchanged", axis=0)
    if not _learned(one.part):
        return ""
    zeros = np.zeros_like(one.part.directions[0].w_hh[0])
    learned = [zeros if params.h0 is None else params.h0 for params in one.part.directions]
    rows = np.stack(learned)[:: -1 if exchanged else 1, None]
    value = graph.constant(f"rnn_{number}.h0", rows)
    return graph.add("Expand", [value, "batch_axes"], f"rnn_{number}.h0_expanded")


def _add_joined(graph: _Graph, prefix: str, ys: str, part: Recurrent) -> str:
    """[T, directions, B, H] to [T, B, directions * H]."""
    if len(part.directions) == 1:
        axis = graph.constant(f"{prefix}.axis", np.array([1]))
        return graph.add("Squeeze", [ys, axis], f"{prefix}.ys")
    ys = graph.add("Transpose", [ys], f"{prefix}.transposed", perm=[0, 2, 1, 3])
    shape = graph.constant(f"{prefix}.shape", np.array([0, 0, sizes_of(part)[1]]))
    return graph.add("Reshape", [ys, shape], f"{prefix}.ys")


def _learned(part: Part) -> bool:
    return isinstance(part, Recurrent) and any(one.h0 is not None for one in part.directions)

"""The chain of RNN, MatMul and Add operators in an ONNX graph, and the layer that it is.

What stands between them (transpositions, reshapes, masks) is not interpreted. Instead the graph is
evaluated on drawn inputs and has to give what the layer gives.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn._types import Array, Params
from jaxrnn.interop._networks import Recurrent, as_param, sizes_of
from jaxrnn.interop.onnx.comparison import draw_inputs, same
from jaxrnn.interop.onnx.exporting import Described, build_layer
from jaxrnn.interop.onnx.graph import (
    MOVES,
    Graph,
    attributes_of,
    check_operators,
    constant,
    evaluate,
    is_constant,
    named,
    operator_of,
    sources_of,
)
from jaxrnn.layers.contract import Layer
from jaxrnn.layers.pointwise import DenseParams
from jaxrnn.params import RNNParams


def read_network(graph: Graph) -> tuple[Layer, Params]:
    """The layer of the model's first output that has a time axis, and its parameters."""
    refusals = []
    for output in graph.outputs:
        try:
            source, chain = _chain(graph, output)
        except ValueError as error:
            refusals.append(f"output {output!r}: {error}")
            continue
        network, starts = _read_chain(graph, chain)
        return _compare(graph, source, output, network, starts)
    raise ValueError("; ".join(refusals) or "the model has no output")


def _chain(graph: Graph, name: str) -> tuple[str, list[Any]]:
    """The model's input from which a tensor comes, and the nodes on the way, first to last."""
    chain: list[Any] = []
    while name not in graph.inputs:
        if name not in graph.makers:
            raise ValueError(f"{name!r} is a constant, expected what is computed from an input")
        node = graph.nodes[graph.makers[name]]
        if node.op_type == "RNN" and node.output[0] != name:
            raise ValueError(f"{named(node)} gives a final state, expected outputs at every step")
        if node.op_type in ("MatMul", "Add"):
            computed = [one for one in node.input if not is_constant(graph, one)]
            if len(computed) != 1:
                raise ValueError(
                    f"{named(node)} has {len(computed)} computed inputs, expected one and weights"
                )
            name = computed[0]
        elif node.op_type in (*MOVES, "RNN", "Gemm", "Where"):
            name = node.input[1 if node.op_type == "Where" else 0]
        else:
            raise ValueError(
                f"{named(node)} stands between the model's input and its output, expected "
                f"operators among {sorted((*MOVES, 'Add', 'Gemm', 'MatMul', 'RNN', 'Where'))}"
            )
        chain.append(node)
    return name, chain[::-1]


def _read_chain(graph: Graph, chain: list[Any]) -> tuple[list[Described], list[Any]]:
    """The layers, their initial states left out, and for each its RNN node or None."""
    network: list[Described] = []
    starts: list[Any] = []
    for node in chain:
        if node.op_type in ("RNN", "MatMul", "Gemm"):
            recurrent = node.op_type == "RNN"
            network.append((_read_rnn if recurrent else _read_dense)(graph, node))
            starts.append(node if recurrent else None)
        elif node.op_type == "Add":
            below = network.pop().part if network else None
            if not isinstance(below, DenseParams) or below.b is not None:
                raise ValueError(f"{named(node)} adds weights to what is no product with weights")
            network.append(Described(below._replace(b=_bias(graph, node, below))))
        elif node.op_type == "Gather" and network:
            network[-1] = _exchanged(graph, node, network[-1])
    if not any(starts):
        raise ValueError("there is no RNN operator before the output, expected at least one")
    return network, starts


def _read_rnn(graph: Graph, node: Any) -> Described:
    operator = operator_of(graph, node)
    inputs = [*node.input, "", "", ""][:4]
    where = f"{named(node)}: "
    w_hh = as_param(where + "R", constant(graph, node, inputs[2]))
    if w_hh.ndim != 3 or w_hh.shape != (operator.directions, *w_hh.shape[1:2] * 2):
        raise ValueError(f"{where}R has shape {w_hh.shape}, expected [{operator.directions}, H, H]")
    size = w_hh.shape[1]
    w_ih = as_param(where + "W", constant(graph, node, inputs[1]))
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
            _summed(b) for b in as_param(where + "B", constant(graph, node, inputs[3]), shape)
        ]
    directions = tuple(RNNParams(*one) for one in zip(w_ih, w_hh, biases, strict=True))
    return Described(Recurrent(directions), operator.activations, operator.backwards)


def _summed(both: Array) -> Array:
    """ONNX's two biases as one; where the second is 0 the first stays as it is, -0 too."""
    first, second = jnp.split(both, 2)
    return jnp.where(second == 0, first, first + second)


def _read_dense(graph: Graph, node: Any) -> Described:
    where = f"{named(node)}: "
    attributes = attributes_of(graph, node)
    expected = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    for name, value in expected.items():
        if attributes.get(name, value) != value:
            raise ValueError(f"{where}{name} is {attributes[name]}, expected {value}")
    w = as_param(where + "the second input", constant(graph, node, node.input[1]))
    if w.ndim != 2:
        raise ValueError(f"{where}the second input has shape {w.shape}, expected [D, O]")
    params = DenseParams(w if attributes.get("transB") else w.T)
    if len(node.input) > 2 and node.input[2]:
        params = params._replace(b=_bias(graph, node, params))
    return Described(params)


def _bias(graph: Graph, node: Any, params: DenseParams) -> Array:
    """The bias [O] that an Add or Gemm node adds to a product."""
    names = node.input[2:] if node.op_type == "Gemm" else node.input
    (name,) = [one for one in names if is_constant(graph, one)] or names[:1]
    value, size = constant(graph, node, name), params.w.shape[0]
    if value.size != max(value.shape[-1:], default=1) or value.size not in (1, size):
        raise ValueError(f"{named(node)} adds weights of shape {value.shape}, expected [{size}]")
    flat = as_param(f"{named(node)}: the bias", value).reshape(-1)
    return jnp.broadcast_to(flat, (size,))


def _exchanged(graph: Graph, node: Any, one: Described) -> Described:
    """The layer below a Gather that exchanges its two directions."""
    if len(one.activations) != 2 or constant(graph, node, node.input[1]).tolist() != [1, 0]:
        raise ValueError(f"{named(node)} does not exchange the two directions of an RNN operator")
    assert isinstance(one.part, Recurrent)
    return Described(Recurrent(one.part.directions[::-1]), one.activations[::-1], True)


def _compare(
    graph: Graph, source: str, output: str, network: list[Described], starts: list[Any]
) -> tuple[Layer, Params]:
    """The layer that gives what the graph gives, its inputs and outputs in either order of axes."""
    names = [node.input[5] if node and len(node.input) > 5 else "" for node in starts]
    wanted = [output, *filter(None, names)]
    check_operators(graph, wanted)
    trouble = ""
    for batch_major in (False, True):
        xs, mask, feeds = _draw(graph, source, wanted, network[0], batch_major)
        try:
            values = evaluate(graph, wanted, feeds)
        except Exception as error:  # whatever a graph of wrong shapes runs into
            trouble = trouble or f"it cannot be evaluated: {error}"
            continue
        full = [
            _with_h0(graph, one, node, values[name]) if name else one
            for one, node, name in zip(network, starts, names, strict=True)
        ]
        layer, params = build_layer(full)
        _, ys = layer.unroll(params, None, jnp.asarray(xs), mask=jnp.asarray(mask))
        got = values[output]
        orders = [got, got.swapaxes(0, 1)] if got.ndim == 3 else []
        if any(one.shape == ys.shape and same(one[mask], ys[mask]) for one in orders):
            return layer, params
        trouble = "it gives other outputs than its RNN, MatMul and Add nodes in a chain"
    raise ValueError(f"the model is no stack of layers up to its output {output!r}: {trouble}")


def _draw(
    graph: Graph, source: str, wanted: list[str], first: Described, batch_major: bool
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Inputs, time-major, of the sizes that a model declares; their mask, ragged where the model
    takes lengths; and all of the model's inputs."""
    dims, size = _dims(graph, source), sizes_of(first.part)[0]
    if len(dims) != 3 or dims[2].dim_value not in (0, size):
        axes = [dim.dim_param or dim.dim_value for dim in dims]
        raise ValueError(
            f"input {source!r} has the axes {axes}, expected three, the last of {size}"
        )
    time, batch = (dims[1], dims[0]) if batch_major else (dims[0], dims[1])
    num_steps, count = time.dim_value or 4, batch.dim_value or 3
    xs, lengths, mask = draw_inputs(num_steps, count, size, _dtype(graph, source))
    feeds = {source: xs.swapaxes(0, 1) if batch_major else xs}
    nodes = [graph.nodes[index] for index in sources_of(graph, wanted).nodes]
    recurrent = [[*node.input, "", "", ""] for node in nodes if node.op_type == "RNN"]
    of_lengths, of_states = (
        sources_of(graph, [inputs[position] for inputs in recurrent]).inputs for position in (4, 5)
    )
    for name in sources_of(graph, wanted).inputs - {source}:
        if name in of_lengths:
            feeds[name] = lengths.astype(_dtype(graph, name))
        elif name in of_states:
            known = {time.dim_param: num_steps}
            shape = [dim.dim_value or known.get(dim.dim_param, count) for dim in _dims(graph, name)]
            feeds[name] = np.zeros(shape, _dtype(graph, name))
        else:
            raise ValueError(
                f"input {name!r} has a part in the outputs, expected {source!r}, sequence lengths "
                "and initial states"
            )
    ragged = not of_lengths.isdisjoint(feeds)
    return xs, mask if ragged else np.ones_like(mask), feeds


def _dims(graph: Graph, name: str) -> Any:
    return graph.inputs[name].type.tensor_type.shape.dim


def _dtype(graph: Graph, name: str) -> Any:
    return _numpy_dtype(graph, graph.inputs[name].type.tensor_type.elem_type)


def _numpy_dtype(graph: Graph, element: int) -> Any:
    return graph.onnx.helper.tensor_dtype_to_np_dtype(element)


def _with_h0(graph: Graph, one: Described, node: Any, value: np.ndarray) -> Described:
    """A layer with the initial state [directions, B, H] that its graph computes. One of zeros that
    comes from no weights is none."""
    assert isinstance(one.part, Recurrent)
    weights = sources_of(graph, [node.input[5]]).weights
    floating = any(
        jnp.issubdtype(_numpy_dtype(graph, graph.weights[name].data_type), jnp.floating)
        for name in weights
    )
    if not floating and not np.any(value):
        return one
    batch_major = operator_of(graph, node).batch_major
    rows = value[0] if batch_major else value[:, 0]
    exchanged = one.backwards and len(one.activations) == 2
    h0s = [as_param(f"{named(node)}: initial_h", row) for row in rows[:: -1 if exchanged else 1]]
    directions = [
        params._replace(h0=h0) for params, h0 in zip(one.part.directions, h0s, strict=True)
    ]
    return one._replace(part=Recurrent(tuple(directions)))

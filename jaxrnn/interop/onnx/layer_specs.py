"""Specifications of layers, from which the layers are built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxrnn._types import Array, Key, Params, State
from jaxrnn.interop._networks import LayerParams, RecurrentParams, get_sizes, join_stack
from jaxrnn.interop.onnx.activations import OnnxActivation, parse_activation, to_jax
from jaxrnn.layers.combinators import bidirectional, stack
from jaxrnn.layers.contract import Inputs, Layer, make_layer
from jaxrnn.layers.pointwise import DenseParams, dense
from jaxrnn.layers.recurrent import vanilla_rnn


class LayerSpec(NamedTuple):
    """The parameters of a layer; if it is recurrent, also the activation of each direction, and
    whether the whole layer is unrolled in reverse."""

    part: LayerParams
    activations: tuple[OnnxActivation, ...] = ()
    reverse: bool = False


def make_specs(parts: list[LayerParams], activation: Any, reverse: bool) -> list[LayerSpec]:
    """The specifications of the layers given to `to_onnx`; rejects what ONNX cannot express."""
    count = sum(isinstance(part, RecurrentParams) for part in parts)
    entries = list(activation) if isinstance(activation, (tuple, list)) else [activation] * count
    if len(entries) != count:
        raise ValueError(
            f"activation has {len(entries)} entries, expected {count}, one per recurrent layer"
        )
    specs, remaining = [], iter(entries)
    for position, part in enumerate(parts):
        if isinstance(part, DenseParams):
            specs.append(LayerSpec(part))
            continue
        widths = [rnn.w_hh.shape[0] for rnn in part.directions]
        if len(set(widths)) > 1:
            raise ValueError(
                f"layer {position} of params has {widths} hidden units in its two directions, "
                "expected equal numbers: ONNX's RNN operator has one hidden_size"
            )
        entry = next(remaining)
        pair = tuple(entry) if isinstance(entry, (tuple, list)) else (entry,) * len(widths)
        if len(pair) != len(widths):
            raise ValueError(f"activation has the entry {entry!r}, expected {len(widths)} of them")
        specs.append(LayerSpec(part, tuple(map(parse_activation, pair)), reverse))
    return specs


def build_stack(specs: Sequence[LayerSpec]) -> tuple[Layer, Params]:
    """The stack of the specified layers, and its parameters."""
    return stack(*map(_build_layer, specs)), join_stack([spec.part for spec in specs])


def _build_layer(spec: LayerSpec) -> Layer:
    dtype = jax.tree.leaves(tuple(spec.part))[0].dtype
    if isinstance(spec.part, DenseParams):
        return dense(*get_sizes(spec.part), use_bias=spec.part.b is not None, dtype=dtype)
    directions = [
        vanilla_rnn(
            *params.w_ih.shape[::-1],
            activation=to_jax(activation),
            use_bias=params.b is not None,
            learn_h0=params.h0 is not None,
            dtype=dtype,
        )
        for params, activation in zip(spec.part.directions, spec.activations, strict=True)
    ]
    layer = directions[0] if len(directions) == 1 else bidirectional(*directions)
    return _reverse_layer(layer) if spec.reverse else layer


def _reverse_layer(layer: Layer) -> Layer:
    """A layer whose forward direction is the reverse direction of `layer`."""

    def run(params: Params, state: State, inputs: Inputs, key: Key | None) -> tuple[State, Array]:
        return layer.run(params, state, inputs._replace(reverse=not inputs.reverse), key)

    sizes = (layer.input_size, layer.output_size)
    return make_layer(*sizes, layer.init, layer.initial_state, run, causal=False)

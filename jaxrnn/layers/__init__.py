"""Layers, records of pure functions, and networks composed of them."""

from jaxrnn.layers.combinators import (
    bidirectional,
    chunked,
    constrained,
    deep_rnn,
    repeated,
    residual,
    stack,
)
from jaxrnn.layers.contract import Inputs, Layer, make_layer
from jaxrnn.layers.feedback import closed_loop, generate, nearest_state, teacher_forced
from jaxrnn.layers.pointwise import DenseParams, DropoutState, dense, dropout, embedding
from jaxrnn.layers.recurrent import scanned, vanilla_rnn

__all__ = [
    "DenseParams",
    "DropoutState",
    "Inputs",
    "Layer",
    "bidirectional",
    "chunked",
    "closed_loop",
    "constrained",
    "deep_rnn",
    "dense",
    "dropout",
    "embedding",
    "generate",
    "make_layer",
    "nearest_state",
    "repeated",
    "residual",
    "scanned",
    "stack",
    "teacher_forced",
    "vanilla_rnn",
]

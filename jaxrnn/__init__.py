"""jaxrnn: the vanilla recurrent network in functional JAX."""

from jaxrnn import diagnostics, host, initializers, sharding
from jaxrnn._types import Activation, Array, Initializer, Key, Params, State
from jaxrnn.cell import init_rnn, step
from jaxrnn.layers import (
    DenseParams,
    DropoutState,
    Inputs,
    Layer,
    bidirectional,
    chunked,
    deep_rnn,
    dense,
    dropout,
    embedding,
    make_layer,
    residual,
    scanned,
    stack,
    vanilla_rnn,
)
from jaxrnn.params import RNNParams
from jaxrnn.recurrence import Parallel, unroll, unroll_plain
from jaxrnn.sequences import (
    PackedSequences,
    mask_from_lengths,
    masked_mean,
    pack_sequences,
    pad_sequences,
    sliding_windows,
    unpack_sequences,
)
from jaxrnn.training import (
    NonFiniteError,
    TrainState,
    clip_by_global_norm,
    fit,
    init_train_state,
    make_train_step,
    train_steps,
    truncate_train_step,
)

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "Array",
    "DenseParams",
    "DropoutState",
    "Initializer",
    "Inputs",
    "Key",
    "Layer",
    "NonFiniteError",
    "PackedSequences",
    "Parallel",
    "Params",
    "RNNParams",
    "State",
    "TrainState",
    "bidirectional",
    "chunked",
    "clip_by_global_norm",
    "deep_rnn",
    "dense",
    "diagnostics",
    "dropout",
    "embedding",
    "fit",
    "host",
    "init_rnn",
    "init_train_state",
    "initializers",
    "make_layer",
    "make_train_step",
    "mask_from_lengths",
    "masked_mean",
    "pack_sequences",
    "pad_sequences",
    "residual",
    "scanned",
    "sharding",
    "sliding_windows",
    "stack",
    "step",
    "train_steps",
    "truncate_train_step",
    "unpack_sequences",
    "unroll",
    "unroll_plain",
    "vanilla_rnn",
]

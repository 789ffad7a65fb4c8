"""The character model: vanilla layers, each of which adds to what the one below puts out."""

from __future__ import annotations

import math

from jaxrnn import Layer, constrained, dense, dropout, embedding, residual, stack, vanilla_rnn
from jaxrnn.constraints import drop_connect


def deep_network(
    alphabet_size: int,
    embedding_size: int,
    hidden_size: int,
    layers: int,
    dropped: float,
    dropped_weights: float,
) -> Layer:
    """From characters to the logits of the next: an embedding, vanilla layers with dropout (all but
    the first around a residual connection), and a dense readout."""

    def above(size: int) -> Layer:
        return stack(vanilla_rnn(size, hidden_size), dropout(hidden_size, dropped))

    hidden = [above(embedding_size), *[residual(above(hidden_size)) for _ in range(layers - 1)]]
    network = stack(*hidden, dense(hidden_size, alphabet_size))
    network = stack(embedding(alphabet_size, embedding_size), network)
    return constrained(network, drop_connect(dropped_weights))


def widen(hidden_size: int, layers: int) -> int:
    """The units of one layer with about as many recurrent weights as `layers` of `hidden_size` have
    of weights between hidden units."""
    return round(hidden_size * math.sqrt(2 * layers - 1))

"""Dynamic evaluation: a network goes on learning from the text that it has just predicted.

Each window of characters is predicted before it is learned from, so that the nats are those of a
prediction (Krause et al. 2018, "Dynamic evaluation of neural sequence models").
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrnn import Array, Key, Layer, Params, init_train_state, make_train_step, truncate_train_step

STREAMS = 4
"""The streams that a text is cut into, read side by side."""
RATES = (0.1, 0.3)
"""The learning rates of gradient descent that validation chooses from; the first is the default."""

_WINDOW = 20  # characters
_CLIP = 1.0


def choose_rate(network: Layer, params: Params, inputs: Array, targets: Array) -> float:
    """The rate with the fewest nats on a text [T, B], for the first of the networks [S, ...]."""
    first = jax.tree.map(lambda leaf: leaf[:1], params)
    nats = [float(measure_adapted(network, first, inputs, targets, rate)[0]) for rate in RATES]
    return RATES[int(np.argmin(nats))]


def measure_adapted(
    network: Layer, params: Params, inputs: Array, targets: Array, rate: float
) -> Array:
    """Nats per character [S] of a text [T, B] under networks [S, ...] that learn as they go."""
    measure = functools.partial(_measure_one, network)
    return jnp.stack(
        [
            measure(jax.tree.map(lambda leaf, at=place: leaf[at], params), inputs, targets, rate)
            for place in range(len(jax.tree.leaves(params)[0]))
        ]
    )


@functools.partial(jax.jit, static_argnums=(0, 4))
def _measure_one(
    network: Layer, params: Params, inputs: Array, targets: Array, rate: float
) -> Array:
    def loss_of_window(
        params: Params, state: Any, batch: Any, key: Key
    ) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        del key  # no dropout: what it predicts is counted
        inputs, targets = batch
        state, logits = network.unroll(params, state, inputs)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.mean(nats), (state, {"nats": jnp.sum(nats)})

    optimizer = optax.chain(optax.clip_by_global_norm(_CLIP), optax.sgd(rate))
    step = truncate_train_step(make_train_step(loss_of_window, optimizer, has_carry=True), _WINDOW)
    carry = network.initial_state(params, inputs.shape[1:])
    state = init_train_state(params, optimizer, jax.random.key(0), carry=carry)
    return jnp.sum(step(state, (inputs, targets))[1]["nats"]) / inputs.size

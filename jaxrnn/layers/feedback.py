"""Closed loops: a layer that reads what it has just put out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._checks import as_array, check_function, check_inputs, check_key, check_size
from jaxrnn._types import Array, Key, Params, State
from jaxrnn.layers.contract import Inputs, Layer, check_layer, complete_state
from jaxrnn.params import match_batch

Feed = Callable[[Array, Key | None], Array]


def generate(
    layer: Layer,
    params: Params,
    state: State,
    x: Array,
    num_steps: int,
    *,
    feed: Feed | None = None,
    key: Key | None = None,
) -> tuple[State, tuple[Array, Array]]:
    """Step a layer on what `feed` makes of its own outputs.

    Args:
      layer: a causal layer.
      params, state: as in `layer.step`; a state of None means the initial state.
      x: the first input [*B, D], or tokens [*B] for a layer that reads tokens.
      num_steps: T.
      feed: ``(y, key) -> x``, the next input from an output y [*B, O]; by default the output
        itself. What it returns has the shape of x, and is cast to its dtype.
      key: draws what `feed` draws, and the layer's own randomness (that of training); each step has
        a key of its own, split between them. Without one, `feed` gets None and nothing is drawn.

    Returns:
      (the last state, (xs, ys)): ys [T, *B, O] are the outputs, and xs [T, *B, D] the inputs made
      of them. ``xs[-1]`` is the next input: n steps and then m, from the state and the input behind
      them, are n + m, if nothing is drawn.

    Characters that continue a prompt [P, B], drawn from a network over tokens:

        def feed(logits, key):
            return jax.random.categorical(key, logits / temperature)

        first, draw = jax.random.split(key)
        state, logits = network.unroll(params, None, prompt)
        x = feed(logits[-1], first)
        state, (xs, _) = jaxrnn.generate(
            network, params, state, x, 99, feed=feed, key=draw
        )
        text = jnp.concatenate([x[None], xs])
    """
    check_layer("layer", layer, causal=True)
    num_steps = check_size("num_steps", num_steps, at_least=0)
    features = None if layer.reads_tokens else layer.input_size
    x = check_inputs("x", x, features, "[*B, D]")
    if key is not None:
        check_key("key", key)
    if feed is not None:
        check_function("feed", feed)
    elif layer.reads_tokens or layer.output_size != layer.input_size:
        kind = "tokens" if layer.reads_tokens else f"{layer.input_size} features"
        raise ValueError(
            f"feed is None, expected a function: the layer reads {kind}, and its outputs have "
            f"{layer.output_size} features"
        )
    keys = None if key is None else jax.random.split(key, num_steps)
    state = complete_state(state, layer.initial_state, params, Inputs(x, single=True), features)

    def advance(state: State, x: Array, key: Key | None) -> tuple[State, Array, Array]:
        own, feeding = (None, None) if key is None else jax.random.split(key)
        state, y = layer.run(params, state, Inputs(x, single=True), own)
        return state, y, y if feed is None else as_array("the result of feed", feed(y, feeding))

    if feed is None and jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jax.eval_shape(advance, state, x, key)[1].dtype)
    _check_fed(jax.eval_shape(advance, state, x, key)[2], x)
    rank = x.ndim if layer.reads_tokens else x.ndim - 1
    state, x = (match_batch(carried, x, 0, rank, (params, keys)) for carried in (state, x))

    def body(carry: tuple[State, Array], key: Key | None) -> Any:
        state, y, fed = advance(*carry, key)
        fed = fed.astype(x.dtype)
        return (state, fed), (fed, y)

    (state, _), outputs = lax.scan(body, (state, x), keys, length=num_steps)
    return state, outputs


def _check_fed(fed: Any, x: Array) -> None:
    """Refuse a fed input of another shape than `x`, or floating where that is an integer."""
    kinds = [jnp.issubdtype(each.dtype, jnp.floating) for each in (fed, x)]
    if fed.shape != x.shape or kinds[0] != kinds[1]:
        source = "the result of feed"
        raise ValueError(
            f"{source} is {fed.dtype} {list(fed.shape)}, expected {x.dtype} {list(x.shape)} as x"
        )

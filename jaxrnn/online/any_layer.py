"""The exact gradient forward in time of any causal layer."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxrnn._checks import check_floating
from jaxrnn._types import Array, Key, Params, Shape, State
from jaxrnn.layers import Inputs, Layer, make_layer, scanned
from jaxrnn.layers.combinators import move_axis
from jaxrnn.layers.contract import check_layer
from jaxrnn.online.attached import attach


def exact(layer: Layer) -> Layer:
    """The exact gradient of any causal layer, say of a stack of vanilla layers, or of a GRU.

    A step costs what one of `layer` costs for each of its parameters, and the influence holds as
    many numbers as there are parameters times numbers in a state: for small networks, and to
    compare others with.

    Args:
      layer: a causal layer whose parameters and state are floating-point.

    Returns:
      A layer with the parameters and outputs of `layer`. State: (the layer's state, its derivatives
      by the parameters with their axis behind the batch axes).

    Raises:
      TypeError, ValueError: `layer` is not as described.
    """
    check_layer("layer", layer, causal=True)
    sizes, tokens = (layer.input_size, layer.output_size), layer.reads_tokens

    def initial_state(params: Params, batch_shape: Shape) -> State:
        influence = _initial_influence(layer, params)
        influence = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (*batch_shape, *leaf.shape)), influence
        )
        return layer.initial_state(params, batch_shape), influence

    def run(params: Params, state: State, inputs: Inputs, key: Key | None) -> tuple[State, Array]:
        flat, unravel = _ravel(params)
        frozen = lax.stop_gradient(flat)
        directions = jnp.eye(flat.size, dtype=flat.dtype)

        def step(_: Params, state: State, x: Array, key: Key | None) -> tuple[State, Array]:
            own, influence = lax.stop_gradient(state)
            axis = x.ndim - (not layer.reads_tokens)

            def call(flat: Array, own: State, x: Array) -> tuple[State, Array]:
                return layer.run(unravel(flat), own, Inputs(x, single=True), key)

            def push(direction: Array, tangent: State) -> tuple[State, Array]:
                still = lax.stop_gradient(x)
                return jax.jvp(
                    lambda flat, own: call(flat, own, still), (frozen, own), (direction, tangent)
                )[1]

            # With the mapped axis elsewhere JAX 0.10.0 loses how the batch is sharded.
            pushed = jax.vmap(push)(directions, move_axis(influence, axis, 0))
            influence, outputs = lax.stop_gradient(move_axis(pushed, 0, axis))
            after, y = jax.tree.map(
                _attach_at(flat, axis), call(frozen, own, x), (influence, outputs)
            )
            return (after, influence), y

        loop = scanned(*sizes, layer.init, initial_state, step, keyed=True, reads_tokens=tokens)
        return loop.run(params, state, inputs, key)

    return make_layer(*sizes, layer.init, initial_state, run, reads_tokens=tokens)


def _initial_influence(layer: Layer, params: Params) -> State:
    """The derivatives of the initial state of one sequence by the parameters, whose axis leads."""
    flat, unravel = _ravel(params)

    def start(flat: Array) -> State:
        return layer.initial_state(unravel(flat), ())

    for leaf in jax.tree.leaves(jax.eval_shape(start, flat)):
        check_floating("a leaf of the layer's state", leaf)
    return move_axis(jax.jacfwd(start)(flat), -1, 0)


def _attach_at(flat: Array, axis: int) -> Callable[[Array, Array], Array]:
    """A function that attaches derivatives by `flat`, whose axis in them is `axis`, to a leaf."""

    def push(jacobian: Array, tangent: Array) -> Array:
        return jnp.tensordot(jacobian, tangent, (axis, 0))

    return lambda leaf, jacobian: attach(push, leaf, flat, jacobian)


def _ravel(params: Params) -> tuple[Array, Callable[[Array], Params]]:
    for leaf in jax.tree.leaves(params):
        check_floating("a leaf of params", jnp.asarray(leaf))
    return ravel_pytree(params)

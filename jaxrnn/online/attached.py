"""Derivatives that are attached to values, in place of those that autodiff would find."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn._checks import as_given, check_floating, check_shape
from jaxrnn._types import Array, Key, Params, State
from jaxrnn.layers import Inputs, Layer, make_layer
from jaxrnn.layers.contract import check_layer


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def attach(push: Callable[[Any, Any], Array], value: Array, at: Any, jacobian: Any) -> Array:
    """`value`, with a derivative by `at` beside its own: ``push(jacobian, tangent)``."""
    return value


@attach.defjvp
def _(push: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    value, _, jacobian = primals
    own, tangent, _ = tangents
    return value, own + push(jacobian, tangent).astype(own.dtype)


def feedback_alignment(layer: Layer, feedback: Array | np.ndarray) -> Layer:
    """A readout through which errors return by fixed weights, in place of the transposed readout's.

    Args:
      layer: a layer without memory, such as `jaxrnn.dense`.
      feedback: [O, D], the weights of the way back: the cotangent of an input is that of the output
        times them.

    Returns:
      A layer with the parameters, the state and the outputs of `layer`.

    Raises:
      TypeError, ValueError: an argument is not as described.

    Source: Lillicrap, Cownden, Tweed & Akerman 2016, "Random synaptic feedback weights support
    error backpropagation for deep learning".
    """
    check_layer("layer", layer)
    if layer.reads_tokens:
        raise ValueError("layer reads tokens, expected one of floating-point inputs")
    weights = as_given("feedback", feedback)
    check_floating("feedback", weights)
    check_shape("feedback", weights, (layer.output_size, layer.input_size))

    def push(w: Array, tangent: Array) -> Array:
        return jnp.einsum("od,...d->...o", w, tangent.astype(w.dtype))

    def run(params: Params, state: State, inputs: Inputs, key: Key | None) -> tuple[State, Array]:
        still = inputs._replace(xs=lax.stop_gradient(inputs.xs))
        state, ys = layer.run(params, state, still, key)
        return state, attach(push, ys, inputs.xs, jnp.asarray(weights))

    sizes = layer.input_size, layer.output_size
    return make_layer(*sizes, layer.init, layer.initial_state, run, causal=layer.causal)

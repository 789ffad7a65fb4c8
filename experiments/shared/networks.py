"""Networks of several depths, drawn for many seeds at once."""

from __future__ import annotations

import functools

import jax

from jaxrnn import Key, Layer, Params


@functools.partial(jax.jit, static_argnums=0)
def init_networks(layer: Layer, keys: Key) -> Params:
    """The parameters of one network for each of `keys`, stacked along a leading axis."""
    return jax.vmap(layer.init)(keys)


def count_layers(depth: str) -> str:
    """A depth in words: 1 layer, 2 layers."""
    return f"{depth} layer" if depth == "1" else f"{depth} layers"

"""A layer's step as a function of a vector: the floating-point entries of its state, flattened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxrnn._checks import as_array
from jaxrnn._types import Array, Params, State, accumulation_dtype
from jaxrnn.layers.contract import Layer
from jaxrnn.params import vary_with


class FlatState(NamedTuple):
    """A state: its floating-point leaves as a vector [N], and its other leaves."""

    vector: Array
    others: tuple[Array, ...]


class FlatStep(NamedTuple):
    """The step of a layer with given parameters, with its initial state and its inputs."""

    advance: Callable[[FlatState, Array], tuple[FlatState, Array]]  # (state, x) -> (state, y)
    flatten: Callable[[State], FlatState]
    unflatten: Callable[[FlatState], State]
    start: FlatState
    inputs: Array

    def outputs(self, at: FlatState, x: Array, vector: Array) -> tuple[Array, Array]:
        """The vector one step after `vector`, and the step's output."""
        after, y = self.advance(at._replace(vector=vector), x)
        return after.vector, y

    def push_forward(self, at: FlatState, x: Array, columns: Array) -> Array:
        """The step's Jacobian times `columns` [N, M]."""

        def image(column: Array) -> Array:
            return jax.jvp(lambda v: self.outputs(at, x, v)[0], (at.vector,), (column,))[1]

        return jax.vmap(image, in_axes=1, out_axes=1)(columns)

    def pull_back(self, at: FlatState, x: Array, rows: Array) -> Array:
        """`rows` [M, N] times the step's Jacobian."""
        _, transposed = jax.vjp(lambda v: self.outputs(at, x, v)[0], at.vector)
        return jax.vmap(transposed)(rows)[0]

    def trajectory(self) -> tuple[FlatState, FlatState, Array]:
        """The last state, the states before each step [T, ...], and the outputs [T, O]."""

        def body(at: FlatState, x: Array) -> tuple[FlatState, tuple[FlatState, Array]]:
            after, y = self.advance(at, x)
            return after, (at, y)

        last, (before, ys) = lax.scan(body, self.start, self.inputs)
        return last, before, ys


def flatten_step(
    layer: Layer, params: Params, state: State, inputs: Any, *, name: str = "xs"
) -> FlatStep:
    """Check the arguments and flatten the step. `inputs` is a sequence "xs", or one step's "x"."""
    _check_causal(layer)
    inputs = as_array(name, inputs)
    run, rank = (layer.unroll, 2) if name == "xs" else (layer.step, 1)
    if inputs.ndim > (rank - 1 if layer.reads_tokens else rank):
        raise ValueError(
            f"{name} has shape {inputs.shape}, expected no batch axes (vmap for more sequences)"
        )
    after, _ = jax.eval_shape(run, params, state, inputs)  # the layer rejects what does not fit
    initial = layer.initial_state(params)
    state = jax.tree.map(
        lambda given, start: start if given is None else given,
        state,
        initial,
        is_leaf=lambda node: node is None,
    )
    state = jax.tree.map(_cast_to, state, after)
    state = vary_with(state, (inputs, params))
    flatten, unflatten = _make_flattening(state)

    def advance(at: FlatState, x: Array) -> tuple[FlatState, Array]:
        state, y = layer.step(params, unflatten(at), x)
        return flatten(state), y

    return FlatStep(advance, flatten, unflatten, flatten(state), inputs)


def is_floating(leaf: Any) -> bool:
    """Whether a leaf of a state is one of floating-point numbers."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _cast_to(leaf: Array, like: Array) -> Array:
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):  # which cannot be cast
        return leaf
    return jnp.asarray(leaf).astype(like.dtype)


def _make_flattening(
    like: State,
) -> tuple[Callable[[State], FlatState], Callable[[FlatState], State]]:
    """Functions from State to FlatState and back, for states of the structure of `like`."""
    leaves, structure = jax.tree.flatten(like)
    floating = [is_floating(leaf) for leaf in leaves]
    numbers = [leaf for leaf, counts in zip(leaves, floating, strict=True) if counts]
    if not any(leaf.size for leaf in numbers):
        raise ValueError("layer has a state without floating-point numbers, expected some")
    dtype = max((accumulation_dtype(leaf.dtype) for leaf in numbers), key=lambda d: d.itemsize)
    _, unravel = ravel_pytree([leaf.astype(dtype) for leaf in numbers])

    def flatten(state: State) -> FlatState:
        pairs = list(zip(map(jnp.asarray, jax.tree.leaves(state)), floating, strict=True))
        vector, _ = ravel_pytree([leaf.astype(dtype) for leaf, counts in pairs if counts])
        return FlatState(vector, tuple(leaf for leaf, counts in pairs if not counts))

    def unflatten(flat: FlatState) -> State:
        others, numbers = iter(flat.others), iter(unravel(flat.vector))
        return jax.tree.unflatten(
            structure,
            [
                next(numbers).astype(leaf.dtype) if counts else next(others)
                for leaf, counts in zip(leaves, floating, strict=True)
            ],
        )

    return flatten, unflatten


def make_zero_input(layer: Layer, params: Params) -> Array:
    """An input of zeros for one step, in the dtype of the state."""
    _check_causal(layer)
    if layer.reads_tokens:
        raise ValueError("inputs are not given, expected tokens: no token stands for zero")
    leaves = jax.tree.leaves(layer.initial_state(params))
    dtypes = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.zeros((layer.input_size,), *dtypes[:1])


def _check_causal(layer: Any) -> None:
    """Reject anything but a causal layer."""
    if not isinstance(layer, Layer):
        raise TypeError(f"layer is a {type(layer).__name__}, expected a Layer")
    if not layer.causal:
        raise ValueError("layer is not causal, expected one that can be stepped")

"""Random stacks of recurrent layers, of one direction or two, and dense layers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn import DenseParams, RNNParams
from tests.support.checks import JAX_ACTIVATIONS, assert_identical

T, B = 5, 3
DTYPES = ("bfloat16", "float16", "float32", "float64")
QUICKLY = {"xla_backend_optimization_level": 0}  # for programs that run only a few times
TOLERANCES = {"float32": 1e-6, "float64": 1e-12}


class Drawn(NamedTuple):
    """A layer of a stack; `directions` is 0 for a dense layer."""

    inputs: int
    units: int
    directions: int
    bias: bool
    activation: str

    @property
    def outputs(self):
        return self.units * max(self.directions, 1)


def draw_layers(rng, *, directions=(1, 2), biases=(True, False), activations=("tanh", "relu")):
    """One to three recurrent layers, followed by at most two dense ones."""
    layers, size = [], int(rng.integers(1, 5))
    for _ in range(rng.integers(1, 4)):
        drawn = (int(rng.integers(1, 5)), *(rng.choice(a) for a in (directions, biases)))
        layers.append(Drawn(size, drawn[0], int(drawn[1]), bool(drawn[2]), rng.choice(activations)))
        size = layers[-1].outputs
    for _ in range(rng.integers(0, 3)):
        layers.append(Drawn(size, int(rng.integers(1, 5)), 0, bool(rng.integers(2)), ""))
        size = layers[-1].outputs
    return layers


def build(layers, dtype):
    """The stack of the layers."""

    def one(layer):
        options = {"use_bias": layer.bias, "dtype": dtype}
        if not layer.directions:
            return jaxrnn.dense(layer.inputs, layer.units, **options)
        options["activation"] = JAX_ACTIVATIONS[layer.activation]
        rnn = jaxrnn.vanilla_rnn(layer.inputs, layer.units, **options)
        return rnn if layer.directions == 1 else jaxrnn.bidirectional(rnn, rnn)

    return jaxrnn.stack(*map(one, layers))


def draw_params(rng, layers, dtype):
    """Random parameters, as NumPy arrays."""

    def draw(*shape):
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(jnp.dtype(dtype))

    def one(layer):
        b = draw(layer.units) if layer.bias else None
        if not layer.directions:
            return DenseParams(draw(layer.units, layer.inputs), b)
        return RNNParams(draw(layer.units, layer.inputs), draw(layer.units, layer.units), b)

    return tuple(
        (one(layer), one(layer)) if layer.directions == 2 else one(layer) for layer in layers
    )


def draw_state(rng, layers, dtype):
    """A random initial state, with one entry per recurrent layer."""
    draws = [
        [rng.standard_normal((B, layer.units)).astype(dtype) for _ in range(layer.directions)]
        for layer in layers
    ]
    return tuple(draw[0] if len(draw) == 1 else tuple(draw) for draw in draws)


def draw_batch(rng, layers, dtype):
    """Random ragged sequences: xs [T, B, D], lengths [B] of at least 1, and their mask [T, B]."""
    xs = rng.standard_normal((T, B, layers[0].inputs)).astype(dtype)
    lengths = rng.permutation([T, *rng.integers(1, T + 1, B - 1)])
    return xs, lengths, np.arange(T)[:, None] < lengths


def states_of(state):
    """The states of a stack as a flat list, as other frameworks return them."""
    return jax.tree.leaves(state)


def assert_agree(got, expected, what=""):
    """Equal up to 1e-6 in float32 and 1e-12 in float64, relative to the largest entry or 1."""
    leaves, expected_leaves = jax.tree.leaves(got), jax.tree.leaves(expected)
    assert len(leaves) == len(expected_leaves), what
    for one, other in zip(leaves, expected_leaves, strict=True):
        assert one.shape == other.shape, what
        assert one.dtype == other.dtype, what
        scale = np.abs(other).max(initial=1)
        error = np.abs(np.asarray(one) - np.asarray(other)).max(initial=0)
        assert error <= TOLERANCES[str(other.dtype)] * scale, (what, error)


def run_here(layers):
    """A compiled function of (params, state, xs, mask) -> outputs and final states, float32."""
    network = build(layers, jnp.float32)

    def run(params, state, xs, mask):
        last, ys = network.unroll(params, state, xs, mask=mask)
        return ys, states_of(last)

    return jax.jit(run, compiler_options=QUICKLY)


def draw_special(rng, layers, dtype):
    """Random parameters with -0.0, infinity and NaN in their biases, which sums easily lose."""
    params = draw_params(rng, layers, dtype)
    specials = np.array([-0.0, np.inf, np.nan, 0.0], jnp.dtype(dtype))

    def spoil(leaf):
        if leaf.ndim == 1:
            leaf[:] = np.where(rng.integers(2, size=leaf.shape), leaf, rng.choice(specials))
        return leaf

    return jax.tree.map(spoil, params)


def check_round_trips(there, back, **restrictions):
    """Check that a round trip of 30 random networks, in every dtype, preserves every bit."""
    rng = np.random.default_rng(0)
    for number in range(30):
        layers = draw_layers(rng, **restrictions)
        for dtype in DTYPES:
            params = draw_special(rng, layers, dtype)
            foreign = there(params)
            returned = back(foreign)
            assert jax.tree.structure(returned) == jax.tree.structure(params), (number, layers)
            assert_identical(returned, params, (number, dtype))
            assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(returned))
            for leaf in jax.tree.leaves(foreign):
                assert type(leaf) is np.ndarray
                assert leaf.flags.c_contiguous
                assert leaf.flags.writeable
                leaf[...] = 7  # the result must be a copy, in both directions
            assert_identical(returned, params, (number, dtype))

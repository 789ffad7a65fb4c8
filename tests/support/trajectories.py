"""Networks with known trajectories and Jacobians, which the tests of diagnostics share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn import RNNParams, diagnostics
from tests.support.checks import random_like
from tests.support.layer_registry import gru

D, H, T = 2, 4, 7
IDENTITY = jax.nn.identity


def networks(dtype=jnp.float64):
    def rnn(inputs, units, **options):
        return jaxrnn.vanilla_rnn(inputs, units, dtype=dtype, **options)

    return {
        "vanilla": rnn(D, H),
        "relu": rnn(D, H, activation=jax.nn.relu),
        "learned state": rnn(D, H, learn_h0=True),
        "stack": jaxrnn.stack(rnn(D, 3), rnn(3, 2), jaxrnn.dense(2, 3, dtype=dtype)),
        "gru": gru(D, H, dtype)(),
    }


NETWORKS = networks()

# Compiled once per layer and shape.
jacobians_of = jax.jit(diagnostics.state_jacobians, static_argnums=0)
norms_of = jax.jit(diagnostics.gradient_norms_by_lag, static_argnums=0, static_argnames="loss_fn")
singular_values_of = jax.jit(diagnostics.jacobian_singular_values, static_argnums=0)
exponents_of = jax.jit(
    diagnostics.lyapunov_spectrum,
    static_argnums=0,
    static_argnames=("num_exponents", "num_steps", "discard"),
)
fixed_points_of = jax.jit(
    diagnostics.fixed_points, static_argnums=0, static_argnames=("num_steps", "tolerance")
)


@functools.cache
def drawn(layer, seed=0, steps=T, dtype=jnp.float64):
    """Random parameters, state and inputs."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = jax.jit(layer.init)(keys[0])
    params = jax.tree.map(
        lambda p, n: p + jnp.asarray(0.3, p.dtype) * n, params, random_like(keys[1], params)
    )
    xs = jax.random.normal(keys[2], (steps, layer.input_size), dtype)
    return params, random_like(keys[3], layer.initial_state(params)), xs


def ravel(state):
    return jax.flatten_util.ravel_pytree(state)[0]


@functools.partial(jax.jit, static_argnums=0)
def step_and_jacobian(layer, params, state, x):
    at, unravel = jax.flatten_util.ravel_pytree(state)

    def after(h):
        return ravel(layer.step(params, unravel(h), x)[0])

    return layer.step(params, state, x)[0], jax.jacrev(after)(at)


def explicit_jacobians(layer, params, state, xs):
    """[T, N, N] in NumPy: jacrev of each step of a Python loop."""
    found = []
    for x in xs:
        state, jacobian = step_and_jacobian(layer, params, state, x)
        found.append(np.asarray(jacobian))
    return np.array(found)


@functools.cache
def linear_layer(size, dtype):
    return jaxrnn.vanilla_rnn(1, size, activation=IDENTITY, dtype=dtype)


def linear(w, dtype=jnp.float64):
    """A linear network h' = w h, and its parameters; products of its Jacobians are powers of w."""
    w = jnp.asarray(w, dtype)
    return linear_layer(len(w), dtype), RNNParams(jnp.zeros((len(w), 1), dtype), w)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def rotation(seed, size):
    return np.linalg.qr(normal(seed, size, size))[0]


def inputs(steps, dtype=jnp.float64):
    return jnp.zeros((steps, 1), dtype)


def last_state(state, ys):
    del ys
    return jnp.sum(jnp.cos(ravel(state)))


def all_outputs(state, ys):
    del state
    return jnp.sum(jnp.sin(ys) ** 2)


def state_and_outputs(state, ys):
    return last_state(state, ys) * all_outputs(state, ys)

"""Rematerialisation saves memory: temporary bytes of compiled gradients, as XLA reports them."""

import math

import jax
import jax.numpy as jnp
import pytest

import jaxrnn

T, B, D, H = 128**2, 4, 1, 64


def unrolled(num_steps, remat):
    del num_steps

    def run(params, xs):
        return jaxrnn.unroll(params, None, xs, remat=remat)

    return lambda key: jaxrnn.init_rnn(key, D, H), run


def vanilla(num_steps, remat):
    del num_steps
    layer = jaxrnn.vanilla_rnn(D, H, remat=remat)
    return layer.init, lambda params, xs: layer.unroll(params, None, xs)


def chunked_network(num_steps, remat):
    network = jaxrnn.chunked(jaxrnn.deep_rnn((D, H, H, 1)), math.isqrt(num_steps), remat=remat)
    return network.init, lambda params, xs: network.unroll(params, None, xs)


def gradient_bytes(build, num_steps, remat):
    """Temporary memory of the gradient of a loss of the last state: inputs and results apart."""
    init, run = build(num_steps, remat)

    def loss(params, xs):
        state, _ = run(params, xs)
        return sum(jnp.sum(h**2) for h in jax.tree.leaves(state))

    params = jax.eval_shape(init, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((num_steps, B, D), jnp.float32)
    program = jax.jit(jax.grad(loss)).lower(params, xs).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("build", [unrolled, vanilla, chunked_network])
def test_remat_needs_memory_of_the_square_root_of_the_length(build):
    """Without remat every state is stored, T of them per layer. With chunks of sqrt(T) steps only
    the sqrt(T) states between chunks are, and while a chunk is recomputed its states, their
    pre-activations and the cotangents of both: no more than 8 arrays of sqrt(T) states per layer.

    Of 16 times the steps a square root needs 4 times the memory, and storage of every step 16."""
    stored = gradient_bytes(build, T, remat=False)
    recomputed = gradient_bytes(build, T, remat=True)
    assert stored >= 4 * T * B * H
    assert stored / recomputed >= math.sqrt(T) / 8
    assert recomputed < 8 * gradient_bytes(build, T // 16, remat=True)

"""What `scanned` offers a step: keys, tokens, inputs of no width; and its docstring's example."""

import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

T, B, H = 6, 3, 4


def walk(**options):
    """A random walk, whose step is one normal number for each entry, or none without a key."""

    def step(params, h, x, key):
        h = h + (0.0 if key is None else jax.random.normal(key, h.shape, h.dtype))
        return h, h

    return jaxrnn.scanned(
        0, H, lambda key: (), lambda p, b: jnp.zeros((*b, H)), step, keyed=True, **options
    )


def test_every_step_gets_a_key_of_its_own_and_none_without_one():
    layer = walk()
    xs = jnp.zeros((T, B, 0))
    key = jax.random.key(1)
    h, ys = layer.unroll((), None, xs, key=key)
    draws = [jax.random.normal(k, (B, H)) for k in jax.random.split(key, T)]
    np.testing.assert_allclose(ys, np.cumsum(draws, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(h, ys[-1])
    assert not np.any(layer.unroll((), None, xs)[1])
    single = layer.step((), None, xs[0], key=key)[1]
    np.testing.assert_array_equal(single, jax.random.normal(key, (B, H)))


def test_the_diagnostics_take_a_layer_without_inputs_and_a_state_with_a_key():
    def init(key):
        return jaxrnn.init_rnn(key, 0, H, dtype=jnp.float64)

    def initial_state(params, batch_shape):
        keys = jnp.broadcast_to(jax.random.key(0), batch_shape)
        return jnp.full((*batch_shape, H), 0.5), keys

    def step(params, state, x):
        h = jaxrnn.step(params, state[0], x)
        return (h, state[1]), h

    layer = jaxrnn.scanned(0, H, init, initial_state, step)
    params = layer.init(jax.random.key(3))
    plain = jaxrnn.vanilla_rnn(0, H, dtype=jnp.float64)
    xs = jnp.zeros((T, 0))
    start = jnp.full((H,), 0.5)
    expected = jaxrnn.diagnostics.state_jacobians(plain, params, start, xs)
    got = jaxrnn.diagnostics.state_jacobians(layer, params, None, xs)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    exponents = jaxrnn.diagnostics.lyapunov_spectrum(layer, params, None, num_steps=T)
    assert exponents.shape == (H,)


def test_a_step_may_read_tokens():
    def step(table, h, x):
        h = h + table[x]
        return h, h

    layer = jaxrnn.scanned(
        5,
        H,
        lambda key: jax.random.normal(key, (5, H)),
        lambda p, b: jnp.zeros((*b, H)),
        step,
        reads_tokens=True,
    )
    table = layer.init(jax.random.key(0))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 5, (T, B)))
    mask = jnp.asarray(np.arange(T)[:, None] < np.array([6, 3, 0]))
    ys = layer.unroll(table, None, tokens, mask=mask)[1]
    expected = (
        np.cumsum(np.asarray(table)[np.asarray(tokens)], axis=0) * np.asarray(mask)[..., None]
    )
    np.testing.assert_allclose(ys, expected, atol=1e-6)
    with pytest.raises(ValueError, match="inputs are not given"):
        jaxrnn.diagnostics.lyapunov_spectrum(layer, table, None, num_steps=3)


def test_an_initial_state_that_ignores_its_batch_shape_is_blamed_itself():
    layer = jaxrnn.scanned(2, H, lambda key: (), lambda p, b: jnp.zeros(H), lambda p, h, x: (h, h))
    with pytest.raises(ValueError, match="initial_state returns leaves of shapes"):
        layer.unroll((), None, jnp.zeros((T, B, 2)))


def test_an_initializer_of_two_arguments_is_blamed_itself():
    with pytest.raises(TypeError, match=r"w_hh_init takes \(key, shape\), expected \(key, shape"):
        jaxrnn.init_rnn(jax.random.key(0), 2, 3, w_hh_init=lambda key, shape: jnp.zeros(shape))


@pytest.mark.usefixtures("as_on_the_command_line")
def test_the_leak_on_the_argument_of_f_is_the_example_of_the_docstring():
    names = {"jaxrnn": jaxrnn, "jax": jax, "jnp": jnp}
    lines = inspect.getdoc(jaxrnn.scanned).split("argument of f, is\n")[1]
    exec(textwrap.dedent(lines.split("\n`jaxrnn.step` multiplies")[0]), names)
    rates, xs = names["rates"], jnp.asarray(np.random.default_rng(0).normal(size=(T, B, 3)))
    params = rates.init(jax.random.key(0))
    xs = xs.astype(jnp.float32)
    ys = rates.unroll(params, None, xs)[1]
    a = np.zeros((B, 64))
    for x, y in zip(np.asarray(xs), np.asarray(ys), strict=True):
        a = 0.8 * a + 0.2 * (np.tanh(a) @ params.w_hh.T + x @ params.w_ih.T + params.b)
        np.testing.assert_allclose(y, np.tanh(a), atol=1e-5)

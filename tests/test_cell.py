"""The step against the formula, its options, and the univariate network."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.support.checks import JAX_ACTIVATIONS, assert_close, draw_rnn
from tests.support.oracle import ACTIVATIONS


@pytest.mark.parametrize("name", list(ACTIVATIONS))
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_the_step_is_the_formula(key, name, batch):
    params = draw_rnn(key, 2, 4)
    h, x = jax.random.normal(key, (*batch, 4)), jax.random.normal(key, (*batch, 2))
    got = jaxrnn.step(params, h, x, activation=JAX_ACTIVATIONS[name])
    w_ih, w_hh, b = (np.asarray(p) for p in params[:3])
    f, _ = ACTIVATIONS[name]
    expected = f(np.asarray(h) @ w_hh.T + np.asarray(x) @ w_ih.T + b)
    assert_close(got, expected, length=6)


def test_the_univariate_step_is_the_formula_worked_by_hand():
    params = jaxrnn.RNNParams(jnp.array([[0.5]]), jnp.array([[-2.0]]))
    h = jaxrnn.step(params, jnp.array([0.25]), jnp.array([3.0]))
    assert_close(h, np.array([math.tanh(-2 * 0.25 + 0.5 * 3)]), length=2)


def test_no_state_means_the_initial_state(key):
    params = draw_rnn(key, 2, 4)
    x = jax.random.normal(key, (3, 2))
    learned = jaxrnn.step(params, jnp.tile(params.h0, (3, 1)), x)
    np.testing.assert_array_equal(jaxrnn.step(params, None, x), learned)
    zeros = jaxrnn.step(params._replace(h0=None), None, x)
    np.testing.assert_array_equal(zeros, jaxrnn.step(params, jnp.zeros((3, 4)), x))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_the_dtype_is_that_of_the_parameters_and_integers_do_not_change_it(key, dtype):
    params = jaxrnn.init_rnn(key, 2, 4, dtype=dtype)
    assert all(p.dtype == dtype for p in jax.tree.leaves(params))
    for x in (jnp.ones((2,), dtype), jnp.ones((2,), jnp.int32), jnp.ones((2,), bool)):
        assert jaxrnn.step(params, None, x).dtype == dtype


def test_mixed_dtypes_give_their_result_type_where_jax_allows_them(key):
    params = jaxrnn.init_rnn(key, 2, 4, dtype=jnp.bfloat16)
    x = jnp.ones((3, 2), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        assert jaxrnn.step(params, None, x).dtype == jnp.float32
        h, hs = jaxrnn.unroll(params, jnp.zeros((4,), jnp.bfloat16), x)
    assert h.dtype == hs.dtype == jnp.float32


def test_the_options_of_init_rnn_leave_out_what_they_name(key):
    assert jaxrnn.init_rnn(key, 2, 4).h0 is None
    assert jaxrnn.init_rnn(key, 2, 4).b.shape == (4,)
    assert jaxrnn.init_rnn(key, 2, 4, use_bias=False).b is None
    assert jaxrnn.init_rnn(key, 2, 4, learn_h0=True).h0.shape == (4,)
    univariate = jaxrnn.init_rnn(key, 1, 1, use_bias=False)
    assert [w.shape for w in jax.tree.leaves(univariate)] == [(1, 1), (1, 1)]

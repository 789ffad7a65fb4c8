"""Lyapunov exponents and spectral radii, against eigenvalues and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import diagnostics
from tests.support.checks import assert_close
from tests.support.trajectories import (
    NETWORKS,
    D,
    drawn,
    exponents_of,
    jacobians_of,
    linear,
    normal,
    rotation,
)

# Lyapunov exponents


def assert_exponents(w, steps, discard, count=None):
    layer, params = linear(w)
    got = exponents_of(layer, params, None, num_exponents=count, num_steps=steps, discard=discard)
    values = np.sort(np.abs(np.linalg.eigvals(w)))[::-1][:count]
    lost = values < 1e-12
    assert np.all(np.asarray(got)[lost] == -np.inf)
    # Once the frame is aligned, only rounding errors are left, averaged over the steps.
    assert_close(got[~lost], np.log(values[~lost]), length=len(w))


@pytest.mark.parametrize("count", [None, 1, 3])
def test_exponents_of_a_linear_network_are_the_logarithms_of_its_eigenvalues(count):
    v = np.linalg.qr(normal(3, 5, 5))[0] + 0.2 * normal(4, 5, 5)
    w = v @ np.diag([1.5, -0.9, 0.5, 0.25, 0.1]) @ np.linalg.inv(v)
    assert_exponents(w, 400, 200, count)


def test_complex_eigenvalues_give_equal_pairs_of_exponents():
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    w = np.zeros((5, 5))
    w[:2, :2], w[2:4, 2:4], w[4, 4] = 1.25 * quarter, 0.5 * quarter, 0.75
    w = rotation(6, 5) @ w @ rotation(6, 5).T
    assert_exponents(w, 400, 200)


def test_a_singular_matrix_has_an_exponent_of_minus_infinity():
    w = rotation(7, 4) @ np.diag([2.0, 1.0, 0.5, 0.0]) @ rotation(7, 4).T
    assert_exponents(w + 0.0, 300, 100)
    layer, params = linear(np.zeros((3, 3)))
    assert np.all(exponents_of(layer, params, None, num_steps=4) == -jnp.inf)


def test_the_exponent_of_one_unit_is_the_mean_log_slope():
    layer = jaxrnn.vanilla_rnn(1, 1, dtype=jnp.float64)
    params, state, xs = drawn(layer, steps=50)
    hs = np.asarray(layer.unroll(params, state, xs)[1])
    logs = np.log(np.abs(params.w_hh * (1 - hs**2)))
    for discard in (0, 20):
        got = exponents_of(layer, params, state, xs, discard=discard)
        assert_close(got, logs[discard:].mean(0), length=50)


def test_without_inputs_the_network_is_driven_by_zeros_from_its_state():
    layer = NETWORKS["stack"]
    params, state, _ = drawn(layer)
    alone = exponents_of(layer, params, state, num_steps=40)
    driven = exponents_of(layer, params, state, jnp.zeros((40, D)))
    assert_close(alone, driven, length=1)
    assert np.all(np.diff(alone) <= 0)
    jacobians = np.asarray(jacobians_of(layer, params, state, jnp.zeros((40, D))))
    total = np.linalg.slogdet(jacobians)[1].mean()  # the growth rate of volumes
    assert_close(jnp.sum(alone), total * np.ones(()), length=40 * 5)


# Spectral radius


def test_spectral_radius_is_the_largest_modulus_of_an_eigenvalue_in_the_dtype_of_w():
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    ws = np.stack([turn, 3 * turn, np.diag([0.5, -2.0]), np.array([[0.0, 1.0], [0.0, 0.0]])])
    got = jax.jit(diagnostics.spectral_radius)(ws)
    assert_close(got, np.array([1.0, 3.0, 2.0, 0.0]), length=2)
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
        one = diagnostics.spectral_radius(jnp.eye(3, dtype=dtype) / 2)
        assert one.dtype == dtype
        assert one == 0.5

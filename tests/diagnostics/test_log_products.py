"""Singular values of long products of Jacobians, against NumPy and rational arithmetic."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.diagnostics import log_products
from tests.support.checks import assert_close
from tests.support.trajectories import (
    NETWORKS,
    H,
    T,
    drawn,
    explicit_jacobians,
    inputs,
    jacobians_of,
    linear,
    normal,
    rotation,
    singular_values_of,
)


def rational_power(w, steps):
    """w^steps in rational arithmetic."""
    product = [[Fraction(int(i == j)) for j in range(len(w))] for i in range(len(w))]
    exact = [[Fraction(float(entry)) for entry in row] for row in w]
    for _ in range(steps):
        product = [
            [sum(a * product[k][j] for k, a in enumerate(row)) for j in range(len(w))]
            for row in exact
        ]
    return product


def log_fraction(value):
    """The logarithm of a positive rational of any size."""

    def log(integer):
        shift = max(integer.bit_length() - 60, 0)
        return np.log(float(integer >> shift)) + shift * np.log(2)

    return log(value.numerator) - log(value.denominator)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("steps", [1, 12])
def test_singular_values_of_short_products_are_those_of_numpy(seed, steps):
    w = normal(seed, 5, 5) / 2
    layer, params = linear(w)
    got = singular_values_of(layer, params, None, inputs(steps))
    power = np.linalg.matrix_power(w, steps)
    expected = np.linalg.svd(power, compute_uv=False)
    assert_close(jnp.exp(got), expected, length=5 * steps)
    assert_close(jnp.sum(got), np.linalg.slogdet(w)[1] * steps * np.ones(()), length=5 * steps)


@pytest.mark.parametrize("name", ["vanilla", "stack"])
def test_singular_values_along_a_trajectory_are_those_of_numpy(name):
    layer = NETWORKS[name]
    params, state, xs = drawn(layer)
    product = functools.reduce(lambda p, j: j @ p, explicit_jacobians(layer, params, state, xs))
    got = singular_values_of(layer, params, state, xs)
    assert_close(jnp.exp(got), np.linalg.svd(product, compute_uv=False), length=T * H)


@pytest.mark.parametrize("seed", range(3))
def test_singular_values_of_a_long_product_are_those_of_rational_arithmetic(seed):
    """For 2 x 2, s1^2 + s2^2 and s1 s2 are the exact squared Frobenius norm and determinant."""
    steps, w = 700, np.round(normal(seed, 2, 2) * 8) / 8 + np.eye(2) * 0.75
    assert np.linalg.matrix_rank(w) == 2
    layer, params = linear(w)
    got = np.asarray(singular_values_of(layer, params, None, inputs(steps)))
    product = rational_power(w, steps)
    (a, b), (c, d) = product
    total = log_fraction(a * a + b * b + c * c + d * d)
    determinant = log_fraction(abs(a * d - b * c))
    ratio = np.exp(2 * determinant - 2 * total)  # s1^2 s2^2 / (s1^2 + s2^2)^2
    large = (total + np.log((1 + np.sqrt(1 - 4 * ratio)) / 2)) / 2
    expected = np.array([large, determinant - large])
    scale = np.linalg.cond(w) * np.sqrt(2 * steps) + np.abs(expected).max()
    assert np.abs(got - expected).max() <= 32 * np.finfo(np.float64).eps * scale


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("gain", [0.25, 1.0, 3.0])
def test_singular_values_of_thousands_of_scaled_rotations_are_all_equal(dtype, gain):
    steps, size = 3000, 5
    layer, params = linear(gain * rotation(1, size), dtype)
    got = singular_values_of(layer, params, None, inputs(steps, dtype))
    eps = float(jnp.finfo(dtype).eps)
    values = np.linalg.svd(np.asarray(params.w_hh, np.float64), compute_uv=False)
    slack = np.abs(np.log(values / gain)).max() * steps  # W itself is rounded to the dtype
    expected = steps * np.log(gain)
    bound = slack + 32 * eps * (np.sqrt(steps * size) + abs(expected))
    assert np.abs(np.asarray(got, np.float64) - expected).max() <= bound


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_singular_values_of_a_power_of_a_normal_matrix_are_powers_of_its_eigenvalues(dtype):
    """The condition number is e^2000, and the matrix is far from triangular."""
    steps, logs = 500, np.array([1.5, 0.5, -0.25, -1.0, -2.5])
    q = rotation(2, 5)
    layer, params = linear(q @ np.diag(np.exp(logs)) @ q.T, dtype)
    got = singular_values_of(layer, params, None, inputs(steps, dtype))
    # Rounding W moves the logarithm of each eigenvalue by up to eps ||W|| / |eigenvalue|, in the
    # same direction at every step.
    bound = 8 * float(jnp.finfo(dtype).eps) * np.exp(logs[0] - logs) * steps
    assert np.all(np.abs(np.asarray(got, np.float64) - steps * logs) <= bound)


@pytest.mark.parametrize("flip", [False, True])
def test_singular_values_of_powers_of_a_triangular_matrix_are_those_in_closed_form(flip):
    """QR from the identity, an invariant frame, leaves the ascending diagonal in its order."""
    w = np.array([[0.125, 1.0], [0.0, 3.0]])
    w = w.T if flip else w
    steps = 600
    layer, params = linear(w)
    got = np.asarray(singular_values_of(layer, params, None, inputs(steps)))
    # w^n = [[a^n, (b^n - a^n) / (b - a)], [0, b^n]]
    large = steps * np.log(3) + np.log1p((3 - 0.125) ** -2.0) / 2
    expected = np.array([large, steps * np.log(0.375) - large])
    bound = 32 * np.finfo(np.float64).eps * (np.sqrt(2 * steps) + np.abs(expected).max())
    assert np.abs(got - expected).max() <= bound * np.linalg.cond(w)


def test_log_singular_values_sum_to_the_log_determinants():
    layer, steps = NETWORKS["vanilla"], 2000
    params, state, xs = drawn(layer, 5, steps)
    got = singular_values_of(layer, params, state, xs)
    jacobians = np.asarray(jacobians_of(layer, params, state, xs))
    logs = np.linalg.slogdet(jacobians)[1]
    assert got[-1] < -800  # below the range of float64
    # A determinant has a relative error of eps times the condition number.
    bound = 32 * np.finfo(np.float64).eps * np.linalg.norm(np.linalg.cond(jacobians)) + 1e-12 * abs(
        logs.sum()
    )
    assert abs(np.sum(np.asarray(got)) - logs.sum()) <= bound


def test_each_dead_direction_gives_one_minus_infinity():
    layer = NETWORKS["relu"]
    for seed in range(10):
        params, state, xs = drawn(layer, seed, steps=2)
        product = np.linalg.multi_dot(
            [*explicit_jacobians(layer, params, state, xs)[::-1], np.eye(H)]
        )
        rank = np.linalg.matrix_rank(product)
        got = np.asarray(singular_values_of(layer, params, state, xs))
        assert np.isfinite(got).sum() == rank
        expected = np.linalg.svd(product, compute_uv=False)[:rank]
        assert_close(np.exp(got[:rank]), expected, length=2 * H)
        assert np.all(got[rank:] == -np.inf)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_mantissa_and_exponent_are_those_of_numpy(dtype):
    rng, info = np.random.default_rng(0), jnp.finfo(dtype)
    exponents = rng.uniform(float(info.minexp), float(info.maxexp) - 4, 10_000)
    numbers = (rng.normal(size=10_000) * np.exp2(exponents)).astype(dtype)
    numbers = numbers[np.abs(numbers) >= info.tiny]
    edges = [0, -0.0, 1, 0.5, -2, info.tiny, info.max, np.inf, -np.inf, np.nan]
    numbers = np.concatenate([numbers, np.asarray(edges, dtype)])
    mantissas, powers = jax.jit(log_products._frexp)(numbers)
    expected = np.frexp(numbers)
    np.testing.assert_array_equal(mantissas, expected[0])
    np.testing.assert_array_equal(powers, np.where(np.isfinite(numbers), expected[1], 0))

"""Jacobians, gradient norms and saturation, against explicit products and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import diagnostics
from tests.support.checks import assert_close, draw_rnn, random_like
from tests.support.trajectories import (
    NETWORKS,
    D,
    H,
    T,
    all_outputs,
    drawn,
    explicit_jacobians,
    inputs,
    jacobians_of,
    last_state,
    linear,
    norms_of,
    ravel,
    rotation,
    singular_values_of,
    state_and_outputs,
)

# Jacobians


@pytest.mark.parametrize("name", ["relu", "stack", "gru"])
def test_state_jacobians_are_those_of_a_python_loop(name):
    layer = NETWORKS[name]
    params, state, xs = drawn(layer)
    got = jacobians_of(layer, params, state, xs)
    assert_close(got, explicit_jacobians(layer, params, state, xs), length=T * H)
    assert jacobians_of(layer, params, state, xs[:0]).shape == (0, *got.shape[1:])


def test_the_vanilla_jacobian_is_the_slope_at_each_unit_times_w_hh(key):
    layer, params = NETWORKS["learned state"], draw_rnn(key, D, H)
    xs = jax.random.normal(key, (T, D), jnp.float64)
    hs = np.asarray(layer.unroll(params, None, xs)[1])
    expected = (1 - hs**2)[:, :, None] * np.asarray(params.w_hh)[None]
    assert_close(jacobians_of(layer, params, None, xs), expected, length=T * H)


# Gradient norms


def last_output(state, ys):
    del state
    return jnp.sum(ys[-1] ** 2)


def perturbed_gradients(layer, params, state, xs, loss_fn):
    """d loss / d h_{T-k}, as the gradient with respect to a perturbation added to each state."""
    unravel = jax.flatten_util.ravel_pytree(state)[1]

    @jax.jit
    @jax.grad
    def gradient(changes):
        at, ys = ravel(state) + changes[0], []
        for x, change in zip(xs, changes[1:], strict=True):
            after, y = layer.step(params, unravel(at), x)
            at = ravel(after) + change
            ys.append(y)
        return loss_fn(unravel(at), jnp.stack(ys))

    zeros = jnp.zeros((len(xs) + 1, ravel(state).size), xs.dtype)
    return np.asarray(gradient(zeros))[::-1]


LOSSES = [last_output, all_outputs, last_state, state_and_outputs]


@pytest.mark.parametrize(
    ("name", "loss_fn"),
    [
        *(("vanilla", loss_fn) for loss_fn in LOSSES),
        ("stack", last_output),
        ("stack", state_and_outputs),
        ("gru", all_outputs),
    ],
)
def test_gradient_norms_are_those_of_perturbations_of_the_states(name, loss_fn):
    layer = NETWORKS[name]
    params, state, xs = drawn(layer)
    got = norms_of(layer, params, state, xs, loss_fn=loss_fn)
    with np.errstate(divide="ignore"):
        norms = np.linalg.norm(perturbed_gradients(layer, params, state, xs, loss_fn), axis=1)
        assert got.shape == (T + 1,)
        assert_close(jnp.exp(got), norms, length=T * H)
    assert (got[0] == -jnp.inf) == (loss_fn in (last_output, all_outputs))


@pytest.mark.parametrize("name", ["vanilla", "relu", "stack", "gru"])
@pytest.mark.parametrize("seed", range(3))
def test_without_a_loss_norms_are_spectral_norms_of_explicit_products(name, seed):
    layer = NETWORKS[name]
    params, state, xs = drawn(layer, seed)
    jacobians = explicit_jacobians(layer, params, state, xs)
    product, expected = np.eye(jacobians.shape[1]), [1.0]
    for jacobian in jacobians[::-1]:
        product = product @ jacobian
        expected.append(np.linalg.norm(product, 2))
    got = norms_of(layer, params, state, xs)
    assert got[0] == 0
    assert_close(jnp.exp(got), np.array(expected), length=T * H)


def sum_of_state(state, ys):
    del ys
    return jnp.sum(state)


def sum_of_last_output(state, ys):
    del state
    return jnp.sum(ys[-1])


@pytest.mark.parametrize("gain", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("loss_fn", [None, sum_of_state, sum_of_last_output])
def test_norms_over_five_thousand_steps_neither_underflow_nor_overflow(gain, loss_fn):
    # W is gain times orthogonal, so the gradient's norm grows by the gain at every lag.
    steps = 5000
    layer, params = linear(gain * rotation(0, H))
    got = norms_of(layer, params, None, inputs(steps), loss_fn=loss_fn)
    expected = np.arange(steps + 1) * np.log(gain) + (0 if loss_fn is None else np.log(H) / 2)
    if loss_fn is sum_of_last_output:
        assert got[0] == -jnp.inf
        got, expected = got[1:], expected[1:]
    # The logarithm's error is the product's relative error, a random walk of H terms per step.
    error = np.abs(np.asarray(got) - expected).max()
    eps = np.finfo(np.float64).eps
    assert error <= 32 * eps * (np.sqrt(steps * H) + np.abs(expected).max())


def test_with_no_steps_the_gradient_is_that_of_the_given_state():
    layer = NETWORKS["vanilla"]
    params, state, xs = drawn(layer)
    norms = norms_of(layer, params, state, xs[:0], loss_fn=last_state)
    assert_close(norms, np.log(np.linalg.norm(np.sin(state)))[None], length=H)
    assert_close(norms_of(layer, params, state, xs[:0]), np.zeros(1), length=1)
    assert_close(singular_values_of(layer, params, state, xs[:0]), np.zeros(H), length=1)


def penalty(layer, loss_fn, params, xs):
    """Pascanu, Mikolov & Bengio 2013, equation 9."""
    logs = norms_of(layer, params, None, xs, loss_fn=loss_fn)[1:]
    return jnp.sum((jnp.exp(logs[1:] - logs[:-1]) - 1) ** 2)


def assert_derivative(function, at, direction):
    """Compare a directional derivative with Richardson's extrapolation of two central differences:
    its error is below the difference between the two, up to rounding of eps / step."""
    gradient = jax.jit(jax.grad(function))(at)
    got = sum(
        float(jnp.sum(g * d))
        for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )

    def value(step):
        return float(function(jax.tree.map(lambda a, d: a + step * d, at, direction)))

    step = 1e-4
    wide, narrow = ((value(s) - value(-s)) / (2 * s) for s in (step, step / 2))
    rounding = 64 * np.finfo(np.float64).eps * max(1, abs(value(0))) / step
    assert abs(wide - narrow) <= 1e-4 * max(1, abs(narrow))
    assert abs(got - (4 * narrow - wide) / 3) <= abs(wide - narrow) + rounding


@pytest.mark.parametrize(
    ("name", "loss_fn"),
    [("vanilla", None), ("stack", last_output), ("gru", state_and_outputs)],
)
def test_the_gradient_of_the_regulariser_is_that_of_central_differences(name, loss_fn):
    layer = NETWORKS[name]
    params, _, xs = drawn(layer, 1, steps=5)
    direction = random_like(jax.random.key(2), (params, xs))
    function = jax.jit(lambda both: penalty(layer, loss_fn, *both))
    assert_derivative(function, (params, xs), direction)


@pytest.mark.parametrize("loss_fn", [None, last_output])
def test_a_norm_of_zero_is_minus_infinity_and_leaves_gradients_of_the_batch_finite(loss_fn):
    layer = NETWORKS["relu"]
    params, _, xs = drawn(layer)
    batch = jnp.stack([xs, xs.at[3].set(-100 * jnp.sign(params.w_ih.sum(0)))])
    params = params._replace(w_ih=jnp.abs(params.w_ih), b=jnp.ones(H))
    batch = jnp.abs(batch).at[1, 3].set(-100)  # all units are dead at step 3

    def total(params, batch):
        def one(xs):
            logs = norms_of(layer, params, None, xs, loss_fn=loss_fn)[1:]
            usable = jnp.isfinite(logs)
            logs = jnp.where(usable, logs, 0)
            return jnp.sum(jnp.where(usable[1:], (jnp.exp(logs[1:] - logs[:-1]) - 1) ** 2, 0)), logs

        return jnp.mean(jax.vmap(one)(batch)[0])

    logs = norms_of(layer, params, None, batch[1], loss_fn=loss_fn)
    assert jnp.all(logs[T - 3 :] == -jnp.inf)
    assert not jnp.isnan(logs).any()
    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(params, batch)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert jnp.any(gradients[0].w_hh != 0)


def test_a_gradient_that_passes_through_zero_remains_differentiable():
    # d loss / d h_2 = c is zero, but its derivative with respect to c is not.
    layer, params = linear(np.array([[0.5]]))

    def log_norm(c):
        def loss(state, ys):
            return c * jnp.sum(state) + 2 * jnp.sum(ys[0])

        return norms_of(layer, params, None, inputs(2), loss_fn=loss)[2]

    # d loss / d h_0 = w^2 c + 2 w
    value, slope = jax.value_and_grad(log_norm)(jnp.zeros(()))
    assert_close((value, slope), (np.log(np.ones(())), np.full((), 0.25)), length=2)


# Saturation


def test_saturated_fraction_counts_the_units_below_the_threshold():
    hs = jnp.asarray([[0.0, 0.5, -0.96], [0.94, 0.99, -1.0]])
    count = diagnostics.saturated_fraction
    assert_close(count(hs), np.full((), 3 / 6), length=6)  # 1 - h^2 < 0.1: |h| > 0.9487
    assert_close(count(hs, axis=0), np.array([0, 0.5, 1]), length=2)
    assert_close(count(hs, axis=-1), np.array([1 / 3, 2 / 3]), length=3)
    assert count(hs, threshold=0.0) == 0
    assert_close(count(hs, activation=jax.nn.relu), np.full((), 3 / 6), length=6)
    assert count(hs, activation=jax.nn.identity) == 0
    # 4 h (1 - h) < 0.1: h < 0.0257 or h > 0.9743
    sigmoids = jnp.asarray([0.02, 0.03, 0.5, 0.97, 0.98], jnp.float32)
    got = jax.jit(functools.partial(count, activation=jax.nn.sigmoid))(sigmoids)
    assert got.dtype == jnp.float32
    assert_close(got, np.full((), 0.4), length=5)

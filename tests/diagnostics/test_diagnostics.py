"""Diagnostics, against known answers and against NumPy's products of explicit Jacobians."""

import functools
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import RNNParams, diagnostics
from tests.layers.test_layers import counter, gru
from tests.support.checks import assert_close, draw_rnn, random_like

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
        "gru": gru(D, H, dtype),
    }


NETWORKS = networks()

# Compiled once for each layer and shape.
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
    """Parameters with every entry drawn, a state, and inputs."""
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
    """[T, N, N] in NumPy: jacrev of a loop's step."""
    found = []
    for x in xs:
        state, jacobian = step_and_jacobian(layer, params, state, x)
        found.append(np.asarray(jacobian))
    return np.array(found)


@functools.cache
def linear_layer(size, dtype):
    return jaxrnn.vanilla_rnn(1, size, activation=IDENTITY, dtype=dtype)


def linear(w, dtype=jnp.float64):
    """A linear network h' = w h, and its parameters; a product of its Jacobians is a power."""
    w = jnp.asarray(w, dtype)
    return linear_layer(len(w), dtype), RNNParams(jnp.zeros((len(w), 1), dtype), w)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def rotation(seed, size):
    return np.linalg.qr(normal(seed, size, size))[0]


def inputs(steps, dtype=jnp.float64):
    return jnp.zeros((steps, 1), dtype)


# Jacobians


@pytest.mark.parametrize("name", ["relu", "stack", "gru"])
def test_the_jacobians_are_those_of_a_loop(name):
    layer = NETWORKS[name]
    params, state, xs = drawn(layer)
    got = jacobians_of(layer, params, state, xs)
    assert_close(got, explicit_jacobians(layer, params, state, xs), length=T * H)
    assert jacobians_of(layer, params, state, xs[:0]).shape == (0, *got.shape[1:])


def test_the_jacobian_of_the_vanilla_network_by_hand(key):
    layer, params = NETWORKS["learned state"], draw_rnn(key, D, H)
    xs = jax.random.normal(key, (T, D), jnp.float64)
    hs = np.asarray(layer.unroll(params, None, xs)[1])
    expected = (1 - hs**2)[:, :, None] * np.asarray(params.w_hh)[None]
    assert_close(jacobians_of(layer, params, None, xs), expected, length=T * H)


def test_integers_of_the_state_are_carried_and_tokens_are_read(key):
    layer, xs = counter(3), jax.random.normal(key, (T, 3), jnp.float64)
    got = jacobians_of(layer, jnp.ones(()), None, xs)
    assert_close(got, np.tile(np.eye(3), (T, 1, 1)), length=1)

    def loss(state, ys):
        assert state["seen"].dtype == jnp.int32
        return jnp.sum(ys[-1]) + jnp.sum(state["sum"])

    logs = norms_of(layer, jnp.ones(()), None, xs, loss_fn=loss)
    expected = np.log(np.sqrt(3) * np.array([1.0] + [1 + 1 / T] * T))
    assert_close(logs, expected, length=T)
    layer = jaxrnn.stack(jaxrnn.embedding(5, D, dtype=jnp.float64), NETWORKS["vanilla"])
    tokens = jnp.arange(T, dtype=jnp.int32) % 5
    params = layer.init(key)
    got = jacobians_of(layer, params, None, tokens)
    below, above = params
    assert_close(
        got,
        jacobians_of(NETWORKS["vanilla"], above, None, below[tokens]),
        length=H,
    )


# Gradient norms


def last_output(state, ys):
    del state
    return jnp.sum(ys[-1] ** 2)


def all_outputs(state, ys):
    del state
    return jnp.sum(jnp.sin(ys) ** 2)


def last_state(state, ys):
    del ys
    return jnp.sum(jnp.cos(ravel(state)))


def state_and_outputs(state, ys):
    return last_state(state, ys) * all_outputs(state, ys)


def perturbed_gradients(layer, params, state, xs, loss_fn):
    """d loss / d h_{T-k} by autodiff through a perturbation added to each state."""
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
def test_gradient_norms_are_those_of_perturbed_states(name, loss_fn):
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
def test_spectral_norms_are_those_of_explicit_products(name, seed):
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
def test_gradients_of_five_thousand_steps_neither_vanish_nor_explode(gain, loss_fn):
    # W is gain times orthogonal, so the gradient's norm grows by the gain at every lag.
    steps = 5000
    layer, params = linear(gain * rotation(0, H))
    got = norms_of(layer, params, None, inputs(steps), loss_fn=loss_fn)
    expected = np.arange(steps + 1) * np.log(gain) + (0 if loss_fn is None else np.log(H) / 2)
    if loss_fn is sum_of_last_output:
        assert got[0] == -jnp.inf
        got, expected = got[1:], expected[1:]
    # The logarithm's error is the relative error of the product, a walk of H terms a step.
    error = np.abs(np.asarray(got) - expected).max()
    eps = np.finfo(np.float64).eps
    assert error <= 32 * eps * (np.sqrt(steps * H) + np.abs(expected).max())


def test_of_no_steps_the_gradient_is_that_of_the_state():
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
    """A directional derivative against Richardson's extrapolation of central differences, which is
    nearer than its two differences are to each other, up to eps / step."""
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
def test_the_regulariser_has_the_gradient_of_central_differences(name, loss_fn):
    layer = NETWORKS[name]
    params, _, xs = drawn(layer, 1, steps=5)
    direction = random_like(jax.random.key(2), (params, xs))
    function = jax.jit(lambda both: penalty(layer, loss_fn, *both))
    assert_derivative(function, (params, xs), direction)


@pytest.mark.parametrize("loss_fn", [None, last_output])
def test_norms_of_zero_are_minus_infinity_with_finite_gradients_in_a_batch(loss_fn):
    layer = NETWORKS["relu"]
    params, _, xs = drawn(layer)
    batch = jnp.stack([xs, xs.at[3].set(-100 * jnp.sign(params.w_ih.sum(0)))])
    params = params._replace(w_ih=jnp.abs(params.w_ih), b=jnp.ones(H))
    batch = jnp.abs(batch).at[1, 3].set(-100)  # where no unit lives, nothing passes

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


def test_a_gradient_that_passes_through_zero_keeps_its_derivative():
    # d loss / d h_1 = w c + u with c = d loss / d h_2 = 0: its derivative by c's cause is w.
    layer, params = linear(np.array([[0.5]]))

    def log_norm(c):
        def loss(state, ys):
            return c * jnp.sum(state) + 2 * jnp.sum(ys[0])

        return norms_of(layer, params, None, inputs(2), loss_fn=loss)[2]

    # d loss / d h_0 = w^2 c + 2 w
    value, slope = jax.value_and_grad(log_norm)(jnp.zeros(()))
    assert_close((value, slope), (np.log(np.ones(())), np.full((), 0.25)), length=2)


# Singular values of long products


def rational_power(w, steps):
    """w^steps in rational numbers."""
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
def test_singular_values_are_those_of_numpy_where_it_can_tell(seed, steps):
    w = normal(seed, 5, 5) / 2
    layer, params = linear(w)
    got = singular_values_of(layer, params, None, inputs(steps))
    power = np.linalg.matrix_power(w, steps)
    expected = np.linalg.svd(power, compute_uv=False)
    assert_close(jnp.exp(got), expected, length=5 * steps)
    assert_close(jnp.sum(got), np.linalg.slogdet(w)[1] * steps * np.ones(()), length=5 * steps)


@pytest.mark.parametrize("name", ["vanilla", "stack"])
def test_singular_values_along_a_trajectory(name):
    layer = NETWORKS[name]
    params, state, xs = drawn(layer)
    product = functools.reduce(lambda p, j: j @ p, explicit_jacobians(layer, params, state, xs))
    got = singular_values_of(layer, params, state, xs)
    assert_close(jnp.exp(got), np.linalg.svd(product, compute_uv=False), length=T * H)


@pytest.mark.parametrize("seed", range(3))
def test_singular_values_of_a_long_product_against_rational_arithmetic(seed):
    """Two by two: s1^2 + s2^2 and s1 s2 are the exact product's Frobenius norm and determinant."""
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
def test_singular_values_of_thousands_of_rotations_are_equal(dtype, gain):
    steps, size = 3000, 5
    layer, params = linear(gain * rotation(1, size), dtype)
    got = singular_values_of(layer, params, None, inputs(steps, dtype))
    eps = float(jnp.finfo(dtype).eps)
    values = np.linalg.svd(np.asarray(params.w_hh, np.float64), compute_uv=False)
    slack = np.abs(np.log(values / gain)).max() * steps  # of W itself, rounded to the dtype
    expected = steps * np.log(gain)
    bound = slack + 32 * eps * (np.sqrt(steps * size) + abs(expected))
    assert np.abs(np.asarray(got, np.float64) - expected).max() <= bound


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_singular_values_of_a_graded_normal_matrix(dtype):
    """Condition number e^2000, of a matrix far from triangular."""
    steps, logs = 500, np.array([1.5, 0.5, -0.25, -1.0, -2.5])
    q = rotation(2, 5)
    layer, params = linear(q @ np.diag(np.exp(logs)) @ q.T, dtype)
    got = singular_values_of(layer, params, None, inputs(steps, dtype))
    # Rounding W moves the logarithm of each eigenvalue by up to eps ||W|| / |eigenvalue|, steps
    # times, all to one side.
    bound = 8 * float(jnp.finfo(dtype).eps) * np.exp(logs[0] - logs) * steps
    assert np.all(np.abs(np.asarray(got, np.float64) - steps * logs) <= bound)


@pytest.mark.parametrize("flip", [False, True])
def test_singular_values_of_a_network_that_feeds_forward(flip):
    """Triangular Jacobians whose diagonal ascends: the identity is an invariant frame of them."""
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


def test_the_sum_of_logarithms_is_that_of_the_determinants():
    layer, steps = NETWORKS["vanilla"], 2000
    params, state, xs = drawn(layer, 5, steps)
    got = singular_values_of(layer, params, state, xs)
    jacobians = np.asarray(jacobians_of(layer, params, state, xs))
    logs = np.linalg.slogdet(jacobians)[1]
    assert got[-1] < -800  # below the range of float64
    # A determinant is right up to eps times the condition number.
    bound = 32 * np.finfo(np.float64).eps * np.linalg.norm(np.linalg.cond(jacobians)) + 1e-12 * abs(
        logs.sum()
    )
    assert abs(np.sum(np.asarray(got)) - logs.sum()) <= bound


def test_dead_units_give_minus_infinity_once_each():
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


# Lyapunov exponents


def assert_exponents(w, steps, discard, count=None):
    layer, params = linear(w)
    got = exponents_of(layer, params, None, num_exponents=count, num_steps=steps, discard=discard)
    values = np.sort(np.abs(np.linalg.eigvals(w)))[::-1][:count]
    lost = values < 1e-12
    assert np.all(np.asarray(got)[lost] == -np.inf)
    # Aligned: what is left is the walk of rounding errors, a mean over the steps.
    assert_close(got[~lost], np.log(values[~lost]), length=len(w))


@pytest.mark.parametrize("count", [None, 1, 3])
def test_exponents_of_a_linear_network_are_its_eigenvalues(count):
    v = np.linalg.qr(normal(3, 5, 5))[0] + 0.2 * normal(4, 5, 5)
    w = v @ np.diag([1.5, -0.9, 0.5, 0.25, 0.1]) @ np.linalg.inv(v)
    assert_exponents(w, 400, 200, count)


def test_exponents_of_complex_eigenvalues_come_in_pairs():
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


def test_the_exponent_of_one_unit_by_hand():
    layer = jaxrnn.vanilla_rnn(1, 1, dtype=jnp.float64)
    params, state, xs = drawn(layer, steps=50)
    hs = np.asarray(layer.unroll(params, state, xs)[1])
    logs = np.log(np.abs(params.w_hh * (1 - hs**2)))
    for discard in (0, 20):
        got = exponents_of(layer, params, state, xs, discard=discard)
        assert_close(got, logs[discard:].mean(0), length=50)


def test_without_inputs_the_network_runs_by_itself_from_its_state():
    layer = NETWORKS["stack"]
    params, state, _ = drawn(layer)
    alone = exponents_of(layer, params, state, num_steps=40)
    driven = exponents_of(layer, params, state, jnp.zeros((40, D)))
    assert_close(alone, driven, length=1)
    assert np.all(np.diff(alone) <= 0)
    jacobians = np.asarray(jacobians_of(layer, params, state, jnp.zeros((40, D))))
    total = np.linalg.slogdet(jacobians)[1].mean()  # in all, the volume
    assert_close(jnp.sum(alone), total * np.ones(()), length=40 * 5)


# Spectral radius and saturation


def test_spectral_radius():
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    ws = np.stack([turn, 3 * turn, np.diag([0.5, -2.0]), np.array([[0.0, 1.0], [0.0, 0.0]])])
    got = jax.jit(diagnostics.spectral_radius)(ws)
    assert_close(got, np.array([1.0, 3.0, 2.0, 0.0]), length=2)
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
        one = diagnostics.spectral_radius(jnp.eye(3, dtype=dtype) / 2)
        assert one.dtype == dtype
        assert one == 0.5


def test_saturated_fraction_by_hand():
    hs = jnp.asarray([[0.0, 0.5, -0.96], [0.94, 0.99, -1.0]])
    count = diagnostics.saturated_fraction
    assert_close(count(hs), np.full((), 3 / 6), length=6)  # 1 - h^2 < 0.1: |h| > 0.9487
    assert_close(count(hs, axis=0), np.array([0, 0.5, 1]), length=2)
    assert_close(count(hs, axis=-1), np.array([1 / 3, 2 / 3]), length=3)
    assert count(hs, threshold=0.0) == 0
    assert_close(count(hs, activation=jax.nn.relu), np.full((), 3 / 6), length=6)
    assert count(hs, activation=IDENTITY) == 0
    # 4 h (1 - h) < 0.1: h < 0.0257 or h > 0.9743
    sigmoids = jnp.asarray([0.02, 0.03, 0.5, 0.97, 0.98], jnp.float32)
    got = jax.jit(functools.partial(count, activation=jax.nn.sigmoid))(sigmoids)
    assert got.dtype == jnp.float32
    assert_close(got, np.full((), 0.4), length=5)


# Fixed points


def test_a_bistable_unit_has_three_fixed_points():
    layer = jaxrnn.vanilla_rnn(1, 1, dtype=jnp.float64)
    params = RNNParams(jnp.ones((1, 1)), jnp.full((1, 1), 2.0))
    h = 1.0
    for _ in range(200):
        h = np.tanh(2 * h)
    found = fixed_points_of(layer, params, None, jnp.array([[-0.8], [0.05], [0.8]]))
    expected = np.array([[-h], [0.0], [h]])
    assert_close(found.states, expected, length=1)
    assert_close(found.eigenvalues.real, 2 * (1 - expected**2), length=1)
    assert found.converged.all()
    assert found.stable.tolist() == [True, False, True]


@pytest.mark.parametrize(("dtype", "gain"), [(np.float64, 0.9), (np.float64, 3), (np.float32, 0.9)])
def test_a_planted_fixed_point_is_found(dtype, gain):
    size = 6
    layer = jaxrnn.vanilla_rnn(D, size, dtype=dtype)
    planted, w = np.tanh(normal(8, size) / 2), gain * normal(9, size, size) / np.sqrt(size)
    w_ih, x = normal(10, size, D), normal(11, D)
    b = np.arctanh(planted) - w @ planted - w_ih @ x
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), RNNParams(w_ih, w, b))
    starts = jnp.asarray(planted + 0.01 * normal(12, 3, size), dtype)
    found = fixed_points_of(layer, params, jnp.asarray(x, dtype), starts)
    jacobian = (1 - planted**2)[:, None] * w
    sensitivity = np.linalg.norm(np.linalg.inv(jacobian - np.eye(size)), 2)
    error = np.abs(np.asarray(found.states, np.float64) - planted).max()
    assert error <= 32 * np.finfo(dtype).eps * np.sqrt(size) * sensitivity
    assert found.converged.all()
    values = np.linalg.eigvals(jacobian)
    values = values[np.argsort(-np.abs(values))]
    got = np.abs(np.asarray(found.eigenvalues))
    assert np.all(np.diff(got, axis=1) <= 0)
    bound = (
        64 * np.finfo(dtype).eps * size * sensitivity * np.linalg.cond(np.linalg.eig(jacobian)[1])
    )
    assert np.abs(got - np.abs(values)).max() <= bound
    assert np.all(found.stable == (np.abs(values[0]) < 1))


def test_a_line_attractor_keeps_every_start_and_a_slow_point_does_not_converge():
    layer, params = linear(np.diag([1.0, 0.5]))
    starts = jnp.asarray([[0.3, 1.0], [-2.0, 0.4]])
    found = fixed_points_of(layer, params, jnp.zeros(1), starts)
    assert_close(found.states, np.array([[0.3, 0.0], [-2.0, 0.0]]), length=2)
    assert found.converged.all()
    assert not found.stable.any()  # an eigenvalue of 1 along the line
    # h + 0.1 + h^2 has no fixed point; it is slowest, 0.1, at 0.
    layer = jaxrnn.scanned(
        1,
        1,
        lambda key: (),
        lambda p, b=(): jnp.zeros((*b, 1)),
        lambda p, h, x: (h + 0.1 + h**2, h),
    )
    found = fixed_points_of(layer, (), None, jnp.asarray([[0.4], [-0.3]]))
    # At a minimum of q of value q0, q is flat to eps: the point is known to sqrt(eps).
    assert np.abs(found.states).max() <= 1e-7
    assert_close(found.speeds, np.full(2, 0.1), length=1)
    assert not found.converged.any()
    relaxed = fixed_points_of(layer, (), None, jnp.asarray([[0.4]]), tolerance=0.2)
    assert relaxed.converged.all()


def test_fixed_points_of_a_state_that_is_a_pytree():
    layer = NETWORKS["stack"]
    params, _, xs = drawn(layer)
    starts = jax.tree.map(
        lambda leaf: jnp.asarray(normal(13, 4, *leaf.shape)) / 2, layer.initial_state(params)
    )
    found = fixed_points_of(layer, params, xs[0], starts)
    after = jax.vmap(lambda state: layer.step(params, state, xs[0])[0])(found.states)
    moved = jax.vmap(lambda a, b: jnp.linalg.norm(ravel(a) - ravel(b)))(after, found.states)
    assert_close(found.speeds + 1, np.asarray(moved) + 1, length=5)
    assert found.eigenvalues.shape == (4, 5)
    assert found.converged.any()


# Transformations and dtypes


CALLS = {
    "jacobians": jacobians_of,
    "norms": norms_of,
    "norms of a loss": functools.partial(norms_of, loss_fn=state_and_outputs),
    "singular values": singular_values_of,
    "exponents": exponents_of,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_batch_is_a_loop_and_two_calls_share_a_program(name):
    layer = NETWORKS["vanilla"]
    params, state, xs = drawn(layer)
    batch = jnp.stack([xs, -xs, 2 * xs])
    call = functools.partial(CALLS[name], layer)
    mapped = jax.vmap(call, in_axes=(None, None, 0))

    @jax.jit
    def both(params, state, batch):
        return mapped(params, state, batch), mapped(params, -state, batch)

    for got, start in zip(both(params, state, batch), (state, -state), strict=True):
        alone = jnp.stack([call(params, start, one) for one in batch])
        assert_close(got, alone, length=T * H)


@pytest.mark.parametrize("name", ["norms of a loss", "singular values", "exponents"])
def test_float32_is_float64_rounded(name):
    kind = "vanilla"
    single = networks(jnp.float32)[kind]
    params, state, xs = drawn(single, dtype=jnp.float32)
    got = CALLS[name](single, params, state, xs)
    assert got.dtype == jnp.float32
    wide = jax.tree.map(lambda a: a.astype(jnp.float64), (params, state, xs))
    expected = CALLS[name](NETWORKS[kind], *wide)
    jacobians = CALLS["jacobians"](NETWORKS[kind], *wide)
    # Each step loses its condition number at most.
    condition = float(np.linalg.cond(jacobians).max())
    assert_close(got, expected, length=T * H * condition**2)


@pytest.mark.parametrize("name", ["norms of a loss"])
def test_sixteen_bits_are_computed_on_in_float32(name):
    layer = networks(jnp.bfloat16)["vanilla"]
    params, _, xs = drawn(layer, dtype=jnp.bfloat16)
    got = CALLS[name](layer, params, None, xs)
    assert got.dtype == jnp.float32
    assert not jnp.isnan(got).any()


# Bad input


def bad_inputs():
    layer = NETWORKS["vanilla"]
    params, state, xs = drawn(layer)
    both = jaxrnn.bidirectional(layer, layer)
    dense = jaxrnn.dense(D, 2, dtype=jnp.float64)
    for name, call in CALLS.items():
        yield name, (call, "vanilla", params, state, xs), TypeError, "layer", "str"
        yield name, (call, both, (params, params), None, xs), ValueError, "layer", "not causal"
        yield (
            name,
            (call, dense, dense.init(jax.random.key(0)), (), xs),
            ValueError,
            "layer",
            "state",
        )
        yield name, (call, layer, params, None, [0.0]), TypeError, "xs", "list"
        yield name, (call, layer, params, None, xs[:, :1]), ValueError, "xs", "(7, 1)"
        yield name, (call, layer, params, None, xs[:, None]), ValueError, "xs", "(7, 1, 2)"
        yield name, (call, layer, params, state[:2], xs), ValueError, "h0", "(2,)"
        yield name, (call, layer, None, None, xs), TypeError, "params", "NoneType"
    norms, spectrum = diagnostics.gradient_norms_by_lag, diagnostics.lyapunov_spectrum
    good = (layer, params, state, xs)
    yield "loss", (norms, *good, "loss"), TypeError, "loss_fn", "loss"
    yield "loss", (norms, *good, lambda s, ys: ys), ValueError, "loss_fn", "(7, 4)"
    for options, error, name, got in [
        ({"num_exponents": 5}, ValueError, "num_exponents", "5"),
        ({"num_exponents": 0}, ValueError, "num_exponents", "0"),
        ({"discard": -1}, ValueError, "discard", "-1"),
        ({"discard": T}, ValueError, "discard", "7"),
        ({"num_steps": 3}, ValueError, "xs and num_steps", "both"),
    ]:
        yield "spectrum", (functools.partial(spectrum, **options), *good), error, name, got
    yield "spectrum", (spectrum, layer, params, None), ValueError, "xs and num_steps", "neither"
    alone = functools.partial(spectrum, num_steps=0)
    yield "spectrum", (alone, layer, params, None), ValueError, "num_steps", "0"
    radius, saturated = diagnostics.spectral_radius, diagnostics.saturated_fraction
    yield "radius", (radius, jnp.ones((2, 3))), ValueError, "w", "(2, 3)"
    yield "radius", (radius, jnp.ones(3)), ValueError, "w", "(3,)"
    yield "radius", (radius, jnp.ones((2, 2), jnp.int32)), ValueError, "w", "int32"
    yield "radius", (radius, [[1.0]]), TypeError, "w", "list"
    yield "saturated", (saturated, [0.0]), TypeError, "hs", "list"
    yield "saturated", (saturated, jnp.ones(3, jnp.int32)), ValueError, "hs", "int32"
    for options, error, name, got in [
        ({"activation": jnp.sin}, ValueError, "activation", "sin"),
        ({"activation": "tanh"}, TypeError, "activation", "tanh"),
        ({"threshold": 1.0}, ValueError, "threshold", "1.0"),
    ]:
        yield "saturated", (functools.partial(saturated, **options), state), error, name, got
    find, starts = diagnostics.fixed_points, state[None]
    yield "points", (find, None, params, None, starts), TypeError, "layer", "NoneType"
    yield "points", (find, both, (params,) * 2, None, starts), ValueError, "layer", "not causal"
    yield "points", (find, layer, params, xs[0, :1], starts), ValueError, "x", "(1,)"
    yield "points", (find, layer, params, xs, starts), ValueError, "h", "(4,)"
    yield "points", (find, layer, params, None, state), ValueError, "h", "()"
    yield "points", (find, layer, params, None, starts[:0]), ValueError, "starts", "(0, 4)"
    yield "points", (find, layer, params, None, [[0.0]]), ValueError, "starts", "()"
    for options, name, got in [
        ({"num_steps": 0}, "num_steps", "0"),
        ({"tolerance": 0}, "tolerance", "0"),
    ]:
        yield (
            "points",
            (functools.partial(find, **options), layer, params, None, starts),
            ValueError,
            name,
            got,
        )


@pytest.mark.parametrize(("call", "error", "name", "got"), [row[1:] for row in bad_inputs()])
def test_bad_input_is_refused_by_name(call, error, name, got):
    function, *arguments = call
    with pytest.raises(error, match=re.compile(f"^{name} .*{re.escape(got)}")):
        function(*arguments)

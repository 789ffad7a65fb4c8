"""Initializers: the documented properties, in every dtype and under jit and vmap."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import initializers
from tests.support.checks import assert_close, assert_identical

H = 32
DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64]
MAKERS = {
    "orthogonal": initializers.orthogonal,
    "identity": initializers.identity,
    "scaled_spectral_radius": lambda: initializers.scaled_spectral_radius(0.9),
    "normal": initializers.normal,
    "uniform": initializers.uniform,
    "ring": initializers.ring,
}
AROUND = {  # initializers around another
    "with_spectral_radius": lambda: initializers.with_spectral_radius(0.9, initializers.normal()),
    "sparse": lambda: initializers.sparse(0.4, initializers.uniform()),
    "dale": lambda: initializers.dale(0.75, initializers.normal()),
}
ALL = MAKERS | AROUND


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_every_initializer_returns_the_dtype_and_shape_asked_for(key, name, dtype):
    w = ALL[name]()(key, (H, H), dtype)
    assert w.dtype == dtype
    assert w.shape == (H, H)
    assert jnp.isfinite(w).all()
    assert w.any()


def test_every_initializer_draws_float32_by_default(key):
    assert {make()(key, (H, H)).dtype for make in ALL.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("identity", "ring")])
def test_an_initializer_draws_the_same_under_jit_and_vmap(name):
    keys = jax.random.split(jax.random.key(3), 3)
    draw = ALL[name]()
    alone = jnp.stack([draw(key, (8, 8), jnp.float64) for key in keys])
    mapped = jax.jit(jax.vmap(lambda key: draw(key, (8, 8), jnp.float64)))(keys)
    assert_close(mapped, alone, length=8)
    assert np.unique(alone).size == alone.size - max((alone == 0).sum() - 1, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MAKERS)
def test_an_initializer_can_be_mapped_over_its_argument(key, name, dtype):
    make = getattr(initializers, name)

    def draw(value):
        return make(value)(key, (8, 8), dtype)

    values = jnp.array([0.25, 0.9, 1.7], jnp.float32)
    mapped = jax.jit(jax.vmap(draw))(values)
    alone = jnp.stack([draw(float(value)) for value in values])
    assert mapped.dtype == dtype
    assert_close(mapped, alone, length=8)
    assert_identical(draw(values[1]), alone[1])


# Orthogonal and identity


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gain", [1.0, 2.5])
@pytest.mark.parametrize("size", [1, H])
def test_orthogonal_is_orthogonal_up_to_its_gain(key, dtype, gain, size):
    w = np.asarray(initializers.orthogonal(gain)(key, (size, size), dtype), np.float64)
    # Rounding changes each entry by at most half an epsilon, so an entry of W^T W by at most one
    # epsilon (Cauchy-Schwarz); the second term is the rounding of the product of reflections.
    drawn_in = np.float64 if dtype == jnp.float64 else np.float32
    bound = float(jnp.finfo(dtype).eps) + 4 * float(np.finfo(drawn_in).eps) * np.sqrt(size)
    assert np.abs(w.T @ w / gain**2 - np.eye(size)).max() <= bound


def test_orthogonal_below_float32_is_the_float32_draw_rounded(key):
    draw = initializers.orthogonal()
    wide = draw(key, (H, H), jnp.float32)
    assert_identical(draw(key, (H, H), jnp.bfloat16), wide.astype(jnp.bfloat16))
    assert_identical(draw(key, (H, H), jnp.float16), wide.astype(jnp.float16))


def test_the_entries_of_orthogonal_matrices_have_mean_zero():
    size, count = 3, 3000
    keys = jax.random.split(jax.random.key(0), count)
    w = jax.vmap(lambda key: initializers.orthogonal()(key, (size, size), jnp.float64))(keys)
    # An entry has mean 0 and variance 1 / H. (The diagonal of a plain QR factor has one sign.)
    assert np.abs(np.mean(w, axis=0)).max() <= 5 / np.sqrt(size * count)


@pytest.mark.parametrize("gain", [1.0, 0.25])
@pytest.mark.parametrize("dtype", DTYPES)
def test_identity_is_the_identity_times_the_gain(key, gain, dtype):
    w = initializers.identity(gain)(key, (4, 4), dtype)
    assert_identical(w, (gain * np.eye(4)).astype(dtype))


# Spectral radius


def radius_error(w, radius):
    """The relative error of the spectral radius, and a bound on it.

    ||W^k|| lies between rho^k and sqrt(H) cond(V) rho^k, with eigenvectors V and k = 2^24. A
    relative error e of W moves an eigenvalue by at most cond(V) e ||W|| (Bauer-Fike theorem)."""
    eps = float(jnp.finfo(w.dtype).eps)
    w = np.asarray(w, np.float64)
    values, vectors = np.linalg.eig(w)
    condition = np.linalg.cond(vectors)
    rho = np.abs(values).max()
    method = np.log(np.sqrt(len(w)) * condition) / 2**24
    rounding = eps * condition * np.linalg.norm(w, 2) / rho
    return abs(rho / radius - 1), method + rounding


@pytest.mark.parametrize("size", [1, 10, 100])
@pytest.mark.parametrize(("radius", "dtype"), [(0.9, jnp.float32), (1.25, jnp.float64)])
def test_scaled_spectral_radius_has_the_given_radius_by_the_eigenvalues_of_numpy(
    size, radius, dtype
):
    draw = initializers.scaled_spectral_radius(radius)
    error, allowed = radius_error(draw(jax.random.key(size), (size, size), dtype), radius)
    assert error <= allowed
    assert error <= 1e-5  # as the docstring says


def test_scaled_spectral_radius_has_the_given_radius_under_jit_and_vmap():
    keys = jax.random.split(jax.random.key(0), 20)
    draw = initializers.scaled_spectral_radius(0.5)
    for w in jax.jit(jax.vmap(lambda key: draw(key, (6, 6), jnp.float64)))(keys):
        error, allowed = radius_error(w, 0.5)
        assert error <= allowed


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float64])
@pytest.mark.parametrize("name", ["uniform", "sparse", "dale"])
def test_with_spectral_radius_scales_what_another_draws(key, name, dtype):
    made = initializers.with_spectral_radius(1.25, ALL[name]())(key, (H, H), dtype)
    error, allowed = radius_error(made, 1.25)
    assert error <= allowed
    drawn_in = np.promote_types(dtype, np.float32)
    w, own = (np.asarray(a, np.float64) for a in (made, ALL[name]()(key, (H, H), drawn_in)))
    scale = np.linalg.norm(w) / np.linalg.norm(own)
    # The factor and each product are rounded, and so are both norms.
    assert np.abs(w - scale * own).max() <= 4 * float(jnp.finfo(dtype).eps) * np.abs(w).max()


def test_with_spectral_radius_is_mapped_over_radii_and_equals_scaled_spectral_radius(key):
    def draw(radius):
        return initializers.with_spectral_radius(radius, jax.random.normal)(key, (8, 8))

    def expected(radius):
        return initializers.scaled_spectral_radius(radius)(key, (8, 8))

    radii = jnp.array([0.25, 0.9, 1.7], jnp.float32)
    assert_close(jax.jit(jax.vmap(draw))(radii), jax.jit(jax.vmap(expected))(radii), length=8)


def test_with_spectral_radius_leaves_a_matrix_whose_powers_vanish_as_it_is(key):
    def chain(key, shape, dtype):
        return jnp.triu(jax.random.normal(key, shape, dtype), 1)

    drawn = initializers.with_spectral_radius(0.9, chain)(key, (H, H))
    assert_identical(drawn, chain(key, (H, H), np.float32))


# Fixed fan-in and ring


@pytest.mark.parametrize(("units", "fan_in"), [(300, 7), (12, 5), (5, 5), (5, 1)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_fixed_fan_in_gives_each_unit_different_inputs_one_from_each_equal_part(
    key, units, fan_in, dtype
):
    w = initializers.fixed_fan_in(fan_in)(key, (units, units), dtype)
    assert w.values.dtype == dtype
    assert w.values.shape == w.indices.shape == (units, fan_in)
    part = -(-(np.asarray(w.indices) + 1) * fan_in // units) - 1
    assert (part == np.arange(fan_in)).all()  # and so they are different


def test_fixed_fan_in_reads_every_unit_equally_often_and_has_its_standard_deviation(key):
    units, fan_in = 300, 8
    keys = jax.random.split(key, 40)
    draw = initializers.fixed_fan_in(fan_in)
    w = jax.jit(jax.vmap(lambda key: draw(key, (units, units), jnp.float64)))(keys)
    counts = np.bincount(np.ravel(w.indices), minlength=units)
    assert counts.size == units
    expected = counts.sum() / units  # 320; parts of 37 and of 38 units differ by 3 %
    assert np.abs(counts / expected - 1).max() <= 0.03 + 5 / np.sqrt(expected)
    assert_moments(w.values, 1 / fan_in, NORMAL)
    assert not np.intersect1d(w.values[0], w.values[1]).size


def test_fixed_fan_in_refuses_more_inputs_than_units():
    draw = initializers.fixed_fan_in(6)
    with pytest.raises(ValueError, match=r"^fan_in is 6, expected at most 5, the number of"):
        draw(jax.random.key(0), (5, 5))
    with pytest.raises(ValueError, match=r"^fan_in is 0"):
        initializers.fixed_fan_in(0)
    with pytest.raises(ValueError, match=r"^shape is \(5, 6\)"):
        draw(jax.random.key(0), (5, 6))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_with_spectral_radius_of_fixed_fan_in_is_about_that_of_numpy(dtype):
    draw = initializers.with_spectral_radius(1.25, initializers.fixed_fan_in(8))
    keys = jax.random.split(jax.random.key(0), 3)
    ws = jax.jit(jax.vmap(lambda key: draw(key, (200, 200), dtype)))(keys)
    assert ws.values.dtype == dtype
    for values, indices in zip(*ws, strict=True):
        w = jaxrnn.FixedFanIn(values.astype(jnp.float64), indices).dense()
        radius = np.abs(np.linalg.eigvals(np.asarray(w))).max()
        assert abs(radius / 1.25 - 1) <= 0.02  # "to about 1 %"


def test_a_ring_passes_each_state_on_to_the_next_unit_and_has_its_weight_as_radius(key):
    w = initializers.ring(0.75)(key, (7, 7), jnp.float64)
    h = np.arange(7.0)
    assert_identical(w @ h, 0.75 * np.roll(h, 1))
    values = np.abs(np.linalg.eigvals(np.asarray(w)))
    np.testing.assert_allclose(values, 0.75, rtol=7 * np.finfo(np.float64).eps)
    assert (w != 0).sum() == 7


# Sparse and Dale


@pytest.mark.parametrize("density", [0.1, 0.75, 1.0])
def test_sparse_keeps_its_density_of_entries_and_the_variance_of_their_sum(key, density):
    w = np.asarray(initializers.sparse(density, initializers.normal(1.0))(key, (200, 200)))
    share = (w != 0).mean()
    assert abs(share - density) <= 5 * np.sqrt(density * (1 - density) / w.size)
    assert_moments(w, 1.0, 3 / density - 1)  # E x^4 = 3 / density
    ones = initializers.sparse(density, jax.nn.initializers.ones)(key, (200, 200), jnp.float64)
    kept = np.unique(ones[ones != 0])
    np.testing.assert_allclose(kept, [density**-0.5], rtol=np.finfo(np.float64).eps)


def test_sparse_is_mapped_over_densities_and_takes_a_matrix_that_is_not_square(key):
    def draw(density):
        return initializers.sparse(density, initializers.normal())(key, (8, 5), jnp.float64)

    mapped = jax.jit(jax.vmap(draw))(jnp.array([0.25, 1.0]))
    assert_close(mapped[0], draw(0.25), length=1)
    assert mapped[1].all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float64])
@pytest.mark.parametrize(("fraction", "excitatory"), [(0.8, 26), (0.25, 8), (0.001, 0)])
def test_dale_has_one_sign_a_column_balance_and_the_spectral_radius_of_what_it_is_given(
    key, fraction, excitatory, dtype
):
    wide = np.asarray(jax.random.normal(key, (H, H), jnp.float64))

    def given(key, shape, dtype):
        return jnp.asarray(wide, dtype)

    drawn = initializers.dale(fraction, given)(key, (H, H), dtype)
    assert drawn.dtype == dtype
    w, eps = np.asarray(drawn, np.float64), float(jnp.finfo(dtype).eps)
    assert (w[:, :excitatory] > 0).all()
    assert (w[:, excitatory:] < 0).all()
    if excitatory:
        assert abs(w.sum()) <= eps * np.sqrt(w.size) * np.abs(w).sum()
    radius = np.abs(np.linalg.eigvals(wide)).max()
    error, allowed = radius_error(drawn, radius)
    assert error <= allowed + 1e-5  # of the given one's radius by Gelfand's formula
    for columns in (slice(excitatory), slice(excitatory, None)):
        ratio = np.abs(w / wide)[:, columns]
        assert ratio.size == 0 or ratio.max() / ratio.min() <= 1 + 8 * eps


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (initializers.with_spectral_radius, (0, abs), ValueError, "radius is 0"),
        (initializers.with_spectral_radius, (0.9, 3), TypeError, "init is 3"),
        (AROUND["with_spectral_radius"](), (0, (3, 4)), ValueError, "shape is (3, 4)"),
        (initializers.sparse, (1.1, abs), ValueError, "density is 1.1"),
        (initializers.sparse, (0.5, None), TypeError, "init is None"),
        (initializers.dale, (1.0, abs), ValueError, "fraction is 1.0"),
        (initializers.dale, (0.5, "normal"), TypeError, "init is 'normal'"),
        (AROUND["dale"](), (0, (3, 4)), ValueError, "shape is (3, 4)"),
    ],
)
def test_an_initializer_around_another_refuses_bad_input_by_name(make, arguments, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        make(*arguments)


# Moments: five standard errors of the mean and of the variance, for a fixed key.


def assert_moments(w, variance, excess):
    """Check mean 0 and `variance`; the variance of x^2 is `excess` times the variance squared."""
    w = np.asarray(w, np.float64)
    assert abs(w.mean()) <= 5 * np.sqrt(variance / w.size)
    assert abs(np.mean(w**2) - variance) <= 5 * variance * np.sqrt(excess / w.size)


NORMAL, UNIFORM = 2.0, 0.8  # kurtosis less 1: 3 - 1 and 9 / 5 - 1


@pytest.mark.parametrize(("stddev", "expected"), [(None, 1 / 200), (0.3, 0.09)])
def test_normal_has_its_standard_deviation(key, stddev, expected):
    w = initializers.normal(stddev)(key, (200, 200), jnp.float64)
    assert_moments(w, expected, NORMAL)
    assert np.abs(w).max() > 3 * np.sqrt(expected)


@pytest.mark.parametrize(("bound", "expected"), [(None, 200**-0.5), (0.3, 0.3)])
def test_uniform_fills_its_interval_by_default_that_of_torch(key, bound, expected):
    w = initializers.uniform(bound)(key, (200, 200), jnp.float64)
    assert_moments(w, expected**2 / 3, UNIFORM)
    for end in (w.max(), -w.min()):  # 40 000 draws all fall short with probability e^-10
        assert expected * (1 - 20 / w.size) < end <= expected


# init_rnn


def test_init_rnn_draws_by_default_as_documented(key):
    params = jaxrnn.init_rnn(key, 20, 200)
    assert params.w_ih.shape == (200, 20)
    assert_moments(
        params.w_ih, 1 / 20, NORMAL
    )  # truncated, so its tails are lighter and its error is smaller
    w = np.asarray(params.w_hh, np.float64)
    eps = np.finfo(np.float32).eps
    assert np.abs(w.T @ w - np.eye(200)).max() <= eps + 4 * eps * np.sqrt(200)
    assert_identical(params.b, np.zeros(200, np.float32))
    assert params.h0 is None
    assert params.w_ih.dtype == params.w_hh.dtype == np.float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_init_rnn_draws_every_parameter_in_its_dtype(key, dtype):
    params = jaxrnn.init_rnn(key, 3, 5, learn_h0=True, leak_init=0.5, dtype=dtype)
    assert [leaf.dtype for leaf in params] == [dtype] * 5
    assert_identical(params.h0, np.zeros(5, dtype))


@pytest.mark.parametrize(
    ("initializer", "variance", "excess"),
    [
        (jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal"), 1 / 20, NORMAL),
        (jax.nn.initializers.variance_scaling(1.0, "fan_out", "normal"), 1 / 500, NORMAL),
        (jax.nn.initializers.he_uniform(), 2 / 20, UNIFORM),
        (jax.nn.initializers.glorot_uniform(), 2 / 520, UNIFORM),
    ],
)
def test_init_rnn_calls_the_initializers_of_jax_with_the_fan_in_they_expect(
    key, initializer, variance, excess
):
    other = initializers.identity()
    params = jaxrnn.init_rnn(key, 20, 500, w_ih_init=initializer, w_hh_init=other)
    assert params.w_ih.shape == (500, 20)
    assert_moments(params.w_ih, variance, excess)


def test_init_rnn_transposes_the_drawn_input_matrix(key):
    def counted(key, shape, dtype):
        del key
        return jnp.arange(np.prod(shape), dtype=dtype).reshape(shape)

    params = jaxrnn.init_rnn(key, 2, 3, w_ih_init=counted, w_hh_init=counted)
    assert_identical(params.w_ih, np.array([[0, 3], [1, 4], [2, 5]], np.float32))
    assert_identical(params.w_hh, np.arange(9, dtype=np.float32).reshape(3, 3))


def test_init_rnn_draws_its_two_matrices_from_different_keys(key):
    draw = initializers.normal()
    params = jaxrnn.init_rnn(key, 4, 4, w_ih_init=draw, w_hh_init=draw)
    assert not np.intersect1d(params.w_ih, params.w_hh).size


def test_the_univariate_network_has_two_weights(key):
    params = jaxrnn.init_rnn(key, 1, 1, use_bias=False, dtype=jnp.float64)
    assert [leaf.shape for leaf in jax.tree.leaves(params)] == [(1, 1), (1, 1)]
    assert abs(params.w_hh.item()) == 1  # an orthogonal matrix of one entry
    xs = [0.5, -1.0, 2.0]
    h, expected = 0.0, []
    for x in xs:
        h = np.tanh(params.w_hh.item() * h + params.w_ih.item() * x)
        expected.append([h])
    hs = jaxrnn.unroll(params, None, np.array(xs)[:, None])[1]
    assert_close(hs, np.array(expected), length=2 * len(xs))


def test_mapping_a_deep_init_over_seeds_does_not_deadlock_and_draws_the_same(key):
    net = jaxrnn.stack(*(jaxrnn.vanilla_rnn(16, 16, dtype=jnp.float64) for _ in range(3)))
    keys = jax.random.split(key, 32)
    draw = jax.jit(jax.vmap(net.init))
    for _ in range(20):  # concurrent factorisations in one program could deadlock
        drawn = jax.block_until_ready(draw(keys))
    alone = net.init(keys[7])
    for got, expected in zip(jax.tree.leaves(drawn), jax.tree.leaves(alone), strict=True):
        # 15 reflections of 16 entries each
        np.testing.assert_allclose(got[7], expected, rtol=0, atol=2.3e-16 * 15 * 16)

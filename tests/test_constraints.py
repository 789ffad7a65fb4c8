"""Constraints: what they promise of W holds at every step of any training, and at its beginning."""

import inspect
import textwrap
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

import jaxrnn
from jaxrnn import LowRank, RNNParams, constraints, initializers
from jaxrnn.constraints import compose
from tests.support.checks import assert_close, assert_identical

T, B, D, H, RATE, GAMMA = 5, 4, 3, 6, 0.4, 0.3
SIGNS = np.array([1, 1, -1, 1, 1, -1])
MASK = np.random.default_rng(0).random((H, H)) < 0.6
DALE, WIRED = constraints.dale(SIGNS), constraints.connectivity(MASK)
THIN, ORTHOGONAL = constraints.low_rank(2), constraints.orthogonal()
SKEW, DROP = constraints.antisymmetric(GAMMA), constraints.drop_connect(RATE)
NORMAL = {"w_hh_init": initializers.normal(), "dtype": jnp.float64}  # which compiles fast
RNN, ON_TOP = (jaxrnn.vanilla_rnn(size, H, **NORMAL) for size in (D, H))
KEY = jax.random.key(2)
EPS = {dtype: float(jnp.finfo(dtype).eps) for dtype in (np.float16, np.float32, np.float64)}
EPS[jnp.bfloat16] = 2.0**-7


def draw(*shape, dtype=np.float64):
    """Standard normal numbers. (Those of jax.random would be compiled for each shape.)"""
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), dtype)


def make_w(constraint, free, key=None):
    """The W of a free one, dense."""
    u = jnp.zeros((H, D), jax.tree.leaves(free)[0].dtype)
    w = constraint.apply(RNNParams(u, free), key=key).w_hh
    return w.dense() if isinstance(w, LowRank) else w


def begin(constraint, w):
    """The W with which a network begins that alone would begin with `w`."""
    params = RNNParams(jnp.zeros((H, D), w.dtype), w)
    return make_w(constraint, constraint.init(KEY, params).w_hh)


def radius_of(w):
    return np.abs(np.linalg.eigvals(np.asarray(w, np.float64))).max()


def wrong_signs_and_zeros(w):
    return jnp.max(jnp.where(MASK, -w * SIGNS, jnp.abs(w)))


KEPT = {  # with a violation, a function of W, and the bound on it
    "dale": (DALE, lambda w: jnp.max(-w * SIGNS), 0),
    "connectivity": (WIRED, lambda w: jnp.max(jnp.abs(w[~MASK])), 0),
    "dale, connectivity": (compose(DALE, WIRED), wrong_signs_and_zeros, 0),
    "connectivity, dale": (compose(WIRED, DALE), wrong_signs_and_zeros, 0),
    "orthogonal": (ORTHOGONAL, lambda w: jnp.max(jnp.abs(w @ w.T - jnp.eye(H))), 1e-5),
    "antisymmetric": (SKEW, lambda w: jnp.max(jnp.abs(w + w.T + 2 * GAMMA * jnp.eye(H))), 0),
}


@pytest.mark.usefixtures("as_on_the_command_line")
@pytest.mark.parametrize("optimizer", [optax.adam(0.5), optax.sgd(10.0)], ids=["adam", "sgd"])
@pytest.mark.parametrize("name", KEPT)
def test_a_constraint_holds_after_each_of_ten_thousand_large_steps(name, optimizer):
    constraint, violation, bound = KEPT[name]
    layer = jaxrnn.constrained(jaxrnn.vanilla_rnn(D, H), constraint)
    noise = [draw(10_000, 3, size, dtype=np.float32) for size in (D, H)]

    def loss(free, xs, targets):
        return jnp.mean((layer.unroll(free, None, xs)[1] - targets) ** 2)

    def update(carry, now):
        free, state, worst = carry
        changes, state = optimizer.update(jax.grad(loss)(free, *now), state)
        free = optax.apply_updates(free, changes)
        worst = jnp.maximum(worst, violation(constraint.apply(free).w_hh))  # NaN if that is
        return (free, state, worst), None

    free = RNNParams(*(draw(*shape, dtype=np.float32) for shape in ((H, D), (H, H), (H,))))
    start = (free, optimizer.init(free), np.float32(-np.inf))
    after, _, worst = jax.jit(lambda start: jax.lax.scan(update, start, noise)[0])(start)
    assert worst <= bound
    assert (jnp.sign(after.w_hh) == -jnp.sign(free.w_hh)).any()  # so there was a sign to keep
    assert jnp.abs(after.w_hh - free.w_hh).max() > 10


@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16, np.float16])
def test_orthogonal_is_a_rotation_and_scipy_s_exponential_for_free_values_small_and_huge(dtype):
    within = min(EPS[dtype], EPS[np.float32])
    for size in (2, 9, 64):
        free, norms = draw(size, size), np.array([1e-3, 3, 30, 300])
        scales = norms / np.linalg.norm(free - free.T, 2)
        frees = (free[None] * scales[:, None, None]).astype(dtype)
        ws = jax.jit(jax.vmap(partial(make_w, ORTHOGONAL)))(frees)
        skews = np.asarray(frees, np.float64)
        skews = skews - skews.swapaxes(1, 2)
        for norm, w, skew in zip(norms, np.asarray(ws, np.float64), skews, strict=True):
            # Rounding W changes this by at most an epsilon (see test_initializers.py).
            allowed = EPS[dtype] + 4 * within * np.sqrt(size)  # below 1e-5 in float32
            assert np.abs(w @ w.T - np.eye(size)).max() <= allowed, (size, norm)
            assert np.linalg.det(w) > 0
            # Each of 2^12 equal factors is cut after its sixth power, and rounded.
            cut = (norm / 2**12) ** 7 / 5040
            allowed = EPS[dtype] + 2**12 * (cut + within * np.sqrt(size))
            assert np.abs(w - scipy.linalg.expm(skew)).max() <= allowed, (size, norm)


def test_orthogonal_keeps_one_axis_of_an_odd_size():
    for size in (1, 9):
        values = np.linalg.eigvals(np.asarray(make_w(ORTHOGONAL, draw(size, size))))
        assert np.abs(values - 1).min() <= 2**12 * EPS[np.float64] * np.sqrt(size)


def test_antisymmetric_is_exactly_so_apart_from_gamma_and_begins_as_large_as_the_layer_s_own():
    free, gammas = draw(H, H, dtype=np.float32), jnp.array([0.0, 0.3, 0.9], np.float32)
    ws = jax.jit(jax.vmap(lambda gamma: make_w(constraints.antisymmetric(gamma), free)))(gammas)
    for gamma, w in zip(gammas, ws, strict=True):
        np.testing.assert_array_equal(w + w.T, -2 * gamma * jnp.eye(H, dtype=w.dtype))
        np.testing.assert_array_equal(jnp.triu(w, 1), jnp.triu(free - free.T, 1))
        assert_identical(w, make_w(constraints.antisymmetric(float(gamma)), free))
    above = np.asarray(begin(SKEW, draw(200, 200)))[np.triu_indices(200, 1)]
    assert abs(np.mean(above**2) - 1) <= 5 * np.sqrt(2 / above.size)  # five standard errors


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_low_rank_begins_with_about_the_spectral_radius_of_the_layer_s_own(dtype):
    w = begin(constraints.low_rank(60), 3 * jnp.eye(200, dtype=dtype))
    assert w.dtype == dtype
    assert 0.8 * 3 <= radius_of(w) <= 1.2 * 3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float32, np.float16])
def test_dale_begins_in_balance_and_with_the_spectral_radius_of_the_layer_s_own(dtype):
    signs, own = np.where(np.arange(50) < 40, 1, -1), (0.2 * draw(50, 50)).astype(dtype)
    made = begin(constraints.dale(signs), own)
    assert made.dtype == dtype
    w = np.asarray(made, np.float64)
    assert (w * signs > 0).all()
    assert abs(w.sum()) <= EPS[dtype] * np.sqrt(w.size) * np.abs(w).sum()
    # 1e-5 for Gelfand's formula, and for eigenvalues that move 8 times as much as the entries do
    assert abs(radius_of(made) / radius_of(own) - 1) <= 1e-5 + 8 * EPS[dtype]
    for kind in (1, -1):
        ratio = np.abs(w / np.asarray(own, np.float64))[:, signs == kind]
        assert ratio.max() / ratio.min() <= 1 + 8 * EPS[dtype]


def test_connectivity_begins_with_the_norm_of_the_layer_s_own():
    own, kept = draw(H, H), np.where(MASK, draw(H, H), 0)
    expected = kept * (np.linalg.norm(own) / np.linalg.norm(kept))
    assert_close(begin(WIRED, own), expected, length=H * H)


@pytest.mark.parametrize("constraint", [DALE, WIRED, compose(DALE, WIRED), DROP])
def test_a_matrix_that_already_obeys_stays_as_it_is(constraint):
    obeys = begin(constraint, draw(H, H))
    assert_close(begin(constraint, obeys), obeys, length=H * H)


def test_what_cannot_be_scaled_begins_without_nan():
    assert not begin(DALE, jnp.zeros((H, H))).any()
    assert jnp.isfinite(begin(constraints.dale(-np.ones(H)), jnp.eye(H))).all()
    assert not begin(constraints.connectivity(MASK & False), jnp.eye(H)).any()


def test_compose_applies_the_first_one_first_and_begins_with_the_last():
    more = constraints.on_recurrent(lambda key, w: w - 1, lambda free, key: free + 1)
    twice = constraints.on_recurrent(lambda key, w: w / 2, lambda free, key: free * 2)
    assert_identical(make_w(compose(more, twice), draw(H, H)), 2 * (draw(H, H) + 1))
    assert_close(begin(compose(more, twice), draw(H, H)), draw(H, H), length=1)


NETWORKS = {  # and the number of their cells
    "stack of tokens": (jaxrnn.stack(jaxrnn.embedding(7, D), RNN, ON_TOP), 2),
    "bidirectional": (jaxrnn.bidirectional(RNN, jaxrnn.stack(RNN, ON_TOP)), 3),
    "deep_rnn": (jaxrnn.deep_rnn((D, H, H, 2), dropout_rate=0.2, **NORMAL), 2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_constraint_reaches_every_cell_with_a_key_of_its_own_and_nothing_else(key, name):
    net, count = NETWORKS[name]

    def leaves(params, *, recurrent):
        paths = jax.tree.leaves_with_path(params)
        return [a for path, a in paths if jax.tree_util.keystr(path).endswith("w_hh") == recurrent]

    drawn = constraints.on_recurrent(
        lambda key, w: jax.random.normal(key, w.shape),
        lambda free, key: jax.random.normal(key, free.shape),
    )
    own = net.init(key)
    free = drawn.init(key, own)
    for params in (free, drawn.apply(free, key=key)):
        assert_identical(leaves(params, recurrent=False), leaves(own, recurrent=False))
        ws = np.array(leaves(params, recurrent=True))
        assert np.unique(ws).size == ws.size == count * H * H
    layer = jaxrnn.constrained(net, WIRED)
    ws = np.array(leaves(WIRED.apply(layer.init(key)), recurrent=True))
    assert ((ws != 0) == MASK).all()
    assert layer[:2] + layer[-2:] == net[:2] + net[-2:]  # sizes, causal, reads_tokens


def through_exponential(free, g):
    back = scipy.linalg.expm_frechet(np.asarray(free - free.T).T, g, compute_expm=False)
    return back - back.T


BY_HAND = {  # the gradient for a free W from the gradient for W
    "dale": (DALE, lambda free, g, key: g * np.sign(free) * SIGNS),
    "connectivity": (WIRED, lambda free, g, key: np.where(MASK, g, 0)),
    "low_rank": (THIN, lambda free, g, key: LowRank(g @ free.n, g.T @ free.m)),
    "orthogonal": (ORTHOGONAL, lambda free, g, key: through_exponential(free, g)),
    "antisymmetric": (SKEW, lambda free, g, key: g - g.T),
    "drop_connect": (DROP, lambda free, g, key: g * make_w(DROP, jnp.ones((H, H)), key=key)),
}


@partial(jax.jit, static_argnums=0)
def differentiate(layer, params, key):
    """(ys, the gradient of a function of them)."""

    def loss(params):
        ys = layer.unroll(params, None, draw(T, B, D), key=key)[1]
        return jnp.sum(jnp.cos(ys)), ys

    return jax.grad(loss, has_aux=True)(params)[::-1]


@pytest.mark.parametrize("name", BY_HAND)
def test_values_are_those_of_the_dense_layer_and_gradients_obey_the_chain_rule(key, name):
    constraint, pull_by_hand = BY_HAND[name]
    free = RNNParams(draw(H, D), LowRank(draw(H, 2), draw(H, 2)), draw(H))
    if name != "low_rank":
        free = free._replace(w_hh=draw(H, H))
    key_params, _ = jax.random.split(key)
    ys, got = differentiate(jaxrnn.constrained(RNN, constraint), free, key)
    params, pull = jax.vjp(lambda free: constraint.apply(free, key=key_params), free)
    expected, own = differentiate(RNN, params, key)
    assert_close((ys, got), (expected, *pull(own)), length=T * B * H)
    if name == "low_rank":
        assert isinstance(params.w_hh, LowRank)
        assert np.linalg.matrix_rank(params.w_hh.dense()) == 2
        expected, own = differentiate(RNN, params._replace(w_hh=params.w_hh.dense()), key)
    by_hand = own._replace(w_hh=pull_by_hand(free.w_hh, np.asarray(own.w_hh), key_params))
    # Ten squarings multiply what was rounded before them by 2^10 = 32 sqrt(2^10).
    length = 2**10 * H if name == "orthogonal" else T * B * H
    assert_close((ys, got), (expected, by_hand), length=length)


def test_orthogonal_begins_with_uniform_angles_over_seeds_whose_map_equals_the_steps_of_each(key):
    layer = jaxrnn.constrained(jaxrnn.vanilla_rnn(0, H, activation=jnp.cos, **NORMAL), ORTHOGONAL)
    xs, keys = jnp.zeros((T, 0)), jax.random.split(key, 40)

    def unroll(key):
        free = layer.init(key)
        return ORTHOGONAL.apply(free).w_hh, layer.unroll(free, None, xs)

    mapped = jax.jit(jax.vmap(unroll))(keys)
    angles = np.sort(np.abs(np.angle(np.linalg.eigvals(np.asarray(mapped[0]))).ravel()))
    shares, count = angles[::2] / np.pi, angles.size // 2  # the others are their conjugates
    expected = (np.arange(count) + 0.5) / count
    assert np.abs(shares - expected).max() <= 1.95 / np.sqrt(count)  # Kolmogorov-Smirnov: 0.001
    free = layer.init(keys[7])
    steps = jax.lax.scan(partial(layer.step, free), layer.initial_state(free), xs)
    alone = ORTHOGONAL.apply(free).w_hh, steps
    assert_close(jax.tree.map(lambda leaf: leaf[7], mapped), alone, length=2**10 * H)


def test_drop_connect_drops_the_same_weights_at_every_step_and_without_a_key_none(key):
    rnn = jaxrnn.vanilla_rnn(D, H, activation=jax.nn.identity, dtype=jnp.float64)
    layer, free = jaxrnn.constrained(rnn, DROP), RNNParams(draw(H, D), draw(H, H))
    for options, scales in (({"key": key}, [0, 1 / (1 - RATE)]), ({}, [1])):
        _, powers = layer.unroll(free, jnp.eye(H), jnp.zeros((T, H, D)), **options)
        w = np.asarray(powers[0]).T
        found = np.unique(np.round(w / np.asarray(free.w_hh), 12))
        np.testing.assert_allclose(found, scales, rtol=0, atol=1e-11)
        for step, power in enumerate(powers):
            assert_close(power.T, np.linalg.matrix_power(w, step + 1), length=T * H)
    assert_identical(DROP.apply(free), free)


def test_drop_connect_drops_its_rate_and_keeps_the_mean_for_rates_of_a_map_too(key):
    def drop(rate):
        return make_w(constraints.drop_connect(rate), jnp.ones((300, 300)), key=key)

    rates = np.array([0.0, 0.25, 0.9])
    for rate, w in zip(rates, jax.jit(jax.vmap(drop))(jnp.asarray(rates)), strict=True):
        error = 5 * np.sqrt(rate * (1 - rate) / w.size)  # five standard errors
        assert abs(float((w == 0).mean()) - rate) <= error
        assert abs(float(w.mean()) - 1) <= error / (1 - rate)
    assert_close(w, drop(0.9), length=1)


def test_the_layer_and_each_of_several_constraints_draw_from_keys_of_their_own(key):
    twice = compose(constraints.drop_connect(0.5), constraints.drop_connect(0.5))
    share = float((make_w(twice, jnp.ones((300, 300)), key=key) != 0).mean())
    assert abs(share - 0.25) <= 5 * np.sqrt(0.25 * 0.75 / 300**2)  # a half if they shared a key
    noisy = jaxrnn.vanilla_rnn(D, H, noise=0.5, dtype=jnp.float64)
    free, h, x = RNNParams(draw(H, D), draw(H, H)), draw(B, H), draw(B, D)
    key_params, key_layer = jax.random.split(key)
    expected = noisy.step(DROP.apply(free, key=key_params), h, x, key=key_layer)
    assert_identical(jaxrnn.constrained(noisy, DROP).step(free, h, x, key=key), expected)


@pytest.mark.usefixtures("as_on_the_command_line")
def test_the_example_of_the_docstring_runs_as_printed():
    lines = inspect.getdoc(constraints).split("inhibit all others:\n")[1].split("\nWhat takes")[0]
    exec(textwrap.dedent(lines), names := {"jax": jax, "jnp": jnp, "jaxrnn": jaxrnn})
    assert names["hs"].shape == (50, 16, 100)
    assert jnp.isfinite(names["hs"]).all()


def test_bad_input_is_refused_by_name():
    cell, flags = RNNParams(np.ones((H, D)), np.ones((H, H))), np.ones((3, 3), bool)
    constrained, small = jaxrnn.constrained, r"params.w_hh has shape \(6, 6\), expected \(3, 3\)"
    for make, arguments, error, message in [
        (constraints.dale, [np.array([1, 0, -1])], ValueError, "signs is array"),
        (constraints.dale, [np.ones((2, 2))], ValueError, "signs is array"),
        (constraints.dale, [[1, -1]], TypeError, "signs is a list"),
        (constraints.dale(np.ones(3)).apply, [cell], ValueError, small),
        (constraints.connectivity(flags).apply, [cell], ValueError, small),
        (constraints.connectivity, [np.ones((H, H))], ValueError, "mask has dtype float64"),
        (constraints.connectivity, [flags[:2]], ValueError, r"mask has shape \(2, 3\)"),
        (constraints.low_rank, [0], ValueError, "rank is 0"),
        (constraints.low_rank(7).init, [KEY, cell], ValueError, "rank is 7, expected at most 6"),
        (constraints.drop_connect, [1], ValueError, "rate is 1"),
        (constraints.antisymmetric, [-0.5], ValueError, "gamma is -0.5"),
        (ORTHOGONAL.init, [KEY, (np.ones(3),)], TypeError, "params is .* expected RNNParams"),
        (constrained, [RNN, 3], TypeError, "constraint is a int, expected a Constraint"),
        (constrained, [3, DALE], TypeError, "layer is a int, expected a Layer"),
        (compose, [], ValueError, "constraints is empty"),
        (compose, [DALE, RNN], TypeError, r"constraints\[1\] is a Layer"),
        (constraints.on_recurrent, [abs, 3], TypeError, "apply is 3"),
    ]:
        with pytest.raises(error, match=f"^{message}"):
            make(*arguments)

"""Leaky units and their noise: values, gradients, and draws."""

import itertools
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import RNNParams
from tests.support.checks import JAX_ACTIVATIONS, assert_close, choose_strategy
from tests.support.leaky_cells import (
    KINDS,
    LENGTH,
    PLAIN,
    WAYS,
    B,
    D,
    H,
    T,
    assert_agree,
    bind,
    cheap_key,
    differentiate_by_hand,
    differentiated,
    draw,
    quickly,
    unrolls,
    with_gradients,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")

CASES = 18
IDENTITY = jax.nn.identity
STRATEGIES = ["before", "columns", "inside", "joined"]
in_every_way = pytest.mark.parametrize("way", WAYS)


# Values and gradients


def drawn_cases(*choices):
    """Every choice about equally often, in any combination."""
    rng = random.Random(0)
    columns = [list(itertools.islice(itertools.cycle(values), CASES)) for values in choices]
    for column in columns:
        rng.shuffle(column)
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize(
    ("name", "kind", "way", "strategy", "flat", "masked", "marked", "reverse", "noisy"),
    drawn_cases(JAX_ACTIVATIONS, KINDS, WAYS, STRATEGIES, *[[False, True]] * 5),
)
def test_leaky_units_and_every_gradient_equal_the_oracle(
    monkeypatch, name, kind, way, strategy, flat, masked, marked, reverse, noisy
):
    # Noise is added before the loop.
    choose_strategy(monkeypatch, "before" if noisy else strategy, flat=flat)
    run = with_gradients(bind(way, activation=JAX_ACTIVATIONS[name], reverse=reverse))
    for seed in range(4):
        inputs, (mask, resets), cotangents = draw(seed, kind)
        inputs, key = inputs if noisy else (*inputs[:4], None), cheap_key(seed)
        got = run(inputs, (mask if masked else None, resets if marked else None), cotangents, key)
        marks = mask | (not masked), resets & marked
        assert_agree(got, differentiate_by_hand(inputs, marks, cotangents, key, name, reverse))


@pytest.mark.parametrize(
    ("dtype", "kind", "way"),
    [
        (jnp.bfloat16, "fixed", "whole"),
        (jnp.bfloat16, "per unit", "chunks"),
        (jnp.bfloat16, "learned", "remat"),
        (jnp.bfloat16, "learned per unit", "parallel"),
        (jnp.bfloat16, "fixed", PLAIN),
        (jnp.float32, "learned", "chunks"),
    ],
)
def test_the_dtype_is_kept_and_low_precision_is_as_good_as_its_states(dtype, kind, way):
    inputs, marks, cotangents = draw(0, kind, dtype)
    name, key = "softsign" if kind == "per unit" else "tanh", cheap_key(0)
    got = with_gradients(bind(way, activation=JAX_ACTIVATIONS[name]))(
        inputs, marks, cotangents, key
    )
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(got))
    exact = jax.tree.map(np.float64, (inputs, cotangents))
    options = {"reverse": False, "drawn": np.float32}  # as products accumulate
    expected = differentiate_by_hand(exact[0], marks, exact[1], key, name, **options)
    # In bfloat16 within 8 eps: every state is rounded by half an eps.
    assert_agree(got, expected, length=1 / 16 if dtype == jnp.bfloat16 else LENGTH)


@pytest.mark.parametrize(
    ("name", "way"),
    [("tanh", "whole"), ("relu", "chunks"), ("sigmoid", "remat"), ("tanh", "parallel")],
)
def test_gradients_of_a_leak_of_a_millionth_are_as_good_in_float32_as_the_states(name, way):
    inputs, marks, cotangents = draw(0, dtype=np.float32)
    inputs = *inputs[:3], np.full(H, 1e-6, np.float32), None
    exact = jax.tree.map(np.float64, (inputs, cotangents))
    expected = differentiate_by_hand(exact[0], marks, exact[1], None, name, reverse=False)
    got = with_gradients(bind(way, activation=JAX_ACTIVATIONS[name]))(
        inputs, marks, cotangents, None
    )
    assert_close(got, expected, length=LENGTH)


@pytest.mark.parametrize("leak", [0.3, np.array([1e-6, 0.5, 0.9, 0.99])])
def test_a_leak_that_is_learned_begins_as_the_fixed_one_of_leak_init(key, leak):
    learned, fixed = jaxrnn.vanilla_rnn(D, H, leak_init=leak), jaxrnn.vanilla_rnn(D, H, leak=leak)
    params, xs = learned.init(key), draw(0, dtype=np.float32)[0][2]
    assert params.leak.shape == np.shape(leak)
    assert params.leak.dtype == jnp.float32
    got = quickly(learned.unroll)(params, None, xs)
    assert_close(got, quickly(fixed.unroll)(params._replace(leak=None), None, xs), length=T * H)


@pytest.mark.parametrize(("leak", "dtype"), [(0.999, jnp.bfloat16), (1 - 1e-9, jnp.float32)])
def test_a_leak_init_that_rounds_to_one_begins_with_a_finite_logit(key, leak, dtype):
    assert jnp.isfinite(jaxrnn.init_rnn(key, D, H, leak_init=leak, dtype=dtype).leak)


def test_a_leak_and_noise_have_gradients_of_zero_over_no_steps():
    (params, h0, xs, leak, noise), _, _ = draw(0, steps=0)

    def last(leak, noise):
        extras = {"leak": leak, "noise": noise, "key": cheap_key(0)}
        return jnp.sum(jaxrnn.unroll(params, h0, xs, **extras)[0])

    for position in (0, 1):
        assert jax.grad(last, position)(leak, noise) == 0


# Noise


THREEFRY, RBG = "threefry2x32", "rbg"


@pytest.mark.parametrize(
    ("way", "impl"), [*((way, RBG) for way in WAYS), ("whole", THREEFRY), ("chunks", THREEFRY)]
)
def test_each_step_draws_from_its_own_key_whatever_the_chunks(way, impl):
    key, leak, noise = jax.random.key(1, impl=impl), np.array([0.1, 0.5, 1, 1]), 0.3
    params = RNNParams(np.zeros((H, D)), np.zeros((H, H)))
    inputs = params, None, np.zeros((T, B, D)), leak, noise
    _, hs = quickly(bind(way, activation=IDENTITY))(inputs, (None, None), key)
    h = np.zeros((B, H))
    for k, got in zip(jax.random.split(key, T), hs, strict=True):
        f = np.sqrt(2 / leak) * noise * np.asarray(jax.random.normal(k, h.shape))
        h = (1 - leak) * h + leak * f
        assert_close(got, h, length=T)


def test_a_step_with_a_key_adds_noise_of_sigma_times_the_root_of_two_over_a_inside_f(key):
    (params, h, (x, *_), *_), _, _ = draw(0)
    leak, noise = np.array([0.1, 0.4, 1, 1]), np.array([0.2, 0, 0.5, 1])
    options = {"leak": leak, "noise": noise}
    a = h @ params.w_hh.T + x @ params.w_ih.T + params.b
    drawn = np.sqrt(2 / leak) * noise * np.asarray(jax.random.normal(key, h.shape))
    layer = jaxrnn.vanilla_rnn(D, H, **options)
    for k, inside in ((key, a + drawn), (None, a)):
        expected = (1 - leak) * h + leak * np.tanh(inside)
        assert_close(jaxrnn.step(params, h, x, key=k, **options), expected, length=H + D)
        assert_close(layer.step(params, h, x, key=k)[0], expected, length=H + D)


@pytest.mark.parametrize("leak", [0.1, 0.5, 1.0])
def test_a_unit_without_inputs_fluctuates_with_the_variance_of_its_autoregression(leak):
    """``h_t = (1 - a) h_{t-1} + a sqrt(2 / a) sigma xi_t``; its squares correlate as (1 - a)^2."""
    sigma, units = 0.3, 40
    layer = jaxrnn.vanilla_rnn(0, units, activation=IDENTITY, leak=leak, noise=sigma)
    params = RNNParams(np.zeros((units, 0)), np.zeros((units, units)))
    _, hs = quickly(layer.unroll)(params, None, np.zeros((2000, 0)), key=cheap_key(0))
    kept = (1 - leak) ** 2
    expected = leak**2 * (2 / leak) * sigma**2 / (1 - kept)
    seen = np.asarray(hs[200:])
    error = expected * np.sqrt(2 / seen.size * (1 + kept) / (1 - kept))
    assert abs(np.mean(seen**2) - expected) < 4 * error


def program(way, **options):
    """The text of the program of the outputs and gradients of `unroll`."""
    (params, h0, xs, *_), _, cotangents = draw(0)
    run = differentiated(lambda given, marks, key: unrolls(way)(*given, **options))
    text = str(jax.make_jaxpr(run)((params, h0, xs), None, cotangents, None))
    return re.sub("0x[0-9a-f]+", "", text)


@in_every_way
def test_a_leak_or_noise_that_is_not_asked_for_leaves_no_trace_in_the_program(key, way):
    expected = program(way)
    assert "random" not in expected
    assert program(way, noise=0.1) == expected
    assert program(way, key=key) == expected
    assert program(way, leak=0.5) != expected
    assert "random" in program(way, noise=0.1, key=key)

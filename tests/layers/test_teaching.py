"""Closed loops as layers, and teachers that pull the state, against loops of single steps."""

import functools
import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import closed_loop, nearest_state, teacher_forced
from tests.support.checks import add_noise, assert_close, assert_identical, random_like
from tests.support.layer_registry import estimate_through_readout

pytestmark = pytest.mark.usefixtures("compile_quickly")

T, B, D, H = 8, 3, 3, 4
LENGTH = T * B * (H + D)


def network(outputs=D, dtype=np.float64, rate=0.0):
    rnn = jaxrnn.vanilla_rnn(D, H, learn_h0=True, dtype=dtype)
    return jaxrnn.stack(rnn, jaxrnn.dropout(H, rate), jaxrnn.dense(H, outputs, dtype=dtype))


def draw_params(layer):
    return add_noise(jax.random.key(1), layer.init(jax.random.key(0)), 0.3)


def draw_inputs(seed=0):
    """Flags or fractions [T, B, 1], of which some are 0, 1 and between, and inputs [T, B, D]."""
    rng = np.random.default_rng(seed)
    return rng.choice([0.0, 0.0, 1.0, 0.25], size=(T, B, 1)), rng.normal(size=(T, B, D))


def draw_marks():
    rng = np.random.default_rng(1)
    mask, resets = rng.random((T, B)) < 0.7, rng.random((T, B)) < 0.3
    mask[:, 0], resets[2, 0] = True, True
    return mask, resets


@functools.partial(jax.jit, static_argnums=0)
def differentiate(run, *arguments):
    """Outputs, and gradients with respect to the arguments for random cotangents."""
    outputs, pull = jax.vjp(run, *arguments)
    return outputs, pull(random_like(jax.random.key(9), outputs))


# Closed loops


@pytest.mark.parametrize("outputs", [D, 2])
def test_a_closed_loop_and_its_gradients_equal_a_loop_of_single_steps(outputs):
    layer, key = network(outputs, rate=0.5 if outputs == 2 else 0.0), jax.random.key(5)
    key = key if outputs == 2 else None

    def widen(y, key):
        return jnp.concatenate([jnp.sin(y), jax.random.normal(key, (B, 1), y.dtype)], axis=-1)

    feed = widen if outputs == 2 else None
    mask, resets = draw_marks()

    def run(params, flags, given):
        xs = jnp.concatenate([flags, given], axis=-1)
        loop = closed_loop(layer, feed=feed)
        return loop.unroll(params, None, xs, mask=mask, resets=resets, key=key)

    def by_hand(params, flags, given):
        start = layer.initial_state(params, (B,)), jnp.zeros((B, outputs))
        state, ys = start, []
        keys = [None] * T if key is None else jax.random.split(key, T)
        for flag, x, kept, fresh, k in zip(flags, given, mask, resets, keys, strict=True):
            before = choose(fresh & kept, start, state)
            own, feeding = (None, None) if k is None else jax.random.split(k)
            fed = before[1] if feed is None else feed(before[1], feeding)
            after, y = layer.step(params, before[0], flag * x + (1 - flag) * fed, key=own)
            state = choose(kept, (after, y), state)
            ys.append(choose(kept, y, jnp.zeros_like(y)))
        return state, jnp.stack(ys)

    def choose(flags, one, other):
        return jax.tree.map(lambda a, b: jnp.where(flags[:, None], a, b), one, other)

    params, flags, given = draw_params(layer), *draw_inputs()
    result, (g_params, g_flags, g_given) = differentiate(run, params, flags, given)
    expected, (e_params, e_flags, e_given) = differentiate(by_hand, params, flags, given)
    # At flags of 0 and 1 one of the two has no effect, and the flag has no gradient.
    e_flags = jnp.where((flags == 0) | (flags == 1), 0, e_flags)
    got = result, g_params, g_flags, g_given
    assert_close(got, (expected, e_params, e_flags, e_given), length=LENGTH)


def test_flags_of_1_are_the_layer_and_flags_of_0_after_a_warm_up_are_generate():
    layer, (_, given), warm = network(), draw_inputs(), 3
    params, loop = draw_params(layer), closed_loop(layer)
    ones = np.ones((T, B, 1))
    (own, last), ys = loop.unroll(params, None, np.concatenate([ones, given], axis=-1))
    state, expected = layer.unroll(params, None, given)
    assert_close((own, last, ys), (state, expected[-1], expected), length=LENGTH)

    flags = np.arange(T)[:, None, None] < warm
    mixed = np.concatenate([flags * ones, np.where(flags, given, np.nan)], axis=-1)
    (own, last), ys = loop.unroll(params, None, mixed)
    state, begun = layer.unroll(params, None, given[:warm])
    state, (_, generated) = jaxrnn.generate(layer, params, state, begun[-1], T - warm)
    assert_close(ys, jnp.concatenate([begun, generated]), length=LENGTH)
    assert_close((own, last), (state, ys[-1]), length=LENGTH)


@pytest.mark.parametrize("what", ["closed loop", "teacher"])
def test_what_is_not_read_changes_no_bit_of_values_or_gradients(what):
    layer = network()
    flags, given = draw_inputs()

    def run(params, flags, given):
        if what == "closed loop":
            xs = jnp.concatenate([flags, given], axis=-1)
            return closed_loop(layer).unroll(params, None, xs)
        xs = jnp.concatenate([flags, given, jnp.ones((T, B, D))], axis=-1)
        return teacher_forced(layer, estimate_of_middle).unroll(params, None, xs)

    params = draw_params(layer)
    clean = differentiate(run, params, flags, np.where(flags == 0, 0, given))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(clean))
    for poison in (np.nan, np.inf, 1e30):
        got = differentiate(run, params, flags, np.where(flags == 0, poison, given))
        assert_identical(got, clean)


def estimate_of_middle(params):
    """`estimate_through_readout` of `network`, which has a layer without a state in the middle."""
    nearest = nearest_state(params[2])
    return lambda state, x: (nearest(state[0], x), *state[1:])


@pytest.mark.usefixtures("as_on_the_command_line")
def test_the_example_of_closed_loop_runs_free_after_its_warm_up():
    lines = inspect.getdoc(closed_loop).split("that are given:\n")[1]
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(200, 3)), jnp.float32)
    names = {"jax": jax, "jnp": jnp, "jaxrnn": jaxrnn, "xs": xs}
    exec(textwrap.dedent(lines), names)
    network, params, ys = (names[name] for name in ("network", "params", "ys"))
    state, begun = network.unroll(params, None, xs[:50])
    expected = jaxrnn.generate(network, params, state, begun[-1], 100)[1][1]
    assert_close(ys, jnp.concatenate([begun, expected]), length=150 * 64)


# Teachers


@pytest.mark.parametrize("outputs", [1, 3, H])
@pytest.mark.parametrize("bias", [True, False])
def test_the_nearest_state_is_that_of_the_pseudo_inverse_and_puts_out_the_observation(
    outputs, bias
):
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(outputs, H)), rng.normal(size=outputs)
    h, y = rng.normal(size=(5, B, H)), rng.normal(size=(5, B, outputs))
    got = np.asarray(nearest_state(jaxrnn.DenseParams(w, b if bias else None))(h, y))
    b = b if bias else 0
    condition = np.linalg.cond(w)
    assert condition < 100
    length = int(H * condition**2)
    assert_close(got, h + (y - h @ w.T - b) @ np.linalg.pinv(w).T, length=length)
    assert_close(got @ w.T + b, y, length=length)


def test_a_forced_run_is_a_loop_of_pulls_and_steps_in_numpy():
    """Hess et al. 2023, equation 3, with a of each step and sequence."""
    layer = jaxrnn.stack(
        jaxrnn.vanilla_rnn(2, H, learn_h0=True, dtype=np.float64), jaxrnn.dense(H, D, dtype=float)
    )
    a, observed = draw_inputs()
    a = np.where(a == 1, a, 0.9 ** np.arange(T)[:, None, None] * (a > 0))  # annealed
    own = np.random.default_rng(3).normal(size=(T, B, 2))
    params = draw_params(layer)
    forced = teacher_forced(layer, estimate_through_readout)
    state, ys = forced.unroll(params, None, np.concatenate([a, observed, own], axis=-1))

    cell, readout = jax.tree.map(np.asarray, params)
    inverse, h = np.linalg.pinv(readout.w), np.tile(cell.h0, (B, 1))
    for t in range(T):
        implied = h + (observed[t] - h @ readout.w.T - readout.b) @ inverse.T
        h = (1 - a[t]) * h + a[t] * implied
        h = np.tanh(h @ cell.w_hh.T + own[t] @ cell.w_ih.T + cell.b)
        assert_close(ys[t], h @ readout.w.T + readout.b, length=LENGTH)
    assert_close(state[0], h, length=LENGTH)
    assert forced.input_size == 1 + D + 2


def test_without_force_a_teacher_leaves_the_layer_as_it_is():
    layer, (_, given) = network(), draw_inputs()
    params, (mask, resets) = draw_params(layer), draw_marks()

    def run(params, given):
        return layer.unroll(params, None, given, mask=mask, resets=resets)

    def run_forced(params, given):
        absent = [jnp.zeros((T, B, 1)), jnp.full((T, B, D), jnp.nan)]
        xs = jnp.concatenate([*absent, given], axis=-1)
        forced = teacher_forced(layer, estimate_of_middle)
        return forced.unroll(params, None, xs, mask=mask, resets=resets)

    got, expected = (differentiate(each, params, given) for each in (run_forced, run))
    assert_close(got, expected, length=LENGTH)


def test_force_bounds_the_gradients_of_a_chaotic_network_and_without_it_they_explode():
    units, rng = 30, np.random.default_rng(0)
    layer = jaxrnn.stack(
        jaxrnn.vanilla_rnn(0, units, use_bias=False, dtype=np.float64),
        jaxrnn.dense(units, units, dtype=np.float64),
    )
    cell, readout = layer.init(jax.random.key(0))
    cell = cell._replace(w_hh=3 * rng.normal(size=(units, units)) / np.sqrt(units))
    other = cell._replace(w_hh=cell.w_hh + 0.1 * rng.normal(size=(units, units)))
    forced = teacher_forced(layer, estimate_through_readout)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient_norm(steps, a):
        nothing = jnp.zeros((steps + 1, 0))
        start = (jnp.full((units,), 0.1), ())
        series = layer.unroll((other, readout), start, nothing)[1]

        def loss(cell):
            fractions = jnp.broadcast_to(a, (steps, 1))
            xs = jnp.concatenate([fractions, series[:-1]], axis=-1)
            ys = forced.unroll((cell, readout), start, xs)[1]
            return jnp.mean((ys - series[1:]) ** 2)

        return jnp.linalg.norm(jax.grad(loss)(cell).w_hh)

    short, long = gradient_norm(1_000, 0.7), gradient_norm(2_000, 0.7)
    assert 1e-3 < long < 1
    assert 0.5 < long / short < 2
    free = gradient_norm(2_000, 0.0)
    assert not free < 1e6


@pytest.mark.usefixtures("as_on_the_command_line")
def test_the_example_of_teacher_forced_runs_and_is_not_the_free_run():
    lines = inspect.getdoc(teacher_forced).split("through its readout:\n")[1]
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(120, 3)), jnp.float32)
    names = {"jax": jax, "jnp": jnp, "jaxrnn": jaxrnn, "xs": xs}
    exec(textwrap.dedent(lines), names)
    assert names["predictions"].shape == (100, 3)
    assert jnp.isfinite(names["predictions"]).all()
    free = names["network"].unroll(names["params"], None, jnp.zeros((100, 0)))[1]
    assert (names["predictions"][1:] != free[1:]).all()


# Bad input


def run_loop(feed):
    loop = closed_loop(network(2), feed=feed)
    return loop.unroll(draw_params(network(2)), None, np.zeros((T, B, 1 + D)))


NOT_CAUSAL = jaxrnn.bidirectional(jaxrnn.dense(D, 1), jaxrnn.dense(D, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: closed_loop(3), TypeError, "layer is a int, expected a Layer"),
        (lambda: closed_loop(NOT_CAUSAL), ValueError, "layer is not causal"),
        (lambda: closed_loop(jaxrnn.embedding(D, D)), ValueError, "layer reads tokens"),
        (lambda: closed_loop(network(2)), ValueError, "feed is None, expected a function"),
        (lambda: closed_loop(network(), feed=3), TypeError, "feed is 3"),
        (lambda: run_loop(lambda y, key: y), ValueError, "the result of feed is float64 [3, 2]"),
        (lambda: run_loop(lambda y, key: [y]), TypeError, "the result of feed is a list"),
        (
            lambda: run_loop(lambda y, key: jnp.zeros((B, D), int)),
            ValueError,
            "the result of feed is int64 [3, 3], expected float64",
        ),
        (lambda: teacher_forced(3, abs), TypeError, "layer is a int, expected a Layer"),
        (lambda: teacher_forced(NOT_CAUSAL, abs), ValueError, "layer is not causal"),
        (lambda: teacher_forced(jaxrnn.embedding(D, D), abs), ValueError, "layer reads tokens"),
        (lambda: teacher_forced(network(), None), TypeError, "estimate is None"),
        (lambda: nearest_state(np.ones((2, 3))), TypeError, "readout is a ndarray"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message), caught.value

"""A step whose numbers overflow harms nothing, is counted, and ends training where it goes on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrnn
from jaxrnn import (
    NonFiniteError,
    fit,
    init_train_state,
    make_train_step,
    train_steps,
    truncate_train_step,
)
from tests.support.checks import assert_close, assert_identical

pytestmark = pytest.mark.usefixtures("as_on_the_command_line")

D, STEPS = 3, 24
OPTIMIZERS = {
    "adam": optax.adam(0.01),
    "momentum": optax.sgd(0.01, momentum=0.9),
    "clipped": optax.chain(jaxrnn.clip_by_global_norm(1.0), optax.adam(0.01)),
}
BAD = [np.nan, np.inf, -np.inf, 1e30, -1e30]


def start(optimizer, carry=None):
    params = {"w": jnp.ones(D, jnp.float32), "b": jnp.zeros((), jnp.float32)}
    return init_train_state(params, optimizer, jax.random.key(0), carry=carry)


def linear_loss(params, batch, key):
    """What stands in `xs` is the gradient of w, and comes into the loss only where `in_loss`."""
    del key
    xs, in_loss = batch
    product = jnp.dot(params["w"], xs)
    hidden = jnp.nan_to_num(product - jax.lax.stop_gradient(product), nan=0.0)
    return jnp.where(in_loss, product, hidden) + (params["b"] - 1) ** 2, {}


@functools.cache
def compiled_run(name):
    step = make_train_step(linear_loss, OPTIMIZERS[name])
    return jax.jit(lambda state, batches: jax.lax.scan(step, state, batches))


def draw_batches(seed, injected):
    """xs [STEPS, D] with what is `injected`: (step, which of BAD, entry, whether in the loss)."""
    xs = np.random.default_rng(seed).normal(size=(STEPS, D)).astype(np.float32)
    in_loss = np.zeros(STEPS, bool)
    for step, kind, entry, into_loss in injected:
        xs[step, entry], in_loss[step] = BAD[kind], into_loss
    return xs, in_loss


def all_finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


value_and_grad = jax.jit(jax.value_and_grad(linear_loss, has_aux=True))


def loop_that_looks_at_every_number(optimizer, batches):
    """The oracle, in Python: (parameters, optimizer state, what was skipped)."""
    params, opt_state = start(optimizer)[1:3]
    skipped = []
    for batch in zip(*batches, strict=True):
        (loss, _), grads = value_and_grad(params, batch, None)
        updates, opt_after = optimizer.update(grads, opt_state, params)
        after = optax.apply_updates(params, updates)
        skipped.append(not all_finite((loss, grads, after, opt_after)))
        if not skipped[-1]:
            params, opt_state = after, opt_after
    return params, opt_state, skipped


injections = st.lists(
    st.tuples(
        st.integers(0, STEPS - 1),
        st.integers(0, len(BAD) - 1),
        st.integers(0, D - 1),
        st.booleans(),
    ),
    max_size=6,
)


@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), injected=injections)
def test_what_would_harm_is_left_out_and_counted_and_nothing_else(name, seed, injected):
    batches = draw_batches(seed, injected)
    state, metrics = compiled_run(name)(start(OPTIMIZERS[name]), batches)
    params, opt_state, skipped = loop_that_looks_at_every_number(OPTIMIZERS[name], batches)
    assert metrics["skipped"].tolist() == skipped
    assert int(state.step) == STEPS
    assert all_finite((state.params, state.opt_state))
    assert_close((state.params, state.opt_state), (params, opt_state), length=STEPS)


@pytest.mark.parametrize("bad", BAD)
def test_a_skipped_step_changes_no_bit_but_the_number_of_steps(bad):
    optimizer = OPTIMIZERS["adam"]
    before = start(optimizer)
    after, metrics = make_train_step(linear_loss, optimizer)(
        before, (jnp.full(D, bad, jnp.float32), jnp.array(False))
    )
    assert metrics["skipped"]
    assert_identical(after[1:3], before[1:3])
    assert int(after.step) == 1


def test_clipping_makes_a_gradient_of_1e30_an_update_like_any_other():
    batch = (jnp.full(D, 1e30, jnp.float32), jnp.array(False))
    step = make_train_step(linear_loss, OPTIMIZERS["clipped"])
    after, metrics = step(start(OPTIMIZERS["clipped"]), batch)
    assert not metrics["skipped"]
    assert all_finite(after[1:3])
    assert np.all(np.asarray(after.params["w"]) < 1)


def test_what_an_optimizer_holds_as_infinite_from_the_start_skips_nothing():
    optimizer = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
    state = start(optimizer)
    assert not all_finite(state.opt_state)

    def update(grads, opt_state, params=None):
        return optimizer.update(grads, opt_state, params, value=jnp.inf)

    given_value = optax.GradientTransformation(optimizer.init, update)
    batch = (jnp.ones(D, jnp.float32), jnp.array(True))
    after, metrics = make_train_step(linear_loss, given_value)(state, batch)
    assert not metrics["skipped"]
    assert np.all(np.asarray(after.params["w"]) != np.asarray(state.params["w"]))


def test_the_carry_of_a_skipped_window_is_the_one_before_it():
    def loss_fn(params, carry, xs, key):
        del key
        after = carry + jnp.sum(xs, axis=0)
        return jnp.mean(after * params["w"]), (after, {})

    xs = np.ones((6, D), np.float32)
    xs[2, 1] = np.nan
    step = make_train_step(loss_fn, OPTIMIZERS["adam"], has_carry=True)
    step = truncate_train_step(step, 2)
    state, metrics = step(start(OPTIMIZERS["adam"], jnp.zeros(D, jnp.float32)), xs)
    assert metrics["skipped"].tolist() == [False, True, False]
    assert_identical(state.carry, np.full(D, 4, np.float32))


# The end of training


def bad_from(first):
    """Batches of `fit` that are NaN from step `first` on."""

    def make_batch(key, step):
        xs = jax.random.normal(key, (D,), jnp.float32)
        return jnp.where(step < first, xs, jnp.nan), jnp.array(True)

    return make_batch


@pytest.mark.parametrize(("steps_per_call", "stops_at"), [(1, 15), (4, 16), (7, 21), (100, 40)])
def test_training_stops_at_the_first_call_that_ends_with_too_many_skipped(steps_per_call, stops_at):
    step = make_train_step(linear_loss, OPTIMIZERS["adam"])
    good, _ = fit(step, start(OPTIMIZERS["adam"]), bad_from(10), 10)
    seen = []
    with pytest.raises(
        NonFiniteError, match=f"the last {stops_at - 10} steps were skipped"
    ) as stopped:
        fit(
            step,
            start(OPTIMIZERS["adam"]),
            bad_from(10),
            40,
            steps_per_call=steps_per_call,
            max_skipped=5,
            callback=lambda state, metrics: seen.append(state),
        )
    error = stopped.value
    assert isinstance(error, FloatingPointError)
    assert int(error.state.step) == stops_at == len(error.history["loss"])
    assert error.history["skipped"].tolist() == [False] * 10 + [True] * (stops_at - 10)
    assert_identical(error.state[1:3], good[1:3])  # the last good state
    assert_identical(seen[-1][:3], error.state[:3])  # which the callback has had, to save


def test_training_goes_on_where_too_few_in_a_row_are_skipped_and_where_it_is_told_to():
    def every_other(key, step):
        return jnp.where(step % 2, jnp.nan, jax.random.normal(key, (D,))), jnp.array(True)

    step = make_train_step(linear_loss, OPTIMIZERS["adam"])
    _, history = fit(
        step, start(OPTIMIZERS["adam"]), every_other, 12, steps_per_call=3, max_skipped=2
    )
    assert history["skipped"].sum() == 6
    state, history = fit(step, start(OPTIMIZERS["adam"]), bad_from(2), 12, max_skipped=None)
    assert history["skipped"].sum() == 10
    assert all_finite(state.params)


def test_of_networks_side_by_side_one_that_fails_stops_neither_the_others_nor_the_run():
    optimizer = OPTIMIZERS["adam"]
    one = start(optimizer)
    networks = one._replace(params=0, opt_state=0, step=None, key=None)  # axes of vmap
    step = jax.vmap(make_train_step(linear_loss, optimizer), (networks, 0), (networks, 0))
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (one.params, one.opt_state))
    state = one._replace(params=copies[0], opt_state=copies[1])

    def first_is_bad(key, number):
        del number
        xs = jnp.stack([jnp.full(D, jnp.nan), jax.random.normal(key, (D,))])
        return xs, jnp.ones(2, bool)

    after, history = fit(step, state, first_is_bad, 8, steps_per_call=4, max_skipped=3)
    assert history["skipped"].tolist() == [[True, False]] * 8
    assert_identical(after.params["w"][0], state.params["w"][0])

    def both_are_bad(key, number):
        del key, number
        return jnp.full((2, D), jnp.nan), jnp.ones(2, bool)

    with pytest.raises(NonFiniteError):
        fit(step, state, both_are_bad, 8, steps_per_call=4, max_skipped=3)


@pytest.mark.parametrize("bad", [0, -1])
def test_a_number_of_skipped_steps_below_one_is_refused(bad):
    step = make_train_step(linear_loss, OPTIMIZERS["adam"])
    with pytest.raises(ValueError, match=f"max_skipped is {bad}, expected"):
        fit(step, start(OPTIMIZERS["adam"]), bad_from(1), 2, max_skipped=bad)


def test_a_run_in_one_scan_takes_all_its_steps():
    step = make_train_step(linear_loss, OPTIMIZERS["adam"])
    state, history = train_steps(step, start(OPTIMIZERS["adam"]), bad_from(1), 30)
    assert int(state.step) == 30
    assert int(history["skipped"].sum()) == 29
    assert all_finite(state.params)

"""Truncated back-propagation through time is a loop over windows, with the gradient cut between."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import (
    dense,
    fit,
    init_train_state,
    make_train_step,
    stack,
    truncate_train_step,
    vanilla_rnn,
)
from tests.support.checks import assert_close, assert_identical
from tests.support.regression import plain

BATCH, D, T = 4, 3, 11
ADAM = optax.adam(0.01)
SUMS = 8 * BATCH * D  # eight updates, each a sum over a batch of products of length D
CELL = stack(vanilla_rnn(D, 5), dense(5, 2))


def window_loss(params, carry, batch, key):
    xs, ys = batch
    carry, outputs = CELL.unroll(params, carry, xs, key=key)
    return jnp.mean((outputs - ys) ** 2), (carry, {"steps": jnp.asarray(xs.shape[0])})


STEP = make_train_step(window_loss, ADAM, has_carry=True)


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax's Adam raises a float to an int32 power, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def streams():
    rng = np.random.default_rng(0)
    return rng.normal(size=(T, BATCH, D)), rng.normal(size=(T, BATCH, 2))


def truncated_start(seed=0):
    params = CELL.init(jax.random.key(seed))
    carry = CELL.initial_state(params, (BATCH,))
    return init_train_state(params, ADAM, jax.random.key(1), carry=carry)


def in_float64(state):
    floats = jax.tree.map(lambda a: a.astype(np.float64), (state.params, state.carry))
    return state._replace(params=floats[0], carry=floats[1], opt_state=ADAM.init(floats[0]))


@pytest.mark.parametrize("window", [T, T + 1, 1000])
def test_one_window_of_full_length_is_back_propagation_through_time(streams, window):
    def whole_loss(params, batch, key):
        loss, (_, metrics) = window_loss(params, None, batch, key)
        return loss, metrics

    start_state = in_float64(truncated_start())
    state, metrics = truncate_train_step(STEP, window)(start_state, streams)
    expected, expected_metrics = make_train_step(whole_loss, ADAM)(start_state, streams)
    assert_close(state.params, expected.params, length=SUMS)
    assert metrics["loss"].shape == (1,)
    assert_close(metrics["grad_norm"][0], expected_metrics["grad_norm"], length=SUMS)


@pytest.mark.parametrize("window", [1, 3, 4, 5])
def test_truncated_training_is_a_loop_over_windows_and_the_shorter_last_one_is_used(
    streams, window
):
    start_state = in_float64(truncated_start())
    step_ = jax.jit(truncate_train_step(STEP, window))
    state, metrics = step_(start_state, streams)

    looped, carry, losses = start_state, start_state.carry, []
    for begin in range(0, T, window):
        part = jax.tree.map(lambda a, begin=begin: a[begin : begin + window], streams)
        fixed = carry  # a constant of this window: no gradient reaches the ones before

        def loss_of(params, batch, key, fixed=fixed):
            loss, (after, metrics) = window_loss(params, fixed, batch, key)
            return loss, {**metrics, "carry": after}

        looped, after = make_train_step(loss_of, ADAM)(looped, part)
        carry = after["carry"]
        losses.append(after["loss"])

    assert_close(state.params, looped.params, length=SUMS)
    assert_close(state.carry, carry, length=SUMS)
    assert_close(metrics["loss"], jnp.stack(losses), length=SUMS)
    assert int(state.step) == len(losses) == -(-T // window)
    assert metrics["steps"].tolist() == [min(window, T - b) for b in range(0, T, window)]


def test_the_carry_goes_on_from_batch_to_batch(streams):
    start_state = in_float64(truncated_start())
    step_ = truncate_train_step(STEP, 4)
    whole, _ = step_(start_state, streams)
    first, _ = step_(start_state, jax.tree.map(lambda a: a[:8], streams))
    second, _ = step_(first, jax.tree.map(lambda a: a[8:], streams))
    assert_close(second.params, whole.params, length=SUMS)
    assert_close(second.carry, whole.carry, length=SUMS)


def test_windows_of_a_batch_and_many_steps_of_them_compile_once(streams):
    traced = []

    def counted_loss(params, carry, batch, key):
        traced.append(batch[0].shape[0])
        return window_loss(params, carry, batch, key)

    batch = jax.tree.map(lambda a: jnp.asarray(a, np.float32), streams)

    def same_batch(key, step):
        del key, step
        return batch

    step_ = truncate_train_step(make_train_step(counted_loss, ADAM, has_carry=True), 4)
    state, history = fit(step_, truncated_start(), same_batch, 6, steps_per_call=2)
    assert history["loss"].shape == (6, 3)
    assert int(state.step) == 18
    assert sorted(set(traced)) == [3, 4]
    before = len(traced)
    fit(step_, state, same_batch, 6, steps_per_call=2)
    assert len(traced) == before


def test_truncated_training_maps_over_seeds(streams):
    batch = jax.tree.map(lambda a: jnp.asarray(a, np.float32), streams)
    step_ = truncate_train_step(STEP, 4)
    seeds = [truncated_start(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    mapped, _ = jax.vmap(step_, in_axes=(0, None))(stacked, batch)
    for place, seed in enumerate(seeds):
        one = jax.tree.map(lambda leaf, place=place: leaf[place], mapped.params)
        assert_close(one, step_(seed, batch)[0].params, length=SUMS)


def test_no_steps_are_no_update(streams):
    start_state = truncated_start()
    empty = jax.tree.map(lambda a: jnp.asarray(a[:0], np.float32), streams)
    state, metrics = truncate_train_step(STEP, 4)(start_state, empty)
    assert_identical(plain(state), plain(start_state))
    assert metrics["loss"].shape == (0,)


def test_without_a_carry_every_window_starts_from_the_initial_state(streams):
    def loss_fn(params, batch, key):
        loss, (_, metrics) = window_loss(params, None, batch, key)
        return loss, metrics

    plain_step = make_train_step(loss_fn, ADAM)
    start_state = in_float64(truncated_start())._replace(carry=None)
    got, metrics = truncate_train_step(plain_step, 4)(start_state, streams)
    expected = start_state
    for begin in range(0, T, 4):
        part = jax.tree.map(lambda a, begin=begin: a[begin : begin + 4], streams)
        expected, _ = plain_step(expected, part)
    assert_close(got.params, expected.params, length=SUMS)
    assert metrics["steps"].tolist() == [4, 4, 3]


def test_every_window_is_averaged_with_its_own_part_of_the_batch(streams):
    def average(tree, part):
        loss, metrics, grads = tree
        return loss, {**metrics, "first": part[0][0, 0, 0]}, jax.tree.map(jnp.zeros_like, grads)

    start_state = in_float64(truncated_start())
    state, metrics = truncate_train_step(STEP, 4)(start_state, streams, average=average)
    assert_identical(state.params, start_state.params)  # Adam's first step of no gradient is 0
    assert_identical(metrics["first"], streams[0][[0, 4, 8], 0, 0])

"""Training is a pure function of its state: resumed, cut or mapped, it is the same run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import (
    dense,
    dropout,
    fit,
    init_train_state,
    make_train_step,
    stack,
    train_steps,
    vanilla_rnn,
)
from jaxrnn.sharding import data_mesh
from tests.support.checks import assert_close, assert_identical
from tests.support.regression import (
    ADAM,
    BATCH,
    MOMENTUM,
    D,
    loss_fn,
    make_batch,
    plain,
    start,
)

STEPS = 30
RATES = jnp.array([0.003, 0.3])
# Shared, since a compiled call belongs to its train step.
STEP, ADAM_STEP = make_train_step(loss_fn, MOMENTUM), make_train_step(loss_fn, ADAM)


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax's Adam raises a float to an int32 power, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def joined(*histories):
    return jax.tree.map(lambda *parts: np.concatenate(parts), *histories)


def test_the_key_of_a_run_never_changes_and_every_step_counts_one():
    state, _ = fit(STEP, start(), make_batch, STEPS)
    assert_identical(jax.random.key_data(state.key), jax.random.key_data(start().key))
    assert_identical(state.step, np.int32(STEPS))


# Resuming


@pytest.mark.parametrize(
    ("step", "optimizer", "steps_per_call"),
    [(STEP, MOMENTUM, 5), (STEP, MOMENTUM, 7), (ADAM_STEP, ADAM, 10), (ADAM_STEP, ADAM, 100)],
)
def test_a_run_resumed_is_the_run_at_once_bit_for_bit(step, optimizer, steps_per_call):
    at_once, history = fit(step, start(optimizer), make_batch, STEPS)
    state, first = fit(step, start(optimizer), make_batch, 10, steps_per_call=steps_per_call)
    state, second = fit(step, state, make_batch, STEPS - 10, steps_per_call=steps_per_call)
    assert_identical(plain(state), plain(at_once))
    assert_identical(joined(first, second), history)


def test_no_steps_leave_the_state_and_give_an_empty_history():
    calls = []
    state, history = fit(STEP, start(), make_batch, 0, callback=lambda *given: calls.append(given))
    assert_identical(plain(state), plain(start()))
    shapes = {name: metric.shape for name, metric in history.items()}
    expected = {"loss": (0,), "grad_norm": (0,), "skipped": (0,), "errors": (0, BATCH)}
    assert shapes == expected | {"batch": (0, BATCH, D), "key": (0, 2)}
    assert not calls


def test_the_history_stacks_the_metrics_of_every_step_as_numpy_arrays():
    _, history = fit(STEP, start(), make_batch, 12, steps_per_call=5)
    assert all(type(metric) is np.ndarray for metric in history.values())
    shapes = {name: metric.shape for name, metric in history.items()}
    expected = {"loss": (12,), "grad_norm": (12,), "skipped": (12,), "errors": (12, BATCH)}
    assert shapes == expected | {"batch": (12, BATCH, D), "key": (12, 2)}


# Data


def test_the_data_depend_on_the_key_and_the_step_alone():
    def simpler(params, batch, key):
        del key
        return jnp.sum(params["w"] * 0), {"batch": batch[0]}

    first = fit(STEP, start(), make_batch, 10, steps_per_call=5)[1]["batch"]
    other = fit(make_train_step(simpler, ADAM), start(ADAM), make_batch, 10)[1]["batch"]
    assert_identical(other, first)
    assert np.unique(first).size == first.size
    other = fit(STEP, start(seed=1), make_batch, 10, steps_per_call=5)[1]["batch"]
    assert not np.intersect1d(other, first).size


def test_a_batch_is_told_its_step():
    def batch_of(key, step):
        del key
        return step

    def loss(params, batch, key):
        del key
        return jnp.sum(params["w"]), {"at": batch}

    step = make_train_step(loss, MOMENTUM)
    state, history = fit(step, start(), batch_of, 4, steps_per_call=2)
    assert_identical(history["at"], np.arange(4, dtype=np.int32))
    assert_identical(fit(step, state, batch_of, 2)[1]["at"], np.array([4, 5], np.int32))


def test_no_two_draws_of_a_run_share_a_key():
    def batch_of(key, step):
        del step
        return jax.random.key_data(key)

    def loss(params, batch, key):
        return jnp.sum(params["w"]), {"keys": jnp.stack([batch, jax.random.key_data(key)])}

    _, history = fit(make_train_step(loss, MOMENTUM), start(), batch_of, 20)
    keys = history["keys"].reshape(-1, 2)
    assert len(np.unique(keys, axis=0)) == 40
    assert not (keys == np.asarray(jax.random.key_data(start().key))).all(axis=1).any()


# Callbacks and compiling


def test_the_callback_is_given_the_state_and_the_metrics_of_each_call():
    given = []
    state, history = fit(
        STEP, start(), make_batch, 12, steps_per_call=5, callback=lambda *both: given.append(both)
    )
    assert [int(state.step) for state, _ in given] == [5, 10, 12]
    assert all(type(leaf) is np.ndarray for _, metrics in given for leaf in metrics.values())
    assert [metrics["loss"].size for _, metrics in given] == [5, 5, 2]
    assert_identical(joined(*(metrics for _, metrics in given)), history)
    assert_identical(plain(given[-1][0]), plain(state))
    assert_identical(plain(given[0][0]), plain(fit(STEP, start(), make_batch, 5)[0]))


def test_a_callback_that_raises_stops_the_run():
    seen = []

    def callback(state, metrics):
        del metrics
        seen.append(int(state.step))
        if state.step >= 10:
            raise StopIteration

    with pytest.raises(StopIteration):
        fit(STEP, start(), make_batch, 100, steps_per_call=5, callback=callback)
    assert seen == [5, 10]


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap])
def test_fit_refuses_a_traced_state_and_names_the_function_to_call(transform):
    def run(seeds):
        return fit(STEP, start(seed=seeds), make_batch, 3)

    with pytest.raises(TypeError, match=r"state is traced by .*, expected .* call train_steps"):
        transform(run)(jnp.arange(1) if transform is jax.vmap else 1)


def test_fit_refuses_a_step_that_closes_over_a_traced_array():
    def run(rate):
        optimizer = optax.sgd(rate)
        return fit(make_train_step(loss_fn, optimizer), start(optax.sgd(0.1)), make_batch, 3)

    with pytest.raises(TypeError, match=r"state is traced by .*, expected .* call train_steps"):
        jax.vmap(run)(RATES)


def test_many_steps_in_one_scan_are_those_of_fit_bit_for_bit():
    state, metrics = train_steps(STEP, start(), make_batch, STEPS)
    expected, history = fit(STEP, start(), make_batch, STEPS)
    assert_identical(plain(state), plain(expected))
    assert_identical(metrics, history)
    state, metrics = train_steps(STEP, state, make_batch, 0)
    assert_identical(plain(state), plain(expected))
    assert metrics["errors"].shape == (0, BATCH)


def test_repeated_calls_of_fit_compile_once():
    traces = []

    def counted(params, batch, key):
        traces.append(1)
        return loss_fn(params, batch, key)

    step = make_train_step(counted, MOMENTUM)
    state, _ = fit(step, start(), make_batch, 4, steps_per_call=2)
    once = len(traces)
    assert once > 0
    fit(step, start(seed=1), make_batch, 6, steps_per_call=2)
    fit(step, state, make_batch, 2)
    assert len(traces) == once
    train_steps(step, state, make_batch, 2)
    assert len(traces) == once
    fit(step, state, make_batch, 3)  # another number of steps: the control
    assert len(traces) > once


# Transformations: eight steps, each a sum over a batch of products of length D.
SUMS = 8 * BATCH * D


def floats(state, history):
    """What a run learnt and measured, without its keys and counts."""
    return state.params, {name: history[name] for name in ("loss", "grad_norm", "errors")}


def test_training_mapped_over_seeds_is_the_loop_over_seeds():
    def run(seed):
        return train_steps(STEP, start(seed=seed), make_batch, 8)

    states, histories = jax.vmap(run)(jnp.arange(3))
    assert histories["loss"].shape == (3, 8)
    for seed in range(3):
        state, history = run(seed)
        got = jax.tree.map(lambda leaf, at=seed: leaf[at], floats(states, histories))
        assert_close(got, floats(state, history), length=SUMS)
        assert_identical(histories["key"][seed], history["key"])


def trained(rate, seed=0):
    """A run whose learning rate is an argument; with `seed` given as a number its state is not."""
    optimizer = optax.adam(rate)
    step = make_train_step(loss_fn, optimizer)
    return floats(*train_steps(step, start(optimizer, seed), make_batch, 8))


@pytest.fixture(scope="module")
def runs_in_a_loop():
    with jax.numpy_dtype_promotion("standard"):
        return [trained(float(rate)) for rate in RATES]


def test_training_mapped_over_learning_rates_is_the_loop_over_them(runs_in_a_loop):
    mapped = jax.vmap(trained)(RATES)
    for at, run in enumerate(runs_in_a_loop):
        assert_close(jax.tree.map(lambda leaf, at=at: leaf[at], mapped), run, length=SUMS)
    assert mapped[0]["b"][0] != mapped[0]["b"][1]


def test_a_grid_of_learning_rates_and_seeds_trains_in_one_compiled_call(runs_in_a_loop):
    grid = jax.jit(jax.vmap(jax.vmap(trained, in_axes=(None, 0)), in_axes=(0, None)))
    runs = grid(RATES, jnp.arange(2))
    assert runs[1]["loss"].shape == (2, 2, 8)
    assert_close(jax.tree.map(lambda leaf: leaf[1, 0], runs), runs_in_a_loop[1], length=SUMS)


def test_training_under_jit_with_a_traced_learning_rate_and_a_concrete_state_is_that_without_jit(
    runs_in_a_loop,
):
    assert_close(jax.jit(trained)(RATES[1]), runs_in_a_loop[1], length=SUMS)


def test_training_under_shard_map_is_that_without_it(runs_in_a_loop):
    """Each device trains the networks of its seeds; here one device has all of them."""
    split = jax.sharding.PartitionSpec("data")
    many = jax.vmap(lambda state: floats(*train_steps(ADAM_STEP, state, make_batch, 8)))
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), start(ADAM), start(ADAM, 1))
    sharded = jax.shard_map(
        many, mesh=data_mesh(jax.devices()[:1]), in_specs=split, out_specs=split
    )
    assert_identical(jax.jit(sharded)(states), jax.jit(many)(states))


# Networks


def echo_batch(key, step):
    """Signs [T, B, 1], and at each step the sign before."""
    del step
    xs = jax.random.rademacher(key, (9, 16, 1), np.float32)
    return xs[1:], xs[:-1]


def test_a_network_learns_to_echo_the_input_before():
    network = stack(vanilla_rnn(1, 8), dense(8, 1))

    def loss_of(params, batch, key):
        xs, ys = batch
        predicted = network.unroll(params, None, xs, key=key)[1]
        return jnp.mean((predicted - ys)[1:] ** 2), {}  # the first echo is of an unseen sign

    optimizer = optax.adam(0.01)
    state = init_train_state(network.init(jax.random.key(0)), optimizer, jax.random.key(1))
    _, history = fit(make_train_step(loss_of, optimizer), state, echo_batch, 300)
    # Guessing 0 has a loss of 1, and nothing without memory has less.
    assert history["loss"][-10:].max() < 0.01


def test_the_key_of_the_step_reaches_the_dropout_of_a_stack():
    network = stack(
        vanilla_rnn(1, 8), dropout(8, 0.5, shared_over_time=True), dropout(8, 0.5), dense(8, 1)
    )
    params = network.init(jax.random.key(0))
    xs = jnp.ones((5, 2, 1), np.float32)
    frozen = optax.sgd(0.0)

    def mean_output(key):
        return jnp.mean(network.unroll(params, None, xs, key=key)[1])

    def loss_of(params, batch, key):
        ys = network.unroll(params, None, batch, key=key)[1]
        return jnp.mean(ys), {"key": jax.random.key_data(key)}

    state = init_train_state(params, frozen, jax.random.key(1))
    _, history = fit(make_train_step(loss_of, frozen), state, lambda key, step: xs, 6)
    expected = jax.vmap(mean_output)(jax.random.wrap_key_data(history["key"]))
    assert_close(history["loss"], expected, length=8 * 10)
    assert np.unique(history["loss"]).size == 6  # nothing but the key changes

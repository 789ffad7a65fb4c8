"""Training is a pure function of its state: resumed, cut or mapped, it is the same run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import (
    TrainState,
    dense,
    dropout,
    fit,
    init_train_state,
    make_train_step,
    make_truncated_train_step,
    stack,
    vanilla_rnn,
)
from jaxrnn.training import clip_by_global_norm
from tests.support.checks import assert_close, assert_identical

BATCH, D, STEPS = 4, 3, 30
PARAMS = {"w": jnp.zeros(D), "b": jnp.zeros(())}
TARGET = np.array([1.0, -2.0, 0.5])
MOMENTUM = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05, momentum=0.9))
ADAM = optax.adam(0.01)


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax's Adam raises a float to an int32 power, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def make_batch(key, step):
    del step
    xs = jax.random.uniform(key, (BATCH, D))
    return xs, xs @ TARGET


def loss_fn(params, batch, key):
    xs, ys = batch
    noise = jax.random.uniform(key, ys.shape)
    errors = xs @ params["w"] + params["b"] + noise - ys
    return jnp.mean(errors**2), {"errors": errors, "batch": xs, "key": jax.random.key_data(key)}


# Shared, since a compiled call belongs to its train step.
STEP, ADAM_STEP = make_train_step(loss_fn, MOMENTUM), make_train_step(loss_fn, ADAM)


def start(optimizer=MOMENTUM, seed=0):
    return init_train_state(PARAMS, optimizer, jax.random.key(seed))


def plain(state):
    """A train state without its typed key, whose bits NumPy cannot read."""
    return state._replace(key=jax.random.key_data(state.key))


def joined(*histories):
    return jax.tree.map(lambda *parts: np.concatenate(parts), *histories)


# One step


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM])
def test_a_train_step_is_one_step_of_optax(optimizer):
    state = start(optimizer)._replace(params={"w": jnp.array(TARGET) / 2, "b": jnp.array(0.1)})
    batch = make_batch(jax.random.key(7), 0)
    after, metrics = make_train_step(loss_fn, optimizer)(state, batch)
    key = jax.random.wrap_key_data(metrics["key"])
    (loss, own), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, key)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    expected = TrainState(jnp.int32(1), params, opt_state, state.key)
    assert_identical(plain(after), plain(expected))
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
    assert set(metrics) == {*own, "loss", "grad_norm", "skipped"}
    assert not metrics["skipped"]
    assert_identical(
        {name: metrics[name] for name in own} | {"loss": metrics["loss"]}, own | {"loss": loss}
    )
    assert_close(metrics["grad_norm"], norm, length=D)


def test_the_key_of_a_run_never_changes_and_every_step_counts_one():
    state, _ = fit(STEP, start(), make_batch, STEPS)
    assert_identical(jax.random.key_data(state.key), jax.random.key_data(start().key))
    assert_identical(state.step, np.int32(STEPS))


# Pieces


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
def test_a_callback_under_a_transformation_is_refused(transform):
    def run(seeds):
        return fit(STEP, start(seed=seeds), make_batch, 3, callback=print)

    with pytest.raises(ValueError, match="callback is given under a JAX transformation"):
        transform(run)(jnp.arange(1) if transform is jax.vmap else 1)


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
    fit(step, state, make_batch, 3)  # another number of steps: the control
    assert len(traces) > once


# Transformations: eight steps, each a sum over a batch of products of length D.
SUMS = 8 * BATCH * D


def floats(state, history):
    """What a run learnt and measured, without its keys and counts."""
    return state.params, {name: history[name] for name in ("loss", "grad_norm", "errors")}


def test_training_mapped_over_seeds_is_the_loop_over_seeds():
    def run(seed):
        return fit(STEP, start(seed=seed), make_batch, 8, steps_per_call=4)

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
    return floats(*fit(step, start(optimizer, seed), make_batch, 8, steps_per_call=4))


RATES = jnp.array([0.003, 0.3])


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


def test_fit_inside_jit_with_a_traced_learning_rate_and_a_concrete_state_is_fit(runs_in_a_loop):
    assert_close(jax.jit(trained)(RATES[1]), runs_in_a_loop[1], length=SUMS)


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


# Truncated back-propagation through time

CELL = stack(vanilla_rnn(D, 5), dense(5, 2))
T = 11


def window_loss(params, carry, batch, key):
    xs, ys = batch
    carry, outputs = CELL.unroll(params, carry, xs, key=key)
    return jnp.mean((outputs - ys) ** 2), (carry, {"steps": jnp.asarray(xs.shape[0])})


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
    state, metrics = make_truncated_train_step(window_loss, ADAM, window)(start_state, streams)
    expected, expected_metrics = make_train_step(whole_loss, ADAM)(start_state, streams)
    assert_close(state.params, expected.params, length=SUMS)
    assert metrics["loss"].shape == (1,)
    assert_close(metrics["grad_norm"][0], expected_metrics["grad_norm"], length=SUMS)


@pytest.mark.parametrize("window", [1, 3, 4, 5])
def test_truncated_training_is_a_loop_over_windows_and_the_shorter_last_one_is_used(
    streams, window
):
    start_state = in_float64(truncated_start())
    step_ = jax.jit(make_truncated_train_step(window_loss, ADAM, window))
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
    step_ = make_truncated_train_step(window_loss, ADAM, 4)
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

    step_ = make_truncated_train_step(counted_loss, ADAM, 4)
    state, history = fit(step_, truncated_start(), same_batch, 6, steps_per_call=2)
    assert history["loss"].shape == (6, 3)
    assert int(state.step) == 18
    assert sorted(set(traced)) == [3, 4]
    before = len(traced)
    fit(step_, state, same_batch, 6, steps_per_call=2)
    assert len(traced) == before


def test_truncated_training_maps_over_seeds(streams):
    batch = jax.tree.map(lambda a: jnp.asarray(a, np.float32), streams)
    step_ = make_truncated_train_step(window_loss, ADAM, 4)
    seeds = [truncated_start(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    mapped, _ = jax.vmap(step_, in_axes=(0, None))(stacked, batch)
    for place, seed in enumerate(seeds):
        one = jax.tree.map(lambda leaf, place=place: leaf[place], mapped.params)
        assert_close(one, step_(seed, batch)[0].params, length=SUMS)


def test_no_steps_are_no_update(streams):
    start_state = truncated_start()
    empty = jax.tree.map(lambda a: jnp.asarray(a[:0], np.float32), streams)
    state, metrics = make_truncated_train_step(window_loss, ADAM, 4)(start_state, empty)
    assert_identical(plain(state), plain(start_state))
    assert metrics["loss"].shape == (0,)


# Clipping


def clip(grads, max_norm=1.0):
    optimizer = clip_by_global_norm(max_norm)
    return optimizer.update(grads, optimizer.init(grads))[0]


def to_float64(tree):
    return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float64) for leaf in jax.tree.leaves(tree)])


def random_gradient(scale, dtype=np.float64):
    rng = np.random.default_rng(1)
    shapes = {"w": (5, 3), "b": (7,), "c": ()}
    return {name: jnp.asarray(scale * rng.normal(size=s), dtype) for name, s in shapes.items()}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 1e6])
def test_clipping_is_that_of_optax_where_nothing_overflows(scale, dtype):
    grads = random_gradient(scale, dtype)
    for max_norm in (0.02, 1.0):
        expected, _ = optax.clip_by_global_norm(max_norm).update(grads, optax.EmptyState())
        got = clip(grads, max_norm)
        assert jax.tree.map(lambda leaf: leaf.dtype, got) == jax.tree.map(lambda g: g.dtype, grads)
        assert_close(got, expected, length=23)  # the norm sums 23 squares


HUGE = [
    (np.float64, 1e30),
    (np.float64, 1e200),
    (np.float64, 1e307),
    (np.float32, 1e20),
    (np.float32, 1e30),
    (np.float32, 1e38),
    (jnp.bfloat16, 1e30),
    (jnp.bfloat16, 1e38),
    (np.float16, 1e4),
]


@pytest.mark.parametrize(("dtype", "scale"), HUGE)
def test_a_gradient_whose_squares_overflow_keeps_its_direction(dtype, scale):
    grads = random_gradient(scale, dtype)
    exact = to_float64(jax.tree.map(lambda leaf: leaf.astype(jnp.float64) / scale, grads))
    for max_norm in (1.0, 0.02, 100.0):
        got = clip(grads, max_norm)
        assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(dtype)}
        # Each entry is rounded to its dtype, and the norm, of 23 squares, to float32 at least.
        wanted = max_norm * exact / jnp.linalg.norm(exact)
        eps = float(jnp.finfo(dtype).eps)
        tiny = float(jnp.finfo(dtype).tiny) * eps  # what float16 rounds small entries to
        np.testing.assert_allclose(to_float64(got), wanted, rtol=2 * eps + 8e-7, atol=tiny)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, jnp.bfloat16])
def test_nothing_stays_nothing_and_what_is_tiny_survives(dtype):
    nothing = jax.tree.map(jnp.zeros_like, random_gradient(1.0, dtype))
    assert_identical(clip(nothing), nothing)
    tiny = random_gradient(1e-30, dtype)  # whose squares underflow in float32
    eps = float(jnp.finfo(dtype).eps)
    # Divided by the largest entry and multiplied by it again: two roundings.
    np.testing.assert_allclose(to_float64(clip(tiny)), to_float64(tiny), rtol=2 * eps)
    assert not any(leaf.any() for leaf in jax.tree.leaves(clip(nothing, 1e-30)))
    beside = {"tiny": jnp.asarray(1e-30, dtype), "one": jnp.asarray(1.0, dtype)}
    assert float(clip(beside, 2.0)["tiny"]) == pytest.approx(1e-30, rel=4 * eps)


def test_a_gradient_at_the_norm_is_not_scaled():
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(-4.0)}
    assert_identical(clip(grads, 5.0), grads)
    assert_identical(clip(grads, 1e3), grads)
    assert_close(clip(grads, 2.5), jax.tree.map(lambda leaf: leaf / 2, grads), length=3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, jnp.bfloat16])
def test_a_gradient_that_is_not_finite_stays_so(bad, dtype):
    for max_norm in (1e-3, 1e6):
        for name in ("w", "b", "c"):
            grads = random_gradient(1.0, dtype)
            grads[name] = jnp.ravel(grads[name]).at[0].set(bad).reshape(grads[name].shape)
            got = clip(grads, max_norm)
            assert not np.isfinite(to_float64(got)).all()


def test_a_clipped_gradient_that_is_not_finite_is_left_out_by_optax():
    skipping = optax.apply_if_finite(optax.chain(clip_by_global_norm(1.0), optax.sgd(1.0)), 5)
    update, grads = jax.jit(skipping.update), random_gradient(1.0)
    state = skipping.init(grads)
    for count, bad in enumerate((1.0, np.nan, np.inf)):
        updates, state = update({**grads, "c": jnp.array(bad)}, state)
        assert any(leaf.any() for leaf in jax.tree.leaves(updates)) == (count == 0)
        assert int(state.total_notfinite) == count


def test_clipping_maps_over_gradients_and_leaves_out_what_is_none():
    scales = jnp.array([1e-30, 0.0, 1.0, 1e30, 1e38], jnp.float32)
    one = {**random_gradient(1.0, np.float32), "none": None, "empty": jnp.zeros((0, 2), np.float32)}
    many = jax.tree.map(lambda leaf: jnp.stack([leaf * scale for scale in scales]), one)
    mapped = jax.jit(jax.vmap(clip))(many)
    assert mapped["none"] is None
    norms = []
    for place in range(len(scales)):
        grads = jax.tree.map(lambda leaf, place=place: leaf[place], many)
        expected = clip(grads)
        got = jax.tree.map(lambda leaf, place=place: leaf[place], mapped)
        assert_close(got, expected, length=23)
        norms.append(float(jnp.linalg.norm(to_float64(got))))
    assert norms[1] == 0
    assert norms[2:] == pytest.approx([1.0] * 3, rel=1e-6)
    assert clip({}) == {}
    assert clip({"none": None}) == {"none": None}


def test_clipping_maps_over_norms():
    norms = jnp.array([1e-3, 1.0, 1e3])
    grads = random_gradient(1.0)
    mapped = jax.jit(jax.vmap(lambda max_norm: clip(grads, max_norm)))(norms)
    for place, max_norm in enumerate(norms):
        got = jax.tree.map(lambda leaf, place=place: leaf[place], mapped)
        assert_close(got, clip(grads, float(max_norm)), length=23)


def test_a_mixture_of_dtypes_is_clipped_by_one_norm():
    grads = {
        "a": jnp.array([3e30], np.float32),
        "b": jnp.array([-4e30], np.float64),
        "c": jnp.array([12e30], jnp.bfloat16),
    }
    exact = np.array([float(leaf[0]) for leaf in jax.tree.leaves(grads)])
    got = clip(grads)
    assert [leaf.dtype for leaf in jax.tree.leaves(got)] == [np.float32, np.float64, jnp.bfloat16]
    wanted = exact / np.linalg.norm(exact)
    for leaf, each in zip(jax.tree.leaves(got), wanted, strict=True):
        assert float(leaf[0]) == pytest.approx(each, rel=float(jnp.finfo(leaf.dtype).eps))


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (0, ValueError),
        (-1.0, ValueError),
        (np.nan, ValueError),
        (np.inf, ValueError),
        (None, TypeError),
        ("1", TypeError),
        (True, TypeError),
    ],
)
def test_a_bad_max_norm_is_refused(bad, error):
    with pytest.raises(error, match=r"max_norm is .*, expected a positive number"):
        clip_by_global_norm(bad)

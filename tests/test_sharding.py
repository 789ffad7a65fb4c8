"""Training over devices and hosts is training on one device, and exchanges one array per step.

A process has a fixed number of CPU devices, so that what needs several runs in a process of its
own: `run_alone` calls a function of this file in a new one.
"""

import os
import re
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxrnn import (
    bidirectional,
    dense,
    dropout,
    fit,
    init_rnn,
    init_train_state,
    make_train_step,
    masked_mean,
    stack,
    train_steps,
    truncate_train_step,
    unroll,
    unroll_plain,
    vanilla_rnn,
)
from jaxrnn.sharding import (
    data_mesh,
    replicate,
    shard_batch,
    shard_train_step,
    use_cpu_devices,
)
from tests.support.checks import assert_close, assert_identical
from tests.support.processes import PATIENCE, run_alone, run_together

T, B, D, H, STEPS = 12, 8, 3, 5, 20
SUMS = T * B * STEPS  # terms summed into a parameter over a run
HEARTBEAT = 20  # seconds
MOMENTUM = optax.sgd(0.05, momentum=0.9)
KEEP_GRADIENT = optax.trace(0.0)  # its state is the gradient
DEEP = stack(vanilla_rnn(D, H), vanilla_rnn(H, H), dense(H, D))
NOISY = stack(vanilla_rnn(D, H), dropout(H, 0.5), vanilla_rnn(H, H), dense(H, D))


def ragged_loss(params, batch, key):
    del key
    _, ys = DEEP.unroll(params, None, batch["xs"], mask=batch["mask"])
    errors = (ys - batch["targets"]) ** 2
    return masked_mean(errors, batch["mask"]), {"mean": masked_mean(ys, batch["mask"])}


def noisy_loss(params, batch, key):
    _, ys = NOISY.unroll(params, None, batch["xs"], key=key)
    return jnp.mean((ys - batch["targets"]) ** 2), {"drawn": jax.random.uniform(key)}


def count_steps(batch):
    return jnp.sum(batch["mask"])


def make_batch(key, step):
    """Sequences of every length from 0 on, so that the devices' parts differ in weight."""
    del step
    key_xs, key_targets = jax.random.split(key)
    lengths = jnp.arange(B) * T // (B - 1)
    return {
        "xs": jax.random.normal(key_xs, (T, B, D)),
        "targets": jax.random.normal(key_targets, (T, B, D)),
        "mask": jnp.arange(T)[:, None] < lengths[None],
    }


def start(network=DEEP, optimizer=MOMENTUM, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.array(rng.normal(0, 0.5, leaf.shape)), shapes)
    return init_train_state(params, optimizer, jax.random.key(seed))


def plain(state):
    return state._replace(key=jax.random.key_data(state.key))


# Two devices


def test_training_on_two_devices_is_training_on_one(tmp_path):
    run_alone(train_on_two_devices, tmp_path)


def train_on_two_devices():
    use_cpu_devices(2)
    mesh = data_mesh()
    one = make_train_step(ragged_loss, MOMENTUM)
    two = shard_train_step(one, mesh, weight_fn=count_steps)
    expected, expected_history = fit(one, start(), make_batch, STEPS, steps_per_call=10)
    got, history = fit(two, replicate(start(), mesh), make_batch, STEPS, steps_per_call=10)
    assert int(got.step) == STEPS
    assert_close(plain(got), plain(expected), length=SUMS)
    assert_close(history, expected_history, length=SUMS)
    for leaf in jax.tree.leaves(got.params):
        assert leaf.sharding.is_fully_replicated
        assert_identical(*(shard.data for shard in leaf.addressable_shards))

    seeds = jax.tree.map(lambda *leaves: jnp.stack(leaves), start(), start(seed=1))
    sweep = jax.jit(jax.vmap(lambda state: train_steps(two, state, make_batch, STEPS)))
    program = sweep.lower(seeds).compile()
    mapped = jax.tree.map(lambda leaf: leaf[0], program(seeds)[0].params)
    assert_close(mapped, expected.params, length=SUMS)
    inside, everywhere = collectives(program.as_text())
    assert everywhere == ["all-reduce"]
    assert sorted(inside.values())[-1] == ["all-reduce"]  # in the loop over steps
    assert sum(map(len, inside.values())) == 1  # and in none over time


def window_loss(params, carry, batch, key):
    del key
    carry, ys = DEEP.unroll(params, carry, batch["xs"], mask=batch["mask"])
    errors = (ys - batch["targets"]) ** 2
    return masked_mean(errors, batch["mask"]), (carry, {"mean": masked_mean(ys, batch["mask"])})


def test_truncated_training_on_two_devices_is_training_on_one(tmp_path):
    run_alone(train_windows_on_two_devices, tmp_path)


def train_windows_on_two_devices():
    """Windows of 5 steps in batches of 12, ragged, so that the last is shorter and devices differ
    in weight; the states go on into the next batch."""
    use_cpu_devices(2)
    mesh = data_mesh()
    begin = start()
    begin = begin._replace(carry=DEEP.initial_state(begin.params, (B,)))
    one = truncate_train_step(make_train_step(window_loss, MOMENTUM, has_carry=True), 5)
    two = shard_train_step(one, mesh, weight_fn=count_steps)
    expected, expected_history = fit(one, begin, make_batch, STEPS)
    placed = replicate(begin, mesh)._replace(carry=shard_batch(begin.carry, mesh, 0))
    got, history = fit(two, placed, make_batch, STEPS)
    assert history["loss"].shape == (STEPS, 3)
    assert_close(plain(got), plain(expected), length=3 * SUMS)
    assert_close(history, expected_history, length=3 * SUMS)
    split = jax.tree.leaves(got.carry)
    assert not any(leaf.sharding.is_fully_replicated for leaf in split)
    program = jax.jit(two).lower(placed, shard_batch(make_batch(begin.key, 0), mesh)).compile()
    inside, everywhere = collectives(program.as_text())
    assert everywhere == ["all-reduce"] * 2  # of whole windows and of the shorter last one
    assert sum(map(len, inside.values())) == 1  # in the loop over windows, in none over time

    def refuse(state=begin, **options):
        step = shard_train_step(one, mesh, **options)
        jax.eval_shape(step, state, make_batch(begin.key, 0))

    with pytest.raises(ValueError, match=r"batch_axes has 0, .*: axis 0 .* is time"):
        refuse(batch_axes=0)
    with pytest.raises(TypeError, match="carry_axes has None, expected ints"):
        refuse(carry_axes=None)
    with pytest.raises(ValueError, match=r"carry_axes has 2, but carry has .* shape \(8, 5\)"):
        refuse(carry_axes=2)
    odd = begin._replace(carry=DEEP.initial_state(begin.params, (7,)))
    with pytest.raises(ValueError, match=r"carry has .* axis 0 of 7, expected a multiple of 2"):
        refuse(odd)


def test_a_carry_goes_from_step_to_step_on_two_devices_as_on_one(tmp_path):
    run_alone(carry_on_two_devices, tmp_path)


def carry_on_two_devices():
    """Whole batches, whose states [H, B] are split along axis 1."""
    use_cpu_devices(2)
    mesh = data_mesh()

    def transposed(carry):
        return jax.tree.map(jnp.transpose, carry)

    def loss_of(params, carry, batch, key):
        loss, (carry, metrics) = window_loss(params, transposed(carry), batch, key)
        return loss, (transposed(carry), metrics)

    begin = start()
    begin = begin._replace(carry=transposed(DEEP.initial_state(begin.params, (B,))))
    one = make_train_step(loss_of, MOMENTUM, has_carry=True)
    two = shard_train_step(one, mesh, carry_axes=1, weight_fn=count_steps)
    expected, expected_history = train_steps(one, begin, make_batch, STEPS)
    got, history = train_steps(two, begin, make_batch, STEPS)
    assert any(leaf.any() for leaf in jax.tree.leaves(got.carry))
    assert_close(plain(got), plain(expected), length=SUMS)
    assert_close(history, expected_history, length=SUMS)


def test_axes_of_explicit_type_give_the_bits_of_automatic_ones(tmp_path):
    run_alone(train_on_explicit_axes, tmp_path)


def train_on_explicit_axes():
    use_cpu_devices(2)
    explicit = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    one = truncate_train_step(make_train_step(window_loss, MOMENTUM, has_carry=True), 5)
    begin = start()
    begin = begin._replace(carry=DEEP.initial_state(begin.params, (B,)))

    def train(mesh):
        two = shard_train_step(one, mesh, weight_fn=count_steps)
        placed = replicate(begin, mesh)._replace(carry=shard_batch(begin.carry, mesh, 0))
        return fit(two, placed, make_batch, STEPS)

    expected, expected_history = train(data_mesh())
    runs = [train(explicit)]
    with jax.set_mesh(explicit):
        runs.append(train(explicit))
    for got, history in runs:
        assert_identical(plain(got), plain(expected))
        assert_identical(history, expected_history)
        assert {str(leaf.sharding.spec) for leaf in jax.tree.leaves(got.carry)} == {
            str(PartitionSpec("data", None))
        }


def test_the_gradient_on_two_devices_is_the_mean_of_theirs(tmp_path):
    run_alone(differentiate_on_two_devices, tmp_path)


def differentiate_on_two_devices():
    use_cpu_devices(2)
    mesh = data_mesh()
    batch = jax.jit(make_batch)(jax.random.key(3), 0)
    halves = [
        jax.tree.map(lambda leaf, at=at: leaf[:, at : at + B // 2], batch) for at in (0, B // 2)
    ]
    state = start(NOISY, KEEP_GRADIENT)
    step = jax.jit(shard_train_step(make_train_step(noisy_loss, KEEP_GRADIENT), mesh))
    after, metrics = step(state, batch)
    assert_identical(jax.random.key_data(after.key), jax.random.key_data(state.key))

    value_and_grad = jax.jit(jax.value_and_grad(noisy_loss, has_aux=True))
    parts = []
    for place, half in enumerate(halves):
        own_key = jax.random.fold_in(state.key, np.uint32(2**32 - 1 - place))
        key = jax.random.split(jax.random.fold_in(own_key, state.step))[1]
        parts.append(value_and_grad(state.params, half, key))
    (loss, own), grads = jax.tree.map(lambda *leaves: sum(leaves) / 2, *parts)
    assert len({float(part[0][1]["drawn"]) for part in parts}) == 2
    assert_close(after.opt_state.trace, grads, length=T * B)
    expected = {
        **own,
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "skipped": np.array(False),
    }
    assert_close(metrics, expected, length=T * B)

    check_that_placed_batches_and_donated_states_do(step, state, batch, mesh)
    check_that_each_array_has_its_batch_axis(mesh)
    check_that_parts_without_weight_are_left_out(mesh)
    check_that_bad_batches_and_metrics_are_refused(mesh)


def check_that_placed_batches_and_donated_states_do(step, state, batch, mesh):
    placed = shard_batch(batch, mesh)
    assert placed["xs"].sharding.spec == PartitionSpec(None, "data")
    assert_identical(placed, batch)
    kept = replicate(state, mesh)
    given = replicate(kept, mesh)
    program = jax.jit(step, donate_argnums=0).lower(given, placed).compile()
    after, _ = program(given, placed)
    assert_close(after.opt_state, step(state, batch)[0].opt_state, length=T * B)
    assert jax.tree.leaves(given.params)[0].is_deleted()
    assert_identical(plain(kept), plain(state))
    inside, everywhere = collectives(program.as_text())
    assert everywhere == ["all-reduce"]
    assert not any(inside.values())


def scaled_loss(params, batch, key):
    """Of sequences [T, B], labels [B], and a scale that every device gets."""
    del key
    (xs, labels), scale = batch
    errors = (params * jnp.sum(xs, 0) - labels) * scale
    metrics = {"count": jnp.sum(labels > 0), "each": errors} if scale.ndim else {}
    return jnp.mean(errors**2), metrics


def check_that_each_array_has_its_batch_axis(mesh):
    rng = np.random.default_rng(5)
    batch = ((rng.normal(size=(T, B)), rng.normal(size=B)), np.array(2.0))
    state = init_train_state(jnp.array(0.5), KEEP_GRADIENT, jax.random.key(0))
    one = make_train_step(scaled_loss, KEEP_GRADIENT)
    expected, _ = jax.jit(one)(state, batch)
    axes = ((1, -1), None)
    step = shard_train_step(one, mesh, batch_axes=axes)
    got, _ = jax.jit(step)(state, shard_batch(batch, mesh, axes))
    assert_close(got.opt_state, expected.opt_state, length=T * B)


def check_that_parts_without_weight_are_left_out(mesh):
    def loss_of(params, batch, key):
        del key
        return params * jnp.mean(batch), {"positive": jnp.sum(batch > 0)}

    batch = jnp.array([[jnp.nan, jnp.nan, 1.0, 3.0]])
    state = init_train_state(jnp.array(0.5), KEEP_GRADIENT, jax.random.key(0))
    one = make_train_step(loss_of, KEEP_GRADIENT)
    step = jax.jit(shard_train_step(one, mesh, weight_fn=lambda x: jnp.isfinite(x).sum()))
    after, metrics = step(state, batch)
    assert float(after.opt_state.trace) == 2
    assert {name: float(value) for name, value in metrics.items()} == {
        "loss": 1,
        "grad_norm": 2,
        "positive": 2,
        "skipped": 0,
    }
    _, metrics = step(state, jnp.full((1, 4), jnp.nan))
    assert float(metrics["loss"]) == float(metrics["grad_norm"]) == 0


def check_that_bad_batches_and_metrics_are_refused(mesh):
    state = start(optimizer=KEEP_GRADIENT)
    batch = jax.eval_shape(make_batch, jax.random.key(3), 0)

    def take_step(batch, **options):
        step = shard_train_step(make_train_step(ragged_loss, KEEP_GRADIENT), mesh, **options)
        jax.eval_shape(step, state, batch)

    odd = jax.tree.map(lambda leaf: np.zeros((T, B - 1), leaf.dtype), batch)
    with pytest.raises(ValueError, match=r"batch has .* axis 1 of 7, expected a multiple of 2"):
        take_step(odd)
    with pytest.raises(ValueError, match=r"batch has .* axis 1 of 7, expected a multiple of 2"):
        shard_batch(odd, mesh)
    with pytest.raises(ValueError, match=r"batch_axes has 2, but batch has .* shape \(12, 8\)"):
        take_step(batch, batch_axes=2)
    with pytest.raises(ValueError, match=r"batch_axes is \(1, 0\), expected a prefix of the batch"):
        take_step(batch, batch_axes=(1, 0))
    with pytest.raises(TypeError, match="batch_axes has '1', expected ints and None"):
        take_step(batch, batch_axes="1")
    with pytest.raises(ValueError, match="the result of weight_fn has shape"):
        take_step(batch, weight_fn=lambda part: jnp.sum(part["mask"], 0))
    scalar = init_train_state(jnp.array(0.5), KEEP_GRADIENT, jax.random.key(0))
    one = make_train_step(scaled_loss, KEEP_GRADIENT)
    arrays = ((jnp.ones((T, B)), jnp.ones(B)), jnp.ones(1))
    with pytest.raises(ValueError, match=r"metric 'each' of shape \(4,\) .* and \(8,\) for the"):
        jax.eval_shape(shard_train_step(one, mesh, batch_axes=((1, 0), None)), scalar, arrays)


# One device


def test_arguments_of_the_wrong_kind_are_refused():
    mesh = data_mesh()
    one = make_train_step(ragged_loss, MOMENTUM)
    with pytest.raises(TypeError, match="train_step is None"):
        shard_train_step(None, mesh)
    with pytest.raises(TypeError, match="mesh is a list"):
        shard_train_step(one, jax.devices())
    with pytest.raises(TypeError, match="weight_fn is 3"):
        shard_train_step(one, mesh, weight_fn=3)
    with pytest.raises(ValueError, match="devices is empty"):
        data_mesh([])


def test_a_step_whose_gradients_cannot_be_averaged_is_refused():
    one = make_train_step(ragged_loss, MOMENTUM)
    for step in (shard_train_step(one, data_mesh()), lambda state, batch: (state, {})):
        with pytest.raises(TypeError, match=r"train_step is .* no argument average, expected"):
            shard_train_step(step, data_mesh())


def test_averages_keep_the_dtypes_of_floats(key):
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.float32)}

    def loss_of(params, batch, key):
        del key
        loss = jnp.sum(params["a"]) + jnp.sum(batch).astype(jnp.bfloat16)
        return loss, {"whole": jnp.array(3), "half": jnp.ones(2, jnp.float16)}

    state = init_train_state(params, KEEP_GRADIENT, key)
    step = make_train_step(loss_of, KEEP_GRADIENT)
    step = shard_train_step(step, data_mesh(jax.devices()[:1]))
    with jax.numpy_dtype_promotion("standard"):  # the norm is over leaves of both dtypes
        after, metrics = jax.eval_shape(step, state, jnp.ones((T, B), jnp.bfloat16))
    kinds = {name: leaf.dtype.name for name, leaf in {**after.params, **metrics}.items()}
    assert kinds.pop("grad_norm") in {"float32", "bfloat16"}
    assert kinds.pop("skipped") == "bool"
    assert kinds == {
        "a": "bfloat16",
        "b": "float32",
        "half": "float16",
        "loss": "bfloat16",
        "whole": "float32",
    }


# Automatic partitioning

COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|(?:ragged-)?all-to-all|reduce-scatter|"
    r"collective-permute|collective-broadcast)(?:-start)?\("
)


def collectives(program):
    """({body of a loop: collectives in it and in what it calls}, all collectives) of a compiled
    program's text."""
    bodies, lines = {}, []
    for line in program.splitlines():
        if found := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            lines = bodies.setdefault(found[1], [])
        lines.append(line)
    texts = {name: "\n".join(lines) for name, lines in bodies.items()}
    named = {
        name: set(re.findall(r"%([\w.-]+)", text)) & set(texts) for name, text in texts.items()
    }

    def reached(name):
        found, todo = set(), [name]
        while todo:
            if (one := todo.pop()) not in found:
                found.add(one)
                todo += named[one]
        return found

    def called(names):
        return sorted(kind for name in names for kind in re.findall(COLLECTIVE, texts[name]))

    loops = {body for text in texts.values() for body in re.findall(r"body=%?([\w.-]+)", text)}
    return {body: called(reached(body)) for body in loops}, called(texts)


def split_gradient(network, *arguments):
    """The loops' collectives in a gradient that ``jit`` partitions by itself."""
    mesh = data_mesh()
    params, *batch = arguments
    batch = shard_batch(batch, mesh)

    def loss_of(params, *batch):
        return jnp.sum(network(params, *batch) ** 2)

    step = jax.jit(jax.value_and_grad(loss_of))
    program = step.lower(replicate(params, mesh), *batch).compile().as_text()
    inside, everywhere = collectives(program)
    assert inside
    assert "all-reduce" in everywhere  # it is partitioned
    return inside


def draw_arguments():
    params = init_rnn(jax.random.key(0), D, H, learn_h0=True)
    return params, jnp.ones((T, B, D), jnp.float32), jnp.ones((T, B), bool)


def test_automatic_partitioning_puts_no_collective_into_the_loop_over_time(tmp_path):
    run_alone(partition_automatically, tmp_path)


def partition_automatically():
    use_cpu_devices(2)
    params, xs, mask = draw_arguments()

    def whole(params, xs, mask):
        return unroll(params, None, xs, mask=mask)[1]

    assert not any(split_gradient(whole, params, xs, mask).values())

    both = stack(vanilla_rnn(D, H), bidirectional(*[vanilla_rnn(H, H)] * 2), dense(2 * H, D))

    def deep(params, xs, mask):
        return both.unroll(params, None, xs, mask=mask)[1]

    assert not any(split_gradient(deep, both.init(jax.random.key(1)), xs, mask).values())

    def plain_scan(params, xs, mask):
        return unroll_plain(params, None, xs, mask=mask)[1]

    # The plain scan has one at every step: so this test can tell.
    assert any(split_gradient(plain_scan, params, xs, mask).values())

    def in_chunks(params, xs, mask):
        return unroll(params, None, xs, mask=mask, chunk_size=4)[1]

    # The loop over chunks adds up the gradients of the weights: one for all of them, each chunk.
    inside = [kinds for kinds in split_gradient(in_chunks, params, xs, mask).values() if kinds]
    assert inside == [["all-reduce"]]


def test_resets_put_no_collective_into_the_loop_over_time(tmp_path):
    run_alone(partition_with_resets, tmp_path)


def partition_with_resets():
    use_cpu_devices(2)

    def with_resets(params, xs, resets):
        return unroll(params, None, xs, resets=resets)[1]

    assert not any(split_gradient(with_resets, *draw_arguments()).values())


# Two hosts


def join_workers(rank, port, **options):
    """The mesh of both processes."""
    use_cpu_devices(2)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank, **options)
    mesh = data_mesh()
    assert mesh.size == 4
    one = make_train_step(ragged_loss, MOMENTUM)
    return mesh, shard_train_step(one, mesh, weight_fn=count_steps)


def save(path, state):
    arrays = {str(place): leaf for place, leaf in enumerate(jax.tree.leaves(plain(state)))}
    unfinished = path.with_suffix(".unfinished.npz")
    np.savez(unfinished, **arrays)
    os.replace(unfinished, path)


def load(path):
    with np.load(path) as arrays:
        leaves = [arrays[str(place)] for place in range(len(arrays))]
    return jax.tree.unflatten(jax.tree.structure(plain(start())), leaves)


def test_two_processes_train_to_the_parameters_of_one(tmp_path):
    with run_together(train_together, tmp_path) as workers:
        for worker in workers:
            output = worker.communicate(timeout=PATIENCE)[0]
            assert worker.returncode == 0, output
    expected, history = fit(make_train_step(ragged_loss, MOMENTUM), start(), make_batch, STEPS)
    for rank in (0, 1):
        assert_close(load(tmp_path / f"fit{rank}.npz"), plain(expected), length=SUMS)
        assert_close(load(tmp_path / f"loop{rank}.npz"), plain(expected), length=SUMS)
        loss = np.load(tmp_path / f"loss{rank}.npy")
        assert_close(loss, history["loss"], length=SUMS)


def train_together(rank, port, folder):
    mesh, step = join_workers(rank, port)
    state, history = fit(step, replicate(start(), mesh), make_batch, STEPS, steps_per_call=10)
    save(Path(folder, f"fit{rank}.npz"), state)
    np.save(Path(folder, f"loss{rank}.npy"), history["loss"])

    # The same from data that each process reads for itself.
    state, step = replicate(start(), mesh), jax.jit(step)
    for number in range(STEPS):
        key = jax.random.split(jax.random.fold_in(start().key, number))[0]
        own = slice(rank * B // 2, (rank + 1) * B // 2)
        part = jax.tree.map(lambda leaf, own=own: leaf[:, own], make_batch(key, number))
        state, _ = step(state, shard_batch(part, mesh))
    save(Path(folder, f"loop{rank}.npz"), state)


def test_a_killed_worker_ends_the_other_and_what_was_saved_stays(tmp_path):
    saved = tmp_path / "saved.npz"
    with run_together(train_until_killed, tmp_path) as (first, second):
        deadline = time.monotonic() + PATIENCE
        while not saved.exists() or load(saved).step < 5:
            assert time.monotonic() < deadline
            assert first.poll() is None, first.communicate()[0]
            assert second.poll() is None, second.communicate()[0]
            time.sleep(0.1)
        second.send_signal(signal.SIGKILL)
        output = first.communicate(timeout=HEARTBEAT + 60)[0]  # 60 for a slow machine
        assert first.returncode != 0
    assert "all-reduce failed" in output or "distributed service detected fatal errors" in output

    found = load(saved)
    step = make_train_step(ragged_loss, MOMENTUM)
    expected, _ = fit(step, start(), make_batch, int(found.step), steps_per_call=1)
    assert_close(found, plain(expected), length=T * B * int(found.step))


def train_until_killed(rank, port, folder):
    mesh, step = join_workers(rank, port, heartbeat_timeout_seconds=HEARTBEAT)

    def save_one(state, metrics):
        del metrics
        if jax.process_index() == 0:
            save(Path(folder, "saved.npz"), state)
        time.sleep(0.05)

    fit(step, replicate(start(), mesh), make_batch, 10**6, steps_per_call=1, callback=save_one)

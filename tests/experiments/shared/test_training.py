"""Training many networks: each stops by its own validation, and a cut run goes on bit for bit."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.shared.options import InputError, TrainConfig
from experiments.shared.training import Task, train
from jaxrnn import init_train_state, make_train_step
from jaxrnn.sharding import use_cpu_devices
from tests.support.checks import assert_close
from tests.support.processes import run_alone

OPTIMIZER = optax.sgd(0.1, momentum=0.5)
CONFIG = TrainConfig(seeds=3, steps=20, eval_every=3, patience=2, save_seconds=0)
TARGET = np.array([1.0, -2.0])


def loss_of(params, batch, key):
    del key
    return jnp.mean((params - batch) ** 2), {}


def make_batch(key, step):
    del step
    return TARGET + jax.random.normal(key, (2,))


def validate(params):
    return jnp.sum((params - TARGET) ** 2)


def make_task(inputs=TARGET, validate=validate):
    return Task("network", make_train_step(loss_of, OPTIMIZER), make_batch, validate, inputs)


def start(seeds=3):
    def one(key):
        return init_train_state(jax.random.normal(key, (2,)), OPTIMIZER, key)

    return jax.vmap(one)(jax.random.split(jax.random.key(0), seeds))


class Interrupted(Exception):
    pass


def interrupt_after(count):
    calls = iter(range(count))

    def tick(done, doing):
        if next(calls, None) is None:
            raise Interrupted

    return tick


def ignore(done, doing):
    pass


def assert_same(one, other):
    for got, expected in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(got).tobytes() == np.asarray(expected).tobytes()


def test_each_network_keeps_its_best_and_stops_by_its_own_validation():
    trained = train(make_task(), start(), CONFIG, ignore)
    validation = trained.curves["validation"]  # [E, S], NaN once stopped
    for seed in range(3):
        seen = validation[~np.isnan(validation[:, seed]), seed]
        best = int(np.argmin(seen))
        assert trained.validation[seed] == seen[best]
        assert trained.steps[seed] == min(3 * (best + 1), 20)
        assert len(seen) - (best + 1) == 2 or len(seen) == 7  # patience, or all 20 steps
        assert float(validate(trained.params[seed])) == pytest.approx(seen[best])


def test_a_network_trains_the_same_alone_and_beside_others():
    alone = jax.tree.map(lambda leaf: leaf[1:2], start())
    together = train(make_task(), start(), CONFIG, ignore)
    single = train(make_task(), alone, CONFIG, ignore)
    np.testing.assert_allclose(single.params[0], together.params[1], rtol=1e-12)
    assert single.steps[0] == together.steps[1]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_run_that_was_cut_goes_on_and_one_that_ended_is_read_again(tmp_path, count):
    expected = train(make_task(), start(), CONFIG, ignore)
    config = dataclasses.replace(CONFIG, folder=tmp_path / "run")
    with pytest.raises(Interrupted):
        train(make_task(), start(), config, interrupt_after(count))
    resumed = dataclasses.replace(CONFIG, resume=tmp_path / "run")
    for _ in range(2):
        assert_same(train(make_task(), start(), resumed, ignore), expected)


def test_a_run_goes_on_only_with_the_data_it_had(tmp_path):
    config = dataclasses.replace(CONFIG, folder=tmp_path)
    with pytest.raises(Interrupted):
        train(make_task(), start(), config, interrupt_after(1))
    resumed = dataclasses.replace(CONFIG, resume=tmp_path)
    with pytest.raises(InputError, match="other data"):
        train(make_task(inputs=TARGET + 1), start(), resumed, ignore)


def test_networks_or_batches_are_split_over_devices(tmp_path):
    run_alone(train_on_two_devices, tmp_path)


def train_on_two_devices():
    use_cpu_devices(2)
    config = dataclasses.replace(CONFIG, patience=10)

    def make_batch(key, step):
        del step
        return TARGET[:, None] + jax.random.normal(key, (2, 6))

    def loss_of(params, batch, key):
        del key
        sizes.add(batch.shape[1])
        return jnp.mean((params[:, None] - batch) ** 2), {}

    task = dataclasses.replace(
        make_task(), train_step=make_train_step(loss_of, OPTIMIZER), make_batch=make_batch
    )
    in_batches = dataclasses.replace(task, batch_size=6)
    cases = (
        (4, in_batches, None, False),
        (4, in_batches, 2, False),
        (3, in_batches, None, False),
        (3, in_batches, 2, True),
        (3, task, 2, False),
    )
    for seeds, one, devices, split in cases:
        jax.clear_caches()  # so that each training traces its loss anew
        sizes = set()
        alone = dataclasses.replace(config, seeds=seeds, devices=1)
        expected = train(one, start(seeds), alone, ignore)
        assert sizes == {6}
        folder = Path(f"{seeds} {devices} {one.batch_size}")
        both = dataclasses.replace(config, seeds=seeds, devices=devices, folder=folder)
        with pytest.raises(Interrupted):
            train(one, start(seeds), both, interrupt_after(2))
        resumed = dataclasses.replace(both, folder=None, resume=folder)
        got = train(one, start(seeds), resumed, ignore)
        assert (3 in sizes) == split
        assert_close(got.params, expected.params, length=6 * 20)
        np.testing.assert_array_equal(got.steps, expected.steps)
        assert_same(train(one, start(seeds), dataclasses.replace(both, folder=None), ignore), got)
        assert jax.tree.leaves(got.params)[0].devices() == {jax.devices()[0]}
    with pytest.raises(InputError, match="--devices is 3, but there are 2"):
        train(task, start(3), dataclasses.replace(config, devices=3), ignore)


def test_a_broken_save_is_refused_by_name(tmp_path):
    config = dataclasses.replace(CONFIG, folder=tmp_path)
    with pytest.raises(Interrupted):
        train(make_task(), start(), config, interrupt_after(1))
    for path in (tmp_path / "checkpoints").rglob("*"):
        if path.is_file() and "commit" not in path.name:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    resumed = dataclasses.replace(CONFIG, resume=tmp_path)
    with pytest.raises(InputError, match=str(tmp_path)):
        train(make_task(), start(), resumed, ignore)


def test_training_that_never_had_a_finite_validation_is_an_error():
    with pytest.raises(InputError, match="learning rate"):
        train(make_task(validate=lambda params: jnp.sum(params) * jnp.nan), start(), CONFIG, ignore)

"""A training step is one step of optax, with the loss's own key and carry."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import TrainState, init_train_state, make_train_step
from tests.support.checks import assert_close, assert_identical
from tests.support.regression import ADAM, MOMENTUM, TARGET, D, loss_fn, make_batch, plain, start


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax's Adam raises a float to an int32 power, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


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


def decayed_loss(params, carry, batch, key):
    """The carry is a decaying sum of all batches so far, and the loss reads it."""
    xs, ys = batch
    carry = {"sum": 0.5 * carry["sum"] + jnp.sum(xs, 0) * params["w"]}
    noise = jax.random.uniform(key, ys.shape)
    return jnp.mean((xs @ carry["sum"] + noise - ys) ** 2), (carry, {"noise": noise})


def test_a_carry_goes_from_step_to_step_and_no_gradient_goes_through_it():
    optimizer = optax.trace(0.0)  # its state is the gradient
    step = make_train_step(decayed_loss, optimizer, has_carry=True)
    params = {"w": jnp.array(TARGET)}
    state = init_train_state(params, optimizer, jax.random.key(0), carry={"sum": jnp.ones(D)})
    for number in range(3):
        batch = make_batch(jax.random.key(number), 0)
        after, metrics = step(state, batch)
        xs, ys = (np.asarray(leaf) for leaf in batch)
        weights = np.asarray(state.params["w"])
        total = 0.5 * np.asarray(state.carry["sum"]) + xs.sum(0) * weights
        errors = xs @ total + np.asarray(metrics["noise"]) - ys
        gradient = 2 * np.mean(errors[:, None] * xs, 0) * xs.sum(0)
        assert_close(after.carry["sum"], total, length=3 * D)
        assert_close(metrics["loss"], np.mean(errors**2), length=3 * D)
        assert_close(after.opt_state.trace["w"], gradient, length=3 * D)
        state = after


def test_a_step_without_a_carry_hands_on_the_one_it_is_given():
    state = start()._replace(carry=jnp.arange(3.0))
    after, _ = make_train_step(loss_fn, MOMENTUM)(state, make_batch(jax.random.key(7), 0))
    assert_identical(after.carry, state.carry)


def test_what_is_updated_is_what_the_average_returns():
    batch, given = make_batch(jax.random.key(7), 0), []

    def average(tree, part):
        given.append((tree, part))
        loss, metrics, grads = tree
        return loss + 1, {"mean": jnp.mean(metrics["errors"])}, jax.tree.map(lambda g: 3 * g, grads)

    optimizer = optax.trace(0.0)
    state = start(optimizer)
    step = make_train_step(loss_fn, optimizer)
    alone, expected = step(state, batch)
    after, metrics = step(state, batch, average=average)
    [(_, part)] = given
    assert part is batch
    assert set(metrics) == {"mean", "loss", "grad_norm", "skipped"}
    assert_close(metrics["loss"], expected["loss"] + 1, length=D)
    assert_close(metrics["grad_norm"], 3 * expected["grad_norm"], length=D)
    tripled = jax.tree.map(lambda leaf: 3 * leaf, alone.opt_state.trace)
    assert_close(after.opt_state.trace, tripled, length=D)

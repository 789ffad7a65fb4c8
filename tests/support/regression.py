"""A linear regression that draws its data and noise: the smallest thing to train."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrnn import init_train_state

BATCH, D = 4, 3
PARAMS = {"w": jnp.zeros(D), "b": jnp.zeros(())}
TARGET = np.array([1.0, -2.0, 0.5])
MOMENTUM = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05, momentum=0.9))
ADAM = optax.adam(0.01)


def make_batch(key, step):
    del step
    xs = jax.random.uniform(key, (BATCH, D))
    return xs, xs @ TARGET


def loss_fn(params, batch, key):
    xs, ys = batch
    noise = jax.random.uniform(key, ys.shape)
    errors = xs @ params["w"] + params["b"] + noise - ys
    return jnp.mean(errors**2), {"errors": errors, "batch": xs, "key": jax.random.key_data(key)}


def start(optimizer=MOMENTUM, seed=0):
    return init_train_state(PARAMS, optimizer, jax.random.key(seed))


def plain(state):
    """A train state without its typed key, whose bits NumPy cannot read."""
    return state._replace(key=jax.random.key_data(state.key))

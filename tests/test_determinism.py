"""The same seed gives the same bits, in whichever process."""

import os
import subprocess
import sys
from pathlib import Path

RUN = """
import hashlib
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxrnn import *

seed = {seed}
cells = bidirectional(vanilla_rnn(3, 32), vanilla_rnn(3, 32))
rnn = stack(cells, dropout(64, 0.2), vanilla_rnn(64, 32, learn_h0=True), dense(32, 1))


def loss_fn(params, batch, key):
    xs, mask = batch
    _, ys = rnn.unroll(params, None, xs, mask=mask, key=key)
    return masked_mean((ys[..., 0] - jnp.cumsum(xs[..., 0], 0)) ** 2, mask), {{}}


def make_batch(key, step):
    xs = jax.random.normal(key, (40, 64, 3))
    return xs, mask_from_lengths(jax.random.randint(key, (64,), 0, 41), 40)


optimizer = optax.chain(clip_by_global_norm(1.0), optax.adam(1e-2))
state = init_train_state(rnn.init(jax.random.key(seed)), optimizer, jax.random.key(seed + 1))
state, history = fit(make_train_step(loss_fn, optimizer), state, make_batch, 30)
digest = hashlib.sha256()
for leaf in jax.tree.leaves((state.params, state.opt_state, history)):
    digest.update(np.asarray(leaf).tobytes())
print(digest.hexdigest(), float(history["loss"][-1]) < float(history["loss"][0]))
"""


def digests(seeds):
    """A digest of a training run for each seed, each in a fresh process."""
    processes = []
    for number, seed in enumerate(seeds):
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PYTHONHASHSEED": str(number),
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # each compiles its own programs
        }
        command = [sys.executable, "-c", RUN.format(seed=seed)]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE))
    words = [process.communicate()[0].split() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert all(learned == b"True" for _, learned in words)
    return [digest for digest, _ in words]


def test_a_training_run_has_the_same_bits_in_three_fresh_processes():
    *same, other = digests([0, 0, 0, 1])
    assert len(set(same)) == 1
    assert other not in same

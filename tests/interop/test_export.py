"""`jax.export`: the recipe of `jaxrnn.interop`, run as printed, and programs of symbolic sizes."""

import os
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import jaxrnn
import jaxrnn.interop
from jaxrnn import dense, dropout, stack, vanilla_rnn
from tests.support.checks import assert_close, assert_identical, random_like
from tests.support.peers import import_peer

import_peer("flatbuffers")  # of the extra `interop`

WRITE, READ = (
    textwrap.dedent(block)
    for block in re.findall(r":\n\n(    .*?)(?=\n\S|\Z)", jaxrnn.interop.__doc__, re.DOTALL)
)

FRESH = """
import sys
from pathlib import Path

import numpy as np

folder = Path(sys.argv[1])
given = np.load(folder / "given.npz")
xs, lengths = given["xs"], given["lengths"]
{read}
import jax

assert not any(name.split(".")[0] == "jaxrnn" for name in sys.modules)
whole_state, ys = whole(xs, lengths)
got = dict(y=y, ys=ys)
got |= {{f"state_{{i}}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}}
got |= {{f"whole_{{i}}": leaf for i, leaf in enumerate(jax.tree.leaves(whole_state))}}
np.savez(folder / "got.npz", **got)
"""


def train(rnn, num_steps):
    """Parameters after some steps of training to output the previous input."""

    def loss_fn(params, xs, key):
        _, ys = rnn.unroll(params, None, xs)
        return jnp.mean((ys[1:] - xs[:-1, :, :2]) ** 2), {}

    optimizer = optax.adam(3e-3)
    state = jaxrnn.init_train_state(rnn.init(jax.random.key(0)), optimizer, jax.random.key(1))
    step = jaxrnn.make_train_step(loss_fn, optimizer)
    state, _ = jaxrnn.fit(
        step, state, lambda key, step: jax.random.normal(key, (8, 16, 3), jnp.float32), num_steps
    )
    return state.params


def test_the_recipe_as_printed_gives_the_outputs_of_the_network_in_a_process_without_jaxrnn(
    tmp_path, as_on_the_command_line
):
    rnn = stack(
        vanilla_rnn(3, 8, learn_h0=True),
        dropout(8, 0.1),
        vanilla_rnn(8, 5, activation=jax.nn.relu),
        dense(5, 2),
    )
    params = train(rnn, 20)
    exec(WRITE, {"rnn": rnn, "params": params, "folder": tmp_path})

    rng = np.random.default_rng(0)
    xs = rng.normal(size=(7, 4, 3)).astype(np.float32)
    lengths = np.asarray([7, 0, 3, 1], np.int32)
    np.savez(tmp_path / "given.npz", xs=xs, lengths=lengths)
    (tmp_path / "fresh.py").write_text(FRESH.format(read=READ))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "fresh.py", "."], cwd=tmp_path, env=environment, check=True, timeout=300
    )
    got = np.load(tmp_path / "got.npz")

    xs = jnp.asarray(xs)
    state, ys = rnn.unroll(params, None, xs)
    whole_state, whole_ys = rnn.unroll(
        params, None, xs, mask=jaxrnn.mask_from_lengths(lengths, len(xs))
    )
    expected = {"y": ys[-1], "ys": whole_ys}
    expected |= {f"state_{i}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    expected |= {f"whole_{i}": leaf for i, leaf in enumerate(jax.tree.leaves(whole_state))}
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert_close(got[name], value, length=8, what=name)
    assert_identical(got["ys"][3:, 2], np.zeros_like(got["ys"][3:, 2]))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ("t, b, 3", {}),
        ("t, b, 3", {"remat": True}),
        ("t, 4, 3", {"chunk_size": 4}),
        ("9, b, 3", {}),
        ("9, b, 3", {"chunk_size": 4}),
    ],
    ids=str,
)
def test_unroll_exported_with_symbolic_sizes_a_mask_and_resets_gives_the_same(shape, options, key):
    reverse = shape == "t, b, 3"
    rnn = vanilla_rnn(3, 8, **options)  # units whose states are rows, of symbolic length
    params = random_like(key, rnn.init(key))

    @jax.jit
    def run(xs, mask, resets):
        return rnn.unroll(params, None, xs, mask=mask, resets=resets, reverse=reverse)

    sizes = export.symbolic_shape(shape)
    bools = jax.ShapeDtypeStruct(sizes[:2], bool)
    program = export.export(run)(jax.ShapeDtypeStruct(sizes, jnp.float32), bools, bools)
    again = export.deserialize(program.serialize())
    rng = np.random.default_rng(0)
    for num_steps, batch in ((9, 4), (1, 1))[: 2 if options == {} and reverse else 1]:
        xs = rng.normal(size=(num_steps, batch, 3)).astype(np.float32)
        mask, resets = rng.random((2, num_steps, batch)) < 0.6
        assert_close(again.call(xs, mask, resets), run(xs, mask, resets), length=9)


def test_an_exported_program_can_be_differentiated(key):
    rnn = vanilla_rnn(3, 4, dtype=jnp.float64)
    params = rnn.init(key)

    @jax.jit
    def loss(xs):
        return jnp.sum(rnn.unroll(params, None, xs)[1] ** 2)

    sizes = export.symbolic_shape("t, b, 3")
    program = export.export(loss)(jax.ShapeDtypeStruct(sizes, jnp.float64))
    again = export.deserialize(program.serialize(vjp_order=1))
    xs = jax.random.normal(key, (6, 2, 3))
    assert_close(jax.grad(again.call)(xs), jax.grad(loss)(xs), length=6)

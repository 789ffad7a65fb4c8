"""The recipes of experiments/README.md are run as printed."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import text
from experiments.shared.model_files import save_networks
from jaxrnn import deep_rnn, fit, init_train_state, make_train_step
from tests.support.checks import assert_identical

pytestmark = pytest.mark.usefixtures("as_on_the_command_line")

RECIPES = re.findall(
    r"```python\n(.*?)```",
    (Path(__file__).parents[2] / "experiments" / "README.md").read_text("utf-8"),
    re.DOTALL,
)


def test_a_kept_network_is_loaded_into_a_script_of_one_s_own(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    config = text.Config(hidden_size=4, embedding_size=3, folder=Path("RUN"))
    inputs = text.TextInputs("abcd", "ab", 0.1)
    network = text._network(config, inputs.alphabet)
    params = jax.vmap(network.init)(jax.random.split(key, 1))
    save_networks(config, "text", inputs, {"network": (network, params, np.zeros(1))})
    names = {}
    exec(RECIPES[0], names)
    tokens = jnp.array([0, 3, 2])
    one = jax.tree.map(lambda leaf: leaf[0], params)
    expected = network.unroll(one, None, tokens)
    assert_identical(names["network"].unroll(names["params"], None, tokens), expected)


def test_a_train_state_is_saved_and_resumed_with_orbax(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    rnn = deep_rnn((1, 4, 1))
    optimizer = optax.adam(0.01)

    def loss_fn(params, xs, key):
        return jnp.mean((rnn.unroll(params, None, xs)[1] - xs) ** 2), {}

    def make_batch(key, step):
        return jax.random.normal(key, (5, 3, 1))

    step = make_train_step(loss_fn, optimizer)
    fresh = init_train_state(rnn.init(key), optimizer, key)
    state, _ = fit(step, fresh, make_batch, 3)
    names = {"state": state, "fresh": fresh}
    exec(RECIPES[1], names)
    expected = fit(step, state, make_batch, 2)[0]
    got = fit(step, names["resumed"], make_batch, 2)[0]
    got, expected = (s._replace(key=jax.random.key_data(s.key)) for s in (got, expected))
    assert_identical(got, expected)


def test_every_recipe_has_a_test():
    assert len(RECIPES) == 2

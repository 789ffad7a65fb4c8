"""flax, nnx and linen: outputs and states as in flax, and exact round trips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import RNNParams
from jaxrnn.interop.flax import from_flax, to_flax
from tests.support import drawn_networks as drawn
from tests.support.checks import JAX_ACTIVATIONS, assert_identical
from tests.support.drawn_networks import B, T
from tests.support.peers import import_peer

ARCHITECTURES, DRAWS = 10, 3


@pytest.fixture
def nnx(as_on_the_command_line):
    return import_peer("flax.nnx")


@pytest.fixture
def linen(as_on_the_command_line):
    return import_peer("flax.linen")


def run_layers(modules, layers, xs, lengths, state):
    """Outputs and final states of flax's modules, of either API."""
    last = []
    for module, layer, h in zip(modules, layers, state, strict=True):
        if not layer.directions:
            xs = module(xs)
            continue
        options = {"seq_lengths": lengths, "return_carry": True, "time_major": True}
        carry, xs = module(xs, initial_carry=h, **options)
        last += [carry] if layer.directions == 1 else carry
    return xs, last


def build_nnx(nnx, layers):
    """(apply, model): a function of the parameters' state and the inputs, and the model."""
    rngs = nnx.Rngs(0)

    def rnn(layer):
        activation = JAX_ACTIVATIONS[layer.activation]
        return nnx.RNN(
            nnx.SimpleCell(layer.inputs, layer.units, activation_fn=activation, rngs=rngs)
        )

    def one(layer):
        if not layer.directions:
            return nnx.Linear(layer.inputs, layer.units, use_bias=layer.bias, rngs=rngs)
        return rnn(layer) if layer.directions == 1 else nnx.Bidirectional(rnn(layer), rnn(layer))

    model = nnx.Sequential(*map(one, layers))
    graph, _, rest = nnx.split(model, nnx.Param, ...)

    def apply(weights, xs, lengths, state):
        return run_layers(nnx.merge(graph, weights, rest).layers, layers, xs, lengths, state)

    return apply, model


def build_linen(linen, layers):
    """A module of the layers; ``module.apply(variables, xs, lengths, state)``."""

    def rnn(layer):
        return linen.RNN(linen.SimpleCell(layer.units, JAX_ACTIVATIONS[layer.activation]))

    def one(layer):
        if not layer.directions:
            return linen.Dense(layer.units, use_bias=layer.bias)
        return rnn(layer) if layer.directions == 1 else linen.Bidirectional(rnn(layer), rnn(layer))

    class Stack(linen.Module):
        def setup(self):
            self.layers = list(map(one, layers))

        def __call__(self, xs, lengths, state):
            return run_layers(self.layers, layers, xs, lengths, state)

    return Stack()


def check_agreement(build):
    """Compare with `build`, which makes a compiled foreign function of our parameters."""
    for seed in range(ARCHITECTURES):
        rng = np.random.default_rng(seed)
        layers = drawn.draw_layers(rng)
        run, run_there = drawn.run_here(layers), build(layers)
        for _ in range(DRAWS):
            params = drawn.draw_params(rng, layers, np.float32)
            xs, lengths, mask = drawn.draw_batch(rng, layers, np.float32)
            state = drawn.draw_state(rng, layers, np.float32)
            ys, last = run_there(params, xs, lengths, state)
            expected = np.where(mask[..., None], ys, 0), last
            drawn.assert_agree(run(params, state, xs, mask), expected, seed)


@pytest.mark.filterwarnings("ignore")
def test_outputs_and_states_are_those_of_nnx(nnx):
    def build(layers):
        apply, model = build_nnx(nnx, layers)
        apply = jax.jit(apply, compiler_options=drawn.QUICKLY)

        def run(params, *inputs):
            nnx.update(model, jax.tree.map(jnp.asarray, to_flax(params)))
            weights = nnx.state(model, nnx.Param)
            for state in (weights, nnx.state(model), nnx.to_pure_dict(weights)):
                assert_identical(from_flax(state), with_biases(params))
            return apply(weights, *inputs)

        return run

    check_agreement(build)


@pytest.mark.filterwarnings("ignore")
def test_outputs_and_states_are_those_of_linen(linen):
    def build(layers):
        module = build_linen(linen, layers)
        apply = jax.jit(module.apply, compiler_options=drawn.QUICKLY)

        def run(params, xs, lengths, state):
            variables = to_flax(params, api="linen")
            made = jax.eval_shape(module.init, jax.random.key(0), xs, lengths, state)
            assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, variables)
            assert_identical(from_flax(variables), with_biases(params))
            assert_identical(from_flax(variables["params"]), with_biases(params))
            return apply(variables, xs, lengths, state)

        return run

    check_agreement(build)


def with_biases(params):
    """The parameters after a round trip: a cell without a bias has one of zeros."""

    def with_bias(one):
        if isinstance(one, RNNParams) and one.b is None:
            return one._replace(b=np.full_like(one.w_hh[0], -0.0))
        return one

    return jax.tree.map(with_bias, params, is_leaf=lambda one: isinstance(one, RNNParams))


@pytest.mark.filterwarnings("ignore")
def test_a_compact_linen_module_is_read_and_written_by_its_names(linen):
    class Network(linen.Module):
        @linen.compact
        def __call__(self, xs):
            xs = linen.RNN(linen.SimpleCell(4))(xs)
            xs = linen.Bidirectional(
                linen.RNN(linen.SimpleCell(2)), linen.RNN(linen.SimpleCell(2))
            )(xs)
            return linen.Dense(2)(xs)

    variables = Network().init(jax.random.key(0), jnp.zeros((B, T, 3)))
    names = ["SimpleCell_0", ("SimpleCell_1", "SimpleCell_2"), "Dense_0"]
    params = from_flax(variables, names=names)
    inner = variables["params"]
    assert_identical(params[1][1].w_ih, inner["SimpleCell_2"]["i"]["kernel"].T)
    back = to_flax(params, api="linen", names=names)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    assert_identical(back, variables)
    # without names: the sizes 4 -> 2, 4 -> 2, 4 -> 2 leave only one order
    found = from_flax(variables)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert_identical(found, params)


@pytest.mark.filterwarnings("ignore")
def test_layers_that_are_not_vanilla_are_rejected_by_name(linen):
    nnx = import_peer("flax.nnx")
    rngs = nnx.Rngs(0)
    for cell, message in (
        (nnx.GRUCell(3, 4, rngs=rngs), "'dense_h/kernel' holds 3 matrices of 4 units, .* a GRU"),
        (nnx.OptimizedLSTMCell(3, 4, rngs=rngs), "'dense_h/kernel' holds 4 matrices"),
        (nnx.LSTMCell(3, 4, rngs=rngs), "'ii' belongs to an LSTM or a GRU"),
    ):
        with pytest.raises(ValueError, match=message):
            from_flax(nnx.state(cell, nnx.Param))
    for cell in (linen.GRUCell(4), linen.LSTMCell(4), linen.OptimizedLSTMCell(4)):
        variables = linen.RNN(cell).init(jax.random.key(0), jnp.zeros((B, T, 3)))
        with pytest.raises(ValueError, match=r"cell/i[ir]' belongs to an LSTM or a GRU"):
            from_flax(variables)


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_a_round_trip_preserves_every_bit(api):
    there = functools.partial(to_flax, api=api)
    drawn.check_round_trips(there, from_flax, biases=(True,))

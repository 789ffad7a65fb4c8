"""haiku: outputs and states as in haiku, exact round trips, and rejected input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import DenseParams, RNNParams
from jaxrnn.interop.haiku import from_haiku, to_haiku
from tests.support import drawn_networks as drawn
from tests.support.checks import assert_identical
from tests.support.drawn_networks import B, T
from tests.support.peers import import_peer

ARCHITECTURES, DRAWS = 10, 3


@pytest.fixture
def hk(as_on_the_command_line):
    return import_peer("haiku")


def build_haiku(hk, layers, double_bias):
    def unroll(xs, state):
        last = []
        for layer, h in zip(layers, state, strict=True):
            if layer.directions:
                core = hk.VanillaRNN(layer.units, double_bias=double_bias)
                xs, after = hk.dynamic_unroll(core, xs, h)
                last.append(after)
            else:
                xs = hk.Linear(layer.units, with_bias=layer.bias)(xs)
        return xs, last

    return hk.without_apply_rng(hk.transform(unroll))


@pytest.mark.filterwarnings("ignore")
def test_outputs_and_states_are_those_of_haiku(hk):
    for seed in range(ARCHITECTURES):
        rng = np.random.default_rng(seed)
        layers = drawn.draw_layers(rng, directions=(1,), activations=("relu",))
        double_bias = bool(rng.integers(2))
        network = build_haiku(hk, layers, double_bias)
        run = drawn.run_here([layer._replace(bias=True) for layer in layers])
        run_there = jax.jit(network.apply, compiler_options=drawn.QUICKLY)
        mask = np.ones((T, B), bool)
        kinds = ["vanilla_rnn" if layer.directions else "linear" for layer in layers]
        numbers = [kinds[:position].count(kind) for position, kind in enumerate(kinds)]
        names = [f"{k}_{n}" if n else k for k, n in zip(kinds, numbers, strict=True)]
        for _ in range(DRAWS):
            params = drawn.draw_params(rng, layers, np.float32)
            xs, _, _ = drawn.draw_batch(rng, layers, np.float32)
            state = drawn.draw_state(rng, layers, np.float32)
            weights = to_haiku(params, double_bias=double_bias)
            made = jax.eval_shape(network.init, jax.random.key(0), xs, state)
            assert jax.tree.map(jnp.shape, dict(made)) == jax.tree.map(jnp.shape, weights)
            for foreign in (weights, draw_like(rng, weights)):
                params = from_haiku(foreign, names=names)
                expected = run_there(foreign, xs, state)
                drawn.assert_agree(run(params, state, xs, mask), expected, seed)


def draw_like(rng, weights):
    """Random weights of the same structure, both biases included."""

    def draw(leaf):
        return (rng.standard_normal(leaf.shape) / np.sqrt(leaf.shape[0])).astype(leaf.dtype)

    return jax.tree.map(draw, weights)


@pytest.mark.parametrize("double_bias", [True, False])
def test_a_round_trip_preserves_every_bit(double_bias):
    def there(params):
        names = [f"layer_{position}" for position in range(len(params))]
        return to_haiku(params, names=names, double_bias=double_bias)

    def back(weights):
        return from_haiku(weights, names=sorted({module.split("/")[0] for module in weights}))

    drawn.check_round_trips(there, back, directions=(1,), biases=(True,))


def ones(*shape):
    return np.ones(shape, np.float32)


def rnn(inputs, units, *, bias=True):
    return RNNParams(ones(units, inputs), ones(units, units), ones(units) if bias else None)


def readout(inputs, outputs):
    return DenseParams(ones(outputs, inputs), ones(outputs))


def test_hand_written_weights_are_read_as_the_layers_they_name():
    rng = np.random.default_rng(0)
    w = {
        "net/~/linear": {"w": rng.standard_normal((4, 2)), "b": rng.standard_normal(2)},
        "net/~/vanilla_rnn/linear": {
            "w": rng.standard_normal((3, 4)),
            "b": rng.standard_normal(4),
        },
        "net/~/vanilla_rnn/linear_1": {
            "w": rng.standard_normal((4, 4)),
            "b": rng.standard_normal(4),
        },
    }
    last, first, second = w.values()
    expected = (
        RNNParams(first["w"].T, second["w"].T, first["b"] + second["b"]),
        DenseParams(last["w"].T, last["b"]),
    )
    params = from_haiku(w)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    assert_identical(params, expected)


def test_a_layer_without_a_bias_gets_zeros():
    for double_bias in (True, False):
        params = from_haiku(to_haiku(rnn(3, 4, bias=False), double_bias=double_bias))
        assert_identical(params, (rnn(3, 4)._replace(b=np.full(4, -0.0, np.float32)),))


def test_the_order_of_layers_does_not_depend_on_that_of_the_mapping():
    rng = np.random.default_rng(0)
    layers = [drawn.Drawn(4, 4, 1, True, "relu")] * 12 + [drawn.Drawn(4, 2, 0, True, "")]
    params = drawn.draw_params(rng, layers, np.float32)
    mapped = jax.tree.map(lambda leaf: leaf, to_haiku(params))
    assert list(mapped)[:3] == ["linear", "vanilla_rnn/linear", "vanilla_rnn/linear_1"]
    assert_identical(from_haiku(mapped), params)


def test_names_give_the_order_if_sizes_do_not():
    weights = to_haiku((rnn(4, 4), readout(4, 4)))
    with pytest.raises(ValueError, match=r"more than one order .* names=\[...\]"):
        from_haiku(weights)
    first, second = from_haiku(weights, names=["linear", "vanilla_rnn"])
    assert isinstance(first, DenseParams)
    assert isinstance(second, RNNParams)


def test_linear_layers_created_in_the_constructor_of_a_module_are_not_a_vanilla_rnn():
    weights = to_haiku((readout(4, 4), readout(4, 4)), names=["net/~/linear", "net/~/linear_1"])
    assert all(isinstance(layer, DenseParams) for layer in from_haiku(weights))


def test_names_distinguish_a_custom_named_vanilla_rnn_from_two_linear_layers():
    weights = to_haiku(rnn(4, 4), names=["mine"])
    with pytest.raises(ValueError, match="'mine' may be a VanillaRNN or contain two Linear"):
        from_haiku(weights)
    assert len(from_haiku(weights, names=["mine"])) == 1
    assert len(from_haiku(weights, names=["mine/linear", "mine/linear_1"])) == 2


@pytest.mark.filterwarnings("ignore")
def test_layers_that_are_not_vanilla_are_rejected_by_name(hk):
    for core, message in (
        (hk.LSTM, "'lstm/linear' belongs to an LSTM"),
        (hk.GRU, "there is no 'gru/w'"),
        (hk.Conv1D, "'conv1_d/w' has shape .* a matrix"),
    ):

        def run(xs, core=core):
            if core is hk.Conv1D:
                return core(4, 2)(xs)
            made = core(4)
            return hk.dynamic_unroll(made, xs, made.initial_state(B))[0]

        weights = hk.transform(run).init(jax.random.key(0), jnp.zeros((T, B, 3)))
        with pytest.raises(ValueError, match=message):
            from_haiku(weights)


GOOD = to_haiku((rnn(3, 4), readout(4, 2)))


def changed(module, **tensors):
    """GOOD with tensors replaced, or removed if None."""
    inner = GOOD.get(module, {}) | tensors
    return GOOD | {module: {name: value for name, value in inner.items() if value is not None}}


CORE = "vanilla_rnn/linear"


@pytest.mark.parametrize(
    ("weights", "names", "error", "message"),
    [
        (None, None, TypeError, "params is a NoneType, expected a mapping"),
        ({}, None, ValueError, "params holds no tensors"),
        (changed(CORE, w=None), None, ValueError, f"there is no '{CORE}/w'"),
        (changed(CORE, b=None), None, ValueError, f"there is no '{CORE}/b'"),
        (changed(CORE + "_1", w=None), None, ValueError, f"there is no '{CORE}_1/w'"),
        (changed(CORE + "_1", w=None, b=None), None, ValueError, f"there is no '{CORE}_1/w'"),
        (changed(CORE, w=None, b=None), None, ValueError, f"there is no '{CORE}/w'"),
        (changed(CORE, w=ones(3, 5)), None, ValueError, rf"'{CORE}/w' .* expected \(3, 4\)"),
        (changed(CORE + "_1", w=ones(4, 12)), None, ValueError, f"'{CORE}_1/w' .* a GRU"),
        (changed(CORE + "_1", b=ones(3)), None, ValueError, rf"'{CORE}_1/b' .* \(4,\)"),
        (changed(CORE, scale=ones(3)), None, ValueError, f"unknown tensors .*'{CORE}/scale'"),
        (changed("linear", b=ones(3)), None, ValueError, "'linear/b' has shape"),
        (changed("linear", w=ones(5, 2)), None, ValueError, "no order of the layers fits"),
        (changed("linear", w=None), None, ValueError, "there is no 'linear/w'"),
        (GOOD, ["vanilla_rnn"], ValueError, "unknown tensors .*'linear/b'"),
        (GOOD, ["vanilla_rnn", "other"], ValueError, "there is no 'other/w'"),
        (GOOD, ["linear", "vanilla_rnn"], ValueError, "2 outputs but layer 1 has 3"),
        (GOOD, "linear", TypeError, "names is 'linear', expected a list"),
        (GOOD, ["linear", 2], TypeError, r"names\[1\] is 2"),
    ],
)
def test_invalid_weights_are_rejected_by_name(weights, names, error, message):
    with pytest.raises(error, match=message):
        from_haiku(weights, names=names)


@pytest.mark.parametrize(
    ("params", "names", "error", "message"),
    [
        (rnn(3, 4)._replace(h0=ones(4)), None, ValueError, "h0.* haiku's VanillaRNN"),
        ((readout(3, 3), (rnn(3, 4), rnn(3, 4))), None, ValueError, "'vanilla_rnn' is bidirectio"),
        ((rnn(3, 4), rnn(4, 4)), ["a", "a"], ValueError, "names gives 'a/linear/w' twice"),
        ((rnn(3, 4), rnn(4, 4)), ["a"], ValueError, r"expected 2: \['vanilla_rnn', 'vanilla_rnn_1"),
        ((rnn(3, 4), rnn(4, 4)), {"a": 1, "b": 2}, TypeError, "names is {"),
        ({"w": ones(2, 2)}, None, TypeError, r"params\[0\] is a dict"),
    ],
)
def test_invalid_parameters_are_not_exported(params, names, error, message):
    with pytest.raises(error, match=message):
        to_haiku(params, names=names)

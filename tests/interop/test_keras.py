"""Keras 3: outputs and states as in Keras, exact round trips, and rejected input."""

import jax
import numpy as np
import pytest

from jaxrnn import DenseParams, RNNParams
from jaxrnn.interop.keras import from_keras, to_keras
from tests.support import drawn_networks as drawn
from tests.support.checks import assert_identical
from tests.support.drawn_networks import B, T
from tests.support.peers import import_peer, skip_without_peer

ARCHITECTURES, DRAWS = 10, 3


@pytest.fixture
def keras(monkeypatch, as_on_the_command_line):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = import_peer("keras")
    if keras.backend.backend() != "jax":
        skip_without_peer(f"Keras runs on {keras.backend.backend()}")
    return keras


def build_keras(keras, layers, dtype="float32"):
    """A model from inputs, mask and initial states to outputs and final states."""
    xs = keras.Input((T, layers[0].inputs), batch_size=B, dtype=dtype)
    mask = keras.Input((T,), batch_size=B, dtype="bool")
    ys, initial, last = xs, [], []
    for layer in layers:
        options = {"use_bias": layer.bias, "dtype": dtype}
        if not layer.directions:
            ys = keras.layers.Dense(layer.units, **options)(ys)
            continue
        options |= {"activation": layer.activation, "recurrent_initializer": "zeros"}
        rnn = keras.layers.SimpleRNN(
            layer.units, return_sequences=True, return_state=True, **options
        )
        if layer.directions == 2:
            rnn = keras.layers.Bidirectional(rnn)
        h0s = [
            keras.Input((layer.units,), batch_size=B, dtype=dtype) for _ in range(layer.directions)
        ]
        ys, *states = rnn(ys, mask=mask, initial_state=h0s)
        initial += h0s
        last += states
    return keras.Model([xs, mask, *initial], [ys, *last])


@pytest.mark.filterwarnings("ignore")
def test_outputs_and_states_are_those_of_keras(keras):
    for seed in range(ARCHITECTURES):
        rng = np.random.default_rng(seed)
        layers = drawn.draw_layers(rng)
        model = build_keras(keras, layers)
        run = drawn.run_here(layers)
        run_there = jax.jit(
            lambda *arguments, model=model: model.stateless_call(*arguments)[0],
            compiler_options=drawn.QUICKLY,
        )
        for _ in range(DRAWS):
            params = drawn.draw_params(rng, layers, np.float32)
            model.set_weights(list(to_keras(params).values()))
            assert_identical(from_keras(model), params, seed)
            assert_identical(from_keras({v.path: v for v in model.weights}), params, seed)
            xs, _, mask = drawn.draw_batch(rng, layers, np.float32)
            state = drawn.draw_state(rng, layers, np.float32)
            values, seeds = (
                [variable.value for variable in variables]
                for variables in (model.trainable_variables, model.non_trainable_variables)
            )
            inputs = [xs.swapaxes(0, 1), mask.T, *drawn.states_of(state)]
            ys, *last = run_there(values, seeds, inputs)
            expected = np.where(mask[..., None], np.swapaxes(ys, 0, 1), 0), last
            drawn.assert_agree(run(from_keras(model), state, xs, mask), expected, seed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_parameters_survive_a_round_trip_through_keras_exactly(keras, dtype):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        layers = drawn.draw_layers(rng)
        params = drawn.draw_special(rng, layers, dtype)
        model = build_keras(keras, layers, dtype)
        model.set_weights(list(to_keras(params).values()))
        assert_identical(from_keras(model), params, seed)


@pytest.mark.filterwarnings("ignore")
def test_the_paths_are_those_of_the_first_sequential_of_a_process(keras):
    keras.utils.clear_session()
    rnn, around = keras.layers.SimpleRNN, keras.layers.Bidirectional
    model = keras.Sequential(
        [
            keras.Input((T, 3)),
            rnn(4, return_sequences=True),
            around(rnn(2, return_sequences=True)),
            rnn(3, return_sequences=True, use_bias=False),
            around(rnn(2, return_sequences=True)),
            keras.layers.Dense(2),
            keras.layers.Dense(1, use_bias=False),
        ]
    )
    paths = [variable.path for variable in model.weights]
    assert list(to_keras(from_keras(model))) == paths


@pytest.mark.filterwarnings("ignore")
def test_stacked_cells_are_read_as_layers(keras):
    cells = [keras.layers.SimpleRNNCell(units) for units in (4, 2)]
    model = keras.Sequential([keras.Input((T, 3)), keras.layers.RNN(cells), keras.layers.Dense(5)])
    values = model.get_weights()
    assert_identical(list(to_keras(from_keras(model)).values()), values)


@pytest.mark.filterwarnings("ignore")
def test_layers_that_are_not_vanilla_are_rejected_by_name(keras):
    layers = keras.layers
    for layer, message in (
        (layers.LSTM(4), "lstm_cell/recurrent_kernel' .* those of an LSTM"),
        (layers.GRU(4), "gru_cell/recurrent_kernel' .* those of a GRU"),
        (layers.Conv1D(4, 2), r"kernel' has shape \(2, 3, 4\), expected a matrix"),
        (layers.LayerNormalization(), r"there is no .*/kernel'"),
    ):
        model = keras.Sequential([keras.Input((T, 3)), layer])
        with pytest.raises(ValueError, match=message):
            from_keras(model)
    with pytest.raises(ValueError, match="weights holds no tensors"):
        from_keras(keras.Sequential([layers.Dense(2)]))


def test_a_round_trip_preserves_every_bit():
    drawn.check_round_trips(to_keras, from_keras)


RNN = "sequential/simple_rnn/simple_rnn_cell"
AROUND = "sequential/bidirectional/{}_simple_rnn_1/simple_rnn_cell"


def ones(*shape):
    return np.ones(shape, np.float32)


def test_hand_written_weights_are_read_as_the_layers_they_name():
    rng = np.random.default_rng(0)
    shapes = {
        f"{RNN}/kernel": (3, 4),
        f"{RNN}/recurrent_kernel": (4, 4),
        f"{RNN}/bias": (4,),
        **{
            f"{AROUND.format(direction)}/{name}": shape
            for direction in ("forward", "backward")
            for name, shape in (("kernel", (4, 2)), ("recurrent_kernel", (2, 2)))
        },
        "sequential/dense/kernel": (4, 5),
        "sequential/dense/bias": (5,),
    }
    w = {path: rng.standard_normal(shape) for path, shape in shapes.items()}
    directions = (
        RNNParams(w[f"{path}/kernel"].T, w[f"{path}/recurrent_kernel"].T)
        for path in (AROUND.format("forward"), AROUND.format("backward"))
    )
    expected = (
        RNNParams(w[f"{RNN}/kernel"].T, w[f"{RNN}/recurrent_kernel"].T, w[f"{RNN}/bias"]),
        tuple(directions),
        DenseParams(w["sequential/dense/kernel"].T, w["sequential/dense/bias"]),
    )
    params = from_keras(w)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    assert_identical(params, expected)
    assert list(to_keras(params)) == list(w)
    assert_identical(to_keras(params), w)


GOOD = to_keras(
    (
        RNNParams(ones(4, 3), ones(4, 4), ones(4)),
        (RNNParams(ones(2, 4), ones(2, 2)), RNNParams(ones(2, 4), ones(2, 2))),
        DenseParams(ones(5, 4), ones(5)),
    )
)
FORWARD, BACKWARD = AROUND.format("forward"), AROUND.format("backward")


def without(*names):
    return {path: array for path, array in GOOD.items() if not path.startswith(names)}


class Twice:
    class Variable:
        path = "dense/kernel"

    weights = (Variable(), Variable())


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (None, TypeError, "weights is a NoneType, expected a mapping"),
        ([ones(2, 2)], TypeError, "weights is a list, expected a mapping"),
        ({}, ValueError, "weights holds no tensors"),
        (Twice(), ValueError, "two variables have the path 'dense/kernel'"),
        (without(f"{RNN}/kernel"), ValueError, f"there is no '{RNN}/kernel'"),
        (without(f"{RNN}/recurrent"), ValueError, f"no '{RNN}/recurrent_kernel'"),
        (without(f"{FORWARD}/recurrent"), ValueError, f"no '{FORWARD}/recurrent_kernel'"),
        (without(f"{BACKWARD}/recurrent"), ValueError, f"no '{BACKWARD}/recurrent_kernel'"),
        (without(BACKWARD), ValueError, f"'{BACKWARD}' does not follow"),
        (without(BACKWARD, "sequential/dense"), ValueError, f"'{BACKWARD}' does not follow"),
        (GOOD | {f"{RNN}/kernel": ones(3, 5)}, ValueError, rf"'{RNN}/kernel' .* \(3, 4\)"),
        (GOOD | {f"{RNN}/bias": ones(2, 4)}, ValueError, rf"'{RNN}/bias' .* \(4,\)"),
        (GOOD | {f"{RNN}/recurrent_kernel": ones(4, 12)}, ValueError, "those of a GRU"),
        (GOOD | {f"{RNN}/recurrent_kernel": ones(4, 16)}, ValueError, "those of an LSTM"),
        (GOOD | {f"{RNN}/recurrent_kernel": ones(4, 5)}, ValueError, r"\(4, 5\), expected \(5, 5"),
        (GOOD | {f"{BACKWARD}/kernel": ones(3, 2)}, ValueError, "have 4 and 3 inputs"),
        (GOOD | {"sequential/dense/kernel": ones(3, 5)}, ValueError, "layer 2 has 3 inputs"),
        (GOOD | {"sequential/dense/gamma": ones(5)}, ValueError, r"\['sequential/dense/gamma'\]"),
        (GOOD | {"sequential/dense/bias": ones(4)}, ValueError, "'sequential/dense/bias' has"),
        (GOOD | {"sequential/dense/bias": "ones"}, ValueError, "'sequential/dense/bias' has dtype"),
    ],
)
def test_invalid_weights_are_rejected_by_name(weights, error, message):
    with pytest.raises(error, match=message):
        from_keras(weights)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (RNNParams(ones(4, 3), ones(4, 4), None, ones(4)), ValueError, "h0.* Keras' SimpleRNN"),
        ({"w": ones(2, 2)}, TypeError, r"params\[0\] is a dict"),
        ((RNNParams(ones(4, 3), ones(4, 4)), DenseParams(ones(2, 5))), ValueError, "4 outputs"),
    ],
)
def test_invalid_parameters_are_not_exported(params, error, message):
    with pytest.raises(error, match=message):
        to_keras(params)

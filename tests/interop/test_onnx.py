"""ONNX models: outputs in onnxruntime, exact round trips, and rejected models."""

import io
import itertools
import subprocess
import sys
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn import (
    DenseParams,
    RNNParams,
    bidirectional,
    chunked,
    dense,
    dropout,
    residual,
    stack,
    vanilla_rnn,
)
from jaxrnn.interop.onnx import OnnxActivation, from_onnx, to_onnx
from tests.support.checks import assert_identical
from tests.support.peers import import_peer

T, B = 4, 3
ACTIVATIONS = {
    "Tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "Sigmoid": jax.nn.sigmoid,
    "identity": jax.nn.identity,
    "Softsign": jax.nn.soft_sign,
    "LeakyRelu": jax.nn.leaky_relu,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
}
WITH_NUMBERS = [
    OnnxActivation("Affine", (0.5, 0.25)),
    OnnxActivation("LeakyRelu", (0.3,)),
    OnnxActivation("ThresholdedRelu", (0.2,)),
    OnnxActivation("ScaledTanh", (1.5, 0.5)),
    OnnxActivation("HardSigmoid"),
    OnnxActivation("Elu", (0.5,)),
]


@pytest.fixture
def eager():
    """Run scans as Python loops: for many small networks, compiling costs more than running."""
    with jax.disable_jit():
        yield


@pytest.fixture
def onnx():
    return import_peer("onnx")


@pytest.fixture
def run():
    """A function that runs a model in onnxruntime."""
    runtime = import_peer("onnxruntime")

    def run(model, feeds):
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run(None, feeds)

    return run


def assert_near(got, expected, what=""):
    """Equal up to 1e-6, about eight roundings of float32, relative to the largest entry or 1."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype), what
    error = np.abs(got - expected).max(initial=0)
    assert error <= 1e-6 * np.abs(expected).max(initial=1), (what, error)


class Network(NamedTuple):
    layer: jaxrnn.Layer
    params: tuple
    activation: tuple


def draw(rng, size, dtype=np.float32):
    return jnp.asarray((rng.normal(size=size) * 0.8 / np.sqrt(size[-1])).astype(dtype))


def draw_rnn(rng, inputs, units, options, dtype=np.float32):
    """Random parameters; `options` says whether they have a bias and an initial state."""
    b, h0 = (draw(rng, (units,), dtype) if has else None for has in options)
    return RNNParams(draw(rng, (units, inputs), dtype), draw(rng, (units, units), dtype), b, h0)


def draw_network(rng, dtype=np.float32):
    """One to three recurrent layers, of one direction or two, with dense layers in between."""
    layers, params, activations = [], [], []
    size = 3
    for _ in range(rng.integers(1, 4)):
        if rng.random() < 0.4:
            layers.append(dense(size, 3, dtype=dtype))
            bias = draw(rng, (3,), dtype) if rng.random() < 0.7 else None
            params.append(DenseParams(draw(rng, (3, size), dtype), bias))
            size = 3
        units, count = int(rng.integers(2, 4)), int(rng.integers(1, 3))
        options = tuple(rng.random(2) < 0.5)  # the same for both directions, as in ONNX
        names = rng.choice(list(ACTIVATIONS), count)
        rnns = [vanilla_rnn(size, units, activation=ACTIVATIONS[n], dtype=dtype) for n in names]
        drawn = tuple(draw_rnn(rng, size, units, options, dtype) for _ in names)
        layers.append(rnns[0] if count == 1 else bidirectional(*rnns))
        params.append(drawn[0] if count == 1 else drawn)
        activations.append(names[0] if count == 1 else tuple(names))
        size = units * count
    if rng.random() < 0.6:
        layers.append(dense(size, 1, dtype=dtype))
        params.append(DenseParams(draw(rng, (1, size), dtype), draw(rng, (1,), dtype)))
    return Network(stack(*layers), tuple(params), tuple(activations))


def draw_feeds(rng, network, lengths, initial_states):
    """Inputs of the model and of the layer: (feeds, xs, mask, state)."""
    xs = rng.normal(size=(T, B, network.layer.input_size)).astype(np.float32)
    feeds, mask, state = {}, None, None
    if lengths:
        feeds["lengths"] = rng.permutation([T, 0, rng.integers(1, T)]).astype(np.int32)
        mask = np.arange(T)[:, None] < feeds["lengths"]
        xs[~mask] = np.nan
    if initial_states:
        initial = network.layer.initial_state(network.params, (B,))
        state = jax.tree.map(lambda h: draw(rng, h.shape), initial)
        feeds |= {f"h0_{i}": h for i, h in enumerate(states_of(state))}
    return feeds | {"xs": xs}, jnp.asarray(xs), mask, state


def states_of(state):
    """A stack's states in ONNX's layout, [directions, B, H]; dense layers have none."""
    entries = [h if isinstance(h, tuple) else (h,) for h in state]
    return [np.stack(entry) for entry in entries if entry]


@pytest.mark.parametrize("group", range(4))
def test_random_networks_give_the_same_outputs_and_states_in_onnxruntime(group, onnx, run, eager):
    options = list(itertools.product([False, True], repeat=3))
    for number in range(10):
        rng = np.random.default_rng(10 * group + number)
        network = draw_network(rng)
        lengths, initial_states, reverse = options[(10 * group + number) % 8]
        model = to_onnx(
            network.layer,
            network.params,
            activation=network.activation,
            lengths=lengths,
            initial_states=initial_states,
            reverse=reverse,
        )
        feeds, xs, mask, state = draw_feeds(rng, network, lengths, initial_states)
        ys, *states = run(model, feeds)
        expected_state, expected = network.layer.unroll(
            network.params, state, xs, mask=mask, reverse=reverse
        )
        what = (group, number, network.activation, lengths, initial_states, reverse)
        assert_near(ys, expected, what)
        expected_states = states_of(expected_state)
        assert len(states) == len(expected_states), what
        for got, other in zip(states, expected_states, strict=True):
            assert_near(got, other, what)


@pytest.mark.parametrize(("dtype", "count"), [("float32", 30), ("float64", 4)])
def test_a_round_trip_of_random_networks_preserves_every_bit_and_the_direction(
    dtype, count, onnx, eager
):
    options = list(itertools.product([False, True], repeat=2))
    for number in range(count):
        rng = np.random.default_rng(number)
        network = draw_network(rng, dtype)
        lengths, reverse = options[number % 4]
        model = to_onnx(
            network.layer,
            network.params,
            activation=network.activation,
            lengths=lengths,
            reverse=reverse,
        )
        layer, params = from_onnx(model)
        assert jax.tree.structure(params) == jax.tree.structure(network.params), number
        assert_identical(params, network.params, number)
        assert [layer.input_size, layer.output_size] == [*network.layer[:2]]
        xs = draw(rng, (T, B, layer.input_size), dtype)
        got = layer.unroll(params, None, xs)
        expected = network.layer.unroll(network.params, None, xs, reverse=reverse)
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        assert_identical(got, expected, number)


def test_a_round_trip_preserves_negative_zero_infinity_and_nan(onnx, eager):
    special = jnp.asarray([-0.0, jnp.inf, jnp.nan], jnp.float32)
    params = draw_rnn(np.random.default_rng(0), 3, 3, (True, True))
    for leaves in ({"b": special}, {"h0": special}, {"h0": jnp.zeros_like(special)}):
        given = params._replace(**leaves)
        assert_identical(from_onnx(to_onnx(vanilla_rnn(3, 3), given))[1], (given,), leaves)


def test_a_trained_deep_bidirectional_network_gives_the_same_on_ragged_sequences(onnx, run, key):
    rnn = stack(
        bidirectional(vanilla_rnn(2, 12, learn_h0=True), vanilla_rnn(2, 12, learn_h0=True)),
        dropout(24, 0.1),
        bidirectional(vanilla_rnn(24, 12), vanilla_rnn(24, 12)),
        dense(24, 2),
    )

    def loss_fn(params, batch, key):
        xs, mask = batch
        _, ys = rnn.unroll(params, None, xs, mask=mask, key=key)
        around = (jnp.roll(xs, 1, 0) + jnp.roll(xs, -1, 0)) / 2
        return jaxrnn.masked_mean((ys - around) ** 2, mask), {}

    def make_batch(key, step):
        keys = jax.random.split(key)
        xs = jax.random.uniform(keys[0], (20, 16, 2), jnp.float32, -1, 1)
        return xs, jaxrnn.mask_from_lengths(jax.random.randint(keys[1], (16,), 0, 21), 20)

    with jax.numpy_dtype_promotion("standard"):
        optimizer = optax.adam(1e-2)
        state = jaxrnn.init_train_state(rnn.init(key), optimizer, key)
        step = jaxrnn.make_train_step(loss_fn, optimizer)
        state, history = jaxrnn.fit(step, state, make_batch, 100)
    assert history["loss"][-1] < history["loss"][0] / 2
    model = to_onnx(rnn, state.params, lengths=True)
    xs = np.array(jax.random.uniform(key, (30, 8, 2), jnp.float32, -1, 1))
    lengths = np.asarray([30, 0, 1, 29, 7, 15, 30, 2], np.int32)
    mask = jaxrnn.mask_from_lengths(lengths, 30)
    xs[~np.asarray(mask)] = np.nan
    ys, *states = run(model, {"xs": xs, "lengths": lengths})
    expected_state, expected = rnn.unroll(state.params, None, jnp.asarray(xs), mask=mask)
    assert np.abs(ys - expected).max() < 1e-6
    for got, other in zip(states, states_of(expected_state), strict=True):
        assert np.abs(got - other).max() < 1e-6


def test_a_model_has_standard_operators_only_and_declares_its_axes(onnx, eager):
    rng = np.random.default_rng(0)
    rnn = stack(vanilla_rnn(3, 4), dense(4, 2))
    params = (draw_rnn(rng, 3, 4, (True, True)), DenseParams(draw(rng, (2, 4)), draw(rng, (2,))))
    for opset in (14, 17, 21):
        model = to_onnx(rnn, params, lengths=True, opset=opset)
        onnx.checker.check_model(model, full_check=True)
        assert [(one.domain, one.version) for one in model.opset_import] == [("", opset)]
        assert not model.functions
        assert {node.domain for node in model.graph.node} == {""}
        axes = {
            one.name: [d.dim_param or d.dim_value for d in one.type.tensor_type.shape.dim]
            for one in [*model.graph.input, *model.graph.output]
        }
        expected = {"xs": ["T", "B", 3], "lengths": ["B"], "ys": ["T", "B", 2], "h_0": [1, "B", 4]}
        assert axes == expected
    plain = to_onnx(vanilla_rnn(3, 4), params[0]._replace(b=None, h0=None))
    assert [node.op_type for node in plain.graph.node] == ["RNN", "Identity", "Squeeze", "Identity"]


def test_a_single_layer_is_exported_and_accepts_an_empty_batch(onnx, run, eager):
    rng = np.random.default_rng(0)
    rnn, params = vanilla_rnn(3, 4), draw_rnn(rng, 3, 4, (True, True))
    model = to_onnx(chunked(rnn, 2), params)
    for shape in ((5, 2, 3), (5, 0, 3), (1, 1, 3)):
        xs = draw(rng, shape)
        ys, h = run(model, {"xs": np.asarray(xs)})
        expected_h, expected = rnn.unroll(params, None, xs)
        assert_near(ys, expected)
        assert_near(h[0], expected_h)


def draw_weights(rng, count, inputs=3, units=4, dtype=np.float32):
    shapes = {"W": (count, units, inputs), "R": (count, units, units), "B": (count, 2 * units)}
    return {name: np.asarray(draw(rng, shape, dtype)) for name, shape in shapes.items()}


def foreign_model(onnx, weights, attributes, *, tail=(), extra=None, opset=14):
    """A model of another exporter: an RNN node with a state and lengths, its directions joined,
    followed by the nodes (operator, inputs, attributes) of `tail` with outputs "y0", "y1", ..."""
    helper, weights = onnx.helper, {**weights, **(extra or {})}
    (count, units, inputs), batch_major = weights["W"].shape, attributes.get("layout") == 1
    names = ["X", "W", "R", "B" if "B" in weights else "", "lens", "H"]
    perm = [0, 1, 2, 3] if batch_major else [0, 2, 1, 3]
    nodes = [
        helper.make_node("RNN", names, ["Y", "Y_h"], name="the_rnn", **attributes),
        helper.make_node("Transpose", ["Y"], ["Yt"], perm=perm),
        helper.make_node("Reshape", ["Yt", "shape"], ["ys"]),
    ]
    for index, (operator, operands, options) in enumerate(tail):
        nodes.append(
            helper.make_node(operator, operands, [f"y{index}"], name=f"n{index}", **options)
        )
    weights["shape"] = np.array([0, 0, count * units])
    element = helper.np_dtype_to_tensor_dtype(weights["W"].dtype)
    info, first = helper.make_tensor_value_info, ["N", "T"] if batch_major else ["T", "N"]
    state = ["N", count, units] if batch_major else [count, "N", units]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [
            info("X", element, [*first, inputs]),
            info("lens", onnx.TensorProto.INT32, ["N"]),
            info("H", element, state),
        ],
        [info("Y_h", element, state), info(nodes[-1].output[0], element, [None] * 3)],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_rnn_operators_of_any_layout_direction_and_activation_are_imported(onnx, run, eager):
    directions = itertools.cycle(["forward", "reverse", "bidirectional"])
    activations = [OnnxActivation("Tanh"), OnnxActivation("Softsign"), *WITH_NUMBERS]
    for number, (activation, layout) in enumerate(itertools.product(activations, (0, 1))):
        rng, direction = np.random.default_rng(number), next(directions)
        count = 2 if direction == "bidirectional" else 1
        weights = draw_weights(rng, count)
        if number % 4 == 3:
            del weights["B"]
        pair = [activation, OnnxActivation("LeakyRelu", (0.1,))][:count]
        attributes = {
            "direction": direction,
            "activations": [one.name for one in pair],
            "activation_alpha": [one.parameters[0] for one in pair if one.parameters],
            "activation_beta": [one.parameters[1] for one in pair if len(one.parameters) > 1],
        }
        attributes = {name: value for name, value in attributes.items() if value}
        layer, params = from_onnx(foreign_model(onnx, weights, attributes | {"layout": layout}))
        attributes["hidden_size"] = 4  # optional in ONNX, but required by onnxruntime
        xs, lengths = draw(rng, (T, B, 3)), np.asarray([T, 0, 2], np.int32)
        state = np.asarray(draw(rng, (count, B, 4)))
        _, expected = run(
            foreign_model(onnx, weights, attributes),
            {"X": np.asarray(xs), "lens": lengths, "H": state},
        )
        ours = jnp.asarray(state[0]) if count == 1 else tuple(map(jnp.asarray, state))
        mask = np.arange(T)[:, None] < lengths
        _, ys = layer.unroll(params, (ours,), xs, mask=jnp.asarray(mask))
        assert_near(ys, expected, (activation, layout, direction))


def test_dense_layers_are_imported_from_matmul_with_add_and_from_gemm(onnx, run, eager):
    rng = np.random.default_rng(0)
    weights = draw_weights(rng, 1)
    w, b = np.asarray(draw(rng, (2, 4))), np.asarray(draw(rng, (2,)))
    extra = {"w": w, "w_t": w.T.copy(), "b": b, "rows": np.array([-1, 4]), "zero": np.array(0)}
    extra |= {"one": np.array(1), "two": np.array([2])}
    product = [("MatMul", ["ys", "w_t"], {}), ("Add", ["b", "y0"], {})]
    gemm = [
        ("Reshape", ["ys", "rows"], {}),
        ("Gemm", ["y0", "w", "b"], {"transB": 1}),
        ("Shape", ["ys"], {}),
        ("Slice", ["y2", "start", "two"], {}),
        ("Concat", ["y3", "two"], {"axis": 0}),
        ("Reshape", ["y1", "y4"], {}),
    ]
    extra["start"] = np.array([0])
    attributes = {"hidden_size": 4}
    xs, lengths = draw(rng, (T, B, 3)), np.asarray([T, 0, 2], np.int32)
    mask = np.arange(T)[:, None] < lengths
    feeds = {"X": np.asarray(xs), "lens": lengths, "H": np.zeros((1, B, 4), np.float32)}
    for tail in (product, product[:1], gemm):
        model = foreign_model(onnx, weights, attributes, tail=tail, extra=extra)
        layer, params = from_onnx(model)
        assert_identical(params[1].w, jnp.asarray(w))
        assert params[1].b is None if tail == product[:1] else np.array_equal(params[1].b, b)
        _, ys = layer.unroll(params, None, xs, mask=jnp.asarray(mask))
        expected = run(model, feeds)[-1]
        assert_near(ys, np.where(mask[..., None], expected, 0))


@pytest.mark.parametrize("exported_with", ["fixed sizes", "free sizes", "a state"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_models_exported_by_torch_are_imported(exported_with, batch_first, onnx, eager):
    torch = import_peer("torch")

    class Module(torch.nn.Module):
        def __init__(self, nonlinearity, two):
            super().__init__()
            options = {"bidirectional": two, "batch_first": batch_first}
            self.rnn = torch.nn.RNN(3, 4, 2, nonlinearity=nonlinearity, **options)
            self.readout = torch.nn.Linear(8 if two else 4, 2)

        def forward(self, xs, state=None):
            ys, state = self.rnn(xs, state)
            return self.readout(ys), state

    torch.manual_seed(0)
    free = {"xs": {0: "first", 1: "second"}, "state": {1: "first" if batch_first else "second"}}
    for nonlinearity, two in itertools.product(["tanh", "relu"], [False, True]):
        module, file = Module(nonlinearity, two), io.BytesIO()
        given = {"xs": torch.zeros(B, T, 3) if batch_first else torch.zeros(T, B, 3)}
        if exported_with == "a state":
            given["state"] = torch.zeros(4 if two else 2, B, 4)
        axes = {name: free[name] for name in given} if exported_with != "fixed sizes" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns that it is deprecated
            torch.onnx.export(
                module,
                tuple(given.values()),
                file,
                dynamo=False,
                input_names=list(given),
                dynamic_axes=axes,
            )
        layer, params = from_onnx(file.getvalue())
        xs = draw(np.random.default_rng(0), (T, B, 3))
        foreign = torch.tensor(np.asarray(xs))
        with torch.no_grad():
            expected = module(foreign.swapaxes(0, 1) if batch_first else foreign)[0].numpy()
        _, ys = layer.unroll(params, None, xs)
        assert_near(ys, expected.swapaxes(0, 1) if batch_first else expected)


def test_the_layer_of_a_reverse_operator_has_no_step_and_runs_forward_with_reverse(onnx, eager):
    rng = np.random.default_rng(0)
    layer, params = from_onnx(foreign_model(onnx, draw_weights(rng, 1), {"direction": "reverse"}))
    rnn = vanilla_rnn(3, 4)
    xs = draw(rng, (T, B, 3))
    for reverse in (False, True):
        _, ys = layer.unroll(params, None, xs, reverse=reverse)
        assert_identical(ys, rnn.unroll(params[0], None, xs, reverse=not reverse)[1])
    assert not layer.causal
    with pytest.raises(ValueError, match="not causal"):
        layer.step(params, None, xs[0])


def test_a_model_is_imported_from_a_file_and_from_bytes(onnx, tmp_path, monkeypatch, eager):
    params = draw_rnn(np.random.default_rng(0), 3, 4, (True, False))
    model = to_onnx(vanilla_rnn(3, 4), params)
    onnx.save(model, tmp_path / "inside.onnx")
    outside = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    onnx.save(to_onnx(vanilla_rnn(3, 4), params), str(tmp_path / "outside.onnx"), **outside)
    paths = [tmp_path / "inside.onnx", str(tmp_path / "outside.onnx")]
    for given in (*paths, model, model.SerializeToString()):
        assert_identical(from_onnx(given)[1], (params,))
    monkeypatch.chdir(tmp_path)  # the folder of the file that the model refers to
    with pytest.raises(ValueError, match="are in another file"):
        from_onnx(onnx.load(paths[1], load_external_data=False))
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "absent.onnx")


def test_a_layer_that_computes_something_else_than_described_is_rejected(onnx, eager):
    rng = np.random.default_rng(0)
    params = draw_rnn(rng, 3, 3, (True, True))
    rnn = vanilla_rnn(3, 3)
    assert from_onnx(to_onnx(rnn, params))[0].output_size == 3
    pair = bidirectional(rnn, vanilla_rnn(3, 3, activation=jax.nn.relu))
    backwards = rnn._replace(unroll=lambda *args, **kw: rnn.unroll(*args, **kw | {"reverse": True}))

    def forgets(*args, **options):
        h, ys = rnn.unroll(*args, **options)
        return jnp.zeros_like(h), ys

    for layer, given, activation in (
        (rnn, params, "relu"),
        (vanilla_rnn(3, 3, activation=jax.nn.relu), params, "LeakyRelu"),
        (vanilla_rnn(3, 3, activation=jax.nn.relu), params, "Tanh"),
        (residual(rnn), params, "Tanh"),
        (backwards, params, "Tanh"),
        (rnn._replace(unroll=forgets), params, "Tanh"),
        (pair, (params, params), "Tanh"),
        (pair, (params, params), (("relu", "Tanh"),)),
        (stack(rnn, rnn), (params, params._replace(h0=None)), ("Tanh", "Sigmoid")),
    ):
        with pytest.raises(ValueError, match="layer does not compute what params and activation"):
            to_onnx(layer, given, activation=activation)
    assert to_onnx(pair, (params, params), activation=[("tanh", "relu")])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer": 3}, "layer is a int, expected a Layer"),
        ({"activation": jnp.sin}, "activation is .*, expected one of"),
        ({"activation": "swish"}, "activation is 'swish', expected one of"),
        ({"activation": ("Tanh", "Tanh")}, "activation has 2 entries, expected 1"),
        ({"activation": [("Tanh", "Tanh")]}, r"has the entry \('Tanh', 'Tanh'\), expected 1"),
        ({"lengths": 1}, "lengths is 1, expected True or False"),
        ({"opset": 13}, "opset is 13, expected an int of at least 14"),
        ({"opset": 1000}, "opset is 1000, expected at most"),
        ({"params": {"w": 1}}, r"params\[0\] is a dict"),
    ],
)
def test_invalid_arguments_of_to_onnx_are_rejected(change, words, onnx):
    params = draw_rnn(np.random.default_rng(0), 3, 4, (True, True))
    given = {"layer": vanilla_rnn(3, 4), "params": params} | change
    with pytest.raises((TypeError, ValueError), match=words):
        to_onnx(given.pop("layer"), given.pop("params"), **given)


def test_networks_that_onnx_cannot_express_are_rejected(onnx, eager):
    rng = np.random.default_rng(0)
    unequal = bidirectional(vanilla_rnn(3, 4), vanilla_rnn(3, 5))
    with pytest.raises(ValueError, match=r"layer 0 of params has \[4, 5\] hidden units"):
        to_onnx(unequal, (draw_rnn(rng, 3, 4, (1, 0)), draw_rnn(rng, 3, 5, (1, 0))))
    half = vanilla_rnn(3, 4, dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match=r"dtypes \['bfloat16'\], expected float32"):
        to_onnx(half, draw_rnn(rng, 3, 4, (1, 0), jnp.bfloat16))
    mixed = stack(vanilla_rnn(3, 4), dense(4, 2, dtype=jnp.float64))
    with pytest.raises(ValueError, match=r"dtypes \['float32', 'float64'\]"):
        to_onnx(mixed, (draw_rnn(rng, 3, 4, (1, 0)), DenseParams(draw(rng, (2, 4), np.float64))))


def test_unsupported_operators_are_rejected_by_the_name_of_their_node(onnx, eager):
    rng = np.random.default_rng(0)
    weights = draw_weights(rng, 1)
    extra = {"w": np.asarray(draw(rng, (4, 4))), "two": np.float32(2), "last": np.array([0, 1])}
    cube = {"cube": np.asarray(draw(rng, (1, 4, 4)))}
    product = ("MatMul", ["ys", "w"], {})
    for attributes, tail, words in (
        ({"clip": 3.0}, [], r"RNN node 'the_rnn' has clip 3\.0, expected none"),
        ({"direction": "both"}, [], "RNN node 'the_rnn' has direction 'both', expected forward"),
        ({"layout": 2}, [], "RNN node 'the_rnn' has layout 2, expected 0 or 1"),
        ({"activations": ["Sin"]}, [], "'the_rnn': activation is 'Sin', expected one of"),
        ({"activations": ["Tanh", "Tanh"]}, [], "'the_rnn': activations are .*, expected 1"),
        ({"activations": ["ScaledTanh"]}, [], "'the_rnn': activation ScaledTanh has parameters"),
        (
            {"activation_alpha": [1.0]},
            [],
            "'the_rnn': activation_alpha or activation_beta has",
        ),
        ({"hidden_size": 5}, [], "'the_rnn': hidden_size is 5 but R has 4 units"),
        ({"direction": "bidirectional"}, [], r"'the_rnn': R has shape \(1, 4, 4\), expected \[2"),
        ({}, [("Softmax", ["ys"], {})], "Softmax node 'n0' stands between"),
        ({}, [product, ("Add", ["y0", "ys"], {})], "Add node 'n1' has 2 computed inputs"),
        (
            {},
            [("Add", ["ys", "two"], {})],
            "Add node 'n0' adds weights to something other",
        ),
        ({}, [product, ("Add", ["y0", "cube"], {})], r"'n1' adds weights of shape \(1, 4, 4\)"),
        ({}, [("MatMul", ["ys", "cube"], {})], r"'n0': the second input has shape \(1, 4, 4\)"),
        (
            {},
            [("Mul", ["ys", "two"], {})],
            "not a stack of layers up to output 'y0': its",
        ),
        ({}, [("Gather", ["ys", "last"], {"axis": 0})], "Gather node 'n0' does not swap"),
        ({}, [("Reshape", ["ys", "w"], {})], "it cannot be evaluated"),
        (
            {},
            [("Identity", ["Y_h"], {})],
            "output 'y0': the RNN node 'the_rnn' gives a final state",
        ),
    ):
        model = foreign_model(onnx, weights, attributes, tail=tail, extra=extra | cube)
        with pytest.raises(ValueError, match=words):
            from_onnx(model)


def test_malformed_models_and_models_without_a_chain_are_rejected(onnx, eager):
    rng = np.random.default_rng(0)
    weights = draw_weights(rng, 1)
    for name, value, words in (
        ("W", draw(rng, (1, 5, 3)), r"'the_rnn': W has shape \(1, 5, 3\), expected \[1, 4, D\]"),
        ("R", draw(rng, (1, 4, 5)), r"'the_rnn': R has shape \(1, 4, 5\)"),
        ("B", draw(rng, (1, 4)), r"'the_rnn': B has shape \(1, 4\), expected \(1, 8\)"),
        ("W", np.ones((1, 4, 3), np.int32), "'the_rnn': W has dtype int32, expected a floating"),
    ):
        model = foreign_model(onnx, weights | {name: np.asarray(value)}, {})
        with pytest.raises(ValueError, match=words):
            from_onnx(model)
    model = foreign_model(onnx, weights, {})
    del model.graph.initializer[0]
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("W", onnx.TensorProto.FLOAT, [1, 4, 3])
    )
    with pytest.raises(ValueError, match=r"'the_rnn': 'W' is computed from \['W'\], expected"):
        from_onnx(model)
    model = foreign_model(onnx, weights, {})
    del model.graph.output[1]
    with pytest.raises(ValueError, match="output 'Y_h': the RNN node 'the_rnn' gives a final"):
        from_onnx(model)
    for bad in (b"", b"\xff" * 40, model.SerializeToString()[:-30]):
        with pytest.raises(ValueError, match="model is not a valid ONNX model"):
            from_onnx(bad)
    with pytest.raises(TypeError, match="model is a list, expected"):
        from_onnx([])


def test_an_onnx_activation_computes_its_definition_and_compares_by_its_parameters(key, eager):
    xs = jnp.linspace(-3, 3, 13, dtype=jnp.float32)
    for activation in WITH_NUMBERS:
        (alpha, beta), x = (*activation.parameters, 0.0)[:2], np.asarray(xs)
        expected = {
            "Affine": alpha * x + beta,
            "LeakyRelu": np.where(x < 0, alpha * x, x),
            "ThresholdedRelu": np.where(x > alpha, x, 0),
            "ScaledTanh": alpha * np.tanh(beta * x),
            "HardSigmoid": np.clip(alpha * x + beta, 0, 1),
            "Elu": np.where(x < 0, alpha * np.expm1(x), x),
        }[activation.name]
        assert_near(activation(xs), expected.astype(np.float32))
        again = OnnxActivation(activation.name, activation.parameters)
        assert (again, hash(again)) == (activation, hash(activation))
    with pytest.raises(ValueError, match=r"activation Tanh has parameters .*, expected 0 numbers"):
        OnnxActivation("Tanh", (1.0,))
    rnn = vanilla_rnn(3, 4, activation=WITH_NUMBERS[1])
    grads = jax.grad(lambda p: jnp.sum(rnn.unroll(p, None, jnp.ones((2, 1, 3), jnp.float32))[1]))(
        rnn.init(key)
    )
    assert all(np.any(np.asarray(leaf)) for leaf in (grads.w_ih, grads.w_hh, grads.b))


def test_onnx_is_imported_on_first_use_and_its_absence_names_the_extra(monkeypatch, key):
    code = "import jaxrnn.interop.onnx, sys; assert not {'onnx', 'google'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    monkeypatch.setitem(sys.modules, "onnx", None)
    rnn = vanilla_rnn(3, 4)
    for call in (lambda: to_onnx(rnn, rnn.init(key)), lambda: from_onnx(b"")):
        with pytest.raises(ImportError, match=r"pip install 'jaxrnn\[interop\]'"):
            call()

"""torch: outputs, states and gradients as in torch, exact round trips, and rejected input."""

import functools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import DenseParams, RNNParams, bidirectional, dense, stack, vanilla_rnn
from jaxrnn.interop.torch import from_torch, to_torch
from tests.support import drawn_networks as drawn
from tests.support import oracle
from tests.support.checks import assert_identical
from tests.support.drawn_networks import B, Drawn, T
from tests.support.peers import import_peer

NETWORKS = 30


@pytest.fixture
def torch():
    return import_peer("torch")


def draw_modules(rng):
    """Lists of layers, one per module: one or two nn.RNN, then up to two nn.Linear."""
    modules, size, units = [], int(rng.integers(1, 5)), 0
    for _ in range(rng.integers(1, 3)):
        units = int(rng.choice([n for n in range(1, 5) if n != units]))
        directions, bias = int(rng.integers(1, 3)), bool(rng.integers(2))
        activation = str(rng.choice(["tanh", "relu"]))
        module = []
        for _ in range(rng.integers(1, 3)):
            module.append(Drawn(size, units, directions, bias, activation))
            size = module[-1].outputs
        modules.append(module)
    for _ in range(rng.integers(0, 3)):
        modules.append([Drawn(size, int(rng.integers(1, 5)), 0, bool(rng.integers(2)), "")])
        size = modules[-1][-1].outputs
    return modules


def build_torch(torch, modules, dtype):
    def one(layers):
        first = layers[0]
        if not first.directions:
            return torch.nn.Linear(first.inputs, first.units, bias=first.bias, dtype=dtype)
        return torch.nn.RNN(
            first.inputs,
            first.units,
            len(layers),
            nonlinearity=first.activation,
            bias=first.bias,
            bidirectional=first.directions == 2,
            dtype=dtype,
        )

    made = [one(layers) for layers in modules]
    return made[0] if len(made) == 1 else torch.nn.ModuleList(made)


def run_torch(torch, model, modules, h0s, xs, lengths):
    """Outputs [T, B, O], zero in the padding, and a list of final states."""
    rnn = torch.nn.utils.rnn
    packed = rnn.pack_padded_sequence(xs, torch.tensor(lengths), enforce_sorted=False)
    h0s, states = list(h0s), []
    for layers, module in zip(modules, [model] if len(modules) == 1 else model, strict=True):
        if layers[0].directions:
            count = len(layers) * layers[0].directions
            packed, last = module(packed, torch.stack([h0s.pop(0) for _ in range(count)]))
            states += list(last)
        else:
            packed = packed._replace(data=module(packed.data))
    return rnn.pad_packed_sequence(packed, total_length=T)[0], states


@pytest.mark.filterwarnings("ignore")
def test_outputs_states_and_gradients_are_those_of_torch(torch):
    for seed in range(NETWORKS):
        rng = np.random.default_rng(seed)
        modules = draw_modules(rng)
        layers = [layer for module in modules for layer in module]
        network = drawn.build(layers, jnp.float64)
        xs, lengths, mask = drawn.draw_batch(rng, layers, np.float64)
        state = drawn.draw_state(rng, layers, np.float64)
        model = build_torch(torch, modules, torch.float64)
        params = from_torch(model.state_dict())

        @functools.partial(jax.jit, compiler_options=drawn.QUICKLY)
        def run(params, state, xs, cotangent, mask, network=network):
            def unroll(params, state, xs):
                return network.unroll(params, state, xs, mask=mask)

            (last, ys), pull_back = jax.vjp(unroll, params, state, xs)
            return (ys, last), pull_back(cotangent)

        cotangent = (
            drawn.draw_state(rng, layers, np.float64),
            rng.standard_normal((T, B, network.output_size)) * mask[..., None],
        )
        outputs, grads = run(params, state, xs, cotangent, mask)

        theirs = [torch.tensor(h, requires_grad=True) for h in drawn.states_of(state)]
        xs_there = torch.tensor(xs, requires_grad=True)
        ys, last = run_torch(torch, model, modules, theirs, xs_there, lengths)
        padding = torch.tensor(mask)[..., None]
        drawn.assert_agree(
            (outputs[0], drawn.states_of(outputs[1])),
            ((ys * padding).detach().numpy(), [h.detach().numpy() for h in last]),
            seed,
        )
        cotangents = [torch.tensor(c) for c in (cotangent[1], *drawn.states_of(cotangent[0]))]
        torch.autograd.backward([ys, *last], cotangents)
        expected = from_torch(gradients(torch, model))
        assert jax.tree.structure(expected) == jax.tree.structure(grads[0])
        drawn.assert_agree(grads[0], expected, seed)
        drawn.assert_agree(
            (drawn.states_of(grads[1]), grads[2]),
            ([h.grad.numpy() for h in theirs], xs_there.grad.numpy()),
            seed,
        )


def gradients(torch, model):
    """Gradients by name. The two biases have the same gradient, so that of bias_hh is zeroed."""
    found = {name: tensor.grad for name, tensor in model.named_parameters()}
    for name, grad in found.items():
        if "bias_hh" in name:
            other = found[name.replace("bias_hh", "bias_ih")]
            drawn.assert_agree(grad.numpy(), other.numpy(), name)
            found[name] = torch.zeros_like(grad)
    return found


@pytest.mark.filterwarnings("ignore")
def test_a_round_trip_through_torch_preserves_every_bit(torch):
    for seed in range(NETWORKS):
        rng = np.random.default_rng(seed)
        modules = draw_modules(rng)
        layers = [layer for module in modules for layer in module]
        for dtype in drawn.DTYPES:
            params = drawn.draw_special(rng, layers, dtype)
            model = build_torch(torch, modules, getattr(torch, dtype))
            tensors = {
                name: torch.from_numpy(array.view("int16")).view(torch.bfloat16)
                if dtype == "bfloat16"
                else torch.from_numpy(array)
                for name, array in to_torch(params).items()
            }
            assert list(tensors) == list(model.state_dict())
            model.load_state_dict(tensors)
            returned = from_torch(model.state_dict())
            assert_identical(returned, params, seed)
            with torch.no_grad():
                for tensor in model.parameters():
                    tensor.fill_(7)
            assert_identical(returned, params, seed)  # no memory is shared with torch


def test_a_round_trip_preserves_every_bit():
    drawn.check_round_trips(to_torch, from_torch)


def test_a_hand_written_state_dict_gives_the_outputs_of_the_oracle():
    rng = np.random.default_rng(0)
    shapes = {
        "rnn.weight_ih_l0": (4, 3),
        "rnn.weight_hh_l0": (4, 4),
        "rnn.bias_ih_l0": (4,),
        "rnn.bias_hh_l0": (4,),
        "rnn.weight_ih_l0_reverse": (4, 3),
        "rnn.weight_hh_l0_reverse": (4, 4),
        "rnn.bias_ih_l0_reverse": (4,),
        "rnn.bias_hh_l0_reverse": (4,),
        "rnn.weight_ih_l1": (4, 8),
        "rnn.weight_hh_l1": (4, 4),
        "rnn.bias_ih_l1": (4,),
        "rnn.bias_hh_l1": (4,),
        "rnn.weight_ih_l1_reverse": (4, 8),
        "rnn.weight_hh_l1_reverse": (4, 4),
        "rnn.bias_ih_l1_reverse": (4,),
        "rnn.bias_hh_l1_reverse": (4,),
        "readout.weight": (2, 8),
        "readout.bias": (2,),
    }
    written = {name: rng.standard_normal(shape) / 2 for name, shape in shapes.items()}
    xs, mask = rng.standard_normal((T, B, 3)), np.ones((T, B), bool)
    layers = [
        [
            {
                "w_ih": written[f"rnn.weight_ih_l{layer}{direction}"],
                "w_hh": written[f"rnn.weight_hh_l{layer}{direction}"],
                "b": written[f"rnn.bias_ih_l{layer}{direction}"]
                + written[f"rnn.bias_hh_l{layer}{direction}"],
                "h0": np.zeros(4),
            }
            for direction in ("", "_reverse")
        ]
        for layer in (0, 1)
    ]
    hs, _, _ = oracle.network(layers, xs, mask, np.zeros((T, B), bool), np.zeros((T, B, 8)), "tanh")
    expected = hs @ written["readout.weight"].T + written["readout.bias"]
    pairs = [bidirectional(rnn, rnn) for rnn in (vanilla_rnn(3, 4), vanilla_rnn(8, 4))]
    network = stack(*pairs, dense(8, 2))
    drawn.assert_agree(network.unroll(from_torch(written), None, xs)[1], expected)
    assert list(to_torch(from_torch(written), names=["rnn", "readout"])) == list(written)


def rnn(inputs, units, *, bias=True, dtype=np.float32):
    b = np.ones(units, dtype) if bias else None
    return RNNParams(np.ones((units, inputs), dtype), np.ones((units, units), dtype), b)


def readout(inputs, outputs):
    return DenseParams(np.ones((outputs, inputs), np.float32))


@pytest.mark.parametrize(
    ("params", "names", "first_tensors"),
    [
        (rnn(3, 4), None, ["weight_ih_l0"]),
        (readout(3, 4), None, ["weight"]),
        ((rnn(3, 4), rnn(4, 4)), None, ["weight_ih_l0"]),
        ((rnn(3, 4), rnn(4, 4)), [""], ["weight_ih_l0"]),
        ((rnn(3, 4), rnn(4, 4)), ["a"], ["a.weight_ih_l0"]),
        ((rnn(3, 4), rnn(4, 4)), ["a", "b"], ["a.weight_ih_l0", "b.weight_ih_l0"]),
        ((rnn(3, 4), rnn(4, 5)), None, ["0.weight_ih_l0", "1.weight_ih_l0"]),
        ((rnn(3, 4), rnn(4, 4, bias=False)), None, ["0.weight_ih_l0", "1.weight_ih_l0"]),
        ((rnn(3, 4), (rnn(4, 4), rnn(4, 4))), None, ["0.weight_ih_l0", "1.weight_ih_l0"]),
        ((rnn(3, 4), (), readout(4, 4), readout(4, 2)), None, ["0.weight_ih_l0", "1.weight"]),
        ((rnn(3, 4), readout(4, 4), rnn(4, 4)), ["a", "b", "c.d"], ["a.weight_ih_l0", "b.weight"]),
    ],
)
def test_equal_neighbours_share_a_module_unless_names_separate_them(params, names, first_tensors):
    tensors = list(to_torch(params, names=names))
    firsts = [name for name in tensors if re.search(r"(^|\.)weight(_ih_l0)?$", name)]
    assert firsts[: len(first_tensors)] == first_tensors
    assert tensors[0] == first_tensors[0]
    expected = params if type(params) is tuple else (params,)
    returned = from_torch(to_torch(params, names=names))
    assert_identical(returned, expected)


def test_importing_the_formats_imports_no_framework():
    imported = (
        "import sys; from jaxrnn.interop import flax, haiku, keras, torch; "
        "sys.exit(len({'torch', 'keras', 'flax', 'haiku'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", imported], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


GOOD = to_torch(((rnn(3, 4), rnn(3, 4)), (rnn(8, 4), rnn(8, 4)), readout(8, 2)))


def without(name):
    return {other: array for other, array in GOOD.items() if other != name}


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


GATES = {"weight_ih_l0": ones(12, 3), "weight_hh_l0": ones(12, 4)}


@pytest.mark.parametrize(
    ("state_dict", "error", "message"),
    [
        (None, TypeError, "state_dict is a NoneType, expected a mapping"),
        ([ones(2)], TypeError, "state_dict is a list, expected a mapping"),
        ({}, ValueError, "state_dict holds no tensors"),
        (without("0.weight_hh_l1"), ValueError, "there is no '0.weight_hh_l1'"),
        (without("0.weight_ih_l0"), ValueError, "there is no '0.weight_ih_l0'"),
        (without("0.weight_ih_l1_reverse"), ValueError, "there is no '0.weight_ih_l1_reverse'"),
        (without("0.bias_hh_l1"), ValueError, "there is no '0.bias_hh_l1'"),
        (without("0.bias_ih_l0_reverse"), ValueError, "there is no '0.bias_ih_l0_reverse'"),
        ({"weight_ih_l1": ones(4, 4), "weight_hh_l1": ones(4, 4)}, ValueError, "'weight_hh_l0'"),
        (GOOD | {"0.weight_hh_l0": ones(5, 5)}, ValueError, r"'0.weight_ih_l0' .* \(5, 3\)"),
        (GOOD | {"0.weight_hh_l1": ones(5, 5)}, ValueError, r"'0.weight_hh_l1' .* \(4, 4\)"),
        (GOOD | {"0.weight_hh_l1": ones(4, 5)}, ValueError, r"'0.weight_hh_l1' .* \(4, 5\)"),
        (GOOD | {"0.weight_ih_l1": ones(4, 4)}, ValueError, r"'0.weight_ih_l1' .* \(4, 8\)"),
        (GOOD | {"0.weight_ih_l0_reverse": ones(4, 2)}, ValueError, r"'0.weight_ih_l0_reverse'"),
        (GOOD | {"0.bias_hh_l0": ones(3)}, ValueError, r"'0.bias_hh_l0' has shape \(3,\)"),
        (GOOD | {"0.bias_hh_l0": ones(4, 1)}, ValueError, r"'0.bias_hh_l0' has shape \(4, 1\)"),
        (GOOD | {"0.weight_ih_l0": ones(4)}, ValueError, r"'0.weight_ih_l0' .* a matrix"),
        (GOOD | {"1.weight": ones(2, 8, 1)}, ValueError, r"'1.weight' .* a matrix"),
        (GOOD | {"1.bias": ones(3)}, ValueError, r"'1.bias' .* expected \(2,\)"),
        (GOOD | {"1.weight": ones(2, 5)}, ValueError, "8 outputs but layer 2 has 5 inputs"),
        (GOOD | {"1.running_mean": ones(2)}, ValueError, r"unknown tensors \['1.running_mean'\]"),
        (GOOD | {"2.gamma": ones(2)}, ValueError, r"unknown tensors \['2.gamma'\]"),
        (GOOD | {"0.weight": ones(2, 2)}, ValueError, r"unknown tensors \['0.weight'\]"),
        (GATES, ValueError, "'weight_hh_l0' holds 3 matrices of 4 units, those of a GRU"),
        (GATES | {"weight_hh_l0": ones(16, 4)}, ValueError, "those of an LSTM"),
        (GATES | {"weight_hr_l0": ones(2, 4)}, ValueError, "'weight_hr_l0' projects the state"),
        (GOOD | {"1.bias": ones(2, dtype=int)}, ValueError, "'1.bias' has dtype int64"),
        (GOOD | {"1.bias": ones(2, dtype=complex)}, ValueError, "'1.bias' has dtype complex128"),
        (GOOD | {"1.bias": None}, TypeError, "'1.bias' is a NoneType, expected an array"),
    ],
)
def test_an_invalid_state_dict_is_rejected_by_name(state_dict, error, message):
    with pytest.raises(error, match=message):
        from_torch(state_dict)


def test_a_dtype_that_jax_cannot_store_is_rejected():
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match=r"'weight' is float64, .*jax_enable_x64"),
    ):
        from_torch({"weight": ones(2, 3, dtype=np.float64)})


TWO = (rnn(3, 4), readout(4, 2))


@pytest.mark.parametrize(
    ("params", "names", "error", "message"),
    [
        (rnn(3, 4)._replace(h0=ones(4)), None, ValueError, "h0.* torch's nn.RNN"),
        (((rnn(3, 4), rnn(3, 5)),), None, ValueError, "layer 0 of params have 4 units with a bias"),
        (((rnn(3, 4), rnn(3, 4, bias=False)),), None, ValueError, "4 units without a bias"),
        (TWO, ["a"], ValueError, r"names has 1 entries, expected 2: \['RNN\(3 -> 4\)', 'Linear"),
        (TWO, ["a", 3], TypeError, r"names\[1\] is 3, expected a string"),
        (TWO, "ab", TypeError, "names is 'ab', expected a list"),
        (TWO, 5, TypeError, "names is 5, expected a list"),
        ((rnn(3, 4), rnn(4, 4)), ["a", "a"], ValueError, "names gives 'a.weight_ih_l0' twice"),
        ([rnn(3, 4)], None, TypeError, r"params\[0\] is a list"),
        ((rnn(3, 4), {}), None, TypeError, r"params\[1\] is a dict"),
        ((rnn(3, 4), readout(5, 2)), None, ValueError, "layer 0 of params has 4 outputs"),
    ],
)
def test_invalid_parameters_are_not_exported(params, names, error, message):
    with pytest.raises(error, match=message):
        to_torch(params, names=names)

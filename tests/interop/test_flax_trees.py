"""flax: the layers in a tree of variables, their order, and rejected input."""

import functools

import jax
import numpy as np
import pytest

from jaxrnn import DenseParams, RNNParams
from jaxrnn.interop.flax import from_flax, to_flax
from tests.support.checks import assert_identical


def ones(*shape):
    return np.ones(shape, np.float32)


def rnn(inputs, units, *, bias=True):
    return RNNParams(ones(units, inputs), ones(units, units), ones(units) if bias else None)


def cell(inputs, units, names=("i", "h")):
    return {
        names[0]: {"kernel": ones(inputs, units), "bias": ones(units)},
        names[1]: {"kernel": ones(units, units)},
    }


def linear(inputs, outputs):
    return {"kernel": ones(inputs, outputs), "bias": ones(outputs)}


def sizes(params):
    """The inputs and units of each layer, in a list of two for a bidirectional one."""

    def size(one):
        if isinstance(one, DenseParams):
            return ("dense", *one.w.shape[::-1])
        if isinstance(one, RNNParams):
            return one.w_ih.shape[::-1]
        return [size(direction) for direction in one]

    return [size(one) for one in params]


def test_hand_written_variables_are_read_as_the_layers_they_name():
    rng = np.random.default_rng(0)
    inner, hidden, forward, backward, out = (
        rng.standard_normal(shape) for shape in ((3, 4), (4, 4), (4, 2), (4, 2), (4, 5))
    )
    bias = rng.standard_normal(4)
    small = np.eye(2)
    variables = {
        "params": {
            "layers_2": {"kernel": out},
            "layers_1": {
                "backward_rnn": {
                    "cell": {"i": {"kernel": backward, "bias": bias[:2]}, "h": {"kernel": small}}
                },
                "forward_rnn": {
                    "cell": {"i": {"kernel": forward, "bias": bias[2:]}, "h": {"kernel": small}}
                },
            },
            "layers_0": {"cell": {"i": {"kernel": inner, "bias": bias}, "h": {"kernel": hidden}}},
        }
    }
    expected = (
        RNNParams(inner.T, hidden.T, bias),
        (RNNParams(forward.T, small, bias[2:]), RNNParams(backward.T, small, bias[:2])),
        DenseParams(out.T),
    )
    params = from_flax(variables)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    assert_identical(params, expected)
    assert_identical(to_flax(params, api="linen"), variables)


def test_a_layer_without_a_bias_gets_zeros():
    for api in ("nnx", "linen"):
        params = from_flax(to_flax((rnn(3, 4, bias=False),), api=api))
        assert_identical(params, (rnn(3, 4)._replace(b=np.full(4, -0.0, np.float32)),))


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (cell(3, 4), [(3, 4)]),
        ({"cell": cell(3, 4, ("dense_i", "dense_h"))}, [(3, 4)]),
        (linear(3, 4), [("dense", 3, 4)]),
        ({f"layers_{n}": {"cell": cell(4, 4)} for n in (10, 2, 1)} | {"layers_9": linear(4, 4)},
         [(4, 4), (4, 4), ("dense", 4, 4), (4, 4)]),
        ({"readout": linear(4, 2), "rnn": {"cell": cell(3, 4)}}, [(3, 4), ("dense", 4, 2)]),
        ({"SimpleCell_0": cell(3, 4), "SimpleCell_1": cell(3, 4), "Dense_0": linear(8, 1)},
         [[(3, 4), (3, 4)], ("dense", 8, 1)]),
        ({"SimpleCell_0": cell(4, 4), "SimpleCell_1": cell(4, 4), "Dense_0": linear(8, 1)},
         [[(4, 4), (4, 4)], ("dense", 8, 1)]),
        ({"SimpleCell_0": cell(4, 4), "SimpleCell_1": cell(4, 4), "Dense_0": linear(4, 1)},
         [(4, 4), (4, 4), ("dense", 4, 1)]),
        ({"forward_rnn": {"cell": cell(3, 4)}, "backward_rnn": {"cell": cell(3, 2)}},
         [[(3, 4), (3, 2)]]),
    ],
)  # fmt: skip
def test_numbers_and_sizes_determine_the_order(tree, expected):
    assert sizes(from_flax(tree)) == expected


@pytest.mark.parametrize(
    ("tree", "names", "expected"),
    [
        ({"a": linear(4, 4), "b": {"cell": cell(4, 4)}}, ["b/cell", "a"],
         [(4, 4), ("dense", 4, 4)]),
        ({"SimpleCell_0": cell(4, 4), "SimpleCell_1": cell(4, 4)}, ["SimpleCell_1", "SimpleCell_0"],
         [(4, 4), (4, 4)]),
        ({"SimpleCell_0": cell(4, 4), "SimpleCell_1": cell(4, 4)},
         [("SimpleCell_0", "SimpleCell_1")], [[(4, 4), (4, 4)]]),
        ({"i": linear(4, 4), "h": linear(4, 4)}, ["h", "i"], [("dense", 4, 4), ("dense", 4, 4)]),
    ],
)  # fmt: skip
def test_names_give_the_order_if_sizes_do_not(tree, names, expected):
    with pytest.raises(ValueError, match=r"more than one order|unknown tensors"):
        from_flax(tree)
    assert sizes(from_flax(tree, names=names)) == expected


LINEN = {"layers_0": {"cell": cell(3, 4)}, "layers_1": linear(4, 2)}


def changed(path, value):
    """LINEN with one entry replaced, or removed if `value` is None."""
    tree = jax.tree.map(lambda leaf: leaf, LINEN)
    *outer, last = path.split("/")
    inner = functools.reduce(lambda inside, key: inside.setdefault(key, {}), outer, tree)
    inner[last] = value
    if value is None:
        del inner[last]
    return tree


@pytest.mark.parametrize(
    ("tree", "names", "error", "message"),
    [
        (None, None, TypeError, "variables is a NoneType, expected a mapping"),
        ({}, None, ValueError, "variables holds no tensors"),
        ({"params": {}}, None, ValueError, "variables holds no tensors"),
        ({"params": LINEN, "batch_stats": {}}, None, ValueError, r"hold \['batch_stats', 'params"),
        (changed("layers_0/cell/h", None), None, ValueError, "no 'layers_0/cell/h/kernel'"),
        (changed("layers_0/cell/i", None), None, ValueError, "no 'layers_0/cell/i/kernel'"),
        (changed("layers_0/cell/i/bias", None), None, ValueError, "no 'layers_0/cell/i/bias'"),
        (changed("layers_0/cell/i/kernel", None), None, ValueError, "no 'layers_0/cell/i/kernel'"),
        (changed("layers_0/cell/h/bias", ones(4)), None, ValueError, "'layers_0/cell/h/bias'"),
        (changed("layers_0/cell/i/kernel", ones(3, 5)), None, ValueError, r"i/kernel' .* \(3, 4"),
        (changed("layers_0/cell/i/bias", ones(5)), None, ValueError, r"i/bias' .* \(4,\)"),
        (changed("layers_0/cell/h/kernel", ones(4, 12)), None, ValueError, "those of a GRU"),
        (changed("layers_1/kernel", ones(5, 2)), None, ValueError, "no order of the layers fits"),
        (changed("layers_1/bias", ones(3)), None, ValueError, "'layers_1/bias' has shape"),
        (changed("layers_1/scale", ones(3)), None, ValueError, r"unknown.*'layers_1/scale'"),
        (changed("layers_1/kernel", "x"), None, ValueError, "'layers_1/kernel' has dtype"),
        ({"a": linear(4, 4), "b": linear(4, 4)}, None, ValueError, "more than one order"),
        ({"SimpleCell_0": cell(4, 4), "SimpleCell_1": cell(4, 4)}, None, ValueError, "more than"),
        (LINEN, ["layers_0/cell"], ValueError, "unknown tensors .*'layers_1/bias'"),
        (LINEN, ["layers_0/cell", "layers_3"], ValueError, "no cell or dense layer 'layers_3'"),
        (LINEN, ["layers_1", "layers_0/cell"], ValueError, "2 outputs but layer 1"),
        (LINEN, ["layers_1", "layers_1"], ValueError, "no cell or dense layer 'layers_1'"),
        (LINEN, "layers_0", TypeError, "names is 'layers_0'"),
        (LINEN, ["layers_0/cell", 1], TypeError, r"names\[1\] is 1, expected a string or a pair"),
        (LINEN, [("layers_0/cell", 1)], TypeError, r"names\[0\] is \('layers_0/cell', 1\)"),
        (LINEN, [("layers_0/cell", "layers_1")], ValueError, "no cell .*'layers_1'"),
        ({"a": cell(3, 2), "b": cell(4, 2)}, [("a", "b")], ValueError, "have 3 and 4 inputs"),
    ],
)
def test_invalid_variables_are_rejected_by_name(tree, names, error, message):
    with pytest.raises(error, match=message):
        from_flax(tree, names=names)


TWO = ((rnn(3, 4), rnn(3, 4)), DenseParams(ones(2, 8)))


@pytest.mark.parametrize(
    ("params", "options", "error", "message"),
    [
        (rnn(3, 4)._replace(h0=ones(4)), {}, ValueError, "h0.* flax's SimpleCell"),
        (TWO, {"api": "keras"}, ValueError, "api is 'keras', expected 'nnx' or 'linen'"),
        (TWO, {"names": ["a"]}, ValueError, "names has 1 entries, expected 2"),
        (TWO, {"names": ["a", "b"]}, ValueError, r"names\[0\] is 'a', expected a pair"),
        (TWO, {"names": [("a", "b"), ("c", "d")]}, ValueError, r"names\[1\] .* expected one name"),
        (TWO, {"names": [("a", "a"), "c"]}, ValueError, "names gives 'a/dense_i/kernel' twice"),
        (TWO, {"names": 3}, TypeError, "names is 3"),
        ({"w": ones(2, 2)}, {}, TypeError, r"params\[0\] is a dict"),
    ],
)
def test_invalid_parameters_are_not_exported(params, options, error, message):
    with pytest.raises(error, match=message):
        to_flax(params, **options)

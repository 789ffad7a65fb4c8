"""Parameters in safetensors files: exact round trips, and rejection of malformed files."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import jaxrnn
from jaxrnn import bidirectional, dense, dropout, embedding, residual, stack, vanilla_rnn
from jaxrnn.files import FileFormatError
from jaxrnn.interop.safetensors import load_params, save_params
from tests.support.checks import assert_identical
from tests.support.peers import import_peer

KEY = jax.random.key(3)
FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.fixture(scope="module", autouse=True)
def library():
    return import_peer("safetensors.numpy")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


def layer_of(params):
    """A layer whose parameters have this structure."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)

    def init(key):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return dense(2, 3)._replace(init=init)


def header_of(content):
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def data_of(content):
    return content[8 + int.from_bytes(content[:8], "little") :]


def pack(header, data=b"", length=None):
    """The bytes of a file with a header (an object, or bytes) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


# Round trips


def networks(dtype):
    options = {"dtype": dtype}
    both = bidirectional(vanilla_rnn(2, 3, **options), vanilla_rnn(2, 4, **options))
    yield vanilla_rnn(2, 3, **options)
    yield vanilla_rnn(1, 1, use_bias=False, **options)
    yield vanilla_rnn(2, 3, learn_h0=True, use_bias=False, **options)
    yield dense(3, 2, use_bias=False, **options)
    yield embedding(5, 2, **options)
    yield dropout(2, 0.5)
    yield residual(vanilla_rnn(3, 3, **options))
    yield stack(both, dropout(7, 0.1), vanilla_rnn(7, 2, **options), dense(2, 1, **options))
    yield stack(embedding(9, 2, **options), bidirectional(both, vanilla_rnn(2, 1, **options)))


@pytest.mark.parametrize("dtype", FLOATS[:4])
def test_a_round_trip_of_a_network_preserves_every_bit(path, dtype):
    for number, layer in enumerate(networks(jnp.dtype(dtype))):
        shapes = jax.eval_shape(layer.init, KEY)
        leaves = [Leaf(leaf.dtype, leaf.shape, number).array for leaf in jax.tree.leaves(shapes)]
        params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        save_params(path, layer, params)
        loaded = load_params(path, layer)
        assert jax.tree.structure(loaded) == jax.tree.structure(params)
        assert_identical(loaded, params)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))


TREES = st.recursive(
    st.none()
    | st.tuples(
        st.sampled_from(FLOATS + INTEGERS),
        st.lists(st.integers(0, 3), max_size=3).map(tuple),
        st.integers(0, 2**32 - 1),
    ).map(lambda drawn: Leaf(*drawn)),
    lambda children: (
        st.lists(children, max_size=3)
        | st.lists(children, max_size=3).map(tuple)
        | st.dictionaries(st.text('abc é"\\\0\n', max_size=3), children, max_size=3)
        | st.tuples(children, children).map(lambda pair: jaxrnn.DenseParams(*pair))
    ),
    max_leaves=6,
)


class Leaf:
    """An array of random bits, which includes NaN with any payload."""

    def __init__(self, dtype, shape, seed):
        dtype = jnp.dtype(dtype)
        draw = np.random.default_rng(seed)
        data = draw.integers(0, 256, int(np.prod(shape)) * dtype.itemsize, np.uint8)
        self.array = data.view(dtype).reshape(shape)


@hypothesis.settings(deadline=None, max_examples=100, database=None)
@hypothesis.given(tree=TREES, device=st.booleans())
def test_a_round_trip_of_any_tree_preserves_every_bit(tmp_path_factory, tree, device):
    convert = jnp.asarray if device else np.asarray
    params = jax.tree.map(lambda leaf: convert(leaf.array), tree)
    path = tmp_path_factory.mktemp("folder") / "file"
    layer = layer_of(params)
    save_params(path, layer, params)
    loaded = load_params(path, layer)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    assert_identical(loaded, params)


@pytest.mark.parametrize("dtype", FLOATS[:4])
def test_the_payload_of_nan_and_the_sign_of_zero_are_preserved(path, dtype):
    dtype = jnp.dtype(dtype)
    unsigned = f"uint{8 * dtype.itemsize}"
    nan = int(np.array(np.inf, dtype).view(unsigned)) + 3  # a signalling one
    sign = 1 << (8 * dtype.itemsize - 1)
    bits = np.array([nan, nan + sign, sign, 1], unsigned)
    params = {"w": jnp.asarray(bits.view(dtype))}
    save_params(path, layer_of(params), params)
    assert np.asarray(load_params(path, layer_of(params))["w"]).tobytes() == bits.tobytes()


def test_arrays_of_any_memory_layout_are_saved_in_logical_order(path):
    columns = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    params = {"f": columns, "t": columns.T[::-1], "s": np.float64(3)}
    save_params(path, layer_of(params), params)
    loaded = load_params(path, layer_of(params))
    for name, leaf in params.items():
        np.testing.assert_array_equal(loaded[name], leaf)


# Contents of a file


def test_tensors_are_named_by_their_path_and_the_metadata_describe_the_layer(path, library):
    both = bidirectional(vanilla_rnn(2, 3), vanilla_rnn(2, 3, use_bias=False))
    layer = stack(vanilla_rnn(2, 2), dropout(2, 0.5), both, dense(6, 1))
    params = layer.init(KEY)
    save_params(path, layer, params)
    expected = {
        "0.w_ih": params[0].w_ih,
        "0.w_hh": params[0].w_hh,
        "0.b": params[0].b,
        "2.0.w_ih": params[2][0].w_ih,
        "2.0.w_hh": params[2][0].w_hh,
        "2.0.b": params[2][0].b,
        "2.1.w_ih": params[2][1].w_ih,
        "2.1.w_hh": params[2][1].w_hh,
        "3.w": params[3].w,
        "3.b": params[3].b,
    }
    read = library.load_file(path)  # with the library's own reader
    assert set(read) == set(expected)
    for name, leaf in expected.items():
        assert_identical(read[name], leaf)
    metadata = header_of(path.read_bytes())["__metadata__"]
    assert json.loads(metadata.pop("layer")) == {
        "input_size": 2,
        "output_size": 1,
        "causal": False,
        "tensors": {name: ["float32", list(leaf.shape)] for name, leaf in expected.items()},
    }
    assert metadata == {
        "format": "jaxrnn",
        "format_version": "1",
        "jaxrnn_version": jaxrnn.__version__,
    }


@pytest.mark.parametrize(
    ("dtype", "code"), [("bfloat16", "BF16"), ("float16", "F16"), ("float64", "F64")]
)
def test_a_dtype_is_saved_unchanged(path, dtype, code):
    layer = vanilla_rnn(2, 3, dtype=jnp.dtype(dtype))
    params = layer.init(KEY)
    save_params(path, layer, params)
    content = path.read_bytes()
    assert header_of(content)["w_hh"]["dtype"] == code
    first, last = header_of(content)["w_hh"]["data_offsets"]
    assert data_of(content)[first:last] == np.asarray(params.w_hh).tobytes()


def test_parameters_of_a_single_array_are_named_params(path):
    layer = embedding(4, 2)
    save_params(path, layer, layer.init(KEY))
    assert set(header_of(path.read_bytes())) == {"__metadata__", "params"}


# Files of other writers

NETWORK = stack(vanilla_rnn(2, 3), dense(3, 1))
PARAMS = NETWORK.init(KEY)
TENSORS = {
    "0.w_ih": PARAMS[0].w_ih,
    "0.w_hh": PARAMS[0].w_hh,
    "0.b": PARAMS[0].b,
    "1.w": PARAMS[1].w,
    "1.b": PARAMS[1].b,
}
TENSORS = {name: np.asarray(leaf) for name, leaf in TENSORS.items()}


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"layer": "{", "answer": "42"}])
def test_a_file_of_another_writer_is_checked_by_its_tensors_alone(path, library, metadata):
    library.save_file(dict(reversed(TENSORS.items())), path, metadata)
    assert_identical(load_params(path, NETWORK), PARAMS)


def test_a_header_with_whitespace_and_additional_fields_is_accepted(path, library):
    header = header_of(library.save(TENSORS))
    data = data_of(library.save(TENSORS))
    header["__metadata__"] = None
    header["0.b"]["note"] = [1, {"x": 2.5}]  # a field that is not part of the format
    path.write_bytes(pack(b"  " + json.dumps(header, indent=1).encode() + b" \n", data))
    assert_identical(load_params(path, NETWORK), PARAMS)


# Differences


def changed(**tensors):
    return {**TENSORS, **tensors}


def without(*names):
    return {name: leaf for name, leaf in TENSORS.items() if name not in names}


TRANSPOSED = TENSORS["0.w_ih"].T.copy()
HALF = TENSORS["1.w"].astype(np.float16)
DIFFERENCES = [
    (without("0.b"), ["'0.b' is missing"]),
    (changed(more=HALF), ["'more' is not expected"]),
    (changed(**{"0.w_ih": TRANSPOSED}), ["'0.w_ih' has shape (2, 3), expected (3, 2)"]),
    (changed(**{"1.w": HALF}), ["'1.w' has dtype float16, expected float32"]),
    (
        changed(**{"1.w": HALF.T.copy()}),
        ["'1.w' has shape (3, 1), expected (1, 3)", "'1.w' has dtype float16, expected float32"],
    ),
    (
        {**without("0.w_hh", "1.b"), "2.b": HALF, "0.b": np.int32([1, 2, 3])},
        ["'0.w_hh' is missing", "'1.b' is missing", "'0.b' has dtype int32", "'2.b' is not exp"],
    ),
    ({}, [f"{name!r} is missing" for name in TENSORS]),
]


@pytest.mark.parametrize(("tensors", "words"), DIFFERENCES)
def test_a_file_of_other_tensors_is_rejected_and_every_difference_is_named(
    path, library, tensors, words
):
    library.save_file(tensors, path)
    with pytest.raises(FileFormatError) as error:
        load_params(path, NETWORK)
    for word in [str(path), *words]:
        assert word in str(error.value)
    assert str(error.value).count(";") == len(words) - 1


def test_of_many_differences_the_first_are_named_and_the_others_counted(path, library):
    library.save_file({f"tensor {number}": HALF for number in range(100)}, path)
    with pytest.raises(FileFormatError, match=r"and 97 more$") as error:
        load_params(path, NETWORK)
    assert str(error.value).count(";") == 8


@pytest.mark.parametrize(("saved", "asked"), list(itertools.permutations(FLOATS[:4], 2))[:6])
def test_a_file_of_another_dtype_is_rejected_not_cast(path, saved, asked):
    layers = [vanilla_rnn(2, 3, dtype=jnp.dtype(dtype)) for dtype in (saved, asked)]
    save_params(path, layers[0], layers[0].init(KEY))
    with pytest.raises(FileFormatError, match=f"'b' has dtype {saved}, expected {asked}"):
        load_params(path, layers[1])


def test_a_different_layer_with_the_same_tensors_is_rejected(path, library):
    both = bidirectional(vanilla_rnn(3, 3), vanilla_rnn(3, 3))
    deep = stack(vanilla_rnn(3, 3), vanilla_rnn(3, 3))
    params = both.init(KEY)
    save_params(path, both, params)
    with pytest.raises(FileFormatError, match="output_size is 6, expected 3; causal is False"):
        load_params(path, deep)
    library.save_file(library.load_file(path), path)  # without our metadata
    assert_identical(load_params(path, deep), params)


def test_loading_float64_requires_x64(path):
    layer = vanilla_rnn(2, 3, dtype=jnp.float64)
    save_params(path, layer, layer.init(KEY))
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"float64.*jax_enable_x64"):
        load_params(path, layer)


# Invalid parameters


class Odd:
    pass


NOT_SAVED = [
    (NETWORK, PARAMS[:1], ValueError, ["'1.w' is missing", "'1.b' is missing"]),
    (NETWORK, (*PARAMS, PARAMS[1]), ValueError, ["'2.w' is not expected"]),
    (NETWORK, (PARAMS[0]._replace(b=None), PARAMS[1]), ValueError, ["'0.b' is missing"]),
    (
        NETWORK,
        jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), PARAMS),
        ValueError,
        ["'0.b' has shape (4, 3), expected (3,)", "'1.w' has shape (4, 1, 3), expected (1, 3)"],
    ),
    (
        NETWORK,
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS),
        ValueError,
        ["'1.b' has dtype bfloat16, expected float32"],
    ),
    (NETWORK, (PARAMS[0], jaxrnn.DenseParams(Odd())), TypeError, ["'1.w' of params is a Odd"]),
    (NETWORK, {"0": [1.0]}, TypeError, ["'0.0' of params is a float, expected an array"]),
    (NETWORK, None, ValueError, ["'0.w_ih' is missing"]),
    ("network", PARAMS, TypeError, ["layer is a str, expected a Layer"]),
    (layer_of(np.bool_(1)), np.bool_(1), ValueError, ["'params' of layer has dtype bool"]),
    (layer_of(np.complex64(1)), np.complex64(1), ValueError, ["dtype complex64, expected"]),
    (dense(1, 1)._replace(init=lambda key: key), KEY, ValueError, ["dtype key<fry>, expected"]),
    (
        layer_of({"a.b": HALF, "a": {"b": HALF}}),
        {"a.b": HALF, "a": {"b": HALF}},
        ValueError,
        ["layer has two tensors named 'a.b'"],
    ),
    (layer_of({"__metadata__": HALF}), {"__metadata__": HALF}, ValueError, ["'__metadata__'"]),
]


@pytest.mark.parametrize(("layer", "params", "kind", "words"), NOT_SAVED)
def test_parameters_that_do_not_fit_the_layer_are_rejected_and_nothing_is_written(
    path, layer, params, kind, words
):
    path.write_bytes(b"old")
    with pytest.raises(kind) as error:
        save_params(path, layer, params)
    assert type(error.value) is kind
    for word in words:
        assert word in str(error.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def test_the_old_file_survives_a_full_disk(path, monkeypatch):
    save_params(path, NETWORK, PARAMS)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            save_params(path, NETWORK, jax.tree.map(jnp.zeros_like, PARAMS))
    assert_identical(load_params(path, NETWORK), PARAMS)
    assert os.listdir(path.parent) == [path.name]


def test_the_error_for_a_missing_library_names_the_extra(path, monkeypatch):
    for name in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (save_params, load_params):
        path.write_bytes(b"")
        with pytest.raises(ImportError, match=r"pip install 'jaxrnn\[interop\]'"):
            call(path, NETWORK, *([PARAMS] if call is save_params else []))


# Files that cannot be read


def test_a_missing_file_raises_file_not_found(path):
    with pytest.raises(FileNotFoundError):
        load_params(path, NETWORK)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_anything_but_a_regular_file_is_rejected(path, make):
    make(path)
    with pytest.raises(FileFormatError, match="not a regular file"):
        load_params(path, NETWORK)


def write_good(path):
    save_params(path, NETWORK, PARAMS)
    return path.read_bytes()


def edited(change):
    """A generator of malformed files: valid ones with a header edited by `change`."""

    def make(draw, good):
        header = header_of(good)
        text = change(draw, header)
        return pack(header if text is None else text, data_of(good))

    return make


def one_tensor(draw, header):
    return header[draw.choice(sorted(TENSORS))]


def length_of(good):
    return int.from_bytes(good[:8], "little")


def flip(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def unchecked(good):
    """Positions whose bytes are not checked: in the format's name and the writer's version."""
    spans = [b'"format":"jaxrnn"', b'"jaxrnn_version":"%s"' % jaxrnn.__version__.encode()]
    return {good.index(span) + place for span in spans for place in range(len(span))}


def flipped_header(draw, good):
    places = sorted(set(range(8, 8 + length_of(good))) - unchecked(good))
    return flip(good, 8 * draw.choice(places) + draw.integers(8))


def wrong_length(draw, good):
    lengths = [length_of(good) + draw.integers(-99, 99), 2**63, 2**64 - 1, 10**8, 10**9, len(good)]
    length = int(draw.choice(np.array([*lengths, draw.integers(2**62)], np.uint64)))
    return good[8:] and pack(good[8:], b"", length + (length == length_of(good)))


def bad_utf8(draw, good):
    place = 8 + draw.integers(length_of(good))
    bad = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf8", b"\x80"][draw.integers(5)]
    return pack(good[8:place] + bad + good[place : 8 + length_of(good)], data_of(good))


def bad_json(draw, good):
    text = good[8 : 8 + length_of(good)]
    place = draw.choice([at for at, letter in enumerate(text) if letter in b'{}[]":,'])
    new = [b"", b"'", b",,", b"//", b"\0", b"NaN"][draw.integers(6)]
    return pack(text[:place] + new + text[place + 1 :], data_of(good))


def overlapping(draw, header):
    one, other = draw.choice(sorted(TENSORS), 2, replace=False)
    header[one]["data_offsets"] = header[other]["data_offsets"]


def displaced(draw, header):
    tensor = one_tensor(draw, header)
    shift = int(draw.choice([-(10**6), -4, -1, 1, 4, 10**6, 2**40, 2**62]))
    tensor["data_offsets"] = [offset + shift for offset in tensor["data_offsets"]]


def reversed_offsets(draw, header):
    """A tensor with reversed offsets, and a name of any length."""
    tensor = header.pop(draw.choice(sorted(TENSORS)))
    tensor["data_offsets"].reverse()
    header["x" * int(draw.choice([1, 100, 100_000]))] = tensor


def overflowing(draw, header):
    tensor = one_tensor(draw, header)
    large = [2**62, 2**63, 2**63 - 1, 2**64 - 1, 2**32, 2**61]
    tensor["shape"] = [int(size) for size in draw.choice(np.array(large, np.uint64), 3)]
    if draw.integers(3) == 0:
        tensor["shape"][draw.integers(3)] = 0


def many_elements(draw, header):
    tensor = one_tensor(draw, header)
    start = tensor["data_offsets"][0]
    tensor["shape"] = [[10**15], [10**5, 10**10], [1, 10**15, 1]][draw.integers(3)]
    if draw.integers(2):
        tensor["data_offsets"] = [start, start + 4 * 10**15]


def wrong_dtype(draw, header):
    codes = ["F64", "F16", "I32", "U32", "BOOL", "F31", "f32", "F4", "C64", "", "\0", 3, None, []]
    one_tensor(draw, header)["dtype"] = codes[draw.integers(len(codes))]


def wrong_shape(draw, header):
    tensor = one_tensor(draw, header)
    shape = tensor["shape"]
    shapes = [[1, *shape], [*shape, 1], [], [size + 1 for size in shape], [1] * 40 + shape]
    tensor["shape"] = shapes[draw.integers(len(shapes))]


def odd_number(draw, header):
    place = ["shape", "data_offsets"][draw.integers(2)]
    one_tensor(draw, header)[place][0] = "HERE"
    odd = ["NaN", "Infinity", "-Infinity", "1e999", "1.5", "-1", "1" * 400, "9" * 5000, '"3"']
    odd += ["true", "null", "[1]", "0x1", "01", "1e1"]
    return json.dumps(header).replace('"HERE"', odd[draw.integers(len(odd))]).encode()


def missing_field(draw, header):
    tensor = one_tensor(draw, header)
    del tensor[["dtype", "shape", "data_offsets"][draw.integers(3)]]


def not_a_tensor(draw, header):
    values = [None, 3, "F32", [], {}, [["F32"]], True]
    header[draw.choice(sorted(TENSORS))] = values[draw.integers(len(values))]


def twice(draw, header):
    text = json.dumps(header)
    name = draw.choice(sorted(TENSORS))
    inside = json.dumps(header[name])
    texts = [
        text[:-1] + f', "{name}": {inside}' + "}",
        text[:-1] + ', "__metadata__": {}}',
        text.replace(inside, inside[:-1] + ', "dtype": "F32"}'),
        text.replace('"format": "jaxrnn"', '"format": "jaxrnn", "format": "jaxrnn"'),
        text.replace('{\\"input_size', '{\\"causal\\":true,\\"input_size'),
    ]
    return texts[draw.integers(len(texts))].encode()


def deep(draw, header):
    tensor = one_tensor(draw, header)
    depth = int(draw.choice([200, 5000, 100_000]))
    place = draw.integers(5)
    if place == 0:
        return b"[" * depth
    if place == 1:
        return b'{"a":' * depth + b"1" + b"}" * depth
    if place == 2:
        header["__metadata__"]["layer"] = "[" * 100_000
        return None
    tensor["shape" if place == 3 else "note"] = "HERE"
    return json.dumps(header).replace('"HERE"', "[" * depth + "]" * depth).encode()


def not_an_object(draw, header):
    return [b"[]", b'"x"', b"3", b"null", b"true", b"", b"   ", b"[{}]", b"{}{}"][draw.integers(9)]


def metadata_not_strings(draw, header):
    values = [1, None, [], {}, ["a"], {"a": "b"}, 1.5, True]
    value = values[draw.integers(len(values))]
    if draw.integers(2):
        header["__metadata__"]["note"] = value
    else:
        header["__metadata__"] = [value]


def other_version(draw, header):
    versions = ["2", "0", "", "1.0", " 1", "-1", "one", "9" * 5000, "\u0661"]
    header["__metadata__"]["format_version"] = versions[draw.integers(len(versions))]
    if draw.integers(5) == 0:
        del header["__metadata__"]["format_version"]


def other_description(draw, header):
    metadata = header["__metadata__"]
    described = json.loads(metadata["layer"])
    name = draw.choice(sorted(described))
    values = [None, 0, 7, [], {}, "x", "9" * 100_000, float("nan")]
    texts = ["", "{", "[]", "null", "3", "1" * 5000, metadata["layer"] + "}", "\0"]
    described[name] = values[draw.integers(len(values))]
    texts += [json.dumps(described)] * 8
    metadata["layer"] = texts[draw.integers(len(texts))]


def other_tensors(draw, header):
    """A missing tensor, or an additional one without elements."""
    if draw.integers(2):
        name = draw.choice(sorted(TENSORS))
        header["x" * int(draw.choice([1, 100, 100_000]))] = header.pop(name)
    else:
        header["more"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def other_layer(draw, good):
    """A valid file of another network."""
    library = import_peer("safetensors.numpy")
    tensors = {name: leaf for name, leaf in TENSORS.items() if draw.integers(2)}
    tensors["2.w"] = np.ones((draw.integers(4), 2), np.float32)
    return library.save(tensors)


def other_format(draw, good):
    noise = draw.bytes(draw.integers(1, 3000))
    starts = [b"PK\x03\x04", b"\x80\x04\x95", b"\x89PNG\r\n\x1a\n", b"\x89HDF\r\n\x1a\n", b"GGUF"]
    starts += [b"\x93NUMPY", b"\x1f\x8b", b'{"a": 1}', b"<?xml", b"\0" * 64, b"\x08\x07\x12", b""]
    return starts[draw.integers(len(starts))] + noise


MALFORMED = {
    "cut in the length": lambda draw, good: good[: draw.integers(8)],
    "cut in the header": lambda draw, good: good[: 8 + draw.integers(length_of(good))],
    "cut in the data": lambda draw, good: good[: len(good) - draw.integers(1, len(data_of(good)))],
    "trailing bytes": lambda draw, good: good + draw.bytes(draw.integers(1, 50)),
    "a flipped bit in the length": lambda draw, good: flip(good, draw.integers(64)),
    "a flipped bit in the header": flipped_header,
    "a wrong length": wrong_length,
    "a length of zero": lambda draw, good: bytes(8) + good[8 : 8 + draw.integers(len(good))],
    "bad UTF-8": bad_utf8,
    "bad JSON": bad_json,
    "overlapping offsets": edited(overlapping),
    "displaced offsets": edited(displaced),
    "reversed offsets": edited(reversed_offsets),
    "overflowing shapes": edited(overflowing),
    "10^15 elements": edited(many_elements),
    "a wrong dtype": edited(wrong_dtype),
    "a wrong shape": edited(wrong_shape),
    "an odd number": edited(odd_number),
    "a missing field": edited(missing_field),
    "no tensor": edited(not_a_tensor),
    "a name twice": edited(twice),
    "deep nesting": edited(deep),
    "no object": edited(not_an_object),
    "metadata that are not strings": edited(metadata_not_strings),
    "another version": edited(other_version),
    "another description": edited(other_description),
    "other tensors": edited(other_tensors),
    "another layer": other_layer,
    "another format": other_format,
}


def malformed(kind, good):
    """Distinct files of a kind; some kinds have only a few."""
    number = list(MALFORMED).index(kind)
    draws = [np.random.default_rng([number, seed]) for seed in range(100)]
    return list(dict.fromkeys(MALFORMED[kind](draw, good) for draw in draws))


def check_refused(path, content):
    path.write_bytes(content)
    started = time.monotonic()
    with pytest.raises(FileFormatError) as error:
        load_params(path, NETWORK)
    assert type(error.value) is FileFormatError
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 2000 + len(str(path))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("kind", MALFORMED)
def test_every_malformed_file_raises_file_format_error_with_its_name(path, kind):
    for content in malformed(kind, write_good(path)):
        check_refused(path, content)


def test_there_are_a_thousand_distinct_malformed_files(path):
    good = write_good(path)
    assert len({content for kind in MALFORMED for content in malformed(kind, good)}) >= 1000


@hypothesis.settings(deadline=None, max_examples=300, database=None)
@hypothesis.given(content=st.binary(max_size=400))
def test_random_bytes_are_rejected(tmp_path_factory, content):
    check_refused(tmp_path_factory.mktemp("folder") / "file", content)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "dtype", "jaxrnn", "1", "{}"]),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(["__metadata__", "format", "format_version", "layer", "0.w_ih", "0.b"])
            | st.text(max_size=3),
            children,
            max_size=4,
        )
        | st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F64", "BF16", "F4"]) | children,
                "shape": st.lists(st.integers(0, 4), max_size=3) | children,
                "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2) | children,
            }
        )
    ),
    max_leaves=12,
)


@hypothesis.settings(deadline=None, max_examples=300, database=None)
@hypothesis.given(header=JSON, data=st.binary(max_size=64))
def test_random_headers_and_data_are_rejected(tmp_path_factory, header, data):
    check_refused(tmp_path_factory.mktemp("folder") / "file", pack(header, data))


def test_a_changed_byte_that_is_not_checked_changes_no_structure(path):
    """Bytes in the name of the format, in the version of the writer, or in the data."""
    good = write_good(path)
    read = 0
    for place in sorted(unchecked(good)):
        for bit in range(8):
            path.write_bytes(flip(good, 8 * place + bit))
            try:
                assert_identical(load_params(path, NETWORK), PARAMS)
                read += 1
            except FileFormatError:
                pass
    assert read > 50
    for seed in range(20):
        bit = np.random.default_rng(seed).integers(
            8 * (len(good) - len(data_of(good))), 8 * len(good)
        )
        path.write_bytes(flip(good, bit))
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), load_params(path, NETWORK))
        assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), PARAMS)


# Memory

MEASURE = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import numpy as np
import safetensors.numpy
import test_safetensors as tests

path = Path(sys.argv[1]) / "file"
good = tests.write_good(path)
files = {kind: tests.malformed(kind, good) for kind in tests.MALFORMED}
for contents in files.values():  # warm up one-time allocations
    tests.check_refused(path, contents[0])

def allow(room):
    "Limit the memory to the present use plus `room`."
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(room)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

one = {"w": np.ones((1000, 1000, 8), np.float32)}
layer = tests.layer_of(one)
safetensors.numpy.save_file(one, path)
del one
allow(4 * path.stat().st_size)
tests.load_params(path, layer)

allow(16 << 20)
for contents in files.values():
    for content in contents:
        tests.check_refused(path, content)

allow(1 << 40)
content = safetensors.numpy.save({str(name): np.zeros(0, np.float32) for name in range(50_000)})
allow(64 * len(content))  # a name of 20 bytes becomes one or two objects
tests.check_refused(path, content)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_bounded_by_the_size_of_the_file(tmp_path):
    tests = Path(__file__).parent
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tests.parents[1])}
    command = [sys.executable, "-c", MEASURE, str(tmp_path), str(tests)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

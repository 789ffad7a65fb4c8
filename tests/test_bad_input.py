"""Every bad input is refused, and the message says which, what it got and what was expected.

The table holds one row an input: its name, a call whose other arguments are good, the error, the
words with which the message starts (the argument) and the words that say what was got.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn import DenseParams, DropoutState, RNNParams, TrainState, initializers, unroll

T, B, D, H, TOKENS = 5, 2, 3, 4, 8
KEY = jax.random.key(0)


def ones(*shape, dtype=np.float32):
    """An array on the device. (`device_put` compiles nothing; `jnp.asarray` of NumPy does.)"""
    return jax.device_put(np.ones(shape, dtype))


ints, bools = functools.partial(ones, dtype=np.int32), functools.partial(ones, dtype=bool)
wide = functools.partial(ones, dtype=np.float64)
complexes = functools.partial(ones, dtype=np.complex64)


class Unhashable:
    __hash__ = None

    def __call__(self, a):
        return a


PARAMS = RNNParams(ones(H, D), ones(H, H), ones(H), ones(H))
XS, X = ones(T, B, D), ones(B, D)
with_params = PARAMS._replace


def bind(function, *good, **options):
    """A maker of calls: positions of `good` and options are replaced by the bad arguments."""

    def call(replaced=None, **bad):
        arguments = [(replaced or {}).get(at, value) for at, value in enumerate(good)]
        return functools.partial(function, *arguments, **{**options, **bad})

    return call


# Parameters, states and marks that no vanilla network takes: in unroll, unroll_plain and step.
CELL = [
    ("params a tuple", {0: tuple(PARAMS)}, TypeError, "params", "tuple"),
    ("params a dict", {0: PARAMS._asdict()}, TypeError, "params", "dict"),
    ("params None", {0: None}, TypeError, "params", "NoneType"),
    ("params of dense", {0: DenseParams(ones(H, D))}, TypeError, "params", "DenseParams"),
    ("w_ih a vector", {0: with_params(w_ih=ones(H))}, ValueError, "params.w_ih", "(4,)"),
    ("w_ih a list", {0: with_params(w_ih=[[1.0]])}, TypeError, "params.w_ih", "list"),
    ("w_ih None", {0: with_params(w_ih=None)}, TypeError, "params.w_ih", "None"),
    ("w_hh None", {0: with_params(w_hh=None)}, TypeError, "params.w_hh", "None"),
    ("w_hh of ints", {0: with_params(w_hh=ints(H, H))}, ValueError, "params.w_hh", "int32"),
    ("w_hh not square", {0: with_params(w_hh=ones(D, H))}, ValueError, "params.w_hh", "(3, 4)"),
    ("b complex", {0: with_params(b=complexes(H))}, ValueError, "params.b", "complex64"),
    ("b too long", {0: with_params(b=ones(9))}, ValueError, "params.b", "(9,)"),
    ("learned h0 of a batch", {0: with_params(h0=ones(B, H))}, ValueError, "params.h0", "(2, 4)"),
    ("h0 without batch", {1: ones(H)}, ValueError, "h0", "(4,)"),
    ("h0 of another width", {1: ones(B, 9)}, ValueError, "h0", "(2, 9)"),
    ("h0 wider than the rest", {1: wide(B, H)}, ValueError, "h0", "float64"),
    ("h0 of ints", {1: ints(B, H)}, ValueError, "h0", "int32"),
    ("h0 complex", {1: complexes(B, H)}, ValueError, "h0", "complex64"),
    ("h0 a tuple", {1: (ones(B, H),)}, TypeError, "h0", "tuple"),
]
ACTIVATIONS = [
    ("activation a name", "tanh", TypeError, "'tanh'"),
    ("activation None", None, TypeError, "None"),
    ("activation unhashable", Unhashable(), TypeError, "Unhashable"),
    ("activation that reduces", jnp.sum, ValueError, "()"),
    ("activation of two outputs", lambda a: (a, a), ValueError, "None"),
    ("activation to complex", lambda a: a.astype(np.complex64), ValueError, "complex64"),
]
SEQUENCE = [
    ("xs of another width", {2: ones(T, B, 7)}, ValueError, "xs", "(5, 2, 7)"),
    ("xs without time", {2: ones(D)}, ValueError, "xs", "(3,)"),
    ("xs a number", {2: ones()}, ValueError, "xs", "()"),
    ("xs a list", {2: [[1.0] * D] * T}, TypeError, "xs", "list"),
    ("xs None", {2: None}, TypeError, "xs", "NoneType"),
    ("xs of objects", {2: np.array([None])}, TypeError, "xs", "object"),
    ("xs complex", {2: complexes(T, B, D)}, ValueError, "xs", "complex64"),
    ("xs a key", {2: KEY}, ValueError, "xs", "key<fry>"),
    ("params of another layer", {0: with_params(w_ih=ones(H, 9))}, ValueError, "xs", "(5, 2, 3)"),
]
MARKS = [
    ("without batch", bools(T), ValueError, "(5,)"),
    ("batch-major", bools(B, T), ValueError, "(2, 5)"),
    ("with features", bools(T, B, 1), ValueError, "(5, 2, 1)"),
    ("of ints", ints(T, B), ValueError, "int32"),
    ("of floats", ones(T, B), ValueError, "float32"),
    ("a list", [[True] * B] * T, TypeError, "list"),
]
INPUT = [
    ("x of another width", {2: ones(B, 7)}, ValueError, "x", "(2, 7)"),
    ("x a number", {2: ones()}, ValueError, "x", "()"),
    ("x a list", {2: [1.0] * D}, TypeError, "x", "list"),
    ("x complex", {2: complexes(B, D)}, ValueError, "x", "complex64"),
    ("x a key", {2: KEY}, ValueError, "x", "key<fry>"),
]
# Each with what a size, a positive number and a fraction may not be.
SIZES = [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), ("2", TypeError)]
NOT_NEGATIVE = SIZES[1:]  # 0 inputs make an autonomous system
POSITIVE = [(0.0, ValueError), (-1.0, ValueError), (np.inf, ValueError), (True, TypeError)]
FRACTIONS = [(1, ValueError), (-0.1, ValueError), (np.nan, ValueError), ("0.5", TypeError)]


def numbers(what, call, name, table):
    """Rows of a number that has to be something else; `call` takes it as its only argument."""
    for value, error in table:
        yield f"{what}: {name} {value!r}", functools.partial(call, value), error, name, repr(value)


def with_wider_inputs(function):
    """Bad h0 where the parameters have to be cast to the inputs' dtype."""
    with jax.numpy_dtype_promotion("standard"):
        function(PARAMS, ones(H), wide(T, B, D))


def cell_rows():
    step = bind(jaxrnn.step, PARAMS, None, X)
    for function in (unroll, jaxrnn.unroll_plain):
        call, label = bind(function, PARAMS, None, XS), function.__name__
        for what, bad, error, name, got in CELL + SEQUENCE:
            yield f"{label}: {what}", call(bad), error, name, got
        for what, bad, error, got in MARKS:
            yield f"{label}: mask {what}", call(mask=bad), error, "mask", got
            yield f"{label}: resets {what}", call(resets=bad), error, "resets", got
        for what, bad, error, got in ACTIVATIONS:
            yield f"{label}: {what}", call(activation=bad), error, "activation", got
        yield f"{label}: reverse a word", call(reverse="no"), TypeError, "reverse", "no"
        late = functools.partial(with_wider_inputs, function)
        yield f"{label}: xs wider, h0 without batch", late, ValueError, "h0", "(4,)"
    for what, bad, error, name, got in CELL + INPUT:
        yield f"step: {what}", step(bad), error, "h " if name == "h0" else name, got
    for what, bad, error, got in ACTIVATIONS:
        yield f"step: {what}", step(activation=bad), error, "activation", got
    yield from numbers(
        "unroll", lambda size: unroll(PARAMS, None, XS, chunk_size=size), "chunk_size", SIZES
    )


def initializer_rows():
    init = functools.partial(jaxrnn.init_rnn, KEY)
    yield from numbers("init_rnn", lambda size: init(size, H), "input_size", NOT_NEGATIVE)
    yield from numbers("init_rnn", lambda size: init(D, size), "hidden_size", SIZES)
    for what, bad, error, name, got in [
        ("dtype of ints", {"dtype": np.int32}, ValueError, "dtype", "int32"),
        ("dtype complex", {"dtype": np.complex64}, ValueError, "dtype", "complex64"),
        ("dtype unknown", {"dtype": "float23"}, TypeError, "dtype", "float23"),
        ("dtype None", {"dtype": None}, TypeError, "dtype", "None"),
        ("w_ih_init a number", {"w_ih_init": 0.1}, TypeError, "w_ih_init", "0.1"),
        (
            "w_hh_init of another shape",
            {"w_hh_init": lambda key, shape, dtype: ones(*shape, 1)},
            ValueError,
            "the result of w_hh_init",
            "(4, 4, 1)",
        ),
        (
            "w_ih_init that returns a list",
            {"w_ih_init": lambda key, shape, dtype: [[0.0] * H] * D},
            TypeError,
            "the result of w_ih_init",
            "list",
        ),
        (
            "w_hh_init a maker of initializers",
            {"w_hh_init": jax.nn.initializers.orthogonal},
            TypeError,
            "the result of w_hh_init",
            "function",
        ),
    ]:
        yield f"init_rnn: {what}", functools.partial(init, D, H, **bad), error, name, got
    yield "init_rnn: key a seed", lambda: jaxrnn.init_rnn(0, D, H), TypeError, "key", "0"
    for maker, name in [
        (initializers.orthogonal, "gain"),
        (initializers.identity, "gain"),
        (initializers.scaled_spectral_radius, "radius"),
        (initializers.normal, "stddev"),
        (initializers.uniform, "bound"),
    ]:
        label = maker.__name__
        yield from numbers(label, maker, name, POSITIVE)
        for bad, got in [(ones(2), "(2,)"), (bools(), "bool"), (complexes(), "complex64")]:
            yield f"{label}: {name} {got}", functools.partial(maker, bad), ValueError, name, got
        for dtype in (np.int32, np.complex64):
            call = functools.partial(maker(1.0), KEY, (H, H), dtype)
            yield f"{label}: {dtype.__name__}", call, ValueError, "dtype", dtype.__name__
        if maker in (initializers.normal, initializers.uniform):
            call, got = functools.partial(maker(), KEY, ()), "()"
        else:
            call, got = functools.partial(maker(1.0), KEY, (D, H)), "(3, 4)"
        yield f"{label}: shape {got}", call, ValueError, "shape", got


def of_layer(label, layer, params, good_xs, rows):
    """Rows of a layer's unroll, and of its step where the bad argument is not one of unroll's."""
    call = bind(layer.unroll, params, None, good_xs)
    for what, bad, error, name, got in rows:
        yield f"{label}: {what}", call(bad), error, name, got
    for what, bad, error, got in MARKS:
        yield f"{label}: mask {what}", call(mask=bad), error, "mask", got
        yield f"{label}: resets {what}", call(resets=bad), error, "resets", got


def vanilla_rows():
    make, layer = jaxrnn.vanilla_rnn, jaxrnn.vanilla_rnn(D, H)
    yield from numbers("vanilla_rnn", lambda size: make(size, H), "input_size", NOT_NEGATIVE)
    yield from numbers("vanilla_rnn", lambda size: make(D, size), "hidden_size", SIZES)
    yield from numbers("vanilla_rnn", lambda n: make(D, H, chunk_size=n), "chunk_size", SIZES)
    narrow = RNNParams(ones(9, D), ones(9, 9))
    rows = [
        ("params of another layer", {0: narrow}, ValueError, "params.w_ih", "(9, 3)"),
        ("state a tuple", {1: (ones(B, H),)}, TypeError, "state", "('floating (2, 4)',)"),
        ("state without batch", {1: ones(H)}, ValueError, "state", "(4,)"),
    ]
    yield from of_layer("vanilla_rnn", layer, PARAMS, XS, rows)
    for what, call, error, name, got in [
        ("dtype", lambda: make(D, H, dtype=int), ValueError, "dtype", "int64"),
        ("activation", lambda: make(D, H, activation=1), TypeError, "activation", "1"),
        ("batch_shape", lambda: layer.initial_state(PARAMS, 3), TypeError, "batch_shape", "3"),
        ("x", lambda: layer.step(PARAMS, None, ones(7)), ValueError, "x", "(7,)"),
        ("step params", lambda: layer.step(narrow, None, X), ValueError, "params.w_ih", "(9, 3)"),
    ]:
        yield f"vanilla_rnn: bad {what}", call, error, name, got


def pointwise_rows():
    dense, params = jaxrnn.dense(D, H), DenseParams(ones(H, D), ones(H))
    yield from numbers("dense", lambda size: jaxrnn.dense(size, H), "input_size", SIZES)
    yield from numbers("dense", lambda size: jaxrnn.dense(D, size), "output_size", SIZES)
    rows = [
        ("params of vanilla_rnn", {0: PARAMS}, TypeError, "params", "RNNParams"),
        ("w transposed", {0: DenseParams(ones(D, H))}, ValueError, "params.w", "(3, 4)"),
        ("w of ints", {0: DenseParams(ints(H, D))}, ValueError, "params.w", "int32"),
        ("w a list", {0: DenseParams([[1.0]])}, TypeError, "params.w", "list"),
        ("b of another width", {0: params._replace(b=ones(9))}, ValueError, "params.b", "(9,)"),
        ("b complex", {0: params._replace(b=complexes(H))}, ValueError, "params.b", "complex64"),
        ("state of vanilla_rnn", {1: ones(B, H)}, TypeError, "state", "expected ()"),
        ("xs of another width", {2: ones(T, B, 7)}, ValueError, "xs", "(5, 2, 7)"),
        ("xs a list", {2: [[1.0] * D]}, TypeError, "xs", "list"),
    ]
    yield from of_layer("dense", dense, params, XS, rows)
    tokens, table = jaxrnn.embedding(TOKENS, H), ones(TOKENS, H)
    yield from numbers("embedding", lambda size: jaxrnn.embedding(size, H), "num_tokens", SIZES)
    yield from numbers("embedding", lambda n: jaxrnn.embedding(TOKENS, n), "output_size", SIZES)
    rows = [
        ("tokens of floats", {2: ones(T, B)}, ValueError, "xs", "float32"),
        ("tokens of bools", {2: bools(T, B)}, ValueError, "xs", "bool"),
        ("tokens a list", {2: [0, 1]}, TypeError, "xs", "list"),
        ("one token", {2: ints()}, ValueError, "xs", "()"),
        ("table of another width", {0: ones(TOKENS, 9)}, ValueError, "params", "(8, 9)"),
        ("table of ints", {0: ints(TOKENS, H)}, ValueError, "params", "int32"),
        ("table in a tuple", {0: (table,)}, TypeError, "params", "tuple"),
    ]
    yield from of_layer("embedding", tokens, table, ints(T, B), rows)
    yield from [
        ("dense: dtype", lambda: jaxrnn.dense(D, H, dtype="int8"), ValueError, "dtype", "int8"),
        (
            "dense: w_init a number",
            lambda: jaxrnn.dense(D, H, w_init=0.1).init(KEY),
            TypeError,
            "w_init",
            "0.1",
        ),
        (
            "dense: w_init of another shape",
            lambda: jaxrnn.dense(D, H, w_init=lambda *_: ones(9, 9)).init(KEY),
            ValueError,
            "the result of w_init",
            "(9, 9)",
        ),
        (
            "embedding: w_init of another shape",
            lambda: jaxrnn.embedding(TOKENS, H, w_init=lambda *_: ones(9, 9)).init(KEY),
            ValueError,
            "the result of w_init",
            "(9, 9)",
        ),
        ("dense: key", lambda: dense.init(0), TypeError, "key", "0"),
        ("dense: x", lambda: dense.step(params, None, ones(7)), ValueError, "x", "(7,)"),
        ("embedding: x", lambda: tokens.step(table, None, X), ValueError, "x", "float32"),
    ]


def dropout_rows():
    make, kept = jaxrnn.dropout, DropoutState(bools(B, D), bools(B))
    yield from numbers("dropout", lambda size: make(size, 0.5), "size", SIZES)
    yield from numbers("dropout", lambda rate: make(D, rate), "rate", FRACTIONS)
    for shared in (False, True):
        layer = make(D, 0.5, shared_over_time=shared)
        call, label = bind(layer.unroll, (), None, XS), f"dropout, shared {shared}"
        for what, bad, error, name, got in [
            ("xs of ints", call({2: ints(T, B, D)}), ValueError, "xs", "int32"),
            ("xs of another width", call({2: ones(T, B, 7)}), ValueError, "xs", "(5, 2, 7)"),
            ("params of dense", call({0: DenseParams(X)}), TypeError, "params", "expected ()"),
            ("key a seed", call(key=0), TypeError, "key", "0"),
            ("key an array of floats", call(key=ones(2)), ValueError, "key", "float32"),
            ("keys, two", call(key=jax.random.split(KEY)), ValueError, "key", "(2,)"),
            ("mask of ints", call(mask=ints(T, B)), ValueError, "mask", "int32"),
        ]:
            yield f"{label}: {what}", bad, error, name, got
    call = bind(make(D, 0.5, shared_over_time=True).unroll, (), None, XS, key=KEY)
    for what, state, error, name, got in [
        ("a tuple", (), TypeError, "state", "()"),
        ("without batch", DropoutState(bools(D), bools()), ValueError, "state", "(3,)"),
        ("of ints", kept._replace(keep=ints(B, D)), ValueError, "state", "int32"),
        ("drawn of time", kept._replace(drawn=bools(T, B)), ValueError, "state", "(5, 2)"),
    ]:
        yield f"dropout, shared True: state {what}", call({1: state}), error, name, got


def scanned_rows():
    def layer(step, size=D):
        zeros = lambda params, batch_shape=(): jnp.zeros((*batch_shape, D), np.float32)  # noqa: E731
        return jaxrnn.scanned(D, size, lambda key: (), zeros, step)

    def make(*bad_at, value):
        good = [D, D, lambda key: (), lambda params, batch_shape=(): (), lambda p, s, x: (s, x)]
        return jaxrnn.scanned(*[value if at in bad_at else g for at, g in enumerate(good)])

    yield from numbers("scanned", lambda size: make(0, value=size), "input_size", NOT_NEGATIVE)
    yield from numbers("scanned", lambda size: make(1, value=size), "output_size", SIZES)
    for at, name in [(2, "init"), (3, "initial_state"), (4, "step")]:
        call = functools.partial(make, at, value=None)
        yield f"scanned: {name} None", call, TypeError, name, "None"
    for what, step, error, got in [
        ("changes the state's shape", lambda p, h, x: (h[0], x), ValueError, "float32[3]"),
        ("changes the dtype", lambda p, h, x: (h.astype(float), x), ValueError, "float64"),
        ("changes the structure", lambda p, h, x: ((h, h), x), ValueError, "(*, *)"),
        ("changes the width", lambda p, h, x: (h, x[..., :1]), ValueError, "(2, 1)"),
        ("returns one thing", lambda p, h, x: h + x, TypeError, "[2,3]"),
        ("returns three things", lambda p, h, x: (h, x, x), TypeError, "[2,3]"),
        ("returns two outputs", lambda p, h, x: (h, (x, x)), TypeError, "[2,3]"),
    ]:
        call = bind(layer(step).unroll, (), None, XS)
        yield f"scanned: step {what}", call(), error, "step", got
    good = layer(lambda p, h, x: (h + x, h))
    rows = [
        ("xs of another width", {2: ones(T, B, 7)}, ValueError, "xs", "(5, 2, 7)"),
        ("state without batch", {1: ones(D)}, ValueError, "state", "(3,)"),
        ("state in a tuple", {1: (X,)}, TypeError, "state", "('floating (2, 3)',)"),
    ]
    yield from of_layer("scanned", good, (), XS, rows)
    for what, state, error, got in [
        ("without batch", ones(D), ValueError, "(3,)"),
        ("in a tuple", (X,), TypeError, "('floating (2, 3)',)"),
    ]:
        call = functools.partial(good.step, (), state, X)
        yield f"scanned: step with a state {what}", call, error, "state", got


def compose_rows():
    lower, upper = jaxrnn.vanilla_rnn(D, H), jaxrnn.vanilla_rnn(H, H)
    above = RNNParams(ones(H, H), ones(H, H))
    network, both = jaxrnn.stack(lower, upper), jaxrnn.bidirectional(lower, lower)
    two_ways = (PARAMS, PARAMS)
    yield from numbers("chunked", lambda size: jaxrnn.chunked(lower, size), "size", SIZES)
    rows = [
        ("params a list", {0: [PARAMS, above]}, ValueError, "params", "list"),
        ("params of one layer", {0: (PARAMS,)}, ValueError, "params", "1 entries"),
        ("params of three layers", {0: (PARAMS,) * 3}, ValueError, "params", "3 entries"),
        ("state of one layer", {1: (None,)}, ValueError, "state", "(None,)"),
        ("state an array", {1: ones(B, H)}, TypeError, "state", "floating (2, 4)"),
        ("xs of another width", {2: ones(T, B, 7)}, ValueError, "xs", "(5, 2, 7)"),
    ]
    yield from of_layer("stack", network, (PARAMS, above), XS, rows)
    yield from of_layer("bidirectional", both, two_ways, XS, rows)
    rows = [
        ("params of another layer", {0: above}, ValueError, "params.w_ih", "(4, 4)"),
        ("state without batch", {1: ones(H)}, ValueError, "state", "(4,)"),
        ("xs a list", {2: [[1.0] * D]}, TypeError, "xs", "list"),
    ]
    yield from of_layer("chunked", jaxrnn.chunked(lower, 2), PARAMS, XS, rows)
    rows = [("state without batch", {1: ones(H)}, ValueError, "state", "(4,)")]
    yield from of_layer("residual", jaxrnn.residual(upper), above, ones(T, B, H), rows)
    yield from [
        ("stack: nothing", jaxrnn.stack, ValueError, "layers", "empty"),
        ("stack: a list", lambda: jaxrnn.stack([lower, upper]), TypeError, "layers[0]", "list"),
        ("stack: sizes, lower", lambda: jaxrnn.stack(lower, lower), ValueError, "layers[0]", "4"),
        (
            "stack: sizes, both named",
            lambda: jaxrnn.stack(lower, upper, lower),
            ValueError,
            "layers[1]",
            "layers[2] has input_size 3",
        ),
        (
            "bidirectional: sizes",
            lambda: jaxrnn.bidirectional(lower, upper),
            ValueError,
            "forward",
            "backward has input_size 4",
        ),
        ("bidirectional: None", lambda: jaxrnn.bidirectional(lower, None), TypeError, "b", "None"),
        (
            "bidirectional: step",
            lambda: both.step(two_ways, None, X),
            ValueError,
            "step was called of a layer that is not causal",
            "unroll",
        ),
        (
            "stack: step of a bidirectional layer",
            lambda: jaxrnn.stack(both).step((two_ways,), None, X),
            ValueError,
            "step was called of a layer that is not causal",
            "unroll",
        ),
        ("residual: sizes", lambda: jaxrnn.residual(lower), ValueError, "layer", "output_size 4"),
        (
            "repeated: sizes",
            lambda: jaxrnn.repeated(lower, 2),
            ValueError,
            "layer",
            "output_size 4",
        ),
        ("repeated: none", lambda: jaxrnn.repeated(upper, 0), ValueError, "count", "0"),
        (
            "repeated: parameters of fewer",
            lambda: jaxrnn.repeated(upper, 3).initial_state(
                jax.tree.map(lambda leaf: ones(2, *leaf.shape), above)
            ),
            ValueError,
            "params",
            "(2, 4, 4)",
        ),
        ("residual: function", lambda: jaxrnn.residual(jnp.tanh), TypeError, "layer", "jit"),
        (
            "residual: of an embedding",
            lambda: jaxrnn.residual(jaxrnn.embedding(TOKENS, TOKENS)),
            ValueError,
            "layer",
            "tokens",
        ),
        ("chunked: params", lambda: jaxrnn.chunked(PARAMS, 2), TypeError, "layer", "RNNParams"),
        ("chunked: backward", lambda: jaxrnn.chunked(both, 2), ValueError, "layer", "not causal"),
        ("stack: init with a seed", lambda: network.init(0), TypeError, "key", "0"),
        ("bidirectional: init with a seed", lambda: both.init(0), TypeError, "key", "0"),
        (
            "stack: unroll with a seed",
            lambda: network.unroll((PARAMS, above), None, XS, key=0),
            TypeError,
            "key",
            "0",
        ),
        (
            "chunked: unroll with a seed",
            lambda: jaxrnn.chunked(network, 2).unroll((PARAMS, above), None, XS, key=0),
            TypeError,
            "key",
            "0",
        ),
    ]


def sequence_rows():
    mask_of, mean = jaxrnn.mask_from_lengths, jaxrnn.masked_mean
    pad, pack, windows = jaxrnn.pad_sequences, jaxrnn.pack_sequences, jaxrnn.sliding_windows
    pair = [ones(2, D), ones(3, D)]
    packed = jax.device_put(np.zeros((5, D), np.float32)), pack([np.ones((5, D))])
    steps_below_0 = [(-1, ValueError), (2.0, TypeError), (True, TypeError)]
    yield from numbers(
        "mask_from_lengths", lambda n: mask_of(ints(B), n), "num_steps", steps_below_0
    )
    yield from numbers(
        "pad_sequences", lambda n: pad(pair, num_steps=n), "num_steps", steps_below_0
    )
    yield from numbers("pack_sequences", lambda n: pack(pair, num_rows=n), "num_rows", SIZES)
    yield from numbers("sliding_windows", lambda n: windows(ones(9), n), "size", SIZES)
    yield from numbers("sliding_windows", lambda n: windows(ones(9), 2, stride=n), "stride", SIZES)
    for label, call, error, name, got in [
        (
            "mask_from_lengths: above T",
            lambda: mask_of(jax.device_put(np.array([1, 6])), 5),
            ValueError,
            "lengths",
            "1 to 6",
        ),
        (
            "mask_from_lengths: below 0",
            lambda: mask_of(jax.device_put(np.array([-1, 2])), 5),
            ValueError,
            "lengths",
            "-1",
        ),
        (
            "mask_from_lengths: floats",
            lambda: mask_of(ones(B), 5),
            ValueError,
            "lengths",
            "float32",
        ),
        ("mask_from_lengths: bools", lambda: mask_of(bools(B), 5), ValueError, "lengths", "bool"),
        ("mask_from_lengths: None", lambda: mask_of(None, 5), TypeError, "lengths", "None"),
        (
            "unpack_sequences: list",
            lambda: jaxrnn.unpack_sequences([1.0], packed[1]),
            TypeError,
            "ys",
            "list",
        ),
        (
            "unpack_sequences: other steps",
            lambda: jaxrnn.unpack_sequences(ones(4, D), packed[1]),
            ValueError,
            "ys",
            "(4, 3)",
        ),
        (
            "unpack_sequences: mask",
            lambda: jaxrnn.unpack_sequences(packed[0], packed[1].mask),
            TypeError,
            "packed",
            "ArrayImpl",
        ),
        ("sliding_windows: short", lambda: windows(ones(3, D), 4), ValueError, "series", "(3, 3)"),
        ("sliding_windows: number", lambda: windows(ones(), 1), ValueError, "series", "()"),
        ("sliding_windows: list", lambda: windows([1, 2], 1), TypeError, "series", "list"),
        ("masked_mean: list", lambda: mean([1.0, 2.0]), TypeError, "values", "list"),
        ("masked_mean: ints", lambda: mean(ints(T, B)), ValueError, "values", "int32"),
        ("masked_mean: complex", lambda: mean(complexes(T)), ValueError, "values", "complex64"),
        ("masked_mean: weights", lambda: mean(XS, ones(T, B)), ValueError, "mask", "float32"),
        ("masked_mean: batch-major", lambda: mean(XS, bools(B, T)), ValueError, "mask", "(2, 5)"),
        ("masked_mean: rank", lambda: mean(ones(T), bools(T, B)), ValueError, "mask", "(5, 2)"),
        ("masked_mean: mask list", lambda: mean(XS, [True]), TypeError, "mask", "list"),
        ("pad_sequences: too long", lambda: pad(pair, num_steps=2), ValueError, "num_steps", "2"),
    ]:
        yield label, call, error, name, got
    for function in (pad, pack):
        for what, bad, error, name, got in [
            ("nothing", [], ValueError, "sequences", "[]"),
            ("one array", ones(T, D), ValueError, "sequences", "["),
            ("lists", [[1.0], [2.0, 3.0]], TypeError, "sequences[0]", "list"),
            ("numbers", [ones(), ones()], ValueError, "sequences[0]", "()"),
            ("other features", [ones(2, D), ones(2, 7)], ValueError, "sequences[1]", "(7,)"),
            ("other ranks", [ones(2, D), ones(2)], ValueError, "sequences[1]", "()"),
            ("other dtypes", [ones(2), ints(2)], ValueError, "sequences[1]", "int32"),
        ]:
            call = functools.partial(function, bad)
            yield f"{function.__name__}: {what}", call, error, name, got


def training_rows():
    sgd = optax.sgd(0.1)
    state = TrainState(ints(), ones(2), sgd.init(ones(2)), KEY)
    step = jaxrnn.make_train_step(lambda params, batch, key: (jnp.sum(params), {}), sgd)
    fit = bind(jaxrnn.fit, step, state, lambda key, at: None, 3)
    steps = bind(jaxrnn.train_steps, step, state, lambda key, at: None, 3)
    init = bind(jaxrnn.init_train_state, ones(2), sgd, KEY)
    make = jaxrnn.make_train_step
    yield from numbers("fit", lambda n: fit(steps_per_call=n)(), "steps_per_call", SIZES)
    yield from numbers("fit", lambda n: fit({3: n})(), "num_steps", SIZES[1:])
    yield from numbers("train_steps", lambda n: steps({3: n})(), "num_steps", SIZES[1:])
    for label, bad, error, name, got in [
        (
            "init_train_state: optimizer a maker",
            init({1: optax.sgd}),
            TypeError,
            "optimizer",
            "function",
        ),
        ("init_train_state: optimizer None", init({1: None}), TypeError, "optimizer", "None"),
        ("init_train_state: key a seed", init({2: 0}), TypeError, "key", "0"),
        ("init_train_state: keys", init({2: jax.random.split(KEY)}), ValueError, "key", "(2,)"),
        ("make_train_step: loss None", lambda: make(None, sgd), TypeError, "loss_fn", "None"),
        ("make_train_step: rate", lambda: make(jnp.sum, 0.1), TypeError, "optimizer", "float"),
        ("fit: train_step None", fit({0: None}), TypeError, "train_step", "None"),
        ("fit: state the params", fit({1: ones(2)}), TypeError, "state", "ArrayImpl"),
        ("fit: make_batch a batch", fit({2: XS}), TypeError, "make_batch", "Array"),
        ("fit: callback a list", fit(callback=[]), TypeError, "callback", "[]"),
        (
            "fit: under jit",
            lambda: jax.jit(lambda state: fit({1: state})())(state),
            TypeError,
            "state",
            "traced",
        ),
        ("train_steps: train_step None", steps({0: None}), TypeError, "train_step", "None"),
        ("train_steps: state the params", steps({1: ones(2)}), TypeError, "state", "ArrayImpl"),
        ("train_steps: make_batch a batch", steps({2: XS}), TypeError, "make_batch", "Array"),
    ]:
        yield label, bad, error, name, got
    for what, loss, error, name, got in [
        ("a vector", lambda params, batch, key: (params, {}), ValueError, "loss", "(2,)"),
        ("of ints", lambda params, batch, key: (jnp.int32(1), {}), ValueError, "loss", "int32"),
        ("without metrics", lambda params, batch, key: params[0], TypeError, "loss_fn", "Tracer"),
        (
            "with a metric of the step's",
            lambda params, batch, key: (params[0], {"loss": params[0], "mine": params[1]}),
            ValueError,
            "loss_fn",
            "['loss']",
        ),
        (
            "with metrics in a list",
            lambda params, batch, key: (params[0], [1.0]),
            TypeError,
            "loss_fn",
            "list",
        ),
    ]:
        call = functools.partial(make(loss, sgd), state, None)
        yield f"make_train_step: loss {what}", call, error, name, got


def carry_rows():
    sgd = optax.sgd(0.1)
    state = TrainState(ints(), ones(2), sgd.init(ones(2)), KEY, ones(3))
    make = functools.partial(jaxrnn.make_train_step, has_carry=True)

    def good(params, carry, batch, key):
        return jnp.sum(params), (carry, {})

    for what, loss, optimizer, name, got in [
        ("loss None", None, sgd, "loss_fn", "None"),
        ("rate", good, 0.1, "optimizer", "float"),
    ]:
        call = functools.partial(make, loss, optimizer)
        yield f"has_carry: {what}", call, TypeError, name, got
    call = functools.partial(jaxrnn.make_train_step, good, sgd, has_carry=2)
    yield "has_carry: of 2", call, TypeError, "has_carry", "2"
    for what, result, error, name, got in [
        ("a vector", lambda p, c: (p, (c, {})), ValueError, "loss", "(2,)"),
        ("alone", lambda p, c: p[0], TypeError, "loss_fn", "Tracer"),
        ("without metrics", lambda p, c: (p[0], [c]), TypeError, "loss_fn", "list"),
        ("with metrics in a list", lambda p, c: (p[0], (c, [])), TypeError, "loss_fn", "list"),
        ("with a longer carry", lambda p, c: (p[0], (ones(4), {})), ValueError, "loss_fn", "[4]"),
        (
            "with a carry of ints",
            lambda p, c: (p[0], (ints(3), {})),
            ValueError,
            "loss_fn",
            "int32",
        ),
        ("without a carry", lambda p, c: (p[0], (None, {})), ValueError, "loss_fn", "None"),
    ]:
        loss = functools.partial(lambda result, p, c, batch, key: result(p, c), result)
        call = functools.partial(make(loss, sgd), state, ones(5))
        yield f"has_carry: loss {what}", call, error, name, got
        truncated = jaxrnn.truncate_train_step(make(loss, sgd), 2)
        yield (
            f"truncated: loss {what}",
            functools.partial(truncated, state, ones(5)),
            error,
            name,
            got,
        )


def truncated_rows():
    sgd = optax.sgd(0.1)
    state = TrainState(ints(), ones(2), sgd.init(ones(2)), KEY)
    step = jaxrnn.make_train_step(lambda params, batch, key: (jnp.sum(params), {}), sgd)
    truncate = jaxrnn.truncate_train_step
    yield from numbers("truncated", lambda n: truncate(step, n), "window", SIZES)
    call = functools.partial(truncate, None, 2)
    yield "truncated: train_step None", call, TypeError, "train_step", "None"
    for what, batch, got in [
        ("empty", {}, "no array"),
        ("of a scalar", jnp.ones(()), "()"),
        ("of two lengths", (ones(3), ones(4)), "(4,)"),
    ]:
        call = functools.partial(truncate(step, 2), state, batch)
        yield f"truncated: batch {what}", call, ValueError, "batch", got


ROWS = [
    row
    for rows in (
        cell_rows,
        initializer_rows,
        vanilla_rows,
        pointwise_rows,
        dropout_rows,
        scanned_rows,
        compose_rows,
        sequence_rows,
        training_rows,
        carry_rows,
        truncated_rows,
    )
    for row in rows()
]


# What the caller's own function returns is known only when it, or the layer below it, has run; and
# shared dropout looks at the dtype of its inputs once it has its initial state.
JUDGED_BY_RUNNING = re.compile(
    r"init_rnn: w_\w+ (of|that|a maker)|scanned: st|dropout, shared True: xs of ints|"
    r"(make_train_step|has_carry|truncated): loss (a|of|with)"
)


def parameters(what, *row):
    return pytest.param(*row, bool(JUDGED_BY_RUNNING.match(what)), id=what)


@pytest.fixture
def compiled():
    """The names of what is compiled from here on."""
    names = []

    def listen(event, duration, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(about["fun_name"])

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_the_listener_hears_what_is_compiled(compiled):
    unroll(PARAMS, None, XS)
    assert "jit(scan)" in compiled


@pytest.mark.parametrize(
    ("call", "error", "name", "got", "runs"), [parameters(*row) for row in ROWS]
)
def test_bad_input_is_refused_by_name_with_what_was_got_and_expected_before_anything_is_compiled(
    compiled, call, error, name, got, runs
):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error
    assert message.startswith(name)
    assert got in message
    assert re.search(r"\bexpected\b", message)
    assert runs or not compiled


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_tokens_outside_the_table_give_nan_and_no_error(dtype):
    layer = jaxrnn.embedding(256, 2)
    xs = np.array([0, -1, 127, np.iinfo(dtype).min, np.iinfo(dtype).max], dtype)
    _, ys = layer.unroll(ones(256, 2), None, xs)
    outside = (xs < 0) | (xs.astype(np.int64) > 255)
    assert (np.isnan(ys).all(axis=1) == outside).all()
    assert (np.isfinite(ys).all(axis=1) == ~outside).all()


def test_every_row_has_its_own_name_and_every_exception_a_row():
    names = [row[0] for row in ROWS]
    assert len(names) == len(set(names)) >= 70
    assert any(JUDGED_BY_RUNNING.match(name) for name in names)

"""Closed loops are the layer stepped on its own outputs, under every transformation."""

import functools
import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn import generate
from jaxrnn.host import use_cpu_devices
from tests.support.checks import add_noise, assert_close, assert_identical
from tests.support.layer_registry import TOKENS, D, one_per_function
from tests.support.processes import run_alone

pytestmark = pytest.mark.usefixtures("compile_quickly")

T, B = 7, 3
CALLS = {name: call for name, call in one_per_function().items() if call().causal}


def make_feed(layer):
    """From an output to the next input, without and with a draw."""

    def feed(y, key):
        noise = jnp.zeros_like(y) if key is None else jax.random.normal(key, y.shape, y.dtype)
        if layer.reads_tokens:
            return jnp.argmax(y + noise, axis=-1) % layer.input_size
        wide = jnp.concatenate([jnp.sin(y + noise)] * layer.input_size, axis=-1)
        return wide[..., : layer.input_size]

    return feed


def draw(layer, key, batch=(B,)):
    keys = jax.random.split(key, 3)
    params = add_noise(keys[1], layer.init(keys[0]), 0.1)
    if layer.reads_tokens:
        return params, jax.random.randint(keys[2], batch, 0, TOKENS)
    return params, jax.random.normal(keys[2], (*batch, layer.input_size), jnp.float64)


def step_on_own_outputs(layer, params, state, x, num_steps, feed, key=None):
    """The definition, one call of `step` after another."""
    xs, ys = [], []
    step, feed = jax.jit(layer.step), jax.jit(feed)
    for key_t in [None] * num_steps if key is None else jax.random.split(key, num_steps):
        own, feeding = (None, None) if key_t is None else jax.random.split(key_t)
        state, y = step(params, state, x, key=own)
        x = feed(y, feeding).astype(x.dtype)
        xs.append(x)
        ys.append(y)
    return state, (jnp.stack(xs), jnp.stack(ys))


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_generating_is_stepping_on_what_feed_makes_of_each_output(key, name, drawn):
    layer = CALLS[name]()
    params, x = draw(layer, key)
    feed, key = make_feed(layer), key if drawn else None
    expected = step_on_own_outputs(layer, params, None, x, T, feed, key)
    run = jax.jit(functools.partial(generate, layer, feed=feed), static_argnums=3)
    # A draw, and a leak's two products, are fused with other operations in a loop than alone, which
    # changes rounding.
    rounded = drawn or any(word in name for word in ("leak", "noise", "low rank"))
    compare = functools.partial(assert_close, length=T * 8) if rounded else assert_identical
    compare(run(params, None, x, T, key=key), expected)
    alone = jax.tree.map(lambda leaf: leaf[:, 0], expected[1])  # without batch axes
    if not drawn:
        assert_close(run(params, None, x[0], T)[1], alone, length=T * 8)


@pytest.mark.parametrize("name", CALLS)
def test_some_steps_and_then_more_are_all_of_them(key, name):
    layer = CALLS[name]()
    params, x = draw(layer, key)
    run = functools.partial(generate, layer, params, feed=make_feed(layer))
    state, whole = run(None, x, T)
    middle, first = run(None, x, 3)
    after, second = run(middle, first[0][-1], T - 3)
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    assert_close((after, joined), (state, whole), length=T * 8)
    nothing = run(middle, x, 0)
    assert_identical(nothing[0], middle)
    assert nothing[1][1].shape == (0, *whole[1].shape[1:])


@pytest.mark.usefixtures("as_on_the_command_line")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_without_feed_the_output_is_the_next_input(key, dtype):
    layer = jaxrnn.deep_rnn((D, 4, D))
    params, x = layer.init(key), jax.random.normal(key, (B, D), dtype)
    _, (xs, ys) = generate(layer, params, None, x, T)
    assert xs.dtype == jnp.float32
    assert_identical(xs, ys)
    read = jnp.concatenate([x[None], xs[:-1]])
    assert_close(ys, layer.unroll(params, None, read)[1], length=T * 8)


def test_without_a_key_nothing_is_drawn_and_feed_is_told_so(key):
    layer = jaxrnn.stack(jaxrnn.vanilla_rnn(D, D), jaxrnn.dropout(D, 0.5))
    params, x = draw(layer, key)
    x = x.astype(jnp.float32)
    seen = []

    def feed(y, key):
        seen.append(key)
        return y

    quiet = generate(layer, params, None, x, T, feed=feed)[1][1]
    assert set(seen) == {None}
    assert (quiet != 0).all()
    assert (generate(layer, params, None, x, T, key=key)[1][1] == 0).any()  # by dropout


def test_gradients_tangents_and_mapping_are_those_of_stepping(key):
    layer = jaxrnn.deep_rnn((D, 4, D), dtype=jnp.float64)
    params, x = draw(layer, key)
    feed = make_feed(layer)
    ct = jax.random.normal(key, (T, B, D), jnp.float64)

    def weigh(run, params, x):
        return jnp.sum(run(layer, params, None, x, T, feed=feed)[1][1] * ct)

    grad = jax.grad(weigh, argnums=(1, 2))
    assert_close(
        jax.jit(grad, static_argnums=0)(generate, params, x),
        grad(step_on_own_outputs, params, x),
        length=T * B * 8,
    )
    forward = jax.jacfwd(lambda x: weigh(generate, params, x))(x)
    assert_close(forward, grad(generate, params, x)[1], length=T * B * 8)

    keys = jax.random.split(key, B)
    mapped = jax.vmap(
        lambda x, key: generate(layer, params, None, x, T, feed=feed, key=key), out_axes=(0, 1)
    )(x, keys)
    for place in range(B):
        one = generate(layer, params, None, x[place], T, feed=feed, key=keys[place])
        got = jax.tree.map(lambda leaf, at=place: leaf[at], mapped[0])
        assert_close(got, one[0], length=T * 8)
        assert_close(mapped[1][1][:, place], one[1][1], length=T * 8)


def share_the_batch():
    use_cpu_devices(2)
    key = jax.random.key(0)
    layer = jaxrnn.deep_rnn((D, 4, D), dtype=jnp.float64)
    params, x = draw(layer, key, (4,))
    ct = jax.random.normal(key, (T, 4, D), jnp.float64)

    def gradient(params, x, ct, key=None):
        def weigh(params, x):
            ys = generate(layer, params, None, x, T, feed=make_feed(layer), key=key)[1][1]
            return jnp.sum(ys * ct), ys

        gradients, ys = jax.grad(weigh, argnums=(0, 1), has_aux=True)(params, x)
        return (*gradients, ys)

    expected = jax.device_get(jax.jit(gradient)(params, x, ct))
    specs = P(), P("data"), P(None, "data")
    auto = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(gradient, mesh=auto, in_specs=specs, out_specs=specs)
    assert_close(jax.device_get(jax.jit(mapped)(params, x, ct)), expected, length=T * 32)
    # A key of its own on each device, while all else is the same on both.
    keys = jax.random.split(key, 2)
    apart = jax.shard_map(
        lambda params, x, ct, key: gradient(params, x, ct, key[0])[2],
        mesh=auto,
        in_specs=(P(), P(), P(), P("data")),
        out_specs=P(None, "data"),
    )
    got = jax.device_get(jax.jit(apart)(params, x, ct, keys))
    drawn = [jax.device_get(jax.jit(gradient)(params, x, ct, one)[2]) for one in keys]
    assert_close(got, np.concatenate(drawn, axis=1), length=T * 8)

    explicit = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(explicit):
        placed = [jax.reshard(leaf, spec) for leaf, spec in zip((x, ct), specs[1:], strict=True)]
        got = jax.device_get(jax.jit(gradient)(params, *placed))
    assert_close(got, expected, length=T * 32)


@pytest.mark.every_version
def test_every_way_of_sharding_gives_the_values_and_gradients_of_one_device(tmp_path):
    run_alone(share_the_batch, tmp_path)


@pytest.mark.usefixtures("as_on_the_command_line")
def test_the_example_of_the_docstring_draws_characters(key):
    lines = inspect.getdoc(generate).split("over tokens:\n")[1]
    network = jaxrnn.stack(jaxrnn.embedding(5, 4), jaxrnn.deep_rnn((4, 8, 5)))
    names = {"jax": jax, "jnp": jnp, "jaxrnn": jaxrnn, "temperature": 0.1, "network": network}
    names |= {"key": key, "params": network.init(key), "prompt": jnp.zeros((3, 2), jnp.int32)}
    exec(textwrap.dedent(lines), names)
    text = names["text"]
    assert text.shape == (100, 2)
    assert text.dtype == jnp.int32
    assert ((text >= 0) & (text < 5)).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": 3}, TypeError, "layer is a int, expected a Layer"),
        ({"num_steps": -1}, ValueError, "num_steps is -1"),
        ({"num_steps": 2.0}, TypeError, "num_steps is 2.0"),
        ({"x": np.zeros((B, 2), np.float32)}, ValueError, r"x has shape \(3, 2\)"),
        ({"feed": 3}, TypeError, "feed is"),
        ({"feed": lambda y, key: y[..., :1]}, ValueError, r"feed is float32 \[3, 1\], expected"),
        ({"feed": lambda y, key: jnp.zeros(y.shape, int)}, ValueError, "feed is int"),
        ({"key": 3}, TypeError, "key is"),
        ({"layer": jaxrnn.vanilla_rnn(D, 4)}, ValueError, "feed is None, expected a function"),
        ({"layer": jaxrnn.embedding(D, D)}, ValueError, "the layer reads tokens"),
        (
            {"layer": jaxrnn.bidirectional(jaxrnn.dense(D, 1), jaxrnn.dense(D, 2))},
            ValueError,
            "layer is not causal",
        ),
    ],
)
def test_bad_input_is_refused_by_name(key, options, error, message):
    layer = options.pop("layer", jaxrnn.vanilla_rnn(D, D))
    params = layer.init(key) if isinstance(layer, jaxrnn.Layer) else ()
    x = jnp.zeros((B,), int) if getattr(layer, "reads_tokens", False) else jnp.zeros((B, D))
    given = {"x": x.astype(jnp.float32) if x.dtype == jnp.float64 else x, "num_steps": T} | options
    with pytest.raises(error, match=message):
        generate(layer, params, None, given.pop("x"), given.pop("num_steps"), **given)

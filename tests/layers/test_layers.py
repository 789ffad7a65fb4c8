"""The contract: one suite of properties, run for every layer of the registry."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import online
from tests.support.checks import (
    add_noise,
    assert_close,
    assert_identical,
    draw_marks,
    floating_leaves,
    random_like,
)
from tests.support.layer_registry import TOKENS, D, layer_calls, layer_functions, one_per_function

pytestmark = pytest.mark.usefixtures("compile_quickly")

T, B = 9, 4
CALLS = layer_calls()
LAYERS = {name: call() for name, call in CALLS.items()}
CAUSAL = [name for name, layer in LAYERS.items() if layer.causal]
CHUNKABLE = [name for name in CAUSAL if CALLS[name].func is not jaxrnn.chunked]
KINDS = list(one_per_function())
FORWARD = [False, pytest.param(True, marks=pytest.mark.soak)]
CAUSAL_KINDS = [name for name in KINDS if name in CAUSAL]
WITH_PARAMS = [name for name in LAYERS if CALLS[name].func is not jaxrnn.dropout]


def draw_inputs(layer, key, shape, dtype=jnp.float64):
    if takes_tokens(layer):
        return jax.random.randint(key, shape, 0, TOKENS)
    return jax.random.normal(key, (*shape, layer.input_size), dtype)


def takes_tokens(layer):
    return layer.input_size == TOKENS


def draw(name, key, shape=(T, B)):
    """(layer, params, state, xs, mask, resets); no parameter and no state is zero."""
    layer, keys = LAYERS[name], jax.random.split(key, 5)
    params = add_noise(keys[1], layer.init(keys[0]), 0.1)
    state = layer.initial_state(params, shape[1:])
    state = jax.tree.map(lambda s: s + 0.5 if jnp.issubdtype(s.dtype, jnp.floating) else s, state)
    mask, resets = draw_marks(keys[2], shape)
    return layer, params, state, draw_inputs(layer, keys[3], shape), mask, resets


def test_every_public_function_that_returns_a_layer_has_an_entry_in_the_registry():
    covered = {call.func for call in CALLS.values()}  # of a docstring too, which has no module
    assert layer_functions() == {
        made for made in covered if str(made.__module__).startswith("jaxrnn")
    }


def test_a_new_function_that_returns_a_layer_is_found(monkeypatch):
    def reversed_in_time(layer: jaxrnn.Layer) -> jaxrnn.Layer:
        return layer

    reversed_in_time.__module__ = "jaxrnn.layers.combinators"
    monkeypatch.setattr(f"{reversed_in_time.__module__}.new", reversed_in_time, raising=False)
    assert reversed_in_time in layer_functions()


@pytest.mark.parametrize("name", CAUSAL)
def test_stepping_equals_unrolling(key, name):
    layer, params, state, xs, _, _ = draw(name, key)
    last, ys = layer.unroll(params, state, xs)
    step = jax.jit(layer.step)
    for x, y in zip(xs, ys, strict=True):
        state, got = step(params, state, x)
        assert_close(got, y, length=T * 8)
    assert_close(state, last, length=T * 8)


@pytest.mark.parametrize("name", CAUSAL_KINDS)
@pytest.mark.parametrize(("cuts", "reverse"), [((0, 4, T), True), ((2, 3), False)])
def test_unrolling_in_pieces_equals_unrolling_at_once(key, name, reverse, cuts):
    layer, params, state, xs, mask, resets = draw(name, key)
    if reverse:  # a piece cannot see a reset at the first step of the piece after it
        resets = jnp.zeros_like(resets)
    unroll = jax.jit(functools.partial(layer.unroll, reverse=reverse))
    last, ys = unroll(params, state, xs, mask=mask, resets=resets)
    bounds = list(zip((0, *cuts), (*cuts, T), strict=True))
    outputs = []
    for low, high in reversed(bounds) if reverse else bounds:
        options = {"mask": mask[low:high], "resets": resets[low:high]}
        state, piece = unroll(params, state, xs[low:high], **options)
        outputs.append(piece)
    outputs = outputs[::-1] if reverse else outputs
    assert_close((state, jnp.concatenate(outputs)), (last, ys), length=T * 8)


@pytest.mark.parametrize("name", [name for name in KINDS if name in CHUNKABLE])
@pytest.mark.parametrize("reverse", [False, True])
def test_chunks_equal_the_whole_and_so_do_their_gradients(key, name, reverse):
    layer, params, state, xs, mask, resets = draw(name, key)

    @functools.partial(jax.jit, static_argnums=0)
    def run(layer, params, state):
        free, rebuild = floating_leaves(params)

        def loss(free):
            options = {"mask": mask, "resets": resets, "reverse": reverse}
            last, ys = layer.unroll(rebuild(free), state, xs, **options)
            return jnp.sum(ys**2), (last, ys)

        return jax.value_and_grad(loss, has_aux=True)(free)

    (_, expected), gradient = run(layer, params, state)
    sizes = [(3, {}), (16, {})] if reverse else [(4, {"remat": True})]
    if name in ("vanilla", "gru", "stack"):
        sizes += [(T, {"remat": True})] if reverse else [(1, {})]
    for size, options in sizes:
        (_, got), got_gradient = run(jaxrnn.chunked(layer, size, **options), params, state)
        assert_close(got, expected, length=T * 8)
        assert_close(got_gradient, gradient, length=T * B * 8)
    if not reverse:
        (_, got), _ = run(jaxrnn.chunked(layer, 4, stop_gradient=True), params, state)
        assert_close(got, expected, length=T * 8)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("reverse", FORWARD)
def test_mapping_equals_batching(key, name, reverse):
    layer, params, _, xs, mask, resets = draw(name, key)

    @jax.jit
    def one(x, m, r):
        return layer.unroll(params, None, x, mask=m, resets=r, reverse=reverse)

    state, ys = jax.vmap(one, in_axes=1, out_axes=(0, 1))(xs, mask, resets)
    assert_close((state, ys), one(xs, mask, resets), length=T * 8)
    grid = jax.tree.map(lambda a: a.reshape(T, 2, 2, *a.shape[2:]), (xs, mask, resets))
    got = one(*grid)
    got = jax.tree.map(lambda a: a.reshape(4, *a.shape[2:]), got[0]), got[1].reshape(ys.shape)
    assert_close(got, (state, ys), length=T * 8)


@pytest.mark.parametrize(
    ("name", "reverse"), [*((n, False) for n in LAYERS), *((n, True) for n in KINDS)]
)
def test_what_stands_in_masked_inputs_changes_no_bit_of_values_or_gradients(key, name, reverse):
    layer, params, state, xs, mask, resets = draw(name, key)
    poisons = (-7, TOKENS, 10**9) if takes_tokens(layer) else (np.nan, np.inf, 1e30)

    @jax.jit
    def run(params, state, xs):
        def outputs(params, state, xs):
            return layer.unroll(params, state, xs, mask=mask, resets=resets, reverse=reverse)

        out, pull = jax.vjp(outputs, params, state, xs)
        gradients = jax.tree.leaves(pull(jax.tree.map(cotangent, out)))
        return out, [g for g in gradients if g.dtype != jax.dtypes.float0]

    def cotangent(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.cos(leaf)
        return np.ones(leaf.shape, jax.dtypes.float0)

    keep = mask.reshape(mask.shape + (1,) * (xs.ndim - 2))
    clean = run(params, state, jnp.where(keep, xs, jnp.zeros_like(xs)))
    for poison in poisons:
        poisoned = run(params, state, jnp.where(keep, xs, jnp.full_like(xs, poison)))
        assert_identical(poisoned, clean)
    (_, ys), grads = clean
    assert not ys[~mask].any()
    assert all(jnp.isfinite(a).all() for a in jax.tree.leaves((ys, grads)))


@pytest.mark.parametrize("name", list(LAYERS))
def test_a_sequence_of_length_zero_keeps_the_state_it_was_given(key, name):
    layer, params, state, xs, mask, resets = draw(name, key)  # sequence 1 is wholly masked
    last, ys = layer.unroll(params, state, xs, mask=mask, resets=resets)
    assert_identical(*(jax.tree.map(lambda leaf: leaf[1], s) for s in (last, state)))
    assert not ys[:, 1].any()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shape", [(0, B), (T, 0), (1,), (0,)])
def test_no_steps_no_sequences_and_one_step_work(key, name, shape):
    layer, params, state, xs, mask, resets = draw(name, key, shape)
    for reverse, options in ((False, {}), (True, {"mask": mask, "resets": resets})):
        unroll = jax.jit(functools.partial(layer.unroll, reverse=reverse))
        last, ys = unroll(params, state, xs, **options)
        assert ys.shape == (*shape, layer.output_size)
        if shape[0] == 0:
            assert_identical(last, state)
        else:
            assert jax.tree.map(jnp.shape, last) == jax.tree.map(jnp.shape, state)
    last, _ = jax.eval_shape(layer.unroll, params, None, xs)
    assert jax.tree.structure(last) == jax.tree.structure(state)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("reverse", FORWARD)
def test_packed_sequences_equal_each_sequence_alone(key, name, reverse):
    layer, params, _, xs, _, _ = draw(name, key, (T,))
    seams = [0, 3, 4, T]
    resets = jnp.zeros((T,), bool).at[jnp.asarray(seams[:-1])].set(True)
    unroll = jax.jit(functools.partial(layer.unroll, reverse=reverse))
    last, ys = unroll(params, None, xs, resets=resets)
    alone = [unroll(params, None, xs[low:high]) for low, high in itertools.pairwise(seams)]
    assert_close(ys, jnp.concatenate([y for _, y in alone]), length=T * 8)
    if layer.causal:
        assert_close(last, alone[0 if reverse else -1][0], length=T * 8)


@pytest.mark.parametrize("name", CAUSAL_KINDS)
def test_reverse_is_forward_over_the_flipped_sequence(key, name):
    layer, params, state, xs, mask, _ = draw(name, key)
    forward, backward = (
        jax.jit(functools.partial(layer.unroll, reverse=reverse)) for reverse in (False, True)
    )
    last, ys = backward(params, state, xs, mask=mask)
    flipped_last, flipped = forward(params, state, xs[::-1], mask=mask[::-1])
    assert_close((last, ys), (flipped_last, flipped[::-1]), length=T * 8)


@pytest.mark.parametrize("name", WITH_PARAMS)
def test_the_forward_derivative_is_the_transpose_of_the_reverse_one(key, name):
    layer, params, _, xs, mask, resets = draw(name, key)
    keys = jax.random.split(key, 2)
    free, rebuild = floating_leaves(params)

    def outputs(free):
        return layer.unroll(rebuild(free), None, xs, mask=mask, resets=resets)[1]

    tangent = random_like(keys[0], free)
    ys, dys = jax.jit(lambda t: jax.jvp(outputs, (free,), (t,)))(tangent)
    cotangent = random_like(keys[1], ys)
    pulled = jax.jit(lambda c: jax.vjp(outputs, free)[1](c)[0])(cotangent)
    through = sum(
        jnp.vdot(a, b)
        for a, b in zip(jax.tree.leaves(pulled), jax.tree.leaves(tangent), strict=True)
    )
    assert_close(jnp.asarray(through), jnp.vdot(dys, cotangent), length=T * B * 64)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", list(LAYERS))
def test_the_dtype_is_kept(key, name, dtype):
    layer = layer_calls(dtype)[name]()
    params = layer.init(key)
    xs = draw_inputs(layer, key, (T, B), dtype)
    mask, resets = draw_marks(key, (T, B))
    unroll = functools.partial(layer.unroll, mask=mask, resets=resets)
    state, ys = jax.eval_shape(unroll, params, None, xs)
    floating = [
        leaf
        for leaf in jax.tree.leaves((params, state, ys))
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert floating
    if isinstance(state, online.OnlineState):  # whose influence accumulates in float32 at least
        floating = [leaf for leaf in floating if leaf is not state.influence]
        assert jnp.finfo(state.influence.dtype).bits == max(32, jnp.finfo(dtype).bits)
    assert all(leaf.dtype == dtype for leaf in floating)
    again, _ = jax.eval_shape(layer.unroll, params, state, xs)
    assert jax.tree.map(jnp.result_type, again) == jax.tree.map(jnp.result_type, state)


@pytest.mark.parametrize("name", KINDS)
def test_one_trace_serves_many_calls(key, name):
    layer, params, state, xs, mask, resets = draw(name, key)
    traces = []

    @jax.jit
    def run(params, state, xs, mask, resets):
        traces.append(None)
        return layer.unroll(params, state, xs, mask=mask, resets=resets)

    for _ in range(10):
        state, _ = run(params, state, xs, mask, resets)
    assert len(traces) == 1


@pytest.mark.parametrize("use_bias", [False, True])
def test_a_dense_layer_is_the_product_with_its_weights_plus_its_bias(key, use_bias):
    layer = jaxrnn.dense(D, 2, use_bias=use_bias, dtype=jnp.float64)
    params = jax.tree.map(lambda p: p + 0.5, layer.init(key))
    xs = jax.random.normal(key, (T, B, D))
    expected = np.asarray(xs) @ np.asarray(params.w).T + (np.asarray(params.b) if use_bias else 0)
    assert_close(layer.unroll(params, None, xs)[1], expected, length=D + 1)


def test_a_residual_layer_adds_its_inputs_where_the_mask_is_true(key):
    rnn = jaxrnn.vanilla_rnn(D, D, dtype=jnp.float64)
    params, xs = rnn.init(key), jax.random.normal(key, (T, B, D))
    mask, _ = draw_marks(key, (T, B))
    last, ys = jaxrnn.residual(rnn).unroll(params, None, xs, mask=mask)
    inner_last, inner = rnn.unroll(params, None, xs, mask=mask)
    assert_identical(last, inner_last)
    assert_close(ys, np.where(mask[..., None], xs, 0) + inner, length=2)


def test_repeated_layers_are_a_stack_of_them_and_their_program_does_not_grow(key):
    rnn = jaxrnn.vanilla_rnn(D, D, learn_h0=True, dtype=jnp.float64)
    mask, resets = draw_marks(key, (T, B))
    xs = jax.random.normal(key, (T, B, D))

    def loss(params, layer):
        state, ys = layer.unroll(params, None, xs, mask=mask, resets=resets)
        return jnp.sum(ys**2) + sum(map(jnp.sum, jax.tree.leaves(state)))

    equations = []
    for count in (2, 5):
        whole, stacked = jaxrnn.repeated(rnn, count), jaxrnn.stack(*[rnn] * count)
        apart = add_noise(key, stacked.init(key), 0.3)
        params = jax.tree.map(lambda *each: jnp.stack(each), *apart)
        got = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, whole)
        value, gradients = jax.jit(jax.value_and_grad(loss), static_argnums=1)(apart, stacked)
        expected = value, jax.tree.map(lambda *each: jnp.stack(each), *gradients)
        assert_close(got, expected, length=T * B * D * count)
        equations.append(
            str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(params, whole)).count("\n")
        )
    assert equations[1] == equations[0]


@pytest.mark.parametrize("rate", [None, 0.4])
def test_deep_rnn_is_the_stack_of_vanilla_layers_with_dropout_behind_each_and_a_readout(key, rate):
    options = {"dtype": jnp.float64, "activation": jax.nn.relu, "learn_h0": True}
    got = jaxrnn.deep_rnn((D, 40, 30, 2), dropout_rate=rate, **options)
    layers = []
    for sizes in ((D, 40), (40, 30)):
        layers.append(jaxrnn.vanilla_rnn(*sizes, **options))
        layers += [] if rate is None else [jaxrnn.dropout(sizes[1], rate)]
    expected = jaxrnn.stack(*layers, jaxrnn.dense(30, 2, dtype=jnp.float64))
    params, xs = expected.init(key), jax.random.normal(key, (T, B, D))
    assert_identical(got.init(key), params)
    run = [layer.unroll(params, None, xs, key=key) for layer in (got, expected)]
    assert_identical(*run)


def test_dropout_keeps_the_mean_and_draws_anew_at_each_step_and_sequence(key):
    layer = jaxrnn.dropout(50, 0.4)
    xs = jnp.ones((40, 30, 50))
    _, ys = layer.unroll((), None, xs, key=key)
    assert set(np.unique(ys)) == {0.0, 1 / (1 - 0.4)}
    spread = np.sqrt(0.4 / 0.6 / ys.size)  # the standard error of the mean
    assert abs(float(ys.mean()) - 1) < 5 * spread
    kept = (ys != 0).reshape(-1, 50)
    assert len(np.unique(np.asarray(kept), axis=0)) == kept.shape[0]
    assert_identical(layer.unroll((), None, xs)[1], xs)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dropout_is_mapped_over_rates(key, shared, dtype):
    xs = jnp.ones((7, 3, 50), dtype)

    def drop(rate):
        return jaxrnn.dropout(50, rate, shared_over_time=shared).unroll((), None, xs, key=key)[1]

    rates = jnp.array([0.0, 0.25, 0.5])
    alone = jnp.stack([drop(float(rate)) for rate in rates])
    assert_identical(jax.jit(jax.vmap(drop))(rates), alone)
    assert alone.dtype == dtype


def test_dropout_shared_over_time_keeps_one_pattern_per_sequence_in_pieces_and_chunks(key):
    layer = jaxrnn.dropout(50, 0.4, shared_over_time=True)
    xs = jnp.ones((12, 30, 50))
    for cut in (layer, jaxrnn.chunked(layer, 5)):
        state, ys = cut.unroll((), None, xs, key=key)
        assert (ys == ys[:1]).all()
        assert len(np.unique(np.asarray(ys[0]), axis=0)) == 30
        _, more = cut.unroll((), state, xs, key=jax.random.fold_in(key, 1))
        assert (more == ys[:1]).all()
        assert_identical(cut.unroll((), state, xs)[1], xs)


def test_a_stack_gives_each_of_its_layers_its_own_randomness(key):
    net = jaxrnn.stack(jaxrnn.dropout(400, 0.5), jaxrnn.dropout(400, 0.5))
    _, ys = net.unroll(net.init(key), None, jnp.ones((50, 400)), key=key)
    share = float((ys != 0).mean())  # a quarter where independent, a half where shared
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / ys.size)


def test_truncation_cuts_the_gradient_between_chunks_and_nowhere_else(key):
    rnn = jaxrnn.vanilla_rnn(D, 4, learn_h0=True, dtype=jnp.float64)
    params = rnn.init(key)
    xs = jax.random.normal(key, (8, D))

    def last_output(x, layer):
        return jnp.sum(layer.unroll(params, None, x)[1][-1])

    cut = jaxrnn.chunked(rnn, 3, stop_gradient=True)
    got, full = (jax.grad(last_output)(xs, layer) for layer in (cut, rnn))
    assert not got[:6].any()
    assert_close(got[6:], full[6:], length=8 * 4)
    whole = jaxrnn.chunked(rnn, 8, stop_gradient=True)
    assert_close(jax.grad(last_output)(xs, whole), full, length=8 * 4)

    def first_chunk(p, layer):
        return jnp.sum(layer.unroll(p, None, xs)[1][:3])

    got, full = (jax.grad(first_chunk)(params, layer).h0 for layer in (cut, rnn))
    assert full.any()
    assert_close(got, full, length=8 * 4)


def test_an_unknown_token_gives_nan_and_never_another_token(key):
    layer = jaxrnn.embedding(TOKENS, 2)
    params = layer.init(key)
    _, ys = layer.unroll(params, None, jnp.array([-1, 0, TOKENS, TOKENS - 1]))
    assert jnp.isnan(ys[jnp.array([0, 2])]).all()
    assert_identical(ys[jnp.array([1, 3])], params[jnp.array([0, TOKENS - 1])])

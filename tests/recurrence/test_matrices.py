"""Recurrent matrices of low rank and of fixed fan-in, networks without inputs, other formats."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import FixedFanIn, LowRank, RNNParams, initializers
from jaxrnn.interop.flax import to_flax
from jaxrnn.interop.haiku import to_haiku
from jaxrnn.interop.keras import to_keras
from jaxrnn.interop.onnx import to_onnx
from jaxrnn.interop.safetensors import load_params, save_params
from jaxrnn.interop.torch import to_torch
from tests.support.checks import add_noise, assert_close, assert_identical
from tests.support.leaky_cells import (
    PLAIN,
    WAYS,
    B,
    D,
    H,
    T,
    assert_agree,
    bind,
    cheap_key,
    differentiate_by_hand,
    draw,
    quickly,
    with_gradients,
)
from tests.support.peers import import_peer

pytestmark = pytest.mark.usefixtures("compile_quickly")

in_every_way = pytest.mark.parametrize("way", WAYS)


def low_rank(units, rank, dtype=np.float64):
    m, n = np.random.default_rng(1).normal(size=(2, units, rank)) / np.sqrt(units)
    return LowRank(m.astype(dtype), n.astype(dtype))


def fixed_fan_in(units, fan_in, dtype=np.float64):
    """The first unit has one input twice."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(units, fan_in)) / np.sqrt(fan_in)
    indices = rng.integers(0, units, size=(units, fan_in))
    indices[0] = 1
    return FixedFanIn(values.astype(dtype), indices)


KINDS = {"low rank": low_rank, "fan-in": fixed_fan_in}
of_every_kind = pytest.mark.parametrize("kind", KINDS)


def split_matrix(w):
    """What gradients are with respect to, and a function that makes the matrix of it."""
    if isinstance(w, LowRank):
        return w, lambda w: w
    return w.values, lambda values: FixedFanIn(values, w.indices)


@in_every_way
@of_every_kind
def test_a_structured_matrix_and_its_gradients_equal_those_of_the_dense_one(kind, way):
    given, expected = through_dense(kind)
    assert_agree(with_gradients(bind_matrix(kind, way))(*given), expected)


def bind_matrix(kind, way, convert=lambda w: w):
    """`bind`, with the values of a structured matrix in place of the matrix."""
    call, make = bind(way), split_matrix(KINDS[kind](H, 2))[1]

    def run(inputs, marks, key):
        params, *others = inputs
        params = params._replace(w_hh=convert(make(params.w_hh)))
        return call((params, *others), marks, key)

    return run


@functools.cache
def through_dense(kind):
    """Arguments, and the outputs and gradients of the plain scan with the dense matrix."""
    (params, *others), marks, cotangents = draw(0, "learned")
    free = split_matrix(KINDS[kind](H, 2))[0]
    given = (params._replace(w_hh=free), *others), marks, cotangents, cheap_key(0)
    return given, with_gradients(bind_matrix(kind, PLAIN, lambda w: w.dense()))(*given)


def dense_by_hand(w):
    if isinstance(w, LowRank):
        return w.m @ w.n.T
    dense = np.zeros((len(w.values), len(w.values)))
    for unit, (values, indices) in enumerate(zip(w.values, w.indices, strict=True)):
        for value, index in zip(values, indices, strict=True):
            dense[unit, index] += value
    return dense


@of_every_kind
def test_a_step_equals_that_of_the_matrix_that_is_written_out_in_numpy(kind):
    (params, h, (x, *_), *_), _, _ = draw(0)
    thin = params._replace(w_hh=KINDS[kind](H, 2))
    dense = params._replace(w_hh=dense_by_hand(thin.w_hh))
    assert_close(thin.w_hh.dense(), dense.w_hh, length=2)
    assert_close(jaxrnn.step(thin, h, x), jaxrnn.step(dense, h, x), length=H)


def test_an_input_that_stands_twice_in_a_row_adds_up():
    w = fixed_fan_in(H, 3)
    h = np.zeros(H)
    h[1] = 2.0
    assert_close(w.multiply(h)[0], 2.0 * w.values[0].sum(), length=3)
    assert_close(w.dense()[0], w.values[0].sum() * np.eye(H)[1], length=3)


@pytest.mark.parametrize("way", ["whole", "chunks", "remat"])
@of_every_kind
def test_a_program_of_a_structured_matrix_holds_no_array_of_units_by_units(kind, way):
    units, arrays = 256, jax.ShapeDtypeStruct((T, B, D), jnp.float32)

    def compiled(w_hh, make):
        def loss(params, xs):
            params = params._replace(w_hh=make(params.w_hh))
            h, hs = jaxrnn.unroll(params, None, xs, leak=0.2, **WAYS[way])
            return jnp.sum(h) + jnp.sum(hs)

        params = RNNParams(jnp.zeros((units, D), jnp.float32), w_hh)
        return quickly(jax.value_and_grad(loss)).lower(params, arrays).compile().as_text()

    thin = KINDS[kind](units, 2, np.float32)
    text = compiled(*split_matrix(thin))
    assert "[256,256]" not in text
    assert "[256,2]" in text
    assert "[256,256]" in compiled(np.asarray(thin.dense()), lambda w: w)


def test_indices_may_be_traced_and_values_are_mapped_over():
    (params, h, xs, *_), _, _ = draw(0)
    w = fixed_fan_in(H, 2)
    values = np.stack([w.values, -w.values, 0.5 * w.values])

    def run(w_hh):
        return jaxrnn.unroll(params._replace(w_hh=w_hh), h, xs)

    traced = jax.jit(jax.vmap(run, in_axes=(FixedFanIn(0, None),)))(FixedFanIn(values, w.indices))
    closed = jax.jit(jax.vmap(lambda values: run(FixedFanIn(values, w.indices))))(values)
    for place, each in enumerate(values):
        expected = run(FixedFanIn(each, w.indices).dense())
        for mapped in (traced, closed):
            got = jax.tree.map(lambda leaf, at=place: leaf[at], mapped)
            assert_close(got, expected, length=T * B * H)


@pytest.mark.parametrize("on", ["device", "host"])
@pytest.mark.parametrize("jit", [False, True])
def test_indices_that_are_known_are_checked_wherever_they_are_and_in_jit_too(on, jit):
    (params, h, xs, *_), _, _ = draw(0)
    w = fixed_fan_in(H, 2)
    for indices, message in [
        (np.where(w.indices == 1, H, w.indices), "indices has entries from 0 to 4, expected 0 to"),
        (w.indices - H, "indices has entries from -4 to"),
        (w.indices.astype(float), "indices has dtype float64, expected integers"),
        (w.indices[:, :1], r"indices has shape \(4, 1\), expected \(4, 2\)"),
    ]:
        given = jax.device_put(indices) if on == "device" else indices
        wrong = params._replace(w_hh=FixedFanIn(w.values, given))
        call = functools.partial(jaxrnn.unroll, wrong, h)
        with pytest.raises(ValueError, match=rf"^params\.w_hh\.{message}"):
            (jax.jit(call) if jit else call)(xs)
    wrong = params._replace(w_hh=FixedFanIn(w.values[:2], w.indices[:2]))
    with pytest.raises(ValueError, match=r"^params\.w_hh\.values has shape \(2, 2\)"):
        jaxrnn.unroll(wrong, h, xs)


def test_a_layer_of_fixed_fan_in_takes_a_state_that_is_given():
    layer = jaxrnn.vanilla_rnn(D, H, w_hh_init=initializers.fixed_fan_in(2), dtype=np.float64)
    params, (_, h, xs, *_) = layer.init(jax.random.key(0)), draw(0)[0]
    dense = params._replace(w_hh=params.w_hh.dense())
    assert_close(layer.unroll(params, h, xs), layer.unroll(dense, h, xs), length=T * H)
    assert_close(layer.step(params, h, xs[0]), layer.step(dense, h, xs[0]), length=T * H)


@in_every_way
def test_a_network_without_inputs_and_its_gradients_equal_the_oracle(way):
    inputs, marks, cotangents = draw(0, "per unit", features=0)
    noise = inputs[4] if way == "chunks" else None
    given = (*inputs[:4], noise), marks, cotangents, cheap_key(0)
    expected = differentiate_by_hand(*given, "tanh", reverse=False)
    assert_agree(with_gradients(bind(way))(*given), expected)


def test_a_layer_without_inputs_runs_and_steps(key):
    layer = jaxrnn.vanilla_rnn(0, H, learn_h0=True, dtype=jnp.float64)
    params = layer.init(key)._replace(h0=np.ones(H))
    assert params.w_ih.shape == (H, 0)
    h, hs = layer.unroll(params, None, np.zeros((T, B, 0)))
    state = None
    for got in hs:
        state, _ = layer.step(params, state, np.zeros((B, 0)))
        assert_close(got, state, length=T * H)
    assert_identical(h, hs[-1])


# Other formats


def write_onnx(params):
    import_peer("onnx")
    return to_onnx(jaxrnn.vanilla_rnn(D, H), params)


@pytest.mark.parametrize("write", [to_torch, to_flax, to_haiku, to_keras, write_onnx])
def test_formats_without_a_leaky_cell_refuse_a_learned_leak_by_name(write):
    (params, *_), _, _ = draw(0, "learned", np.float32)
    params = params._replace(h0=None)
    for written in (params, params._replace(leak=np.full(H, 0.3, np.float32))):
        with pytest.raises(ValueError, match=r"params\[0\] has a leak, expected None"):
            write(written)


@pytest.mark.parametrize("write", [to_torch, to_flax, to_haiku, to_keras])
@of_every_kind
def test_formats_of_dense_matrices_hold_a_structured_one_as_a_dense_one(kind, write):
    (params, *_), _, _ = draw(0, dtype=np.float32)
    thin = params._replace(w_hh=KINDS[kind](H, 2, np.float32), h0=None)
    dense = thin._replace(w_hh=thin.w_hh.dense())
    assert_identical(write(thin), write(dense))


def layers_of_safetensors():
    rnn = jaxrnn.vanilla_rnn
    thin = jaxrnn.constrained(rnn(D, H, leak_init=0.5), jaxrnn.constraints.low_rank(2))
    sparse = rnn(D, H, w_hh_init=initializers.fixed_fan_in(2))
    leaky = rnn(D, H, leak_init=0.3), rnn(D, H, leak_init=np.full(H, 0.3))
    return [*leaky, thin, rnn(0, H), sparse]


@pytest.mark.parametrize("layer", layers_of_safetensors())
def test_safetensors_hold_a_leak_and_thin_matrices_to_the_bit(key, tmp_path, layer):
    import_peer("safetensors.numpy")
    params = add_noise(key, layer.init(key), 1.0)
    save_params(tmp_path / "w", layer, params)
    loaded = load_params(tmp_path / "w", layer)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    assert_identical(loaded, params)


def test_safetensors_of_a_leaky_layer_do_not_fit_one_without_a_leak(key, tmp_path):
    import_peer("safetensors.numpy")
    layer = jaxrnn.vanilla_rnn(D, H, leak_init=0.3)
    save_params(tmp_path / "w", layer, layer.init(key))
    with pytest.raises(ValueError, match="leak"):
        load_params(tmp_path / "w", jaxrnn.vanilla_rnn(D, H))

"""Recurrent matrices of low rank, networks without inputs, and other formats."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import LowRank, RNNParams
from jaxrnn.interop.flax import to_flax
from jaxrnn.interop.haiku import to_haiku
from jaxrnn.interop.keras import to_keras
from jaxrnn.interop.onnx import to_onnx
from jaxrnn.interop.safetensors import load_params, save_params
from jaxrnn.interop.torch import to_torch
from tests.support.checks import assert_close, assert_identical, random_like
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

in_every_way = pytest.mark.parametrize("way", WAYS)


def low_rank(units, rank, dtype=np.float64):
    m, n = np.random.default_rng(1).normal(size=(2, units, rank)) / np.sqrt(units)
    return LowRank(m.astype(dtype), n.astype(dtype))


@in_every_way
def test_a_matrix_of_low_rank_and_its_gradients_equal_those_of_the_dense_one(way):
    given, expected = through_dense()
    assert_agree(with_gradients(bind(way))(*given), expected)


@functools.cache
def through_dense():
    """Arguments, and the outputs and gradients of the plain scan with the dense matrix."""
    (params, *others), marks, cotangents = draw(0, "learned")
    given = (params._replace(w_hh=low_rank(H, 2)), *others), marks, cotangents, cheap_key(0)
    call = bind(PLAIN)

    def run(inputs, marks, key):
        params, *others = inputs
        return call((params._replace(w_hh=params.w_hh.dense()), *others), marks, key)

    return given, with_gradients(run)(*given)


def test_a_step_of_low_rank_equals_that_of_the_product_of_its_factors():
    (params, h, (x, *_), *_), _, _ = draw(0)
    thin = params._replace(w_hh=low_rank(H, 2))
    dense = params._replace(w_hh=thin.w_hh.m @ thin.w_hh.n.T)
    assert_close(thin.w_hh.dense(), dense.w_hh, length=2)
    assert_close(jaxrnn.step(thin, h, x), jaxrnn.step(dense, h, x), length=H)


@pytest.mark.parametrize("way", ["whole", "chunks", "remat"])
def test_a_program_of_low_rank_holds_no_array_of_units_by_units(way):
    units, arrays = 256, jax.ShapeDtypeStruct((T, B, D), jnp.float32)

    def compiled(w_hh):
        def loss(params, xs):
            h, hs = jaxrnn.unroll(params, None, xs, leak=0.2, **WAYS[way])
            return jnp.sum(h) + jnp.sum(hs)

        params = RNNParams(jnp.zeros((units, D), jnp.float32), w_hh)
        return quickly(jax.value_and_grad(loss)).lower(params, arrays).compile().as_text()

    thin = low_rank(units, 2, np.float32)
    assert "[256,256]" not in compiled(thin)
    assert "[256,2]" in compiled(thin)
    assert "[256,256]" in compiled(np.asarray(thin.dense()))


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
def test_formats_of_dense_matrices_hold_the_product_of_a_matrix_of_low_rank(write):
    (params, *_), _, _ = draw(0, dtype=np.float32)
    thin = params._replace(w_hh=low_rank(H, 2, np.float32), h0=None)
    dense = thin._replace(w_hh=thin.w_hh.dense())
    assert_identical(write(thin), write(dense))


def layers_of_safetensors():
    rnn = jaxrnn.vanilla_rnn
    thin = jaxrnn.constrained(rnn(D, H, leak_init=0.5), jaxrnn.constraints.low_rank(2))
    return [rnn(D, H, leak_init=0.3), rnn(D, H, leak_init=np.full(H, 0.3)), thin, rnn(0, H)]


@pytest.mark.parametrize("layer", layers_of_safetensors())
def test_safetensors_hold_a_leak_and_thin_matrices_to_the_bit(key, tmp_path, layer):
    import_peer("safetensors.numpy")
    params = random_like(key, layer.init(key))
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

"""What all diagnostics share: flattened states, batches, dtypes and invalid arguments."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import diagnostics
from tests.support.checks import assert_close
from tests.support.layer_registry import running_mean
from tests.support.trajectories import (
    NETWORKS,
    D,
    H,
    T,
    drawn,
    exponents_of,
    jacobians_of,
    networks,
    norms_of,
    singular_values_of,
    state_and_outputs,
)

# States


def test_integer_leaves_of_the_state_are_carried_along_and_tokens_are_accepted(key):
    layer, xs = running_mean(3, jnp.float64)(), jax.random.normal(key, (T, 3), jnp.float64)
    got = jacobians_of(layer, jnp.ones(()), None, xs)
    assert_close(got, np.tile(np.eye(3), (T, 1, 1)), length=1)

    def loss(state, ys):
        assert state["count"].dtype == jnp.int32
        return jnp.sum(ys[-1]) + jnp.sum(state["sum"])

    logs = norms_of(layer, jnp.ones(()), None, xs, loss_fn=loss)
    expected = np.log(np.sqrt(3) * np.array([1.0] + [1 + 1 / T] * T))
    assert_close(logs, expected, length=T)
    layer = jaxrnn.stack(jaxrnn.embedding(5, D, dtype=jnp.float64), NETWORKS["vanilla"])
    tokens = jnp.arange(T, dtype=jnp.int32) % 5
    params = layer.init(key)
    got = jacobians_of(layer, params, None, tokens)
    below, above = params
    assert_close(
        got,
        jacobians_of(NETWORKS["vanilla"], above, None, below[tokens]),
        length=H,
    )


# Transformations and dtypes

CALLS = {
    "jacobians": jacobians_of,
    "norms": norms_of,
    "norms of a loss": functools.partial(norms_of, loss_fn=state_and_outputs),
    "singular values": singular_values_of,
    "exponents": exponents_of,
}


@pytest.mark.parametrize("name", CALLS)
def test_vmap_gives_what_a_loop_gives_and_two_calls_in_one_program_do_not_interfere(name):
    layer = NETWORKS["vanilla"]
    params, state, xs = drawn(layer)
    batch = jnp.stack([xs, -xs, 2 * xs])
    call = functools.partial(CALLS[name], layer)
    mapped = jax.vmap(call, in_axes=(None, None, 0))

    @jax.jit
    def both(params, state, batch):
        return mapped(params, state, batch), mapped(params, -state, batch)

    for got, start in zip(both(params, state, batch), (state, -state), strict=True):
        alone = jnp.stack([call(params, start, one) for one in batch])
        assert_close(got, alone, length=T * H)


@pytest.mark.parametrize("name", ["norms of a loss", "singular values", "exponents"])
def test_float32_results_are_those_of_float64_up_to_rounding(name):
    kind = "vanilla"
    single = networks(jnp.float32)[kind]
    params, state, xs = drawn(single, dtype=jnp.float32)
    got = CALLS[name](single, params, state, xs)
    assert got.dtype == jnp.float32
    wide = jax.tree.map(lambda a: a.astype(jnp.float64), (params, state, xs))
    expected = CALLS[name](NETWORKS[kind], *wide)
    jacobians = CALLS["jacobians"](NETWORKS[kind], *wide)
    # Each step amplifies rounding errors by its condition number at most.
    condition = float(np.linalg.cond(jacobians).max())
    assert_close(got, expected, length=T * H * condition**2)


@pytest.mark.parametrize("name", ["norms of a loss"])
def test_a_bfloat16_network_is_diagnosed_in_float32(name):
    layer = networks(jnp.bfloat16)["vanilla"]
    params, _, xs = drawn(layer, dtype=jnp.bfloat16)
    got = CALLS[name](layer, params, None, xs)
    assert got.dtype == jnp.float32
    assert not jnp.isnan(got).any()


# Invalid arguments


def invalid_calls():
    layer = NETWORKS["vanilla"]
    params, state, xs = drawn(layer)
    both = jaxrnn.bidirectional(layer, layer)
    dense = jaxrnn.dense(D, 2, dtype=jnp.float64)
    for name, call in CALLS.items():
        yield name, (call, "vanilla", params, state, xs), TypeError, "layer", "str"
        yield name, (call, both, (params, params), None, xs), ValueError, "layer", "not causal"
        yield (
            name,
            (call, dense, dense.init(jax.random.key(0)), (), xs),
            ValueError,
            "layer",
            "state",
        )
        yield name, (call, layer, params, None, [0.0]), TypeError, "xs", "list"
        yield name, (call, layer, params, None, xs[:, :1]), ValueError, "xs", "(7, 1)"
        yield name, (call, layer, params, None, xs[:, None]), ValueError, "xs", "(7, 1, 2)"
        yield name, (call, layer, params, state[:2], xs), ValueError, "state", "(2,)"
        yield name, (call, layer, None, None, xs), TypeError, "params", "NoneType"
    norms, spectrum = diagnostics.gradient_norms_by_lag, diagnostics.lyapunov_spectrum
    good = (layer, params, state, xs)
    yield "loss", (norms, *good, "loss"), TypeError, "loss_fn", "loss"
    yield "loss", (norms, *good, lambda s, ys: ys), ValueError, "loss_fn", "(7, 4)"
    for options, error, name, got in [
        ({"num_exponents": 5}, ValueError, "num_exponents", "5"),
        ({"num_exponents": 0}, ValueError, "num_exponents", "0"),
        ({"discard": -1}, ValueError, "discard", "-1"),
        ({"discard": T}, ValueError, "discard", "7"),
        ({"num_steps": 3}, ValueError, "xs and num_steps", "both"),
    ]:
        yield "spectrum", (functools.partial(spectrum, **options), *good), error, name, got
    yield "spectrum", (spectrum, layer, params, None), ValueError, "xs and num_steps", "neither"
    alone = functools.partial(spectrum, num_steps=0)
    yield "spectrum", (alone, layer, params, None), ValueError, "num_steps", "0"
    radius, saturated = diagnostics.spectral_radius, diagnostics.saturated_fraction
    yield "radius", (radius, jnp.ones((2, 3))), ValueError, "w", "(2, 3)"
    yield "radius", (radius, jnp.ones(3)), ValueError, "w", "(3,)"
    yield "radius", (radius, jnp.ones((2, 2), jnp.int32)), ValueError, "w", "int32"
    yield "radius", (radius, [[1.0]]), TypeError, "w", "list"
    yield "saturated", (saturated, [0.0]), TypeError, "hs", "list"
    yield "saturated", (saturated, jnp.ones(3, jnp.int32)), ValueError, "hs", "int32"
    for options, error, name, got in [
        ({"activation": jnp.sin}, ValueError, "activation", "sin"),
        ({"activation": "tanh"}, TypeError, "activation", "tanh"),
        ({"threshold": 1.0}, ValueError, "threshold", "1.0"),
    ]:
        yield "saturated", (functools.partial(saturated, **options), state), error, name, got
    find, starts = diagnostics.fixed_points, state[None]
    yield "points", (find, None, params, None, starts), TypeError, "layer", "NoneType"
    yield "points", (find, both, (params,) * 2, None, starts), ValueError, "layer", "not causal"
    yield "points", (find, layer, params, xs[0, :1], starts), ValueError, "x", "(1,)"
    yield "points", (find, layer, params, xs, starts), ValueError, "x", "(7, 2)"
    yield "points", (find, layer, params, None, state), ValueError, "starts", "[4]"
    yield "points", (find, layer, params, None, starts[:0]), ValueError, "starts", "(0, 4)"
    yield "points", (find, layer, params, None, [[0.0]]), ValueError, "starts", "()"
    for options, name, got in [
        ({"num_steps": 0}, "num_steps", "0"),
        ({"tolerance": 0}, "tolerance", "0"),
    ]:
        yield (
            "points",
            (functools.partial(find, **options), layer, params, None, starts),
            ValueError,
            name,
            got,
        )


@pytest.mark.parametrize(("call", "error", "name", "got"), [row[1:] for row in invalid_calls()])
def test_an_invalid_argument_is_rejected_by_name(call, error, name, got):
    function, *arguments = call
    with pytest.raises(error, match=re.compile(f"^{name} .*{re.escape(got)}")):
        function(*arguments)

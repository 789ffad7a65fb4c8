"""Networks with a leak and with noise: draws, every way to unroll them, and gradients by hand."""

import functools

import jax
import numpy as np

import jaxrnn
from jaxrnn import RNNParams
from tests.support import oracle
from tests.support.checks import assert_close
from tests.support.drawn_networks import QUICKLY

T, B, D, H = 7, 4, 2, 4
LENGTH = T * B * (H + D)
KINDS = ["fixed", "per unit", "learned", "learned per unit"]
PLAIN = "plain"
WAYS = {
    PLAIN: {},
    "whole": {},
    "chunks": {"chunk_size": 3},
    "remat": {"remat": True},
    "parallel": {"parallel": jaxrnn.Parallel(2)},
}
quickly = functools.partial(jax.jit, compiler_options=QUICKLY)
cheap_key = functools.partial(jax.random.key, impl="rbg")  # compiles in a third of the time


def unrolls(way):
    """`unroll` or `unroll_plain`, with the options of the way."""
    return functools.partial(jaxrnn.unroll_plain if way == PLAIN else jaxrnn.unroll, **WAYS[way])


def bind(way, **options):
    """``call((params, h0, xs, leak, noise), (mask, resets), key) -> (h_last, hs)``."""

    def call(inputs, marks, key):
        (params, h0, xs, leak, noise), (mask, resets) = inputs, marks
        extras = {"leak": leak, "noise": noise, "key": key, **options}
        return unrolls(way)(params, h0, xs, mask=mask, resets=resets, **extras)

    return call


def differentiated(call):
    """``run(inputs, marks, cotangents, key) -> (outputs, gradients)``."""

    def run(inputs, marks, cotangents, key):
        outputs, pull = jax.vjp(lambda inputs: call(inputs, marks, key), inputs)
        return outputs, *pull(cotangents)

    return run


def with_gradients(call):
    """`differentiated`, compiled."""
    return quickly(differentiated(call))


def assert_agree(got, expected, *, length=LENGTH):
    """`assert_close` of outputs and gradients, of which those of b, leak and noise are one array:
    a sum over all units may cancel, and is as exact as its terms are."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)

    def join(outputs, gradients):
        g_params, *others, g_leak, g_noise = gradients
        sums = jax.tree.leaves((g_params.b, g_params.leak, g_leak, g_noise))
        return outputs, g_params[:2], g_params.h0, *others, np.concatenate([*map(np.ravel, sums)])

    assert_close(join(*got), join(*expected), length=length)


def draw(seed, kind="fixed", dtype=np.float64, *, features=D, steps=T):
    """(params, h0, xs, leak, noise), (mask, resets), and cotangents of the outputs, in NumPy."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return 0.7 * rng.normal(size=shape)

    units = (H,) if "per unit" in kind else ()
    leak = rng.uniform(0.2, 0.9, units)
    noise = rng.uniform(0.1, 1, (H,) if kind == "learned" else units)
    params = RNNParams(normal(H, features), normal(H, H), normal(H), normal(H))
    if "learned" in kind:
        params, leak = params._replace(leak=np.log(leak / (1 - leak))), None
    inputs = params, normal(B, H), normal(steps, B, features), leak, noise
    cotangents = normal(B, H), normal(steps, B, H)
    inputs, cotangents = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), (inputs, cotangents))
    mask, resets = rng.random((steps, B)) < 0.7, rng.random((steps, B)) < 0.25
    mask[:, 0], mask[:, 1] = True, False
    return inputs, (mask, resets), cotangents


def differentiate_by_hand(inputs, marks, cotangents, key, activation, reverse, drawn=np.float64):
    """Outputs and gradients of the oracle, for which noise, of numbers that are drawn in the dtype
    `drawn`, is inputs with weights of their own."""
    params, h0, xs, leak, noise = inputs
    a = 1 / (1 + np.exp(-params.leak)) if leak is None else leak
    p = {name: getattr(params, name) for name in ("w_ih", "w_hh", "b", "h0")} | {"a": a}
    features = xs.shape[-1]
    if noise is not None:
        draws = [jax.random.normal(k, h0.shape, drawn) for k in jax.random.split(key, len(xs))]
        xs = np.concatenate([xs, draws], axis=-1)
        p["w_ih"] = np.hstack([p["w_ih"], np.diag(np.sqrt(2 / a) * noise * np.ones(H))])
    *outputs, tape = oracle.forward(p, h0, xs, *marks, reverse, activation)
    gp, gh0, gxs = oracle.backward(p, xs, tape, activation, *cotangents)
    g_a, g_noise = gp.pop("a"), None
    if noise is not None:
        g_scale = np.diag(gp["w_ih"][:, features:])
        g_noise = sum_to(np.sqrt(2 / a) * g_scale, noise)
        g_a = g_a - sum_to(np.sqrt(0.5) * a**-1.5 * noise * g_scale, a)
        gp["w_ih"], gxs = gp["w_ih"][:, :features], gxs[..., :features]
    g_params = RNNParams(**gp, leak=a * (1 - a) * g_a if leak is None else None)
    return tuple(outputs), (g_params, gh0, gxs, None if leak is None else g_a, g_noise)


def sum_to(values, like):
    return values if np.ndim(like) else values.sum()

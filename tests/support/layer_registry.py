"""The layers that the contract's suite runs over, each as the call of a function that makes it.

A new function that returns a `Layer` needs an entry here: tests/layers compares them.
"""

import functools
import importlib
import inspect
import pkgutil
import textwrap
import typing

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn import online, reservoir

D, TOKENS = 3, 5
SIGNS = np.array([1, 1, 1, -1])
FEEDBACK = np.array([[0.5, -1.0, 0.25], [1.0, 0.5, -0.5]])


def layer_calls(dtype=jnp.float64):
    """By name, calls such as ``partial(jaxrnn.dense, 3, 2)`` that return a layer."""
    call = functools.partial
    rnn = call(jaxrnn.vanilla_rnn, dtype=dtype)
    dense = call(jaxrnn.dense, dtype=dtype)
    embedding = call(jaxrnn.embedding, dtype=dtype)
    deep = call(jaxrnn.stack, rnn(D, 5), rnn(5, 2, activation=jax.nn.relu), dense(2, 3))
    shared_dropout = call(jaxrnn.dropout, D, 0.4, shared_over_time=True)
    readout = call(jaxrnn.stack, rnn(D, 4), dense(4, D))
    return {
        "vanilla": call(rnn, D, 4),
        "vanilla with learned state": call(rnn, D, 4, learn_h0=True),
        "vanilla without bias": call(rnn, D, 4, use_bias=False, activation=jax.nn.silu),
        "vanilla in chunks": call(rnn, D, 4, chunk_size=2, remat=True),
        "vanilla in parallel": call(rnn, D, 4, parallel=jaxrnn.Parallel(3)),
        "vanilla with leak": call(rnn, D, 4, leak=0.3),
        "vanilla with learned leak": call(rnn, D, 4, leak_init=0.3, learn_h0=True),
        "vanilla with noise": call(rnn, D, 4, leak=0.3, noise=0.1),
        "vanilla of low rank": call(
            jaxrnn.constrained, rnn(D, 4, leak_init=0.5), jaxrnn.constraints.low_rank(2)
        ),
        "dense": call(dense, D, 2),
        "dense without bias": call(dense, D, 2, use_bias=False),
        "embedding": call(embedding, TOKENS, 2),
        "dropout": call(jaxrnn.dropout, D, 0.4),
        "dropout shared over time": shared_dropout,
        "gru": gru(D, 4, dtype),
        "state of several leaves": running_mean(D, dtype),
        "stack": deep,
        "stack of stacks": call(jaxrnn.stack, deep(), jaxrnn.stack(rnn(3, 2)), dense(2, 2)),
        "stack on embedding": call(jaxrnn.stack, embedding(TOKENS, 3), rnn(3, 4, learn_h0=True)),
        "deep_rnn": call(jaxrnn.deep_rnn, (D, 4, 3, 2), dropout_rate=0.4, dtype=dtype),
        "repeated": call(jaxrnn.repeated, rnn(D, D, leak_init=0.3, learn_h0=True), 3),
        "residual": call(jaxrnn.residual, rnn(D, D)),
        "bidirectional": call(jaxrnn.bidirectional, rnn(D, 4), rnn(D, 2, learn_h0=True)),
        "bidirectional stack": call(
            jaxrnn.stack, jaxrnn.bidirectional(deep(), gru(D, 2, dtype)()), dense(5, 2)
        ),
        "constrained": call(jaxrnn.constrained, rnn(D, 4), jaxrnn.constraints.dale(SIGNS)),
        "chunked": call(jaxrnn.chunked, rnn(D, 4, learn_h0=True), 4),
        "chunked network": call(jaxrnn.chunked, deep(), 2, remat=True),
        "chunked, truncated": call(jaxrnn.chunked, gru(D, 4, dtype)(), 4, stop_gradient=True),
        "chunked dropout": call(jaxrnn.chunked, jaxrnn.stack(shared_dropout(), rnn(D, 2)), 4),
        "closed loop": call(jaxrnn.closed_loop, readout()),
        "teacher-forced": call(jaxrnn.teacher_forced, readout(), estimate_through_readout),
        "reservoir": call(reservoir.echo_state_network, D, 4, fan_in=2, leak=0.3, dtype=dtype),
        "rtrl with learned leak": call(
            online.rtrl, D, 4, leak_init=0.3, learn_h0=True, dtype=dtype
        ),
        "snap1": call(online.snap1, D, 4, learn_h0=True, dtype=dtype),
        "rflo": call(online.rflo, D, 4, leak=0.3, noise=0.1, use_bias=False, dtype=dtype),
        "exact": call(online.exact, rnn(D, 3, learn_h0=True)),
        "feedback alignment": call(online.feedback_alignment, dense(D, 2), FEEDBACK),
        "combinator of a docstring": call(documented_combinator(), rnn(D, 4, learn_h0=True)),
        "layer of one's own": call(jaxrnn.make_layer, D, D, *affine_functions(D, dtype)),
    }


def one_per_function(dtype=jnp.float64):
    """Of `layer_calls` the first of each function, and those whose programs differ most from it."""
    calls, first = layer_calls(dtype), {}
    for name, call in calls.items():
        first.setdefault(call.func, name)
    more = "vanilla with learned leak", "vanilla in parallel", "vanilla of low rank"
    return {name: calls[name] for name in dict.fromkeys((*first.values(), *more))}


def documented_combinator():
    """`concatenated`, as the docstring of `make_layer` prints it."""
    lines = inspect.getdoc(jaxrnn.make_layer).split("beside its outputs:\n")[1]
    names = {}
    exec(textwrap.dedent(lines), names)
    return names["concatenated"]


def estimate_through_readout(params):
    """The states of a stack of a vanilla network and a dense layer that an observation implies."""
    nearest = jaxrnn.nearest_state(params[1])
    return lambda state, x: (nearest(state[0], x), state[1])


def affine_functions(size, dtype):
    """`init`, `initial_state` and `run` of a layer that does not look at the mask itself: what it
    adds to its inputs shows if masked outputs are not set to 0."""

    def run(params, state, inputs, key):
        ys = 2 * inputs.xs.astype(dtype) + jax.lax.broadcast_like(params, inputs.xs)
        return state, ys

    def initial_state(params, batch_shape):
        return ()

    return lambda key: jnp.ones(size, dtype), initial_state, run


def gru(input_size, units, dtype):
    """Cho et al. 2014, equations 5 to 8: a layer of another step."""

    def init(key):
        keys = jax.random.split(key, 3)
        w = jax.random.normal(keys[0], (3, units, input_size), dtype) / input_size**0.5
        u = jax.random.normal(keys[1], (3, units, units), dtype) / units**0.5
        return {"w": w, "u": u, "b": jax.random.normal(keys[2], (3, units), dtype)}

    def initial_state(params, batch_shape=()):
        return jnp.zeros((*batch_shape, units), params["w"].dtype)

    def step(params, h, x):
        x = x.astype(h.dtype)
        zx = jnp.einsum("...d,ghd->g...h", x, params["w"])
        zx = zx + params["b"].reshape((3,) + (1,) * (x.ndim - 1) + (units,))
        r, z = (jax.nn.sigmoid(zx[g] + h @ params["u"][g].T) for g in (0, 1))
        candidate = jnp.tanh(zx[2] + (r * h) @ params["u"][2].T)
        h = z * h + (1 - z) * candidate
        return h, h

    return functools.partial(jaxrnn.scanned, input_size, units, init, initial_state, step)


def running_mean(size, dtype):
    """The mean of the scaled inputs so far. The state is a dict of the number of steps (int32
    [*B]) and their sum [*B, size]."""

    def init(key):
        return jnp.ones((), dtype)

    def initial_state(params, batch_shape=()):
        zeros = jnp.zeros((*batch_shape, size), dtype)
        return {"count": jnp.zeros(batch_shape, jnp.int32), "sum": zeros}

    def step(params, state, x):
        count, total = state["count"] + 1, state["sum"] + params * x
        return {"count": count, "sum": total}, total / count[..., None].astype(dtype)

    return functools.partial(jaxrnn.scanned, size, size, init, initial_state, step)


def layer_functions():
    """The public functions of jaxrnn whose return annotation is `Layer`.

    Left out is interop, whose readers return layers that others make."""
    found = set()
    for info in pkgutil.walk_packages(jaxrnn.__path__, "jaxrnn."):
        words = info.name.split(".")
        if words[1] == "interop" or any(word.startswith("_") for word in words):
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            if not name.startswith("_") and returns_layer(value):
                found.add(value)
    return found


def returns_layer(value):
    return (
        inspect.isfunction(value)
        and value.__module__.startswith("jaxrnn.")
        and typing.get_type_hints(value).get("return") is jaxrnn.Layer
    )

"""Closed loops: a layer that reads what it has just put out, and teachers that correct it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._checks import as_array, check_function, check_inputs, check_key, check_size
from jaxrnn._products import product
from jaxrnn._types import Array, Key, Params, State, accumulation_dtype
from jaxrnn.layers.contract import Inputs, Layer, check_layer, complete_state, make_layer
from jaxrnn.layers.pointwise import DenseParams
from jaxrnn.layers.recurrent import scanned
from jaxrnn.params import match_batch, split_key

Feed = Callable[[Array, Key | None], Array]
Estimate = Callable[[Params], Callable[[State, Array], State]]


def generate(
    layer: Layer,
    params: Params,
    state: State,
    x: Array,
    num_steps: int,
    *,
    feed: Feed | None = None,
    key: Key | None = None,
) -> tuple[State, tuple[Array, Array]]:
    """Step a layer on what `feed` makes of its own outputs.

    Args:
      layer: a causal layer.
      params, state: as in `layer.step`; a state of None means the initial state.
      x: the first input [*B, D], or tokens [*B] for a layer that reads tokens.
      num_steps: T.
      feed: ``(y, key) -> x``, the next input from an output y [*B, O]; by default the output
        itself. What it returns has the shape of x, and is cast to its dtype.
      key: draws what `feed` draws, and the layer's own randomness (that of training); each step has
        a key of its own, split between them. Without one, `feed` gets None and nothing is drawn.

    Returns:
      (the last state, (xs, ys)): ys [T, *B, O] are the outputs, and xs [T, *B, D] the inputs made
      of them. ``xs[-1]`` is the next input: n steps and then m, from the state and the input behind
      them, are n + m, if nothing is drawn.

    Characters that continue a prompt [P, B], drawn from a network over tokens:

        def feed(logits, key):
            return jax.random.categorical(key, logits / temperature)

        first, draw = jax.random.split(key)
        state, logits = network.unroll(params, None, prompt)
        x = feed(logits[-1], first)
        state, (xs, _) = jaxrnn.generate(
            network, params, state, x, 99, feed=feed, key=draw
        )
        text = jnp.concatenate([x[None], xs])
    """
    check_layer("layer", layer, causal=True)
    num_steps = check_size("num_steps", num_steps, at_least=0)
    features = None if layer.reads_tokens else layer.input_size
    x = check_inputs("x", x, features, "[*B, D]")
    if key is not None:
        check_key("key", key)
    if feed is not None:
        check_function("feed", feed)
    elif layer.reads_tokens or layer.output_size != layer.input_size:
        kind = "tokens" if layer.reads_tokens else f"{layer.input_size} features"
        raise ValueError(
            f"feed is None, expected a function: the layer reads {kind}, and its outputs have "
            f"{layer.output_size} features"
        )
    keys = None if key is None else jax.random.split(key, num_steps)
    state = complete_state(state, layer.initial_state, params, Inputs(x, single=True), features)

    def advance(state: State, x: Array, key: Key | None) -> tuple[State, Array, Array]:
        own, feeding = (None, None) if key is None else jax.random.split(key)
        state, y = layer.run(params, state, Inputs(x, single=True), own)
        return state, y, y if feed is None else as_array("the result of feed", feed(y, feeding))

    if feed is None and jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jax.eval_shape(advance, state, x, key)[1].dtype)
    _check_fed(jax.eval_shape(advance, state, x, key)[2], x)
    rank = x.ndim if layer.reads_tokens else x.ndim - 1
    state, x = (match_batch(carried, x, 0, rank, (params, keys)) for carried in (state, x))

    def body(carry: tuple[State, Array], key: Key | None) -> Any:
        state, y, fed = advance(*carry, key)
        fed = fed.astype(x.dtype)
        return (state, fed), (fed, y)

    (state, _), outputs = lax.scan(body, (state, x), keys, length=num_steps)
    return state, outputs


def closed_loop(layer: Layer, *, feed: Feed | None = None) -> Layer:
    """A layer that reads its own outputs, unless it is given something else.

    Its inputs [T, *B, 1 + D] are a flag and the layer's inputs. Where the flag is 0, what `feed`
    makes of the last output is read in place of the rest, which then has no effect, NaN included;
    where it is 1, the rest is read. A fraction between reads the mean of the two that it weighs.
    So one sequence of flags says what is a warm-up, what runs free, and where a teacher comes in:
    every k steps, or by chance (scheduled sampling; Bengio et al. 2015).

    Args:
      layer: a causal layer of floating-point inputs.
      feed: ``(y, key) -> x``, as in `generate`; by default the output itself.

    Returns:
      A layer of input_size 1 + D. Its state is (the layer's own state, the last output [*B, O]),
      which begins at zero, in the dtype of the outputs; inputs are converted to it. With a key,
      each step's is split between the layer and `feed`.

    A free run of 100 steps after 50 that are given:

        network = jaxrnn.stack(jaxrnn.vanilla_rnn(3, 64), jaxrnn.dense(64, 3))
        params = network.init(jax.random.key(0))
        loop = jaxrnn.closed_loop(network)
        flags = (jnp.arange(150) < 50).astype(xs.dtype)
        given = jnp.concatenate([flags[:, None], xs[:150]], axis=1)
        state, ys = loop.unroll(params, None, given)
    """
    check_layer("layer", layer, causal=True)
    if layer.reads_tokens:
        raise ValueError("layer reads tokens, expected one of floating-point inputs (see generate)")
    if feed is not None:
        check_function("feed", feed)
    elif layer.input_size != layer.output_size:
        raise ValueError(
            f"feed is None, expected a function: the layer reads {layer.input_size} features, and "
            f"its outputs have {layer.output_size} features"
        )

    def initial_state(params: Params, batch_shape: Any) -> State:
        state = layer.initial_state(params, batch_shape)
        x = jnp.zeros((*batch_shape, layer.input_size), _floating_dtype((params, state)))
        like = jax.eval_shape(layer.step, params, state, x)[1]
        return state, jnp.zeros(like.shape, like.dtype)

    def step(params: Params, state: State, x: Array, key: Key | None) -> tuple[State, Array]:
        own, last = state
        x = x.astype(last.dtype)
        flag, given = x[..., :1], x[..., 1:]
        own_key, feeding = split_key(key, 2)
        fed = last if feed is None else as_array("the result of feed", feed(last, feeding))
        _check_fed(fed, given)
        fed = fed.astype(given.dtype)
        flag = jnp.broadcast_to(flag, given.shape)
        given = jnp.where(flag == 0, 0, given)
        mixed = jnp.where(flag == 1, given, fed + flag * (given - fed))
        own, y = layer.run(
            params, own, Inputs(jnp.where(flag == 0, fed, mixed), single=True), own_key
        )
        return (own, y), y

    sizes = 1 + layer.input_size, layer.output_size
    return scanned(*sizes, layer.init, initial_state, step, keyed=True)


def teacher_forced(layer: Layer, estimate: Estimate) -> Layer:
    """A layer whose state is pulled towards the one that observations imply, by a fraction.

    Before each step the state h becomes ``(1 - a) h + a h'``, where h' is the estimate from the
    observation of the step before. Gradients through time shrink with a: on a chaotic series those
    of a free run grow without bound, and those of a run that is forced enough do not. a = 1 is
    teacher forcing, a = 0 the free run, and a that is 1 at every k-th step sparse teacher forcing.

    Args:
      layer: a causal layer of D floating-point inputs, often 0, whose outputs [*B, O] predict
        observations.
      estimate: ``params -> ((state, observation) -> state)``: the state that an observation
        implies, given the present one. It is called once per call, outside the loop: the place to
        prepare what depends on the parameters. For a linear readout see `nearest_state`.

    Returns:
      A layer of input_size ``1 + O + D``: a, the observation, which is not read where a is 0, and
      the layer's own inputs. Parameters, states and outputs are those of `layer`.

    Source: Hess, Monfared, Brenner & Durstewitz 2023, "Generalized teacher forcing for learning
    chaotic dynamics", equation 3; sparse forcing: Mikhaeil, Monfared & Durstewitz 2022.

    A vanilla network without inputs, forced through its readout:

        network = jaxrnn.stack(jaxrnn.vanilla_rnn(0, 64), jaxrnn.dense(64, 3))

        def estimate(params):
            nearest = jaxrnn.nearest_state(params[1])
            return lambda state, x: (nearest(state[0], x), ())

        forced = jaxrnn.teacher_forced(network, estimate)
        a = jnp.full((100, 1), 0.2)
        params = forced.init(jax.random.key(0))
        state, predictions = forced.unroll(
            params, None, jnp.concatenate([a, xs[:100]], axis=1)
        )
    """
    check_layer("layer", layer, causal=True)
    check_function("estimate", estimate)
    if layer.reads_tokens:
        raise ValueError("layer reads tokens, expected one of floating-point inputs")
    observed = layer.output_size

    def run(params: Params, state: State, inputs: Inputs, key: Key | None) -> tuple[State, Array]:
        implied = estimate(params)

        def step(_: Params, state: State, x: Array, key: Key | None) -> tuple[State, Array]:
            fraction, x, own = jnp.split(x, [1, 1 + observed], axis=-1)
            x = jnp.where(fraction == 0, 0, x).astype(x.dtype)
            state = _pull(state, implied(state, x), fraction)
            return layer.run(params, state, Inputs(own, single=True), key)

        loop = scanned(
            1 + observed + layer.input_size, observed, layer.init, start, step, keyed=True
        )
        return loop.run(params, state, inputs, key)

    def start(params: Params, batch_shape: Any) -> State:
        return layer.initial_state(params, batch_shape)

    return make_layer(1 + observed + layer.input_size, observed, layer.init, start, run)


def nearest_state(readout: DenseParams) -> Callable[[Array, Array], Array]:
    """``(h, y) -> h'``: the state [*B, H] nearest to h whose output under a linear readout is
    y [*B, O], ``h + V^+ (y - V h - c)`` with the pseudo-inverse of V [O, H]."""
    if not isinstance(readout, DenseParams):
        raise TypeError(f"readout is a {type(readout).__name__}, expected DenseParams")
    inverse = jnp.linalg.pinv(readout.w.astype(accumulation_dtype(readout.w.dtype)))

    def nearest(h: Array, y: Array) -> Array:
        now = product(h, readout.w)
        now = (
            now
            if readout.b is None
            else now + jnp.broadcast_to(readout.b.astype(now.dtype), now.shape)
        )
        missing = (y.astype(now.dtype) - now).astype(h.dtype)
        return h + product(missing, inverse.astype(h.dtype)).astype(h.dtype)

    return nearest


def _pull(state: State, target: State, fraction: Array) -> State:
    """`state` moved by `fraction` [*B, 1] of the way to `target`, where that is not 0."""

    def pull(leaf: Array, goal: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        share = lax.expand_dims(fraction[..., 0], range(fraction.ndim - 1, leaf.ndim))
        share = jnp.broadcast_to(share, leaf.shape).astype(leaf.dtype)
        return jnp.where(share == 0, leaf, leaf + share * (goal.astype(leaf.dtype) - leaf))

    return jax.tree.map(pull, state, target)


def _floating_dtype(tree: Any) -> Any:
    """The result type of the floating-point leaves."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(tree)]
    floating = [d for d in dtypes if jnp.issubdtype(d, jnp.floating)]
    return jnp.result_type(*(floating or [jnp.float32]))


def _check_fed(fed: Any, x: Array) -> None:
    """Refuse a fed input of another shape than `x`, or floating where that is an integer."""
    kinds = [jnp.issubdtype(each.dtype, jnp.floating) for each in (fed, x)]
    if fed.shape != x.shape or kinds[0] != kinds[1]:
        source = "the result of feed"
        raise ValueError(
            f"{source} is {fed.dtype} {list(fed.shape)}, expected {x.dtype} {list(x.shape)} as x"
        )

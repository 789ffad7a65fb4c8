"""Networks from layers: in sequence, in both directions, around, constrained, cut in time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._checks import check_key, check_size
from jaxrnn._types import Array, Key, Params, Shape, State
from jaxrnn.constraints import Constraint, check_constraint
from jaxrnn.layers.contract import Inputs, Layer, check_layer, make_layer
from jaxrnn.layers.pointwise import dense, dropout
from jaxrnn.layers.recurrent import vanilla_rnn
from jaxrnn.params import split_key, vary_over
from jaxrnn.recurrence.chunks import scan_chunks
from jaxrnn.recurrence.reference import find_restarts, restart, select


def stack(*layers: Layer) -> Layer:
    """Layers one above the other: the outputs of each are the inputs of the next.

    Parameters and states are tuples with one entry per layer.

    Raises:
      TypeError: an argument is not a `Layer`. ValueError: there is none, or two neighbours do not
        fit.
    """
    if not layers:
        raise ValueError("layers is empty, expected at least one layer")
    for position, layer in enumerate(layers):
        check_layer(f"layers[{position}]", layer)
    for position, (below, above) in enumerate(itertools.pairwise(layers)):
        if below.output_size != above.input_size:
            raise ValueError(
                f"layers[{position}] has output_size {below.output_size} but "
                f"layers[{position + 1}] has input_size {above.input_size}, expected equal sizes"
            )

    def run(params: Params, state: State, inputs: Inputs, key: Key | None) -> tuple[State, Array]:
        states = []
        for layer, p, s, k in zip(layers, params, state, split_key(key, len(layers)), strict=True):
            after, ys = layer.run(p, s, inputs, k)
            states.append(after)
            inputs = inputs._replace(xs=ys)
        return tuple(states), inputs.xs

    return make_layer(
        layers[0].input_size,
        layers[-1].output_size,
        *_init_each(layers),
        run,
        causal=all(layer.causal for layer in layers),
        reads_tokens=layers[0].reads_tokens,
    )


def repeated(layer: Layer, count: int) -> Layer:
    """`count` layers of the same kind one above the other, in one ``lax.scan`` over them.

    It computes what `stack` of as many computes, and compiles in a time that does not grow with
    `count`: a program of one layer is run with one set of parameters after the other.

    Args:
      layer: a layer whose input_size is its output_size, of floating-point inputs.
      count: layers, at least one.

    Returns:
      A layer whose parameters are the layer's, stacked to [count, ...], and whose state is the
      layer's, with an axis of `count` behind the batch axes.

    Raises:
      TypeError, ValueError: an argument is not as described.

    From and to the parameters of a stack:

        params = jax.tree.map(lambda *each: jnp.stack(each), *stacked)
        stacked = tuple(jax.tree.map(lambda leaf: leaf[i], params) for i in range(count))
    """
    check_layer("layer", layer)
    size = _check_square(layer)
    count = check_size("count", count)

    def init(key: Key) -> Params:
        check_key("key", key)
        return jax.vmap(layer.init)(jax.random.split(key, count))

    def initial_state(params: Params, batch_shape: Shape) -> State:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
        if any(shape[:1] != (count,) for shape in shapes):
            raise ValueError(f"params has leaves {shapes}, expected each to begin with {count}")
        states = jax.vmap(lambda one: layer.initial_state(one, batch_shape))(params)
        return move_axis(states, 0, len(batch_shape))

    def run(params: Params, state: State, inputs: Inputs, key: Key | None) -> tuple[State, Array]:
        rank = inputs.xs.ndim - (1 if inputs.single else 2)
        keys = None if key is None else jax.random.split(key, count)
        each = params, move_axis(state, rank, 0), keys

        def body(xs: Array, one: Any) -> tuple[Array, State]:
            params, state, key = one
            after, ys = layer.run(params, state, inputs._replace(xs=xs), key)
            return ys, after

        first = jax.tree.map(lambda leaf: leaf[0], each)
        dtype = jax.eval_shape(body, inputs.xs, first)[0].dtype
        xs = vary_over(inputs.xs.astype(dtype), (each, inputs.mask, inputs.resets))
        ys, states = lax.scan(body, xs, each)
        return move_axis(states, 0, rank), ys

    return make_layer(size, size, init, initial_state, run, causal=layer.causal)


def move_axis(tree: Any, source: int, destination: int) -> Any:
    """The leaves with an axis at another place."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, source, destination), tree)


def _check_square(layer: Layer) -> int:
    """The size of a layer's inputs and outputs; refuse one where they differ."""
    sizes = layer.input_size, layer.output_size
    if sizes[0] != sizes[1] or layer.reads_tokens:
        raise ValueError(
            f"layer has input_size {sizes[0]} and output_size {sizes[1]}, "
            "expected equal sizes, and inputs that are not tokens"
        )
    return sizes[0]


def deep_rnn(sizes: Sequence[int], *, dropout_rate: Any = None, **options: Any) -> Layer:
    """Vanilla layers one above the other and a dense readout: the network most scripts begin with.

    Args:
      sizes: D, the hidden units of each layer, and O: ``(D, H_1, ..., H_L, O)``, at least three.
      dropout_rate: rate of a `dropout` layer behind each vanilla layer; None leaves them out.
      options: of every `vanilla_rnn`; a `dtype` is the readout's, too.

    Returns:
      The `stack` of them; parameters and states are tuples with one entry per layer.
    """
    if not isinstance(sizes, tuple | list) or len(sizes) < 3:
        raise ValueError(f"sizes is {sizes!r}, expected (D, H_1, ..., H_L, O), at least 3 sizes")
    layers = []
    for below, above in itertools.pairwise(sizes[:-1]):
        layers.append(vanilla_rnn(below, above, **options))
        if dropout_rate is not None:
            layers.append(dropout(above, dropout_rate))
    dtype = {"dtype": options["dtype"]} if "dtype" in options else {}
    return stack(*layers, dense(*sizes[-2:], **dtype))


def bidirectional(forward: Layer, backward: Layer) -> Layer:
    """Two layers over the same inputs, one from each end; their outputs are concatenated.

    Source: Schuster & Paliwal 1997, "Bidirectional recurrent neural networks". Any two layers of
    equal input size will do; `backward` is unrolled in reverse, inside each sequence's own length.
    Such a layer is not causal: it has no `step`. Parameters and states: (forward, backward).
    """
    layers = (forward, backward)
    check_layer("forward", forward)
    check_layer("backward", backward)
    if forward.input_size != backward.input_size or forward.reads_tokens != backward.reads_tokens:
        raise ValueError(
            f"forward has input_size {forward.input_size} but backward has input_size "
            f"{backward.input_size}, expected equal sizes, both of features or both of tokens"
        )

    def run(params: Params, state: State, inputs: Inputs, key: Key | None) -> tuple[State, Array]:
        opposite = inputs._replace(reverse=not inputs.reverse)
        keys = split_key(key, 2)
        ahead, ys = forward.run(params[0], state[0], inputs, keys[0])
        behind, reverse_ys = backward.run(params[1], state[1], opposite, keys[1])
        return (ahead, behind), jnp.concatenate([ys, reverse_ys], axis=-1)

    return make_layer(
        forward.input_size,
        forward.output_size + backward.output_size,
        *_init_each(layers),
        run,
        causal=False,
        reads_tokens=forward.reads_tokens,
    )


def residual(layer: Layer) -> Layer:
    """The layer's inputs added to its outputs, ``x + f(x)``; parameters and states are the layer's.

    Source: He et al. 2016, "Deep residual learning for image recognition", equation 1.
    """
    check_layer("layer", layer)
    size = _check_square(layer)

    def run(params: Params, state: State, inputs: Inputs, key: Key | None) -> tuple[State, Array]:
        state, ys = layer.run(params, state, inputs, key)
        return state, ys + inputs.xs.astype(ys.dtype)

    return make_layer(size, size, layer.init, layer.initial_state, run, causal=layer.causal)


def constrained(layer: Layer, constraint: Constraint) -> Layer:
    """The layer with parameters that `constraint` makes of free ones, once per call.

    See `jaxrnn.constraints`. Parameters: ``constraint.init(key, params)`` of the layer's. State:
    the layer's.
    """
    check_layer("layer", layer)
    check_constraint("constraint", constraint)

    def init(key: Key) -> Params:
        check_key("key", key)
        key_layer, key_free = jax.random.split(key)
        return constraint.init(key_free, layer.init(key_layer))

    def initial_state(free: Params, batch_shape: Shape) -> State:
        return layer.initial_state(constraint.apply(free), batch_shape)

    def run(free: Params, state: State, inputs: Inputs, key: Key | None) -> tuple[State, Array]:
        key_params, key_layer = split_key(key, 2)
        return layer.run(constraint.apply(free, key=key_params), state, inputs, key_layer)

    return make_layer(
        layer.input_size,
        layer.output_size,
        init,
        initial_state,
        run,
        causal=layer.causal,
        reads_tokens=layer.reads_tokens,
    )


def chunked(layer: Layer, size: int, *, remat: bool = False, stop_gradient: bool = False) -> Layer:
    """Unroll a layer, or a whole network with its readout, in chunks of `size` time steps.

    The results are the layer's own. The last chunk is shorter if `size` does not divide T. If only
    the final state is used under ``jit``, a chunked deep network needs no memory that grows with T,
    apart from its inputs.

    Args:
      layer: a causal layer.
      size: time steps per chunk.
      remat: recompute a chunk in the backward pass, so that only the states between chunks are
        stored.
      stop_gradient: cut the gradient between chunks: truncated back-propagation through time
        (Williams & Peng 1990, "An efficient gradient-based algorithm for on-line training of
        recurrent network trajectories").
    """
    check_layer("layer", layer, causal=True)
    size = check_size("size", size)

    def run(params: Params, state: State, inputs: Inputs, key: Key | None) -> tuple[State, Array]:
        xs, mask, resets, reverse, single = inputs
        num_steps = xs.shape[0]
        if single or num_steps == 0:
            return layer.run(params, state, inputs, key)
        initial = restarts = None
        if reverse and resets is not None:
            restarts = find_restarts(resets, mask, reverse)
            initial = layer.initial_state(params, resets.shape[1:])

        def run_chunk(state: State, chunk: Any) -> tuple[State, Array]:
            (steps, xs, mask, resets, restarts), _ = chunk
            if stop_gradient:  # between chunks: what the caller gave keeps its gradient
                first = jnp.any(steps == (num_steps - 1 if reverse else 0))
                state = select(first, state, lax.stop_gradient(state))
            if restarts is not None:  # the layer cannot see a reset in the following chunk
                state = restart(_at_last_unmasked(restarts, mask), initial, state)
            chunk_key = None if key is None else jax.random.fold_in(key, steps[0])
            return layer.run(params, state, Inputs(xs, mask, resets, reverse), chunk_key)

        arrays = (jnp.arange(num_steps), xs, mask, resets, restarts)
        return scan_chunks(run_chunk, state, arrays, size, reverse, remat=remat)

    return make_layer(
        layer.input_size,
        layer.output_size,
        layer.init,
        layer.initial_state,
        run,
        reads_tokens=layer.reads_tokens,
    )


def _at_last_unmasked(flags: Array, mask: Array | None) -> Array:
    """The flag at the last unmasked step of a chunk: [T, *B] -> [*B]."""
    if mask is None:
        return flags[-1]
    unmasked_from_here = jnp.cumsum(mask[::-1], axis=0)[::-1]
    return jnp.any(flags & mask & (unmasked_from_here == 1), axis=0)


def _init_each(layers: tuple[Layer, ...]) -> tuple[Callable[[Key], Params], Callable[..., State]]:
    """`init` and `initial_state` of several layers, as tuples with one entry per layer."""

    def init(key: Key) -> Params:
        check_key("key", key)
        keys = jax.random.split(key, len(layers))
        return tuple(layer.init(k) for layer, k in zip(layers, keys, strict=True))

    def initial_state(params: Params, batch_shape: Shape) -> State:
        if not isinstance(params, tuple) or len(params) != len(layers):
            got = f"{len(params)} entries" if isinstance(params, tuple) else type(params).__name__
            raise ValueError(f"params is {got}, expected a tuple with {len(layers)}, one per layer")
        return tuple(
            layer.initial_state(p, batch_shape) for layer, p in zip(layers, params, strict=True)
        )

    return init, initial_state

"""Networks from layers: in sequence, in both directions, around, and cut in time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._checks import as_array, check_key, check_shape, check_size
from jaxrnn._types import Array, Key, Params, Shape, State
from jaxrnn.layers.contract import Layer, select, vanilla_rnn
from jaxrnn.layers.pointwise import dense, dropout
from jaxrnn.recurrence.chunks import replacement_marks, scan_chunks


def stack(*layers: Layer) -> Layer:
    """Layers one above the other: the outputs of each are the inputs of the next.

    Parameters and states are tuples with one entry a layer.

    Raises:
      TypeError: an argument is not a `Layer`. ValueError: there is none, or two neighbours do not
        fit.
    """
    if not layers:
        raise ValueError("layers is empty, expected at least one layer")
    for position, layer in enumerate(layers):
        _check_layer(f"layers[{position}]", layer)
    for position, (below, above) in enumerate(itertools.pairwise(layers)):
        if below.output_size != above.input_size:
            raise ValueError(
                f"layers[{position}] has output_size {below.output_size} but "
                f"layers[{position + 1}] has input_size {above.input_size}, expected equal sizes"
            )

    def init(key: Key) -> Params:
        check_key("key", key)
        keys = jax.random.split(key, len(layers))
        return tuple(layer.init(k) for layer, k in zip(layers, keys, strict=True))

    def initial_state(params: Params, batch_shape: Shape = ()) -> State:
        _check_parts("params", params, layers)
        return tuple(
            layer.initial_state(p, batch_shape) for layer, p in zip(layers, params, strict=True)
        )

    def step(params: Params, state: State, x: Array) -> tuple[State, Array]:
        states = []
        for layer, p, s in _parts(layers, params, state):
            after, x = layer.step(p, s, x)
            states.append(after)
        return tuple(states), x

    def unroll(
        params: Params,
        state: State,
        xs: Array,
        *,
        mask: Array | None = None,
        resets: Array | None = None,
        reverse: bool = False,
        key: Key | None = None,
    ) -> tuple[State, Array]:
        keys = _split(key, len(layers))
        states = []
        for (layer, p, s), k in zip(_parts(layers, params, state), keys, strict=True):
            after, xs = layer.unroll(p, s, xs, mask=mask, resets=resets, reverse=reverse, key=k)
            states.append(after)
        return tuple(states), xs

    causal = all(layer.causal for layer in layers)
    input_size, output_size = layers[0].input_size, layers[-1].output_size
    return Layer(input_size, output_size, init, initial_state, step, unroll, causal)


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
    _check_layer("forward", forward)
    _check_layer("backward", backward)
    if forward.input_size != backward.input_size:
        raise ValueError(
            f"forward has input_size {forward.input_size} but backward has input_size "
            f"{backward.input_size}, expected equal sizes"
        )

    def init(key: Key) -> Params:
        check_key("key", key)
        key_forward, key_backward = jax.random.split(key)
        return forward.init(key_forward), backward.init(key_backward)

    def initial_state(params: Params, batch_shape: Shape = ()) -> State:
        _check_parts("params", params, layers)
        return tuple(
            layer.initial_state(p, batch_shape) for layer, p in zip(layers, params, strict=True)
        )

    def step(params: Params, state: State, x: Array) -> tuple[State, Array]:
        raise ValueError(
            "step of a bidirectional layer was called, expected unroll: its backward direction "
            "starts at the end of the whole sequence"
        )

    def unroll(
        params: Params,
        state: State,
        xs: Array,
        *,
        mask: Array | None = None,
        resets: Array | None = None,
        reverse: bool = False,
        key: Key | None = None,
    ) -> tuple[State, Array]:
        states, outputs = [], []
        keys = _split(key, 2)
        directions = (reverse, not reverse)
        for (layer, p, s), k, backwards in zip(
            _parts(layers, params, state), keys, directions, strict=True
        ):
            after, ys = layer.unroll(p, s, xs, mask=mask, resets=resets, reverse=backwards, key=k)
            states.append(after)
            outputs.append(ys)
        return tuple(states), jnp.concatenate(outputs, axis=-1)

    output_size = forward.output_size + backward.output_size
    return Layer(forward.input_size, output_size, init, initial_state, step, unroll, False)


def residual(layer: Layer) -> Layer:
    """The layer's inputs added to its outputs, ``x + f(x)``; parameters and states are the layer's.

    Source: He et al. 2016, "Deep residual learning for image recognition", equation 1.
    """
    _check_layer("layer", layer)
    if layer.input_size != layer.output_size:
        raise ValueError(
            f"layer has input_size {layer.input_size} and output_size {layer.output_size}, "
            "expected equal sizes"
        )

    def step(params: Params, state: State, x: Array) -> tuple[State, Array]:
        state, y = layer.step(params, state, x)
        x = as_array("x", x)
        check_shape("x", x, y.shape)
        return state, x.astype(y.dtype) + y

    def unroll(
        params: Params,
        state: State,
        xs: Array,
        *,
        mask: Array | None = None,
        resets: Array | None = None,
        reverse: bool = False,
        key: Key | None = None,
    ) -> tuple[State, Array]:
        state, ys = layer.unroll(
            params, state, xs, mask=mask, resets=resets, reverse=reverse, key=key
        )
        xs = as_array("xs", xs)
        check_shape("xs", xs, ys.shape)
        xs = xs.astype(ys.dtype)
        return state, ys + (xs if mask is None else select(mask, xs, jnp.zeros_like(xs)))

    return layer._replace(step=step, unroll=unroll)


def chunked(layer: Layer, size: int, *, remat: bool = False, stop_gradient: bool = False) -> Layer:
    """Unroll a layer, or a whole network with its readout, in chunks of `size` steps.

    The results are the layer's own. The last chunk is shorter where `size` does not divide T. Where
    only the last state of a compiled call is used, a deep network in chunks needs no memory that
    grows with T but that of its inputs.

    Args:
      layer: a causal layer.
      size: steps a chunk.
      remat: recompute a chunk in the backward pass, so that only the states between chunks are
        stored.
      stop_gradient: cut the gradient between chunks: truncated back-propagation through time
        (Williams & Peng 1990, "An efficient gradient-based algorithm for on-line training of
        recurrent network trajectories").
    """
    _check_layer("layer", layer)
    size = check_size("size", size)
    if not layer.causal:
        raise ValueError("layer is not causal, expected one that can be cut in time")

    def unroll(
        params: Params,
        state: State,
        xs: Array,
        *,
        mask: Array | None = None,
        resets: Array | None = None,
        reverse: bool = False,
        key: Key | None = None,
    ) -> tuple[State, Array]:
        xs = as_array("xs", xs)
        if key is not None:
            check_key("key", key)
        ys = _check_and_shape(layer, params, state, xs, mask, resets)
        initial = layer.initial_state(params, ys.shape[1:-1])
        num_steps = xs.shape[0]
        replaced = None
        if reverse and resets is not None:
            replaced = replacement_marks(jnp.asarray(resets), mask, reverse)

        def run(state: State, chunk: Any) -> tuple[State, Array]:
            (steps, xs, mask, resets, replaced), _ = chunk
            if stop_gradient:  # between chunks: what the caller gave keeps its gradient
                first = jnp.any(steps == (num_steps - 1 if reverse else 0))
                state = select(first, state, lax.stop_gradient(state))
            if replaced is not None:  # the layer cannot see a mark that stands in the chunk after
                state = select(_at_last_taken(replaced, mask), initial, state)
            return layer.unroll(
                params,
                state,
                xs,
                mask=mask,
                resets=resets,
                reverse=reverse,
                key=None if key is None else jax.random.fold_in(key, steps[0]),
            )

        pieces = (jnp.arange(num_steps), xs, mask, resets, replaced)
        state = initial if state is None else state
        if num_steps == 0:
            return layer.unroll(params, state, xs, mask=mask, resets=resets, reverse=reverse)
        return scan_chunks(run, state, pieces, size, reverse=reverse, remat=remat)

    return layer._replace(unroll=unroll)


def _at_last_taken(marks: Array, mask: Array | None) -> Array:
    """Whether the last taken step of a chunk is marked: [T, *B] -> [*B]."""
    if mask is None:
        return marks[-1]
    taken_from_here = jnp.cumsum(mask[::-1], axis=0)[::-1]
    return jnp.any(marks & mask & (taken_from_here == 1), axis=0)


def _check_and_shape(layer: Layer, params: Params, state: State, *inputs: Any) -> Any:
    """Let the layer refuse what does not fit; return the shape of its outputs."""

    def outputs(params: Params, state: State, xs: Array, mask: Any, resets: Any) -> Array:
        return layer.unroll(params, state, xs, mask=mask, resets=resets)[1]

    return jax.eval_shape(outputs, params, state, *inputs)


def _check_layer(name: str, layer: Any) -> None:
    if not isinstance(layer, Layer):
        raise TypeError(f"{name} is a {type(layer).__name__}, expected a Layer")


def _check_parts(name: str, parts: Any, layers: tuple[Layer, ...]) -> None:
    if not isinstance(parts, tuple) or len(parts) != len(layers):
        got = f"{len(parts)} entries" if isinstance(parts, tuple) else type(parts).__name__
        raise ValueError(f"{name} is {got}, expected a tuple with one entry a layer, {len(layers)}")


def _parts(
    layers: tuple[Layer, ...], params: Params, state: State
) -> list[tuple[Layer, Params, State]]:
    """Each layer with its parameters and its state; a state of None is None for each."""
    _check_parts("params", params, layers)
    if state is None:
        state = (None,) * len(layers)
    _check_parts("state", state, layers)
    return list(zip(layers, params, state, strict=True))


def _split(key: Key | None, count: int) -> list[Key | None]:
    if key is None:
        return [None] * count
    check_key("key", key)
    return list(jax.random.split(key, count))

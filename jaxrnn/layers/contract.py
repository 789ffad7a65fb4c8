"""`Layer`, the contract that every layer keeps, and `make_layer`, which builds them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._checks import (
    as_array,
    check_batch_shape,
    check_flag,
    check_function,
    check_inputs,
    check_key,
    check_mask,
    check_size,
)
from jaxrnn._types import Array, Key, Params, Shape, State
from jaxrnn.params import match_batch
from jaxrnn.recurrence.reference import zero_masked


class Layer(NamedTuple):
    """A record of pure functions, built by `make_layer`. Parameters and states are pytrees that
    belong to the caller.

    input_size, output_size: features in, features out.
    init: ``(key) -> params``.
    initial_state: ``(params, batch_shape=()) -> state``; every leaf begins with the batch axes.
    step: ``(params, state, x, *, key=None) -> (state, y)`` with x [*B, input_size] and y
      [*B, output_size].
    unroll: ``(params, state, xs, *, mask=None, resets=None, reverse=False, key=None) ->
      (state, ys)`` with xs [T, *B, input_size] and ys [T, *B, output_size]. `mask`, `resets` and
      `reverse` are those of `jaxrnn.unroll`; where the mask is False the output is 0.
    run: `step` and `unroll` without their checks, for combinators; see `make_layer`.
    causal: whether y_t depends on x_1 ... x_t alone: the layer can be stepped, and cut in time.
    reads_tokens: whether inputs are integers below input_size, without a feature axis.

    A `state` of None means the initial state. `key` draws the randomness of training; None means
    none. Without it, for every causal layer stepping equals unrolling, and
    unrolling part by part equals unrolling at once. (With `reverse`, a part does not see a reset at
    the first step of the following part, so cut there only if no segment begins.)
    """

    input_size: int
    output_size: int
    init: Callable[[Key], Params]
    initial_state: Callable[..., State]
    step: Callable[..., tuple[State, Array]]
    unroll: Callable[..., tuple[State, Array]]
    run: Run
    causal: bool = True
    reads_tokens: bool = False


class Inputs(NamedTuple):
    """What a layer runs over: a sequence, or a single step of one.

    xs: [T, *B, D], or [*B, D] if `single`; 0 where masked. mask, resets: [T, *B] bool or None.
    reverse: whether to run from the last step to the first.
    """

    xs: Array
    mask: Array | None = None
    resets: Array | None = None
    reverse: bool = False
    single: bool = False


Run = Callable[[Params, State, Inputs, Key | None], tuple[State, Array]]


def make_layer(
    input_size: int,
    output_size: int,
    init: Callable[[Key], Params],
    initial_state: Callable[[Params, Shape], State],
    run: Run,
    *,
    causal: bool = True,
    reads_tokens: bool = False,
) -> Layer:
    """A layer from its own idea, `run`; everything that layers share is added here.

    Args:
      input_size, output_size, init, causal, reads_tokens: as `Layer` has them.
      initial_state: ``(params, batch_shape) -> state``. It is called once per call, before `run`,
        and so is the place to refuse bad parameters.
      run: ``(params, state, inputs, key) -> (state, ys)``, for a sequence and for a single step
        alike (`Inputs`). The state is complete, inputs are 0 where masked, and outputs are set to
        0 there afterwards. Combinators call the `run` of their layers.

    A combinator of one's own, which passes a layer's inputs on beside its outputs:

        import jax.numpy as jnp
        from jaxrnn import make_layer


        def concatenated(layer):
            def run(params, state, inputs, key):
                state, ys = layer.run(params, state, inputs, key)
                return state, jnp.concatenate([inputs.xs, ys], axis=-1)

            sizes = (layer.input_size, layer.input_size + layer.output_size)
            return make_layer(*sizes, layer.init, layer.initial_state, run, causal=layer.causal)
    """
    input_size = check_size("input_size", input_size, at_least=0)
    output_size = check_size("output_size", output_size)
    for name, function in (("init", init), ("initial_state", initial_state), ("run", run)):
        check_function(name, function)
    features = None if reads_tokens else input_size

    def start(params: Params, batch_shape: Shape = ()) -> State:
        check_batch_shape(batch_shape)
        return _check_batch(initial_state(params, tuple(batch_shape)), tuple(batch_shape))

    def run_masked(params: Params, state: State, inputs: Inputs, key: Key | None) -> Any:
        state, ys = run(params, state, inputs, key)
        return state, zero_masked(inputs.mask, ys)

    def step(
        params: Params, state: State, x: Array, *, key: Key | None = None
    ) -> tuple[State, Array]:
        inputs = Inputs(check_inputs("x", x, features, "[*B, D]"), single=True)
        if key is not None:
            check_key("key", key)
        return run(params, complete_state(state, start, params, inputs, features), inputs, key)

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
        xs = check_inputs("xs", xs, features, "[T, *B, D]")
        inputs = _check_sequence(xs, features, mask, resets, reverse, key)
        return run_masked(
            params, complete_state(state, start, params, inputs, features), inputs, key
        )

    functions = (init, start, step if causal else _refuse_step, unroll, run_masked)
    return Layer(input_size, output_size, *functions, causal, reads_tokens)


def _check_batch(state: State, batch_shape: Shape) -> State:
    """Refuse an initial state without the batch axes."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(state)]
    if any(shape[: len(batch_shape)] != batch_shape for shape in shapes):
        raise ValueError(
            f"initial_state returns leaves of shapes {shapes}, expected each to begin with the "
            f"batch_shape {batch_shape}"
        )
    return state


def check_layer(name: str, layer: Any, *, causal: bool = False) -> None:
    """Refuse what is not a `Layer`, or not a `causal` one."""
    if not isinstance(layer, Layer):
        raise TypeError(f"{name} is a {type(layer).__name__}, expected a Layer")
    if causal and not layer.causal:
        raise ValueError(f"{name} is not causal, expected a layer that can be stepped")


def _refuse_step(params: Params, state: State, x: Array, *, key: Key | None = None) -> Any:
    raise ValueError("step was called of a layer that is not causal, expected unroll")


def _check_sequence(
    xs: Array, features: int | None, mask: Any, resets: Any, reverse: Any, key: Any
) -> Inputs:
    """The arguments of `unroll`, checked; `features` None means tokens."""
    shape = xs.shape if features is None else xs.shape[:-1]
    mask = check_mask("mask", mask, shape)
    resets = check_mask("resets", resets, shape)
    check_flag("reverse", reverse)
    if key is not None:
        check_key("key", key)
    return Inputs(zero_masked(mask, xs), mask, resets, reverse)


def complete_state(
    state: State, start: Any, params: Params, inputs: Inputs, features: int | None
) -> State:
    """`state` with the initial state in place of each None; refuse one that does not fit it."""
    xs, first = inputs.xs, 0 if inputs.single else 1
    batch = xs.shape[first:] if features is None else xs.shape[first:-1]

    def is_none(leaf: Any) -> bool:
        return leaf is None

    def fill(initial: State) -> State:
        return jax.tree.map(lambda s, i: i if s is None else s, state, initial, is_leaf=is_none)

    def match(state: State) -> State:
        return match_batch(state, xs, first, len(batch), (params, inputs.mask, inputs.resets))

    if state is None:
        return match(start(params, batch))
    state = jax.tree.map(lambda leaf: as_array("state", leaf), state)
    like = jax.eval_shape(lambda: start(params, batch))
    try:
        got = jax.tree.map(_describe, fill(like))
    except (TypeError, ValueError):  # of another structure
        got = jax.tree.map(_describe, state)
    expected = jax.tree.map(_describe, like)
    if jax.tree.flatten(got) != jax.tree.flatten(expected):
        error = ValueError if type(got) is type(expected) else TypeError
        raise error(f"state is {got}, expected {expected}, as the initial state")
    missing = any(map(is_none, jax.tree.leaves(state, is_leaf=is_none)))
    return match(fill(start(params, batch)) if missing else state)


def _describe(leaf: Any) -> str:
    kind = "floating" if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
    return f"{kind} {leaf.shape}"

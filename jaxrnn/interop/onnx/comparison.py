"""Whether a network is what it is taken for: two of them on the same drawn inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._types import Params
from jaxrnn.interop.onnx.exporting import Described, build_layer
from jaxrnn.layers.contract import Layer


def draw_inputs(
    num_steps: int, batch: int, size: int, dtype: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs [T, B, D] of sizes from 0.1 to 10, which no activation takes for another; lengths [B]
    from T to 0, and their mask [T, B]."""
    rng = np.random.default_rng(0)
    sizes = rng.permutation(np.logspace(-1, 1, num_steps * batch)).reshape(num_steps, batch, 1)
    xs = (sizes * rng.normal(size=(num_steps, batch, size))).astype(dtype)
    lengths = np.linspace(num_steps, 0, batch).round().astype(np.int32)
    return xs, lengths, np.arange(num_steps)[:, None] < lengths[None]


def same(got: Any, expected: Any) -> bool:
    """Whether two arrays [..., O] agree in half of their digits, relative to the largest entry of
    each row: roundings spoil the last digits, another network the first."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    tolerance = float(jnp.finfo(got.dtype).eps) ** 0.5
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    finite = np.where(np.isfinite(expected), np.abs(expected), 0)
    scale = finite.max(axis=-1, keepdims=True, initial=0)
    with np.errstate(invalid="ignore"):  # the difference of two infinities
        close = np.abs(got - expected) <= tolerance * scale
    return bool(np.all(close | (got == expected) | (np.isnan(got) & np.isnan(expected))))


def check_description(
    layer: Layer, params: Params, network: Sequence[Described], reverse: bool
) -> None:
    """Refuse a layer that does not compute what its description says."""
    described, described_params = build_layer(network)
    dtype = jax.tree.leaves(described_params)[0].dtype
    xs, _, mask = draw_inputs(4, 3, described.input_size, dtype)
    state, ys = layer.unroll(params, None, jnp.asarray(xs), mask=jnp.asarray(mask), reverse=reverse)
    expected_state, expected_ys = described.unroll(
        described_params, None, jnp.asarray(xs), mask=jnp.asarray(mask)
    )
    states = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    expected_states = jax.tree.leaves(expected_state)
    if len(states) != len(expected_states) or not all(
        map(same, [ys, *states], [expected_ys, *expected_states])
    ):
        what = ", ".join(_words(one) for one in network)
        raise ValueError(
            "layer does not give what params and activation describe, expected it to be a stack "
            f"of {what}: is an activation another one, or is the layer residual, or one of its "
            "own making?"
        )


def _words(one: Described) -> str:
    names = " and ".join(dict.fromkeys(activation.name for activation in one.activations))
    kind = "bidirectional" if len(one.activations) == 2 else "recurrent"
    return f"a {kind} layer of {names}" if names else "a dense layer"

"""Whether two networks compute the same, tested on random inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._types import Params
from jaxrnn.interop.onnx.layer_specs import LayerSpec, build_stack
from jaxrnn.layers.contract import Layer


def draw_inputs(
    num_steps: int, batch: int, size: int, dtype: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random inputs [T, B, D], of magnitudes from 0.1 to 10 so that activations can be told apart;
    lengths [B] from T down to 0; and their mask [T, B]."""
    rng = np.random.default_rng(0)
    scales = rng.permutation(np.logspace(-1, 1, num_steps * batch)).reshape(num_steps, batch, 1)
    xs = (scales * rng.normal(size=(num_steps, batch, size))).astype(dtype)
    lengths = np.linspace(num_steps, 0, batch).round().astype(np.int32)
    return xs, lengths, np.arange(num_steps)[:, None] < lengths[None]


def agree(got: Any, expected: Any) -> bool:
    """Whether two arrays [..., O] agree in half of their digits, relative to the largest entry of
    each row: rounding changes the last digits, a different network the first ones."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    tolerance = float(jnp.finfo(got.dtype).eps) ** 0.5
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    finite = np.where(np.isfinite(expected), np.abs(expected), 0)
    scale = finite.max(axis=-1, keepdims=True, initial=0)
    with np.errstate(invalid="ignore"):  # the difference of two infinities
        close = np.abs(got - expected) <= tolerance * scale
    return bool(np.all(close | (got == expected) | (np.isnan(got) & np.isnan(expected))))


def check_specs(layer: Layer, params: Params, specs: Sequence[LayerSpec], reverse: bool) -> None:
    """Reject a layer that does not compute what its specification says."""
    specified, specified_params = build_stack(specs)
    dtype = jax.tree.leaves(specified_params)[0].dtype
    xs, _, mask = draw_inputs(4, 3, specified.input_size, dtype)
    state, ys = layer.unroll(params, None, jnp.asarray(xs), mask=jnp.asarray(mask), reverse=reverse)
    expected_state, expected_ys = specified.unroll(
        specified_params, None, jnp.asarray(xs), mask=jnp.asarray(mask)
    )
    states = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    expected_states = jax.tree.leaves(expected_state)
    if len(states) != len(expected_states) or not all(
        map(agree, [ys, *states], [expected_ys, *expected_states])
    ):
        layers = ", ".join(map(_describe, specs))
        raise ValueError(
            "layer does not compute what params and activation describe, expected a stack of "
            f"{layers}: is an activation different, or is the layer residual or a custom one?"
        )


def _describe(spec: LayerSpec) -> str:
    names = " and ".join(dict.fromkeys(activation.name for activation in spec.activations))
    kind = "bidirectional" if len(spec.activations) == 2 else "recurrent"
    return f"a {kind} layer of {names}" if names else "a dense layer"

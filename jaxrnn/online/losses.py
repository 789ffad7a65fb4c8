"""Losses of a sequence whose gradients are summed forward in time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn._checks import check_function
from jaxrnn._types import Array, Key, Params, accumulation_dtype
from jaxrnn.online.attached import attach
from jaxrnn.params import vary_over
from jaxrnn.training.truncation import check_time_axis
from jaxrnn.training.update import CarryLossFn


def mean_over_time(loss_fn: CarryLossFn) -> CarryLossFn:
    """The mean loss of a sequence, whose gradient is summed forward in time.

    Args:
      loss_fn: ``(params, carry, batch, key) -> (loss, (carry, metrics))`` of one time step, as
        `jaxrnn.make_train_step` takes it with ``has_carry=True``.

    Returns:
      The same of a batch whose arrays are [T, ...]: the means of losses and metrics. A key is split
      into one per step. Each step's gradient is computed with its loss and added up, in float32 at
      least, so that memory does not grow with T, apart from the batch and the metrics. No gradient
      flows through `carry`: with layers of this module none is missing.

    Raises:
      TypeError: `loss_fn` is not a function. ValueError: from the loss, arrays differ in length.
    """
    check_function("loss_fn", loss_fn)

    def mean_loss(params: Params, carry: Any, batch: Any, key: Key | None) -> Any:
        num_steps = check_time_axis(batch)
        steps = batch, None if key is None else jax.random.split(key, num_steps)
        still = vary_over(lax.stop_gradient(params), (steps, carry))
        zeros = jax.tree.map(_accumulator, still)
        zero = jnp.zeros((), _widest(zeros))
        zero, carry = vary_over((zero, lax.stop_gradient(carry)), (steps, carry, still))

        def body(sums: Any, now: Any) -> Any:
            carry, total = sums
            (loss, (carry, metrics)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
                still, carry, *now
            )
            total = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, (loss, gradient))
            return (carry, total), metrics

        (carry, total), metrics = lax.scan(body, (carry, (zero, zeros)), steps)
        loss, gradient = lax.stop_gradient(jax.tree.map(lambda leaf: leaf / num_steps, total))
        metrics = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), metrics)
        return attach(_push, loss, params, gradient), lax.stop_gradient((carry, metrics))

    return mean_loss


def _accumulator(leaf: Array) -> Array:
    return jnp.zeros_like(leaf, accumulation_dtype(leaf.dtype))


def _push(gradient: Params, tangent: Params) -> Array:
    products = jax.tree.map(lambda g, t: jnp.vdot(g, t.astype(g.dtype)), gradient, tangent)
    dtype = _widest(products)
    return sum((leaf.astype(dtype) for leaf in jax.tree.leaves(products)), jnp.zeros((), dtype))


def _widest(tree: Any) -> Any:
    """The widest dtype of the leaves, at least float32."""
    return np.result_type(np.float32, *(leaf.dtype for leaf in jax.tree.leaves(tree)))

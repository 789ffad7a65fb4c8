"""Axis legend and type aliases.

    T    time: the leading axis of every sequence
    *B   batch: any number of axes, including none
    D    input features        H    hidden units
    O    output features       L    layers

A sequence is time-major, ``[T, *B, D]``; the state of one layer is ``[*B, H]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Key = jax.Array
"""A typed key of ``jax.random.key``."""

Shape = tuple[int, ...]
Params = Any
"""A pytree of arrays, owned by the caller."""

State = Any
"""A pytree of arrays whose leading axes are the batch axes."""

Activation = Callable[[Array], Array]
"""An elementwise function."""

Initializer = Callable[..., Array]
"""``(key, shape, dtype) -> array``, the protocol of ``jax.nn.initializers``."""


def accumulation_dtype(dtype: Any) -> Any:
    """The dtype in which sums and products of `dtype` accumulate: at least float32."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)

"""Axis legend and array aliases.

    T    time: the leading axis of every sequence
    *B   batch: any number of axes, also none
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
"""A random key, as ``jax.random.key`` makes it."""

Shape = tuple[int, ...]
Params = Any
"""A pytree of arrays that belongs to the caller."""

State = Any
"""A pytree of arrays; every leaf starts with the batch axes."""

Activation = Callable[[Array], Array]
"""An elementwise function: same shape out as in."""

Initializer = Callable[..., Array]
"""``(key, shape, dtype) -> array``, the protocol of ``jax.nn.initializers``."""


def accumulation_dtype(dtype: Any) -> Any:
    """The dtype in which products of `dtype` accumulate: float32 for the 16-bit ones."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)

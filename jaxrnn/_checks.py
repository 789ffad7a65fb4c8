"""Bad input is refused here, before anything is compiled.

Every message names the argument, what it got and what was expected. A value of the wrong kind is
a ``TypeError``; a wrong size, shape, dtype or number is a ``ValueError``.
"""

from __future__ import annotations

import inspect
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._types import Activation, Array, Shape


def as_array(name: str, value: Any) -> Array:
    """Return `value` as an array; lists and other containers are refused."""
    return jnp.asarray(as_given(name, value))


def as_given(name: str, value: Any) -> Array | np.ndarray:
    """`as_array`, but what is not an array of JAX becomes one of NumPy: its numbers are known in
    ``jit`` too, and JAX need not have started."""
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "OSUMm":
        raise TypeError(f"{name} has dtype {value.dtype}, expected an array of numbers")
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, (np.ndarray, np.generic, float, int, bool)):
        return np.asarray(value)
    raise TypeError(f"{name} is a {type(value).__name__}, expected an array")


def check_size(name: str, value: Any, *, at_least: int = 1) -> int:
    """Return `value` as an int of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is {value!r}, expected an int of at least {at_least}")
    if value < at_least:
        raise ValueError(f"{name} is {value}, expected an int of at least {at_least}")
    return int(value)


def check_fraction(name: str, value: Any) -> float | Array:
    """Return `value` as a float in [0, 1), or a traced scalar as it is."""
    expected = "a number from 0 up to but not including 1"
    number = _as_number(name, value, expected)
    if isinstance(number, float) and not 0 <= number < 1:
        raise ValueError(f"{name} is {value}, expected {expected}")
    return number


def check_floating(name: str, array: Array | np.ndarray) -> None:
    """Refuse an array whose dtype is not a real floating-point one."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {array.dtype}, expected a floating-point dtype")


def check_bool(name: str, array: Array | np.ndarray) -> None:
    """Refuse an array that is not bool."""
    if array.dtype != jnp.bool_:
        raise ValueError(f"{name} has dtype {array.dtype}, expected bool")


def check_shape(name: str, array: Array | np.ndarray, expected: Shape) -> None:
    """Refuse an array whose shape differs from `expected`."""
    if array.shape != expected:
        raise ValueError(f"{name} has shape {array.shape}, expected {expected}")


def check_inputs(name: str, inputs: Any, size: int | None, axes: str) -> Array:
    """Return inputs whose `axes` are [T, *B, D] or [*B, D] as an array; D is `size`, and a `size`
    of None means integer tokens, without the axis D."""
    inputs = as_array(name, inputs)
    kinds = [jnp.integer] if size is None else [jnp.floating, jnp.integer, jnp.bool_]
    if not any(jnp.issubdtype(inputs.dtype, kind) for kind in kinds):
        expected = "integer tokens" if size is None else "a floating-point, integer or bool dtype"
        raise ValueError(f"{name} has dtype {inputs.dtype}, expected {expected}")
    axes = axes if size is not None else axes.replace(", D", "")  # [T, *B], [*B]
    least = axes.startswith("[T") + (size is not None)
    if inputs.ndim < least:
        raise ValueError(f"{name} has shape {inputs.shape}, expected {axes}, at least {least} axes")
    if size is not None and inputs.shape[-1] != size:
        raise ValueError(f"{name} has shape {inputs.shape}, expected {axes} with D = {size}")
    return inputs


def check_mask(name: str, mask: Any, expected: Shape) -> Array | None:
    """Return a mask, or resets, as a bool array of shape `expected` [T, *B]; None stays None."""
    if mask is None:
        return None
    mask = as_array(name, mask)
    check_bool(name, mask)
    if mask.shape != expected:
        raise ValueError(f"{name} has shape {mask.shape}, expected [T, *B] = {expected}")
    return mask


def check_activation(activation: Any) -> None:
    """Refuse an activation that cannot be called or cannot be hashed."""
    if not callable(activation):
        raise TypeError(f"activation is {activation!r}, expected an elementwise function")
    try:
        hash(activation)
    except TypeError as error:
        raise TypeError(
            f"activation is an unhashable {type(activation).__name__}, expected a hashable "
            "function (define it with def, once, at module level)"
        ) from error


def check_function(name: str, value: Any) -> None:
    """Refuse what cannot be called."""
    if not callable(value):
        raise TypeError(f"{name} is {value!r:.60}, expected a function")


def check_call(name: str, function: Any, expected: str, count: int) -> None:
    """Refuse a function that does not take `count` positional arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some built-in functions
        return
    try:
        signature.bind(*[None] * count)
    except TypeError:
        raise TypeError(f"{name} takes {signature}, expected {expected}") from None


def check_elementwise(activation: Activation, shape: Shape, dtype: Any) -> None:
    """Refuse an activation that changes its argument's shape, or returns no real numbers."""
    out = jax.eval_shape(activation, jax.ShapeDtypeStruct(shape, dtype))
    got = getattr(out, "shape", None)
    if got != shape:
        raise ValueError(
            f"activation returns shape {got} for an input of shape {shape}, "
            "expected an elementwise function"
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"activation returns dtype {out.dtype}, expected a floating-point dtype")


def check_floating_dtype(name: str, dtype: Any) -> np.dtype:
    """Return `dtype` as a floating-point dtype that this JAX configuration can hold."""
    if dtype is None:  # which NumPy reads as float64
        raise TypeError(f"{name} is None, expected a floating-point dtype")
    try:
        requested = jnp.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"{name} is {dtype!r}, expected a floating-point dtype") from error
    if not jnp.issubdtype(requested, jnp.floating):
        raise ValueError(f"{name} is {requested}, expected a floating-point dtype")
    if jax.dtypes.canonicalize_dtype(requested) != requested:
        raise ValueError(
            f"{name} is {requested}, expected a dtype of at most 32 bits, "
            "or jax.config.update('jax_enable_x64', True) first"
        )
    return requested


def check_positive(name: str, value: Any) -> float | Array:
    """Return `value` as a finite float above zero, or a traced scalar as it is."""
    number = _as_number(name, value, "a positive number")
    if isinstance(number, float) and not 0 < number < float("inf"):
        raise ValueError(f"{name} is {value}, expected a positive number")
    return number


def check_per_unit(name: str, value: Any, units: int, within: str) -> Array | np.ndarray:
    """Return a number for all units, or an array of one per unit, in floating point. What is known
    of it must be `within` an interval, as "(0, 1]"."""
    array = as_given(name, value)
    sizes = f"[] or [{units}]"
    kinds = (jnp.floating, jnp.integer)
    if array.shape not in ((), (units,)) or not any(jnp.issubdtype(array.dtype, k) for k in kinds):
        raise ValueError(
            f"{name} has dtype {array.dtype} and shape {array.shape}, expected numbers {sizes}"
        )
    if not isinstance(array, jax.core.Tracer):
        low, high = (float(bound) for bound in within[1:-1].split(","))
        entries = np.asarray(array, float)
        above = entries >= low if within[0] == "[" else entries > low
        below = entries <= high if within[-1] == "]" else entries < high
        if not np.all(above & below):
            raise ValueError(f"{name} is {value}, expected numbers in {within}, {sizes}")
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def _as_number(name: str, value: Any, expected: str) -> float | Array:
    """A real number as a float; a traced scalar, whose value is not known yet, as it is."""
    if isinstance(value, (jax.Array, np.ndarray)):
        real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
        if value.shape or not real:
            raise ValueError(
                f"{name} has dtype {value.dtype} and shape {value.shape}, expected {expected}"
            )
        return value if isinstance(value, jax.core.Tracer) else float(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}, expected {expected}")
    return float(value)


def check_key(name: str, key: Any) -> None:
    """Refuse what is not one random key, typed or raw."""
    expected = "expected one random key, as jax.random.key makes it"
    if not isinstance(key, (jax.Array, np.ndarray)):
        raise TypeError(f"{name} is {key!r}, {expected}")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0
    if not typed and (key.dtype != jnp.uint32 or key.ndim != 1):
        raise ValueError(f"{name} has dtype {key.dtype} and shape {key.shape}, {expected}")


def check_batch_shape(batch_shape: Any) -> None:
    """Refuse batch axes that are not a tuple or list."""
    if not isinstance(batch_shape, (tuple, list)):
        raise TypeError(f"batch_shape is {batch_shape!r}, expected a tuple of sizes")


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value!r:.60}, expected True or False")

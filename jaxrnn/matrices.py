"""Recurrent matrices that multiply by their structure, in place of an array W [H, H]."""

# Without `from __future__ import annotations`, for which pdoc cannot show the fields of NamedTuples
# (https://github.com/mitmproxy/pdoc/issues/765).
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn._checks import as_array, as_given, check_floating, check_shape
from jaxrnn._products import product
from jaxrnn._types import Array, accumulation_dtype


class LowRank(NamedTuple):
    """A recurrent matrix of low rank, ``W = m n^T``, which multiplies as two thin ones.

    Source: Mastrogiuseppe & Ostojic 2018, "Linking connectivity, dynamics, and computations in
    low-rank recurrent neural networks".
    """

    m: Array
    """[H, R]."""

    n: Array
    """[H, R]."""

    def multiply(self, h: Array) -> Array:
        """``W h`` for h [..., H]."""
        return product(product(h, self.n, axis=0).astype(h.dtype), self.m)

    def push(self, tangent: "LowRank", h: Array) -> Array:
        """``dW h``, from the tangents of the two factors."""
        return jax.jvp(lambda w: w.multiply(h), (self,), (tangent,))[1]

    def dense(self) -> Array:
        """W, [H, H]."""
        return product(self.m, self.n).astype(self.m.dtype)

    def zeros(self) -> Array:
        """Zeros [H] of the dtype and the device type of the factors."""
        return jnp.sum(self.m[:, :0], axis=1)

    def check(self, name: str, units: int) -> "LowRank":
        """The matrix with its leaves as arrays; refuse leaves that do not fit together."""
        checked = LowRank(*(as_weights(f"{name}.{k}", v) for k, v in self._asdict().items()))
        thin = (units, *(checked.m.shape[1:2] or (1,)))
        for key, value in checked._asdict().items():
            check_shape(f"{name}.{key}", value, thin)
        return checked


class FixedFanIn(NamedTuple):
    """A sparse recurrent matrix, in which each unit has K inputs: ``(W h)_i`` is the sum over k of
    ``values[i, k] h[indices[i, k]]``.

    A step takes time and memory in proportion to H K. `jaxrnn.reservoir` begins from such a matrix
    where a dense one would be too large. ``jax.grad`` refuses integers: to train the values, let
    the loss be a function of them and make the parameters inside.
    """

    values: Array
    """[H, K]."""

    indices: Array
    """[H, K], integers in [0, H). Where one stands twice in a row, its values add up."""

    def multiply(self, h: Array) -> Array:
        """``W h`` for h [..., H]."""
        # A gather per input of a unit, with the batch innermost: XLA adds them in one loop, where a
        # single gather of all, summed over its last axis, takes several times as long on a CPU.
        dtype = accumulation_dtype(h.dtype)
        sources = jnp.moveaxis(h, -1, 0).astype(dtype)
        values, indices = self.values.T.astype(dtype), self.indices.T
        batch = range(1, sources.ndim)
        total = jnp.zeros_like(sources)
        for k in range(values.shape[0]):
            taken = sources.at[indices[k]].get(mode="clip")
            total = total + lax.expand_dims(values[k], batch) * taken
        return jnp.moveaxis(total, 0, -1)

    def push(self, tangent: "FixedFanIn", h: Array) -> Array:
        """``dW h``, from the tangent of the values."""
        return self._replace(values=tangent.values).multiply(h)

    def dense(self) -> Array:
        """W, [H, H]."""
        units = self.values.shape[0]
        rows = jnp.broadcast_to(jnp.arange(units)[:, None], self.indices.shape)
        return jnp.zeros((units, units), self.values.dtype).at[rows, self.indices].add(self.values)

    def zeros(self) -> Array:
        """Zeros [H] of the dtype and the device type of the values."""
        return jnp.sum(self.values[:, :0], axis=1)

    def check(self, name: str, units: int) -> "FixedFanIn":
        """The matrix with its leaves as arrays; refuse leaves that do not fit together."""
        values = as_weights(f"{name}.values", self.values)
        indices = as_given(f"{name}.indices", self.indices)
        check_shape(f"{name}.values", values, (units, *(values.shape[1:2] or (1,))))
        check_shape(f"{name}.indices", jnp.asarray(indices), values.shape)
        if not jnp.issubdtype(indices.dtype, jnp.integer):
            raise ValueError(f"{name}.indices has dtype {indices.dtype}, expected integers")
        if not isinstance(indices, jax.core.Tracer) and indices.size:
            known = np.asarray(indices)
            least, most = int(known.min()), int(known.max())
            if least < 0 or most >= units:
                raise ValueError(
                    f"{name}.indices has entries from {least} to {most}, expected 0 to {units - 1}"
                )
        return FixedFanIn(values, jnp.asarray(indices))


def is_structured(w: Any) -> bool:
    """Whether `w` is one of the matrices of this module."""
    return isinstance(w, LowRank | FixedFanIn)


def recurrent_product(w_hh: Any, h: Array) -> Array:
    """``W h`` for h [..., H]; W is an array or structured."""
    return w_hh.multiply(h) if is_structured(w_hh) else product(h, w_hh)


def as_dense(w: Any) -> Any:
    """W as an array [H, H]."""
    return w.dense() if is_structured(w) else w


def as_weights(name: str, leaf: Any) -> Array:
    """`leaf` as an array of floating-point numbers, whole on each device of an explicit mesh, where
    each step needs all of them."""
    leaf = as_array(name, leaf)
    check_floating(name, leaf)
    spec = jax.typeof(leaf).sharding.spec
    if any(spec):
        raise ValueError(
            f"{name} is sharded over explicit mesh axes, {spec}, expected whole weights: "
            "use jax.sharding.reshard(params, jax.P()), or shard hidden units over AxisType.Auto"
        )
    return leaf

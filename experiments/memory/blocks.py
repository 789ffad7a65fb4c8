"""A vanilla network whose recurrent matrix begins as blocks, one for each way to remember."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.linalg import block_diag

from jaxrnn import Array, DenseParams, Key, Layer, Params, RNNParams, dense, vanilla_rnn

_GAIN = 4.0  # of a switch: h = tanh(4 h) at h = 0 and +-0.9993
_SMALL = 0.003  # the scale of weights that keep states where tanh is linear


class Blocks(NamedTuple):
    """The units of each block of h = tanh(W h + U x + b), in this order.

    switches: bistable units, which start switched on and read large inputs; they hold signs through
      noise.
    rotations: units with an orthogonal matrix, which read small inputs; they hold patterns.
    features: units without recurrent weights, functions of the input.
    sums: units with the identity matrix, which add up small multiples of the features; they hold
      numbers.
    """

    switches: int = 0
    rotations: int = 0
    features: int = 0
    sums: int = 0

    def only(self, *names: str) -> Blocks:
        """The blocks of these names alone."""
        return Blocks(**{name: getattr(self, name) for name in names})

    def layers(self, input_size: int) -> tuple[Layer, ...]:
        """The recurrent layer."""
        layer = vanilla_rnn(input_size, sum(self), learn_h0=True)

        def init(key: Key) -> RNNParams:
            key_inputs, key_rotations, key_sums = jax.random.split(key, 3)
            rotations = jax.nn.initializers.orthogonal()(key_rotations, (self.rotations,) * 2)
            w_ih = jax.random.normal(key_inputs, (sum(self), input_size))
            sums = _SMALL * jax.random.normal(key_sums, (self.sums, self.features))
            return RNNParams(
                self._per_unit(3.0, _SMALL, 2.0, 0.0)[:, None] * w_ih,
                self._recurrent(
                    _GAIN * jnp.eye(self.switches), rotations, jnp.eye(self.sums), sums
                ),
                jnp.zeros(sum(self)),
                self._per_unit(1.0, 0.0, 0.0, 0.0),
            )

        return (layer._replace(init=init),)

    def readout(self, input_size: int, output_size: int) -> Layer:
        """A dense layer whose weights are as large as what they read is small."""

        def init(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
            scale = 0.01 * self._per_unit(1.0, 1 / _SMALL, 1.0, 1 / _SMALL)
            return scale[:, None] * jax.random.normal(key, shape, dtype)  # [H, O]

        return dense(input_size, output_size, w_init=init)

    def optimizer(self) -> optax.GradientTransformation:
        """Adam with a rate for each weight, in proportion to the magnitude that it has. Weights
        between the blocks, but from features to sums, stay zero."""

        def scale(updates: Params, params: Params | None) -> Params:
            del params
            return jax.tree.map(lambda update, rate: -rate * update, updates, self._rates())

        return optax.chain(optax.scale_by_adam(), optax.stateless(scale))

    def _rates(self) -> Params:
        """The rates of all weights, in shapes that broadcast."""
        recurrent = self._recurrent(
            jnp.full((self.switches,) * 2, 2e-3),
            jnp.full((self.rotations,) * 2, 3e-6),
            jnp.full((self.sums,) * 2, 3e-6),
            jnp.full((self.sums, self.features), 1e-4),
        )
        layer = RNNParams(
            self._per_unit(1e-2, 3e-4, 3e-3, 0.0)[:, None],
            recurrent,
            self._per_unit(2e-3, 3e-6, 3e-3, 1e-4),
            self._per_unit(2e-3, 0.0, 0.0, 0.0),
        )
        readout = 2e-3 * self._per_unit(1.0, 1 / _SMALL, 1.0, 1 / _SMALL)
        return (layer,), DenseParams(readout, jnp.asarray(2e-3))

    def _per_unit(self, *values: float) -> Array:
        """One value for each block, repeated for its units."""
        return jnp.repeat(jnp.asarray(values), np.asarray(self), total_repeat_length=sum(self))

    def _recurrent(
        self, switches: Array, rotations: Array, sums: Array, sums_of_features: Array
    ) -> Array:
        """W from its blocks."""
        features = jnp.zeros((self.features, self.features + self.sums))
        below = jnp.concatenate([sums_of_features, sums], axis=1)
        return block_diag(switches, rotations, jnp.concatenate([features, below]))

"""The activations of ONNX's RNN operator, and their counterparts in JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._types import Activation, Array


def _thresholded_relu(x: Array, alpha: float) -> Array:
    return jnp.where(x >= alpha, x, jnp.zeros_like(x))


_FUNCTIONS: dict[str, tuple[Callable[..., Array], tuple[float | None, ...]]] = {
    "Tanh": (jnp.tanh, ()),
    "Relu": (jax.nn.relu, ()),
    "Sigmoid": (jax.nn.sigmoid, ()),
    "Softsign": (jax.nn.soft_sign, ()),
    "Softplus": (jax.nn.softplus, ()),
    "Affine": (lambda x, alpha, beta: alpha * x + beta, (1.0, 0.0)),
    "LeakyRelu": (jax.nn.leaky_relu, (0.01,)),
    "ThresholdedRelu": (_thresholded_relu, (1.0,)),
    "ScaledTanh": (lambda x, alpha, beta: alpha * jnp.tanh(beta * x), (None, None)),
    "HardSigmoid": (lambda x, alpha, beta: jnp.clip(alpha * x + beta, 0, 1), (0.2, 0.5)),
    "Elu": (jax.nn.elu, (1.0,)),
}
"""For each name, a function of x, alpha and beta, and the defaults of these parameters (None if one
is required)."""


def get_defaults(name: str) -> tuple[float | None, ...]:
    """The default parameters of an activation: none, alpha, or alpha and beta."""
    if name not in _FUNCTIONS:
        raise ValueError(f"activation is {name!r}, expected one of {sorted(_FUNCTIONS)}")
    return _FUNCTIONS[name][1]


@dataclass(frozen=True)
class OnnxActivation:
    """An activation of ONNX, usable as the activation of `jaxrnn.vanilla_rnn`.

    ONNX stores its parameters in float32.
    """

    name: str
    """ONNX's name."""

    parameters: tuple[float | None, ...] = ()
    """alpha and beta, as far as the activation has them; defaults are filled in."""

    def __post_init__(self) -> None:
        defaults = get_defaults(self.name)
        filled = (*self.parameters, *defaults[len(self.parameters) :])
        if len(filled) != len(defaults) or None in filled:
            raise ValueError(
                f"activation {self.name} has parameters {self.parameters}, "
                f"expected {len(defaults)} numbers"
            )
        object.__setattr__(self, "parameters", tuple(float(np.float32(one)) for one in filled))

    def __call__(self, x: Array) -> Array:
        """Apply the activation elementwise."""
        return _FUNCTIONS[self.name][0](x, *self.parameters)


_IN_JAX: dict[Activation, OnnxActivation] = {
    jnp.tanh: OnnxActivation("Tanh"),
    jax.nn.relu: OnnxActivation("Relu"),
    jax.nn.sigmoid: OnnxActivation("Sigmoid"),
    jax.nn.soft_sign: OnnxActivation("Softsign"),
    jax.nn.softplus: OnnxActivation("Softplus"),
    jax.nn.identity: OnnxActivation("Affine", (1.0, 0.0)),
    jax.nn.leaky_relu: OnnxActivation("LeakyRelu", (0.01,)),
    jax.nn.hard_sigmoid: OnnxActivation("HardSigmoid", (1 / 6, 0.5)),
    jax.nn.elu: OnnxActivation("Elu", (1.0,)),
}


def to_jax(activation: OnnxActivation) -> Activation:
    """The equivalent function of JAX, whose slope jaxrnn may know, or else `activation` itself."""
    return next((function for function, one in _IN_JAX.items() if one == activation), activation)


def parse_activation(activation: Any) -> OnnxActivation:
    """Convert an activation given to `to_onnx`: a name of ONNX or JAX, or a function."""
    if isinstance(activation, OnnxActivation):
        return activation
    if isinstance(activation, str) and activation in _FUNCTIONS:
        return OnnxActivation(activation)
    by_jax_name = {getattr(function, "__name__", None): one for function, one in _IN_JAX.items()}
    if isinstance(activation, str) and activation in by_jax_name:
        return by_jax_name[activation]
    if callable(activation) and activation in _IN_JAX:
        return _IN_JAX[activation]
    raise ValueError(
        f"activation is {activation!r}, expected one of {sorted(_FUNCTIONS)}, an OnnxActivation, "
        "or the equivalent function of jax.numpy or jax.nn"
    )


def to_attributes(activations: Sequence[OnnxActivation]) -> dict[str, Any]:
    """The attributes of an RNN operator with one activation per direction."""
    columns = [
        [one.parameters[column] for one in activations if len(one.parameters) > column]
        for column in range(2)
    ]
    attributes = {"activation_alpha": columns[0], "activation_beta": columns[1]}
    return {"activations": [one.name for one in activations]} | {
        name: values for name, values in attributes.items() if values
    }


def from_attributes(attributes: dict[str, Any], count: int) -> tuple[OnnxActivation, ...]:
    """The activations of `count` directions, each consuming its alpha and beta from the lists."""
    names = attributes.get("activations", ["Tanh"] * count)
    if len(names) != count:
        raise ValueError(f"activations are {names}, expected {count}, one per direction")
    unused = [list(attributes.get(f"activation_{one}", ())) for one in ("alpha", "beta")]
    activations = []
    for name in names:
        parameters = [
            values.pop(0) if values else default
            for values, default in zip(unused, get_defaults(name), strict=False)
        ]
        activations.append(OnnxActivation(name, tuple(parameters)))
    if any(unused):
        raise ValueError(f"activation_alpha or activation_beta has unused values {unused}: {names}")
    return tuple(activations)

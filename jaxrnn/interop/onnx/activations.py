"""The activations that ONNX's RNN operator has, and their names in JAX."""

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
"""Each name's function of x and its parameters, alpha and beta; and their defaults, None for what
has to be given."""


def defaults_of(name: str) -> tuple[float | None, ...]:
    """The default alpha and beta of an activation, as many as it has."""
    if name not in _FUNCTIONS:
        raise ValueError(f"activation is {name!r}, expected one of {sorted(_FUNCTIONS)}")
    return _FUNCTIONS[name][1]


@dataclass(frozen=True)
class OnnxActivation:
    """An activation by ONNX's name, with its alpha and beta in `parameters` where it has any.

    It can be called, and is an activation for `vanilla_rnn`. ONNX keeps parameters in float32.
    """

    name: str
    parameters: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        defaults = defaults_of(self.name)
        filled = (*self.parameters, *defaults[len(self.parameters) :])
        if len(filled) != len(defaults) or None in filled:
            raise ValueError(
                f"activation {self.name} has parameters {self.parameters}, "
                f"expected {len(defaults)} numbers"
            )
        object.__setattr__(self, "parameters", tuple(float(np.float32(one)) for one in filled))

    def __call__(self, x: Array) -> Array:
        """The activation of `x`, elementwise."""
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


def in_jax(activation: OnnxActivation) -> Activation:
    """JAX's own function where there is one, whose derivative jaxrnn may know, else as it is."""
    return next((f for f, named in _IN_JAX.items() if named == activation), activation)


def in_onnx(activation: Any) -> OnnxActivation:
    """What `to_onnx` takes for an activation: ONNX's name, JAX's name or function, or itself."""
    if isinstance(activation, OnnxActivation):
        return activation
    if isinstance(activation, str) and activation in _FUNCTIONS:
        return OnnxActivation(activation)
    in_jax_s_words = {getattr(f, "__name__", None): named for f, named in _IN_JAX.items()}
    if isinstance(activation, str) and activation in in_jax_s_words:
        return in_jax_s_words[activation]
    if callable(activation) and activation in _IN_JAX:
        return _IN_JAX[activation]
    raise ValueError(
        f"activation is {activation!r}, expected one of {sorted(_FUNCTIONS)}, an OnnxActivation, "
        "or a function of jax.numpy or jax.nn that is one of them"
    )


def to_attributes(activations: Sequence[OnnxActivation]) -> dict[str, Any]:
    """The attributes of an RNN operator, one activation a direction."""
    columns = [
        [one.parameters[column] for one in activations if len(one.parameters) > column]
        for column in range(2)
    ]
    attributes = {"activation_alpha": columns[0], "activation_beta": columns[1]}
    return {"activations": [one.name for one in activations]} | {
        name: values for name, values in attributes.items() if values
    }


def from_attributes(attributes: dict[str, Any], count: int) -> tuple[OnnxActivation, ...]:
    """The activations of `count` directions. Those that take an alpha or a beta take the next."""
    names = attributes.get("activations", ["Tanh"] * count)
    if len(names) != count:
        raise ValueError(f"activations are {names}, expected {count}, one a direction")
    left = [list(attributes.get(f"activation_{one}", ())) for one in ("alpha", "beta")]
    found = []
    for name in names:
        defaults = defaults_of(name)
        taken = [
            values.pop(0) if values else default
            for values, default in zip(left, defaults, strict=False)
        ]
        found.append(OnnxActivation(name, tuple(taken)))
    if any(left):
        raise ValueError(f"activation_alpha or activation_beta leaves {left} over for {names}")
    return tuple(found)

"""The networks of `gradients`: what each is, and the two files that hold one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from experiments.data.files import read_bytes
from experiments.shared.options import InputError, Positive
from experiments.shared.tasks import MemoryProblem
from jaxrnn import Activation, Initializer, Layer, Params, deep_rnn
from jaxrnn.files import FileFormatError, write_atomically
from jaxrnn.interop.safetensors import load_params, save_params

FILE = "network.safetensors"
ActivationName = Literal["tanh", "relu", "sigmoid", "identity"]
ACTIVATIONS: dict[ActivationName, Activation] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "identity": jax.nn.identity,
}


class Kind(NamedTuple):
    """What a network is; the names are those of the options."""

    hidden_size: int
    layers: int
    activation: ActivationName


@dataclass(frozen=True)
class _Description:
    """The contents of the JSON file beside the parameters: the network's `Kind`, and the SHA-256 of
    the parameters' file, because that format has no checksum."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    hidden_size: Positive
    layers: Positive
    activation: ActivationName
    sha256: str


def build(problem: MemoryProblem, kind: Kind, start: Initializer | None = None) -> Layer:
    """The layers and the readout; `start` is the initializer of the recurrent matrices."""
    sizes = (problem.input_size, *[kind.hidden_size] * kind.layers, problem.output_size)
    return deep_rnn(sizes, activation=ACTIVATIONS[kind.activation], w_hh_init=start)


def save(path: Path, problem: MemoryProblem, kind: Kind, params: Params) -> None:
    """Write the parameters, and the description beside them."""
    save_params(path, build(problem, kind), params)
    description = _Description(*kind, sha256=_digest(path.read_bytes()))
    contents = TypeAdapter(_Description).dump_json(description, indent=1) + b"\n"
    write_atomically(_beside(path), contents)


def read_network(path: Path, problem: MemoryProblem) -> tuple[Kind, Params]:
    """The network that `save` wrote, which must have the input and output size of the problem.

    Raises:
      InputError: one of the two files is missing or malformed, or they do not fit together, or the
        parameters are not those of such a network, or not finite.
    """
    content = read_bytes(path)
    description = _read_description(_beside(path))
    kind = Kind(description.hidden_size, description.layers, description.activation)
    try:
        params = load_params(path, build(problem, kind))
    except FileFormatError as error:
        raise InputError(f"{error} (with {_beside(path)} and --task {problem.name})") from None
    if _digest(content) != description.sha256:
        raise InputError(f"{path} is not the file that {_beside(path)} describes: another SHA-256")
    for place, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(place, simple=True, separator=".")
            raise InputError(f"{path}: {name} has an entry that is not finite")
    return kind, params


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_description(path: Path) -> _Description:
    content = read_bytes(path)
    try:
        return TypeAdapter(_Description).validate_json(content)
    except ValidationError as error:
        first: Any = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the description"
        raise InputError(f"{path}: {place} is {first['input']!r:.60}: {first['msg']}") from None

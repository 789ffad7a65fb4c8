"""The networks of `gradients`: what each is, and the file that holds one."""

from __future__ import annotations

import io
import itertools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.files import read_bytes
from experiments.shared.options import InputError
from experiments.shared.tasks import MemoryProblem
from jaxrnn import Activation, Initializer, Layer, Params, dense, stack, vanilla_rnn
from jaxrnn.files import write_atomically

FILE = "network.npz"
ACTIVATIONS: dict[str, Activation] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "identity": jax.nn.identity,
}


class Kind(NamedTuple):
    """What a network is; the names are those of the options."""

    hidden_size: int
    layers: int
    activation: str


def build(problem: MemoryProblem, kind: Kind, start: Initializer | None = None) -> Layer:
    """The layers and the readout; `start` is the initializer of the recurrent matrices."""
    sizes = [problem.input_size] + [kind.hidden_size] * kind.layers
    options: Any = {"activation": ACTIVATIONS[kind.activation], "w_hh_init": start}
    layers = [vanilla_rnn(*pair, **options) for pair in itertools.pairwise(sizes)]
    return stack(*layers, dense(kind.hidden_size, problem.output_size))


def _name(params: Params) -> dict[str, Any]:
    """The leaves of a network's parameters by name, in their order."""
    *layers, readout = params
    parts = {f"layers.{place}": layer for place, layer in enumerate(layers)} | {"readout": readout}
    return {
        f"{part}.{field}": leaf
        for part, group in parts.items()
        for field, leaf in group._asdict().items()
        if leaf is not None
    }


def save(path: Path, kind: Kind, params: Params) -> None:
    """Write the network, whole or not at all."""
    arrays: dict[str, Any] = jax.tree.map(np.asarray, _name(params))
    contents = io.BytesIO()
    np.savez(contents, activation=kind.activation, **arrays)
    write_atomically(path, contents.getvalue())


def read_network(path: Path, problem: MemoryProblem) -> tuple[Kind, Params]:
    """The network that `save` wrote, which is to have the sizes of the problem."""
    arrays = _read_arrays(path)
    kind = _read_kind(path, arrays)
    template = jax.eval_shape(lambda: build(problem, kind).init(jax.random.key(0)))
    _check_arrays(path, arrays, _name(template), problem.name)
    leaves = [jnp.asarray(arrays[name]) for name in _name(template)]
    return kind, jax.tree.unflatten(jax.tree.structure(template), leaves)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    content = read_bytes(path)
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise InputError(f"{path} is no .npz archive, or one that was cut short")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > len(content):
            raise ValueError("it is compressed, expected as numpy.savez writes it")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except Exception as error:  # NumPy and zipfile document no classes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read: {reason}") from None


def _read_kind(path: Path, arrays: dict[str, np.ndarray]) -> Kind:
    """What the network of the file is; takes the activation out of `arrays`."""
    activation = str(arrays.pop("activation", "missing"))
    if activation not in ACTIVATIONS:
        expected = ", ".join(ACTIVATIONS)
        raise InputError(f"{path}: activation is {activation!r:.60}, expected one of {expected}")
    if "layers.0.w_hh" not in arrays:
        raise InputError(f"{path}: layers.0.w_hh is missing")
    shape = arrays["layers.0.w_hh"].shape
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise InputError(f"{path}: layers.0.w_hh has shape {shape}, expected a square matrix")
    return Kind(shape[0], sum(name.endswith(".w_hh") for name in arrays), activation)


def _check_arrays(
    path: Path, arrays: dict[str, np.ndarray], expected: dict[str, Any], task: str
) -> None:
    for name in sorted(expected.keys() ^ arrays.keys()):
        what = "is missing" if name in expected else "is no parameter of the network"
        raise InputError(f"{path}: {name!r:.60} {what}")
    for name, like in expected.items():
        array, place = arrays[name], f"{path}: {name}"
        if array.shape != like.shape:
            wanted = f"expected {like.shape} for --task {task}"
            raise InputError(f"{place} has shape {array.shape}, {wanted}")
        if array.dtype != like.dtype:
            raise InputError(f"{place} has dtype {array.dtype}, expected {like.dtype}")
        if not np.isfinite(array).all():
            raise InputError(f"{place} has an entry that is not finite")

"""What the benchmark computes: its cases, their data, and the results that all must agree on.

The loss is the mean square of the outputs over the steps that are not padding. The learning rate is
small, so that the weights hardly change and every training step is the same work. As in `init_rnn`,
recurrent matrices are orthogonal and input matrices have variance 1/D; biases are not zero. Lengths
fall evenly from T to 1, so that half of a ragged batch is padding.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.options import Positive
from jaxrnn import Array, RNNParams, unroll_plain

Pass = Literal["forward", "gradient", "train"]
Kind = Literal["shape", "deep", "ragged", "networks"]
Shape4 = tuple[Positive, Positive, Positive, Positive]

LEARNING_RATE = 1e-4
ADAM_EPS = 1e-8
_EPS = float(np.finfo(np.float32).eps)


class Case(NamedTuple):
    """A network and its batch: T, B, D, H, and the number of layers or of networks."""

    kind: Kind
    shape: Shape4
    layers: int = 1
    networks: int = 0

    @property
    def name(self) -> str:
        """Its name in tables and figures."""
        shape = ",".join(str(size) for size in self.shape)
        prefix = {
            "shape": "",
            "deep": f"{self.layers} layers ",
            "ragged": "ragged ",
            "networks": f"{self.networks:,} nets ",
        }
        return prefix[self.kind] + shape


class Workload(NamedTuple):
    """A case with its data, in NumPy: one RNNParams per layer, xs [T, B, D], lengths [B] or None.

    With many networks every array has a leading axis N."""

    case: Case
    params: tuple[RNNParams, ...]
    xs: np.ndarray
    lengths: np.ndarray | None

    @property
    def mask(self) -> np.ndarray | None:
        """[T, B] bool, False at padding; None without padding."""
        if self.lengths is None:
            return None
        return np.arange(self.case.shape[0])[:, None] < self.lengths

    @property
    def valid_steps(self) -> int:
        """Steps of one network over the whole batch, padding excluded."""
        steps, batch = self.case.shape[:2]
        return steps * batch if self.lengths is None else int(self.lengths.sum())


class Reference(NamedTuple):
    """Results of the plain scan: outputs, gradients, and parameters after one step of Adam."""

    forward: np.ndarray
    gradient: tuple[RNNParams, ...]
    train: tuple[RNNParams, ...]


def make_workload(case: Case, seed: int) -> Workload:
    """Draw the weights and the inputs of a case."""
    steps, batch, inputs, units = case.shape
    rng = np.random.default_rng(seed)
    several = (case.networks,) if case.networks else ()

    def draw(*shape: int) -> Any:
        return rng.standard_normal((*several, *shape), np.float32)

    params = []
    for width in [inputs] + [units] * (case.layers - 1):
        w_ih, b = draw(units, width) / np.float32(np.sqrt(width)), draw(units) / 10
        w_hh: Any = np.linalg.qr(draw(units, units))[0]
        params.append(RNNParams(w_ih, w_hh, b, None))
    lengths = None
    if case.kind == "ragged":
        lengths = np.linspace(steps, 1, batch).round().astype(np.int32)
    return Workload(case, tuple(params), draw(steps, batch, inputs), lengths)


def count_flops(workload: Workload, what: Pass) -> float:
    """Multiplications and additions of the matrix products, padding excluded.

    The backward pass of a layer has one more product with W, one for each weight gradient, and,
    above the first layer, one for the gradient of its inputs."""
    inputs, units = workload.case.shape[2:]
    total = 0
    for number, width in enumerate([inputs] + [units] * (workload.case.layers - 1)):
        total += width + units
        if what != "forward":
            total += units + (width + units) + (width if number else 0)
    return 2.0 * workload.valid_steps * units * total * max(workload.case.networks, 1)


def mean_square(ys: Array, mask: Array | None) -> Array:
    """The loss of outputs [T, B, H] that are zero at padding."""
    count = ys.size if mask is None else jnp.sum(mask) * ys.shape[-1]
    return jnp.sum(jnp.square(ys)) / count


def solve(workload: Workload) -> Reference:
    """The reference: `unroll_plain`, and the first step of Adam by its formula."""
    mask = None if workload.mask is None else jnp.asarray(workload.mask)

    def loss_of(params: tuple[RNNParams, ...], xs: Array) -> tuple[Array, Array]:
        for layer in params:
            _, xs = unroll_plain(layer, None, xs, mask=mask)
        return mean_square(xs, mask), xs

    gradient_of = jax.grad(loss_of, has_aux=True)
    if workload.case.networks:
        gradient_of = jax.vmap(gradient_of)
    gradient, ys = jax.tree.map(np.asarray, jax.jit(gradient_of)(workload.params, workload.xs))

    def update(p: np.ndarray, g: np.ndarray) -> np.ndarray:
        return p - LEARNING_RATE * g / (np.abs(g) + ADAM_EPS)

    return Reference(ys, gradient, jax.tree.map(update, workload.params, gradient))


def compare(what: Pass, got: Any, reference: Reference, workload: Workload) -> tuple[float, float]:
    """(difference, allowed) between a contender's result and the reference, at the worst entry.

    For outputs and gradients the difference is relative to the largest entry of the array, and 32
    eps sqrt(n) is allowed, where n is the number of terms that reach one entry: T (D + H) per layer
    in an output, T B in a gradient. Adam divides each gradient by its own magnitude, so a parameter
    may differ by the learning rate times twice the gradient's relative error (at most 2), by the
    error of 1 - 0.999 in float32, and by the rounding of the parameter; all in learning rates.
    """
    steps, batch, inputs, units = workload.case.shape
    if what == "forward":
        got = np.where(workload.mask[..., None], got, 0) if workload.mask is not None else got
        terms = steps * (inputs + units * (2 * workload.case.layers - 1))
        return _worst([got], [reference.forward], _bound(terms))
    if what == "gradient":
        return compare_gradients(got, reference.gradient, steps * batch)
    bound = _bound(steps * batch)
    leaves, expected = jax.tree.leaves(got), jax.tree.leaves(reference.gradient)
    pairs = []
    for new, exact, g in zip(leaves, jax.tree.leaves(reference.train), expected, strict=True):
        slack = np.minimum(2, 2 * bound * np.abs(g).max() / (np.abs(g) + ADAM_EPS))
        allowed = slack + _EPS / (1 - 0.999) + 2 * _EPS * np.abs(exact) / LEARNING_RATE
        error = np.abs(new.astype(np.float64) - exact) / LEARNING_RATE
        place = np.argmax(error / allowed)
        pairs.append((float(error.flat[place]), float(allowed.flat[place])))
    return _last(pairs)


def compare_gradients(got: Any, expected: Any, terms: int) -> tuple[float, float]:
    """(difference, allowed), as in `compare`, of gradients whose entries sum `terms` terms."""
    leaves, others = (
        [np.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in (got, expected)
    )
    return _worst(leaves, others, _bound(terms))


def _bound(terms: int) -> float:
    return 32 * _EPS * float(np.sqrt(terms))


def _worst(got: list[Any], expected: list[Any], bound: float) -> tuple[float, float]:
    pairs = []
    for one, other in zip(got, expected, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"a result has shape {one.shape}, expected {other.shape}")
        error = np.abs(one.astype(np.float64) - other).max() / np.abs(other).max()
        pairs.append((float(error), bound))
    return _last(pairs)


def _last(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """The pair whose difference is largest relative to what is allowed; NaN counts as largest."""
    return max(pairs, key=lambda pair: np.inf if np.isnan(pair[0]) else pair[0] / pair[1])

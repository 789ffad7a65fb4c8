"""What the benchmark computes: its cases, their data, and the results that all must agree on.

The loss is the mean square of the outputs over the steps that are not padding; the learning rate is
small, so that the weights stay where they are and every training step is the same work. Recurrent
matrices are orthogonal, input matrices have variance 1/D, as `init_rnn` has them, and biases are
not zero. Lengths fall evenly from T to 1, so that half of a ragged batch is padding.
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
    """A network and its batch: T, B, D, H, and how many layers or networks of them there are."""

    kind: Kind
    shape: Shape4
    layers: int = 1
    networks: int = 0

    @property
    def name(self) -> str:
        """How tables and figures call it."""
        shape = ",".join(str(size) for size in self.shape)
        prefix = {
            "shape": "",
            "deep": f"{self.layers} layers ",
            "ragged": "ragged ",
            "networks": f"{self.networks:,} nets ",
        }
        return prefix[self.kind] + shape


class Problem(NamedTuple):
    """A case with its numbers, in NumPy: one RNNParams a layer, xs [T, B, D], lengths [B] or None.

    Of many networks every array has a first axis N."""

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
        """Steps of one network that are not padding, over the whole batch."""
        steps, batch = self.case.shape[:2]
        return steps * batch if self.lengths is None else int(self.lengths.sum())


class Reference(NamedTuple):
    """Results of the plain scan: outputs, gradients, and parameters after one step of Adam."""

    forward: np.ndarray
    gradient: tuple[RNNParams, ...]
    train: tuple[RNNParams, ...]


def make_problem(case: Case, seed: int) -> Problem:
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
    return Problem(case, tuple(params), draw(steps, batch, inputs), lengths)


def count_flops(problem: Problem, what: Pass) -> float:
    """Multiplications and additions of the matrix products, padding left out.

    Backwards each layer multiplies once more with W, once for each weight gradient, and, above the
    first layer, once for the gradient of its inputs."""
    inputs, units = problem.case.shape[2:]
    total = 0
    for number, width in enumerate([inputs] + [units] * (problem.case.layers - 1)):
        total += width + units
        if what != "forward":
            total += units + (width + units) + (width if number else 0)
    return 2.0 * problem.valid_steps * units * total * max(problem.case.networks, 1)


def mean_square(ys: Array, mask: Array | None) -> Array:
    """The loss of outputs [T, B, H] that are zero at padding."""
    count = ys.size if mask is None else jnp.sum(mask) * ys.shape[-1]
    return jnp.sum(jnp.square(ys)) / count


def solve(problem: Problem) -> Reference:
    """The reference, by `unroll_plain` and the first step of Adam as its formula has it."""
    mask = None if problem.mask is None else jnp.asarray(problem.mask)

    def loss_of(params: tuple[RNNParams, ...], xs: Array) -> tuple[Array, Array]:
        for layer in params:
            _, xs = unroll_plain(layer, None, xs, mask=mask)
        return mean_square(xs, mask), xs

    gradient_of = jax.grad(loss_of, has_aux=True)
    if problem.case.networks:
        gradient_of = jax.vmap(gradient_of)
    gradient, ys = jax.tree.map(np.asarray, jax.jit(gradient_of)(problem.params, problem.xs))

    def update(p: np.ndarray, g: np.ndarray) -> np.ndarray:
        return p - LEARNING_RATE * g / (np.abs(g) + ADAM_EPS)

    return Reference(ys, gradient, jax.tree.map(update, problem.params, gradient))


def compare(what: Pass, got: Any, reference: Reference, problem: Problem) -> tuple[float, float]:
    """(difference, allowed) between a contender's result and the reference, at the worst entry.

    Of outputs and gradients the difference is relative to the largest entry of the array, and 32
    eps sqrt(n) is allowed, n the number of terms that reach one entry: T (D + H) a layer in an
    output, T B in a gradient. Adam divides each gradient by its own size, so that a parameter may
    differ by the learning rate times twice the gradient's relative error (at most 2), by the error
    of 1 - 0.999 in float32, and by the rounding of the parameter; all of it in learning rates.
    """
    steps, batch, inputs, units = problem.case.shape
    if what == "forward":
        got = np.where(problem.mask[..., None], got, 0) if problem.mask is not None else got
        terms = steps * (inputs + units * (2 * problem.case.layers - 1))
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
    """(difference, allowed) of gradients whose entries are sums of `terms` terms, as `compare`."""
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
    """The pair whose difference is largest beside what is allowed; NaN counts as largest."""
    return max(pairs, key=lambda pair: np.inf if np.isnan(pair[0]) else pair[0] / pair[1])

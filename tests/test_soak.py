"""The properties of `unroll` over many drawn networks, sequences, masks, resets and options.

The test suite draws a few examples of each property; `pytest -m soak` draws 1,000 of each, from
seeds of its own that it prints (`SOAK_SEED=N pytest -m soak` repeats a run).
"""

import functools
import itertools
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import jaxrnn
from tests.support import oracle
from tests.support.checks import JAX_ACTIVATIONS, assert_identical

FEW, MANY = 2, 1000
DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)


class Case(NamedTuple):
    """What an example draws; arrays follow from `seed`."""

    seed: int
    steps: int
    batch: int
    inputs: int
    units: int
    bias: bool
    learned: bool  # the initial state
    mask: str
    has_resets: bool
    activation: str
    reverse: bool
    chunk_size: int | None
    remat: bool

    @property
    def options(self):
        return {
            "activation": JAX_ACTIVATIONS[self.activation],
            "reverse": self.reverse,
            "chunk_size": self.chunk_size,
            "remat": self.remat,
        }


cases = st.builds(
    Case,
    seed=st.integers(0, 2**32 - 1),
    steps=st.sampled_from([0, 1, 2, 5, 9]),
    batch=st.sampled_from([0, 1, 3, 70]),  # 70: inputs are multiplied inside each step
    inputs=st.sampled_from([1, 3]),
    units=st.sampled_from([1, 4]),
    bias=st.booleans(),
    learned=st.booleans(),
    mask=st.sampled_from(["none", "any", "lengths"]),
    has_resets=st.booleans(),
    activation=st.sampled_from(sorted(JAX_ACTIVATIONS)),
    reverse=st.booleans(),
    chunk_size=st.sampled_from([None, 1, 3, 5]),
    remat=st.booleans(),
)


def soak(prove):
    """A test of a few examples, and of many if the marker `soak` is selected."""

    @pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.soak)])
    def test(examples):
        @seed(int(os.environ["SOAK_SEED"]) if examples == MANY else 0)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        )
        @given(case=cases)
        def run(case):
            prove(case, *draw(case))
            if next(drawn) % 25 == 0:
                jax.clear_caches()  # the number of memory maps of a process is limited

        drawn = itertools.count(1)
        run()

    test.__name__ = prove.__name__
    return test


def draw(case, dtype=jnp.float64):
    """((params, h0, xs), mask, resets, cotangents), with W of norm 1 at most: then no rounding
    error grows from step to step."""
    rng = np.random.default_rng(case.seed)
    shape = (case.steps, case.batch)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    w_hh = rng.normal(size=(case.units, case.units))
    params = jaxrnn.RNNParams(
        w_ih=normal(case.units, case.inputs),
        w_hh=jnp.asarray(w_hh / max(1.0, np.linalg.norm(w_hh, 2)), dtype),
        b=normal(case.units) if case.bias else None,
        h0=normal(case.units) if case.learned else None,
    )
    lengths = rng.integers(0, case.steps + 1, case.batch)
    mask = {
        "none": None,
        "any": jnp.asarray(rng.random(shape) < 0.7),
        "lengths": jnp.asarray(np.arange(case.steps)[:, None] < lengths),
    }[case.mask]
    resets = jnp.asarray(rng.random(shape) < 0.25) if case.has_resets else None
    arguments = (params, normal(case.batch, case.units), normal(*shape, case.inputs))
    cotangents = (normal(case.batch, case.units), normal(*shape, case.units))
    return arguments, mask, resets, cotangents


@functools.partial(jax.jit, static_argnames=("function", "options"))
def _run(function, options, arguments, mask, resets, cotangents):
    def of_arguments(arguments):
        return function(*arguments, mask=mask, resets=resets, **dict(options))

    outputs, pull = jax.vjp(of_arguments, arguments)
    return outputs, pull(cotangents)[0]


def run_with_gradients(arguments, mask, resets, cotangents, function=jaxrnn.unroll, **options):
    """(outputs, gradients)."""
    return _run(function, tuple(options.items()), arguments, mask, resets, cotangents)


def assert_near(got, expected, bounds):
    """Each leaf's largest error is below the largest entry of its bound."""
    got, expected, bounds = map(jax.tree.leaves, (got, expected, bounds))
    for one, other, bound in zip(got, expected, bounds, strict=True):
        assert one.shape == other.shape
        error = np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64))
        assert error.max(initial=0.0) <= np.max(bound, initial=0.0), (error.max(), np.max(bound))


def rounding(case, arguments, mask, resets, cotangents, eps=2.0**-52):
    """Bounds of the rounding errors of ((h_last, hs), gradients), to the first order in them.

    A sum of n terms is off by eps sqrt(n) times the sum of their magnitudes, and a state,
    since neither W nor an activation amplifies an error, by as much. A slope is a function of
    the state whose derivative is at most 2: for a saturated unit that is far more than rounding of
    the slope. The change of the gradients when every state and slope is off by so much, and nothing
    cancels, is the difference of two back-propagations through magnitudes, with and without it."""
    params, h0, xs = jax.tree.map(np.asarray, arguments)
    p = with_zeros(params, case)
    _, _, tape = oracle.forward(
        p, h0, xs, *complete(mask, resets, case), case.reverse, case.activation
    )
    unit = eps * np.sqrt(max(1, case.steps * case.batch * (case.units + case.inputs)))
    p, xs, *cotangents = jax.tree.map(np.abs, (p, xs, *map(np.asarray, cotangents)))
    sums = [
        p["w_hh"] @ np.abs(before) + p["w_ih"] @ xs[t, row] + p["b"]
        for row, t, _, before, _ in tape
    ]
    state = unit * np.max(sums, initial=1.0)

    def magnitudes(error):
        steps = [(*step, np.abs(before) + error, a) for *step, before, a in tape]
        return oracle.backward(p, xs, steps, case.activation, *cotangents, slope_error=2 * error)

    without = magnitudes(0.0)
    of_gradients, of_h0, of_xs = jax.tree.map(
        lambda one, other: one - other + unit * other, magnitudes(state), without
    )
    given = {
        name: of_gradients[name] for name, leaf in params._asdict().items() if leaf is not None
    }
    return (state, state), (params._replace(**given), of_h0, of_xs)


def with_zeros(params, case):
    """The parameters for the oracle, which expects zeros where there are none."""
    zeros = np.zeros(case.units)
    return {name: zeros if leaf is None else leaf for name, leaf in params._asdict().items()}


def complete(mask, resets, case):
    """Mask and resets as NumPy arrays, filled in where they are None."""
    shape = (case.steps, case.batch)
    mask = np.ones(shape, bool) if mask is None else np.asarray(mask)
    return mask, np.zeros(shape, bool) if resets is None else np.asarray(resets)


@soak
def test_values_and_gradients_equal_the_oracle(case, arguments, mask, resets, cotangents):
    got = run_with_gradients(arguments, mask, resets, cotangents, **case.options)
    params, h0, xs = jax.tree.map(np.asarray, arguments)
    p = with_zeros(params, case)
    *outputs, tape = oracle.forward(
        p, h0, xs, *complete(mask, resets, case), case.reverse, case.activation
    )
    gp, *others = oracle.backward(p, xs, tape, case.activation, *map(np.asarray, cotangents))
    gp = params._replace(**{n: gp[n] for n, leaf in params._asdict().items() if leaf is not None})
    bounds = rounding(case, arguments, mask, resets, cotangents)
    assert_near(got, (tuple(outputs), (gp, *others)), bounds)


@soak
def test_what_stands_in_masked_inputs_changes_no_bit(case, arguments, mask, resets, cotangents):
    params, h0, xs = arguments
    masked = np.zeros(xs.shape[:2], bool) if mask is None else ~np.asarray(mask)
    values = np.random.default_rng(case.seed).choice([np.nan, np.inf, -np.inf, 1e300], xs.shape)
    poisoned = jnp.where(masked[..., None], values, xs)
    got = run_with_gradients((params, h0, poisoned), mask, resets, cotangents, **case.options)
    assert_identical(got, run_with_gradients(arguments, mask, resets, cotangents, **case.options))


@soak
def test_unrolling_in_pieces_equals_unrolling_at_once(case, arguments, mask, resets, cotangents):
    params, state, xs = arguments
    resets = None if case.reverse else resets  # a piece cannot see the next piece's resets
    expected = jaxrnn.unroll(*arguments, mask=mask, resets=resets, **case.options)
    cuts = np.sort(np.random.default_rng(case.seed).integers(0, case.steps + 1, 2))
    pieces = np.split(np.arange(case.steps), cuts)
    outputs = []
    for steps in pieces[::-1] if case.reverse else pieces:
        piece = slice(steps[0], steps[-1] + 1) if steps.size else slice(0, 0)
        piece_mask, piece_resets = (None if a is None else a[piece] for a in (mask, resets))
        state, ys = jaxrnn.unroll(
            params, state, xs[piece], mask=piece_mask, resets=piece_resets, **case.options
        )
        outputs.append(ys)
    whole = jnp.concatenate(outputs[::-1] if case.reverse else outputs)
    bounds, _ = rounding(case, arguments, mask, resets, cotangents)
    assert_near((state, whole), expected, bounds)


@soak
def test_mapping_equals_batching(case, arguments, mask, resets, cotangents):
    def one(h0, xs, mask, resets, cotangents):
        return run_with_gradients((arguments[0], h0, xs), mask, resets, cotangents, **case.options)

    if not case.batch:
        return
    axes = (0, 1, None if mask is None else 1, None if resets is None else 1, (0, 1))
    mapped = jax.vmap(one, axes, ((0, 1), 0))
    (h_last, hs), (gp, gh0, gxs) = mapped(*arguments[1:], mask, resets, cotangents)
    got = ((h_last, hs), (jax.tree.map(lambda g: g.sum(0), gp), gh0, jnp.swapaxes(gxs, 0, 1)))
    expected = run_with_gradients(arguments, mask, resets, cotangents, **case.options)
    assert_near(got, expected, rounding(case, arguments, mask, resets, cotangents))


@soak
def test_mapping_over_networks_equals_a_loop_over_them(case, arguments, mask, resets, cotangents):
    networks = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf / 2, -leaf]), arguments)
    mapped = jax.vmap(
        lambda one: run_with_gradients(one, mask, resets, cotangents, **case.options)
    )(networks)
    for index in range(3):
        one = jax.tree.map(lambda leaf, i=index: leaf[i], networks)
        expected = run_with_gradients(one, mask, resets, cotangents, **case.options)
        got = jax.tree.map(lambda leaf, i=index: leaf[i], mapped)
        assert_near(got, expected, rounding(case, one, mask, resets, cotangents))


@soak
def test_reverse_equals_forward_over_the_flipped_sequences(
    case, arguments, mask, resets, cotangents
):
    del resets  # they mark first steps in input order, which flipping does not preserve
    params, h0, xs = arguments
    options = case.options | {"reverse": True}
    got = run_with_gradients(arguments, mask, None, cotangents, **options)
    flipped = None if mask is None else mask[::-1]
    options["reverse"] = False
    (h_last, hs), (gp, gh0, gxs) = run_with_gradients(
        (params, h0, xs[::-1]), flipped, None, (cotangents[0], cotangents[1][::-1]), **options
    )
    bounds = rounding(case._replace(reverse=True), arguments, mask, None, cotangents)
    assert_near(got, ((h_last, hs[::-1]), (gp, gh0, gxs[::-1])), bounds)


@soak
def test_a_masked_sequence_equals_the_sequence_of_its_unmasked_steps(
    case, arguments, mask, resets, cotangents
):
    params, h0, xs = arguments
    (bound, _), _ = rounding(case, arguments, mask, resets, cotangents)
    kept, all_resets = complete(mask, resets, case)
    h_last, hs = jaxrnn.unroll(*arguments, mask=mask, resets=resets, **case.options)
    for row in range(min(case.batch, 3)):
        steps = np.flatnonzero(kept[:, row])
        alone = jaxrnn.unroll(
            params,
            h0[row],
            xs[steps, row],
            resets=jnp.asarray(all_resets[steps, row]),
            **case.options,
        )
        assert_near((h_last[row], hs[steps, row]), alone, (bound, bound))
        assert_identical(hs[~kept[:, row], row], np.zeros((case.steps - len(steps), case.units)))


@soak
def test_the_dtype_is_kept_and_errors_are_those_of_its_rounding(
    case, arguments, mask, resets, cotangents
):
    smooth = case._replace(activation="tanh" if case.activation == "relu" else case.activation)
    dtype = DTYPES[case.seed % len(DTYPES)]
    given, given_cotangents = jax.tree.map(lambda leaf: leaf.astype(dtype), (arguments, cotangents))
    got = run_with_gradients(given, mask, resets, given_cotangents, **smooth.options)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(dtype)}
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (given, given_cotangents))
    options = {name: smooth.options[name] for name in ("activation", "reverse")}
    expected = run_with_gradients(
        exact[0], mask, resets, exact[1], function=jaxrnn.unroll_plain, **options
    )
    eps = float(jnp.finfo(dtype).eps)
    bounds = rounding(smooth, exact[0], mask, resets, exact[1], eps)
    assert_near(got, expected, bounds)

"""Fixed and slow points, against planted ones and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import RNNParams
from tests.support.checks import assert_close
from tests.support.trajectories import NETWORKS, D, drawn, fixed_points_of, linear, normal, ravel


def test_a_bistable_unit_has_two_stable_fixed_points_and_an_unstable_one():
    layer = jaxrnn.vanilla_rnn(1, 1, dtype=jnp.float64)
    params = RNNParams(jnp.ones((1, 1)), jnp.full((1, 1), 2.0))
    h = 1.0
    for _ in range(200):
        h = np.tanh(2 * h)
    found = fixed_points_of(layer, params, None, jnp.array([[-0.8], [0.05], [0.8]]))
    expected = np.array([[-h], [0.0], [h]])
    assert_close(found.states, expected, length=1)
    assert_close(found.eigenvalues.real, 2 * (1 - expected**2), length=1)
    assert found.converged.all()
    assert found.stable.tolist() == [True, False, True]


@pytest.mark.parametrize(("dtype", "gain"), [(np.float64, 0.9), (np.float64, 3), (np.float32, 0.9)])
def test_a_planted_fixed_point_is_found(dtype, gain):
    size = 6
    layer = jaxrnn.vanilla_rnn(D, size, dtype=dtype)
    planted, w = np.tanh(normal(8, size) / 2), gain * normal(9, size, size) / np.sqrt(size)
    w_ih, x = normal(10, size, D), normal(11, D)
    b = np.arctanh(planted) - w @ planted - w_ih @ x
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), RNNParams(w_ih, w, b))
    starts = jnp.asarray(planted + 0.01 * normal(12, 3, size), dtype)
    found = fixed_points_of(layer, params, jnp.asarray(x, dtype), starts)
    jacobian = (1 - planted**2)[:, None] * w
    sensitivity = np.linalg.norm(np.linalg.inv(jacobian - np.eye(size)), 2)
    error = np.abs(np.asarray(found.states, np.float64) - planted).max()
    assert error <= 32 * np.finfo(dtype).eps * np.sqrt(size) * sensitivity
    assert found.converged.all()
    values = np.linalg.eigvals(jacobian)
    values = values[np.argsort(-np.abs(values))]
    got = np.abs(np.asarray(found.eigenvalues))
    assert np.all(np.diff(got, axis=1) <= 0)
    bound = (
        64 * np.finfo(dtype).eps * size * sensitivity * np.linalg.cond(np.linalg.eig(jacobian)[1])
    )
    assert np.abs(got - np.abs(values)).max() <= bound
    assert np.all(found.stable == (np.abs(values[0]) < 1))


def test_every_point_of_a_line_attractor_is_fixed_and_a_slow_point_does_not_converge():
    layer, params = linear(np.diag([1.0, 0.5]))
    starts = jnp.asarray([[0.3, 1.0], [-2.0, 0.4]])
    found = fixed_points_of(layer, params, jnp.zeros(1), starts)
    assert_close(found.states, np.array([[0.3, 0.0], [-2.0, 0.0]]), length=2)
    assert found.converged.all()
    assert not found.stable.any()  # an eigenvalue of 1 along the line
    # h + 0.1 + h^2 has no fixed point; it is slowest, 0.1, at 0.
    layer = jaxrnn.scanned(
        1,
        1,
        lambda key: (),
        lambda p, b=(): jnp.zeros((*b, 1)),
        lambda p, h, x: (h + 0.1 + h**2, h),
    )
    found = fixed_points_of(layer, (), None, jnp.asarray([[0.4], [-0.3]]))
    # Near its minimum the speed is flat up to eps, so the point is known to sqrt(eps).
    assert np.abs(found.states).max() <= 1e-7
    assert_close(found.speeds, np.full(2, 0.1), length=1)
    assert not found.converged.any()
    relaxed = fixed_points_of(layer, (), None, jnp.asarray([[0.4]]), tolerance=0.2)
    assert relaxed.converged.all()


def test_fixed_points_have_the_structure_of_the_state_and_their_speeds_are_what_a_step_moves():
    layer = NETWORKS["stack"]
    params, _, xs = drawn(layer)
    starts = jax.tree.map(
        lambda leaf: jnp.asarray(normal(13, 4, *leaf.shape)) / 2, layer.initial_state(params)
    )
    found = fixed_points_of(layer, params, xs[0], starts)
    after = jax.vmap(lambda state: layer.step(params, state, xs[0])[0])(found.states)
    moved = jax.vmap(lambda a, b: jnp.linalg.norm(ravel(a) - ravel(b)))(after, found.states)
    assert_close(found.speeds + 1, np.asarray(moved) + 1, length=5)
    assert found.eigenvalues.shape == (4, 5)
    assert found.converged.any()


def parabola(floor):
    """h + floor + h^2: fixed at +-sqrt(-floor), or slowest at 0."""
    return jaxrnn.scanned(
        1,
        1,
        lambda key: (),
        lambda p, b=(): jnp.zeros((*b, 1)),
        lambda p, h, x: (h + floor + h**2, h),
    )


def test_slow_points_are_told_from_fixed_ones_and_from_searches_that_have_not_ended():
    starts = jnp.asarray([[0.4], [-0.3]])
    slowest = fixed_points_of(parabola(0.1), (), None, starts)
    assert slowest.at_minimum.all()
    assert not slowest.converged.any()
    fixed = fixed_points_of(parabola(-0.01), (), None, starts)
    assert fixed.at_minimum.all()
    assert fixed.converged.all()
    unfinished = jaxrnn.diagnostics.fixed_points(parabola(0.1), (), None, starts, num_steps=1)
    assert not unfinished.at_minimum.any()


def test_starts_that_settle_first_begin_near_an_attractor():
    layer = jaxrnn.vanilla_rnn(1, 1, dtype=jnp.float64)
    params = RNNParams(jnp.ones((1, 1)), jnp.full((1, 1), 2.0))
    starts = jnp.asarray([[1e-3], [-1e-3]])
    at_once = fixed_points_of(layer, params, None, starts)
    assert np.abs(at_once.states).max() < 1e-6  # the unstable point between
    settled = jaxrnn.diagnostics.fixed_points(layer, params, None, starts, settle=40)
    assert settled.stable.all()
    assert (np.sign(np.ravel(settled.states)) == [1, -1]).all()


def test_distinct_points_are_the_slowest_of_those_that_are_near_each_other():
    layer = jaxrnn.vanilla_rnn(1, 1, dtype=jnp.float64)
    params = RNNParams(jnp.ones((1, 1)), jnp.full((1, 1), 2.0))
    starts = jnp.linspace(-0.95, 0.95, 21)[:, None]
    found = fixed_points_of(layer, params, None, starts)
    kept = jaxrnn.diagnostics.distinct_points(found)
    assert sorted(np.round(np.ravel(kept.states), 3).tolist()) == [-0.958, 0.0, 0.958]
    assert sorted(kept.stable.tolist()) == [False, True, True]
    one = jaxrnn.diagnostics.distinct_points(found, radius=10.0)
    assert one.speeds.tolist() == [found.speeds.min()]
    with pytest.raises(TypeError, match="found is a tuple"):
        jaxrnn.diagnostics.distinct_points((1, 2))


@pytest.mark.parametrize(
    ("x", "starts", "named"),
    [
        (jnp.ones((2, D)), jnp.zeros((3, 4)), r"x has shape \(2, 2\)"),
        (jnp.ones(D), jnp.zeros((3, 9)), r"starts is \[3, 9\], expected \[K, 4\]"),
        (jnp.ones(D), (jnp.zeros((3, 4)),), "starts is"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_name_of_the_argument(x, starts, named):
    layer = jaxrnn.vanilla_rnn(D, 4)
    with pytest.raises(ValueError, match=named):
        jaxrnn.diagnostics.fixed_points(layer, layer.init(jax.random.key(0)), x, starts)

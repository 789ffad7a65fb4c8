"""Clipping keeps a gradient's direction, however large or small its entries are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import clip_by_global_norm
from tests.support.checks import assert_close, assert_identical


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax's Adam raises a float to an int32 power, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def clip(grads, max_norm=1.0):
    optimizer = clip_by_global_norm(max_norm)
    return optimizer.update(grads, optimizer.init(grads))[0]


def to_float64(tree):
    return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float64) for leaf in jax.tree.leaves(tree)])


def random_gradient(scale, dtype=np.float64):
    rng = np.random.default_rng(1)
    shapes = {"w": (5, 3), "b": (7,), "c": ()}
    return {name: jnp.asarray(scale * rng.normal(size=s), dtype) for name, s in shapes.items()}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 1e6])
def test_clipping_is_that_of_optax_where_nothing_overflows(scale, dtype):
    grads = random_gradient(scale, dtype)
    for max_norm in (0.02, 1.0):
        expected, _ = optax.clip_by_global_norm(max_norm).update(grads, optax.EmptyState())
        got = clip(grads, max_norm)
        assert jax.tree.map(lambda leaf: leaf.dtype, got) == jax.tree.map(lambda g: g.dtype, grads)
        assert_close(got, expected, length=23)  # the norm sums 23 squares


HUGE = [
    (np.float64, 1e30),
    (np.float64, 1e200),
    (np.float64, 1e307),
    (np.float32, 1e20),
    (np.float32, 1e30),
    (np.float32, 1e38),
    (jnp.bfloat16, 1e30),
    (jnp.bfloat16, 1e38),
    (np.float16, 1e4),
]


@pytest.mark.parametrize(("dtype", "scale"), HUGE)
def test_a_gradient_whose_squares_overflow_keeps_its_direction(dtype, scale):
    grads = random_gradient(scale, dtype)
    exact = to_float64(jax.tree.map(lambda leaf: leaf.astype(jnp.float64) / scale, grads))
    for max_norm in (1.0, 0.02, 100.0):
        got = clip(grads, max_norm)
        assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(dtype)}
        # Each entry is rounded to its dtype, and the norm, of 23 squares, to float32 at least.
        wanted = max_norm * exact / jnp.linalg.norm(exact)
        eps = float(jnp.finfo(dtype).eps)
        tiny = float(jnp.finfo(dtype).tiny) * eps  # what float16 rounds small entries to
        np.testing.assert_allclose(to_float64(got), wanted, rtol=2 * eps + 8e-7, atol=tiny)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, jnp.bfloat16])
def test_nothing_stays_nothing_and_what_is_tiny_survives(dtype):
    nothing = jax.tree.map(jnp.zeros_like, random_gradient(1.0, dtype))
    assert_identical(clip(nothing), nothing)
    tiny = random_gradient(1e-30, dtype)  # whose squares underflow in float32
    eps = float(jnp.finfo(dtype).eps)
    # Divided by the largest entry and multiplied by it again: two roundings.
    np.testing.assert_allclose(to_float64(clip(tiny)), to_float64(tiny), rtol=2 * eps)
    assert not any(leaf.any() for leaf in jax.tree.leaves(clip(nothing, 1e-30)))
    beside = {"tiny": jnp.asarray(1e-30, dtype), "one": jnp.asarray(1.0, dtype)}
    assert float(clip(beside, 2.0)["tiny"]) == pytest.approx(1e-30, rel=4 * eps)


def test_a_gradient_at_the_norm_is_not_scaled():
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(-4.0)}
    assert_identical(clip(grads, 5.0), grads)
    assert_identical(clip(grads, 1e3), grads)
    assert_close(clip(grads, 2.5), jax.tree.map(lambda leaf: leaf / 2, grads), length=3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, jnp.bfloat16])
def test_a_gradient_that_is_not_finite_stays_so(bad, dtype):
    for max_norm in (1e-3, 1e6):
        for name in ("w", "b", "c"):
            grads = random_gradient(1.0, dtype)
            grads[name] = jnp.ravel(grads[name]).at[0].set(bad).reshape(grads[name].shape)
            got = clip(grads, max_norm)
            assert not np.isfinite(to_float64(got)).all()


def test_a_clipped_gradient_that_is_not_finite_is_left_out_by_optax():
    skipping = optax.apply_if_finite(optax.chain(clip_by_global_norm(1.0), optax.sgd(1.0)), 5)
    update, grads = jax.jit(skipping.update), random_gradient(1.0)
    state = skipping.init(grads)
    for count, bad in enumerate((1.0, np.nan, np.inf)):
        updates, state = update({**grads, "c": jnp.array(bad)}, state)
        assert any(leaf.any() for leaf in jax.tree.leaves(updates)) == (count == 0)
        assert int(state.total_notfinite) == count


def test_clipping_maps_over_gradients_and_leaves_out_what_is_none():
    scales = jnp.array([1e-30, 0.0, 1.0, 1e30, 1e38], jnp.float32)
    one = {**random_gradient(1.0, np.float32), "none": None, "empty": jnp.zeros((0, 2), np.float32)}
    many = jax.tree.map(lambda leaf: jnp.stack([leaf * scale for scale in scales]), one)
    mapped = jax.jit(jax.vmap(clip))(many)
    assert mapped["none"] is None
    norms = []
    for place in range(len(scales)):
        grads = jax.tree.map(lambda leaf, place=place: leaf[place], many)
        expected = clip(grads)
        got = jax.tree.map(lambda leaf, place=place: leaf[place], mapped)
        assert_close(got, expected, length=23)
        norms.append(float(jnp.linalg.norm(to_float64(got))))
    assert norms[1] == 0
    assert norms[2:] == pytest.approx([1.0] * 3, rel=1e-6)
    assert clip({}) == {}
    assert clip({"none": None}) == {"none": None}


def test_clipping_maps_over_norms():
    norms = jnp.array([1e-3, 1.0, 1e3])
    grads = random_gradient(1.0)
    mapped = jax.jit(jax.vmap(lambda max_norm: clip(grads, max_norm)))(norms)
    for place, max_norm in enumerate(norms):
        got = jax.tree.map(lambda leaf, place=place: leaf[place], mapped)
        assert_close(got, clip(grads, float(max_norm)), length=23)


def test_a_mixture_of_dtypes_is_clipped_by_one_norm():
    grads = {
        "a": jnp.array([3e30], np.float32),
        "b": jnp.array([-4e30], np.float64),
        "c": jnp.array([12e30], jnp.bfloat16),
    }
    exact = np.array([float(leaf[0]) for leaf in jax.tree.leaves(grads)])
    got = clip(grads)
    assert [leaf.dtype for leaf in jax.tree.leaves(got)] == [np.float32, np.float64, jnp.bfloat16]
    wanted = exact / np.linalg.norm(exact)
    for leaf, each in zip(jax.tree.leaves(got), wanted, strict=True):
        assert float(leaf[0]) == pytest.approx(each, rel=float(jnp.finfo(leaf.dtype).eps))


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (0, ValueError),
        (-1.0, ValueError),
        (np.nan, ValueError),
        (np.inf, ValueError),
        (None, TypeError),
        ("1", TypeError),
        (True, TypeError),
    ],
)
def test_a_bad_max_norm_is_refused(bad, error):
    with pytest.raises(error, match=r"max_norm is .*, expected a positive number"):
        clip_by_global_norm(bad)

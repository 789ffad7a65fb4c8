"""Comparisons whose tolerances are derived, and draws that the tests share."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn.recurrence import rule
from jaxrnn.recurrence.plan import make_plan

JAX_ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "identity": jax.nn.identity,
    "softsign": jax.nn.soft_sign,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
}


def assert_close(got, expected, *, length, what=""):
    """Equal up to rounding: each leaf's largest error, relative to the leaf's largest entry, is
    below 32 eps sqrt(length). `length` is the number of terms that were summed into an entry: their
    roundings add up like a random walk; 32 covers what the recurrence passes on."""
    leaves, expected_leaves = jax.tree.leaves(got), jax.tree.leaves(expected)
    assert len(leaves) == len(expected_leaves), what
    for one, other in zip(leaves, expected_leaves, strict=True):
        assert one.shape == other.shape, (what, one.shape, other.shape)
        if one.size == 0:
            continue
        if not jnp.issubdtype(one.dtype, jnp.floating):
            np.testing.assert_array_equal(one, other, what)
            continue
        eps = float(jnp.finfo(one.dtype).eps)
        exact = np.asarray(other, np.float64)
        scale = max(np.abs(exact).max(), np.finfo(np.float64).tiny)
        error = np.abs(np.asarray(one, np.float64) - exact).max() / scale
        assert error <= 32 * eps * np.sqrt(length), (what, error, eps)


def assert_identical(got, expected, what=""):
    """Equal bit for bit, NaN included."""
    leaves, expected_leaves = jax.tree.leaves(got), jax.tree.leaves(expected)
    assert len(leaves) == len(expected_leaves), what
    for one, other in zip(leaves, expected_leaves, strict=True):
        assert one.dtype == other.dtype, what
        assert one.shape == other.shape, what
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), what


def floating_leaves(tree):
    """The floating-point leaves, and a function that makes a whole tree of such again."""
    leaves, structure = jax.tree.flatten(tree)
    floats = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def rebuild(floating):
        given = iter(floating)
        return structure.unflatten(
            [next(given) if kind else leaf for leaf, kind in zip(leaves, floats, strict=True)]
        )

    return [leaf for leaf, kind in zip(leaves, floats, strict=True) if kind], rebuild


def add_noise(key, tree, scale):
    """`tree` with `scale` times a standard normal added to every floating-point leaf."""
    floating, rebuild = floating_leaves(tree)
    noise = random_like(key, floating)
    return rebuild([leaf + scale * n for leaf, n in zip(floating, noise, strict=True)])


def random_like(key, tree):
    """A standard normal for every leaf, each of floating point."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    drawn = [jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=False)]
    return jax.tree.unflatten(structure, drawn)


def draw_rnn(key, input_size, hidden_size, dtype=jnp.float64):
    """Parameters with every entry drawn, the bias and the learned initial state too."""
    params = jaxrnn.init_rnn(key, input_size, hidden_size, learn_h0=True, dtype=dtype)
    noise = random_like(jax.random.fold_in(key, 1), params)
    return jax.tree.map(lambda p, n: p + jnp.asarray(0.3, dtype) * n, params, noise)


def draw_marks(key, shape):
    """A mask of any pattern, with a full sequence and an empty one, and resets."""
    key_mask, key_resets = jax.random.split(key)
    mask = jax.random.bernoulli(key_mask, 0.7, shape)
    if len(shape) > 1 and shape[-1] > 1:
        mask = mask.at[..., 0].set(True).at[..., 1].set(False)
    return mask, jax.random.bernoulli(key_resets, 0.25, shape)


def choose_strategy(monkeypatch, strategy, *, flat):
    """Have `unroll` multiply by this strategy, on rows of states or not, in the chunks of its own
    plan."""

    def plan(*arguments):
        return make_plan(*arguments)._replace(strategy=strategy, flat=flat)

    monkeypatch.setattr(rule, "make_plan", plan)

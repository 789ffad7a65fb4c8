"""Lengths, masks, padding, packing, windows and masked means, against NumPy loops."""

import inspect
import itertools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrnn
from tests.support import oracle
from tests.support.checks import assert_close, assert_identical, draw_rnn

DRAWN = settings(max_examples=12, deadline=None, derandomize=True)


def loop_mask(lengths, num_steps):
    lengths = np.asarray(lengths)
    mask = np.zeros((num_steps, *lengths.shape), bool)
    for position in np.ndindex(lengths.shape):
        for t in range(int(lengths[position])):
            mask[(t, *position)] = True
    return mask


def numbered(lengths, features=(), dtype=np.int32):
    """Sequences whose entries are the numbers 1, 2, ... in order."""
    ends = np.cumsum([0, *lengths]) * int(np.prod(features))
    return [
        np.arange(start + 1, end + 1).astype(dtype).reshape(-1, *features)
        for start, end in itertools.pairwise(ends)
    ]


# Lengths


@pytest.mark.parametrize(
    ("lengths", "num_steps"),
    [
        ([3, 0, 5, 1], 5),
        ([0, 0], 4),
        ([6, 6, 6], 6),
        ([0, 0, 0], 0),
        ((2, 4), 4),
        (3, 5),
        (np.zeros((0,), np.int32), 3),
        (np.array([[1, 2, 3], [4, 0, 7]]), 7),
        (np.arange(8).reshape(2, 2, 2), 7),
        (np.array([3, 1], np.int32), 4),
        (np.array([255, 0, 7], np.uint8), 300),
        (np.array([127, 5], np.int8), 300),
    ],
)
def test_mask_from_lengths_is_true_at_the_first_steps_of_each_sequence(lengths, num_steps):
    assert_identical(jaxrnn.mask_from_lengths(lengths, num_steps), loop_mask(lengths, num_steps))


def test_mask_from_lengths_is_the_same_under_jit_and_vmap():
    lengths = np.array([[0, 2, 5], [5, 1, 0]])
    expected = loop_mask(lengths, 5)
    assert_identical(jax.jit(jaxrnn.mask_from_lengths, static_argnums=1)(lengths, 5), expected)
    mapped = jax.vmap(lambda length: jaxrnn.mask_from_lengths(length, 5), out_axes=1)(lengths)
    assert_identical(mapped, expected)


def test_traced_lengths_out_of_range_are_clipped_to_0_and_num_steps():
    mask = jax.jit(jaxrnn.mask_from_lengths, static_argnums=1)(np.array([-3, 9]), 4)
    assert_identical(mask, loop_mask([0, 4], 4))


# Padding


@pytest.mark.parametrize(
    ("features", "dtype"),
    [((), np.int32), ((3,), np.float32), ((2, 3), np.float64), ((2,), np.uint8), ((), bool)],
)
@pytest.mark.parametrize(("lengths", "num_steps"), [((2, 0, 4), None), ((2, 0, 4), 6), ((0,), 0)])
def test_pad_sequences_pads_each_sequence_with_zeros_at_the_end(
    features, dtype, lengths, num_steps
):
    sequences = numbered(lengths, features, dtype)
    xs, mask = jaxrnn.pad_sequences(sequences, num_steps=num_steps)
    steps = max(lengths) if num_steps is None else num_steps
    expected = np.zeros((steps, len(lengths), *features), dtype)
    for position, sequence in enumerate(sequences):
        expected[: len(sequence), position] = sequence
    assert_identical((xs, mask), (expected, loop_mask(lengths, steps)))


def test_a_padded_batch_gives_the_outputs_and_last_state_of_each_sequence_alone():
    params, sequences, alone = draw_network(reverse=False)
    xs, mask = jaxrnn.pad_sequences(sequences, num_steps=9)
    h, ys = jax.tree.map(np.asarray, jaxrnn.unroll(params, None, xs, mask=mask))
    for position, expected in enumerate(alone):
        assert_close(ys[: len(expected), position], expected, length=T)
        assert not ys[len(expected) :, position].any()
        last = expected[-1] if len(expected) else params.h0
        assert_close(h[position], last, length=T)


# Packing


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6))
@DRAWN
def test_packing_into_one_row_keeps_the_order_and_pads_nothing(lengths):
    sequences = numbered(lengths, (2,))
    packed = jaxrnn.pack_sequences(sequences)
    xs = np.asarray(packed.xs)
    firsts = [sequence[0, 0] for sequence in sequences if len(sequence)]
    assert_identical(xs, np.concatenate(sequences))
    assert_identical(packed.resets, np.isin(xs[:, 0], firsts))
    assert_identical(packed.mask, np.ones(sum(lengths), bool))
    assert_identical(jaxrnn.unpack_sequences(packed.xs, packed), sequences)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(1, 4))
@DRAWN
def test_packing_into_rows_keeps_every_step_resets_at_first_steps_and_masks_row_ends(
    lengths, num_rows
):
    sequences = numbered(lengths)
    packed = jaxrnn.pack_sequences(sequences, num_rows=num_rows)
    xs = np.asarray(packed.xs)
    firsts = [sequence[0] for sequence in sequences if len(sequence)]
    ends = (xs > 0).sum(axis=0)
    assert xs.shape == (max(ends), num_rows)
    assert_identical(np.sort(xs[xs > 0]), np.concatenate(sequences))
    assert_identical(packed.resets, np.isin(xs, firsts))
    assert_identical(packed.mask, xs > 0)
    assert_identical(packed.mask, loop_mask(ends, max(ends)))
    assert max(ends) - min(ends) <= max(lengths)
    assert_identical(jaxrnn.unpack_sequences(packed.xs, packed), sequences)


def test_packing_appends_the_longest_remaining_sequence_to_the_shortest_row():
    packed = jaxrnn.pack_sequences(numbered([1, 4, 2, 3]), num_rows=2)
    assert_identical(packed.xs, np.array([[2, 8], [3, 9], [4, 10], [5, 6], [1, 7]], np.int32))
    assert packed.rows == (0, 0, 1, 1)
    assert packed.starts == (4, 0, 3, 0)
    assert packed.lengths == (1, 4, 2, 3)


def test_unpack_sequences_accepts_outputs_of_any_width():
    packed = jaxrnn.pack_sequences(numbered([2, 0, 3], (1,)), num_rows=2)
    ys = jnp.concatenate([packed.xs, -packed.xs, packed.xs], axis=-1)
    expected = [np.concatenate([s, -s, s], axis=-1) for s in numbered([2, 0, 3], (1,))]
    assert_identical(jaxrnn.unpack_sequences(ys, packed), expected)


@pytest.mark.parametrize("num_rows", [None, 2])
def test_packed_sequences_pass_through_jit_which_recompiles_for_a_new_layout_only(num_rows):
    traces = []

    @jax.jit
    def negate(packed):
        traces.append(None)
        return jaxrnn.unpack_sequences(-packed.xs, packed), packed

    for factor in (1, 2):
        sequences = [factor * s for s in numbered([2, 0, 3], (1,))]
        got, packed = negate(jaxrnn.pack_sequences(sequences, num_rows=num_rows))
        assert_identical(got, [-s for s in sequences])
        assert_identical(jaxrnn.unpack_sequences(packed.xs, packed), sequences)
    assert len(traces) == 1
    negate(jaxrnn.pack_sequences(numbered([3, 2, 0], (1,)), num_rows=num_rows))
    assert len(traces) == 2


# Sequences through a layer: long ones, one of a single step, and an empty one.
LENGTHS, D, H = (4, 0, 1, 7, 3), 2, 3
T = max(LENGTHS)


def draw_network(reverse, seed=0):
    """(params, sequences, the oracle's outputs for each sequence alone)."""
    rng = np.random.default_rng(0)
    params = draw_rnn(jax.random.key(seed), D, H)
    sequences = [rng.standard_normal((length, D)) for length in LENGTHS]
    given = params._asdict().items()
    p = {name: np.asarray(leaf) for name, leaf in given if leaf is not None}
    alone = []
    for xs in sequences:
        every, none = np.ones((len(xs), 1), bool), np.zeros((len(xs), 1), bool)
        _, ys, _ = oracle.forward(p, p["h0"][None], xs[:, None], every, none, reverse, "tanh")
        alone.append(ys[:, 0])
    return params, sequences, alone


@pytest.mark.parametrize("num_rows", [None, 3])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_packed_batch_gives_the_outputs_of_each_sequence_alone(num_rows, reverse):
    params, sequences, alone = draw_network(reverse)
    packed = jaxrnn.pack_sequences(sequences, num_rows=num_rows)
    layer = jaxrnn.vanilla_rnn(D, H, learn_h0=True, dtype=jnp.float64)
    _, ys = layer.unroll(
        params, None, packed.xs, mask=packed.mask, resets=packed.resets, reverse=reverse
    )
    for got, expected in zip(jaxrnn.unpack_sequences(ys, packed), alone, strict=True):
        assert_close(got, expected, length=T)


@pytest.mark.parametrize("num_rows", [None, 2])
def test_a_packed_batch_through_a_bidirectional_layer_gives_the_outputs_of_each_sequence_alone(
    num_rows,
):
    forward, sequences, ahead = draw_network(reverse=False, seed=0)
    backward, _, back = draw_network(reverse=True, seed=1)
    packed = jaxrnn.pack_sequences(sequences, num_rows=num_rows)
    layer = jaxrnn.vanilla_rnn(D, H, learn_h0=True, dtype=jnp.float64)
    _, ys = jaxrnn.bidirectional(layer, layer).unroll(
        (forward, backward), None, packed.xs, mask=packed.mask, resets=packed.resets
    )
    alone = [np.concatenate(pair, axis=-1) for pair in zip(ahead, back, strict=True)]
    for got, expected in zip(jaxrnn.unpack_sequences(ys, packed), alone, strict=True):
        assert_close(got, expected, length=T)


# Windows


@pytest.mark.parametrize(
    ("num_steps", "size", "stride", "features"),
    [
        (7, 3, 1, ()),
        (7, 3, 2, (2,)),
        (8, 3, 2, (2, 3)),
        (9, 3, 3, ()),
        (10, 3, 4, (2,)),
        (5, 5, 1, (2, 3)),
        (5, 1, 2, ()),
        (4, 2, 9, (2,)),
    ],
)
def test_sliding_windows_are_those_of_a_loop(num_steps, size, stride, features):
    (series,) = numbered([num_steps], features)
    windows = []
    start = 0
    while start + size <= num_steps:
        windows.append(series[start : start + size])
        start += stride
    expected = np.stack(windows, axis=1)
    assert_identical(jaxrnn.sliding_windows(series, size, stride=stride), expected)
    compiled = jax.jit(jaxrnn.sliding_windows, static_argnums=1, static_argnames="stride")
    assert_identical(compiled(series, size, stride=stride), expected)


def test_random_windows_are_pieces_of_the_series_which_begin_together_and_anywhere(key):
    steps, size, count = 20, 6, 400
    xs = np.arange(steps * 2).reshape(steps, 2).astype(np.float64)
    series = {"xs": xs, "step": np.arange(steps), "mask": np.arange(steps) % 3 == 0}
    windows = jax.jit(jaxrnn.random_windows, static_argnums=(2, 3))(key, series, size, count)
    assert jax.tree.map(jnp.shape, windows) == {
        "xs": (size, count, 2),
        "step": (size, count),
        "mask": (size, count),
    }
    starts = np.asarray(windows["step"][0])
    for place, start in enumerate(starts):
        got = jax.tree.map(lambda leaf, at=place: leaf[:, at], windows)
        assert_identical(got, {name: leaf[start : start + size] for name, leaf in series.items()})
    counts = np.bincount(starts)
    assert counts.size == steps - size + 1  # both ends are among them
    expected = count / counts.size
    assert np.abs(counts - expected).max() <= 5 * np.sqrt(expected)
    assert_identical(jaxrnn.random_windows(key, xs, size, count), windows["xs"])
    others = jaxrnn.random_windows(jax.random.fold_in(key, 1), xs, size, count)
    assert (others != windows["xs"]).any()


def test_random_windows_of_the_whole_series_are_the_series(key):
    series = np.arange(5)
    windows = jaxrnn.random_windows(key, series, 5, 3)
    assert_identical(windows, np.stack([series] * 3, axis=1))


def test_the_example_of_random_windows_makes_a_batch(key):
    lines = inspect.getdoc(jaxrnn.random_windows).split("of `jaxrnn.fit`:\n")[1].split("\nArgs:")[0]
    xs = np.random.default_rng(0).normal(size=(300, 3))
    names = {"jaxrnn": jaxrnn, "xs": xs, "targets": xs[:, :1] + 1}
    exec(textwrap.dedent(lines), names)
    got, targets = names["make_batch"](key, 0)
    assert got.shape == (200, 32, 3)
    assert_identical(targets, got[..., :1] + 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, np.ones(5), 2, 3), TypeError, "key is 0"),
        ((None, np.ones(5), 0, 3), ValueError, "size is 0"),
        ((None, np.ones(5), 2.0, 3), TypeError, "size is 2.0"),
        ((None, np.ones(5), 2, 0), ValueError, "count is 0"),
        ((None, np.ones(5), 6, 3), ValueError, "series has shapes [(5,)], expected the same"),
        ((None, np.ones(()), 1, 3), ValueError, "series has shapes [()]"),
        ((None, (), 1, 3), ValueError, "series has shapes []"),
        ((None, (np.ones(5), np.ones((4, 2))), 2, 3), ValueError, "series has shapes [(5,), (4, 2"),
        ((None, ["a"], 2, 3), TypeError, "series is a str"),
    ],
)
def test_random_windows_refuses_bad_input_by_name(key, arguments, error, message):
    given = (key if arguments[0] is None else arguments[0], *arguments[1:])
    with pytest.raises(error) as caught:
        jaxrnn.random_windows(*given)
    assert str(caught.value).startswith(message), caught.value


# Means


def draw_values(shape=(5, 4, 3), dtype=np.float64, kept=0.6):
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.standard_normal(shape) + 1).astype(dtype)
    return values, jnp.asarray(rng.random(shape[:2]) < kept)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (5, 4, 3, 2)])
def test_masked_mean_is_the_mean_of_the_values_where_the_mask_is_true(shape):
    values, mask = draw_values(shape)
    expected = np.asarray(values)[np.asarray(mask)].mean()
    assert_close(jax.jit(jaxrnn.masked_mean)(values, mask), expected, length=values.size)
    assert_close(jaxrnn.masked_mean(values), np.mean(values), length=values.size)


def test_masked_mean_under_vmap_is_the_mean_of_each_sequence():
    values, mask = draw_values()
    got = jax.vmap(jaxrnn.masked_mean, in_axes=1)(values, mask)
    values, mask = np.asarray(values), np.asarray(mask)
    expected = np.stack([values[:, row][mask[:, row]].mean() for row in range(4)])
    assert_close(got, expected, length=values.size)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_masked_values_change_neither_the_mean_nor_its_gradient(poison):
    values, mask = draw_values()
    poisoned = jnp.where(mask[..., None], values, poison)
    mean_and_gradient = jax.value_and_grad(jaxrnn.masked_mean)
    assert_identical(mean_and_gradient(poisoned, mask), mean_and_gradient(values, mask))


def test_the_gradient_of_masked_mean_is_one_over_the_count_and_zero_where_masked():
    values = draw_values((4, 4))[0]
    mask = np.arange(16).reshape(4, 4) % 2 == 0  # 8 values: 1 / 8 is exact
    gradient = jax.grad(jaxrnn.masked_mean)(values, jnp.asarray(mask))
    assert_identical(gradient, np.where(mask, 0.125, 0.0))


def test_masked_mean_is_zero_if_everything_is_masked():
    values, mask = draw_values()
    mean, gradient = jax.value_and_grad(jaxrnn.masked_mean)(values * np.nan, mask & False)
    assert_identical((mean, gradient), (np.float64(0), np.zeros(values.shape)))


def loop_mean(values, mask, axis):
    """The masked mean over `axis`, one output entry at a time; 0 where none is unmasked."""
    axes = {a % values.ndim for a in (axis if isinstance(axis, tuple) else (axis,))}
    kept = [size for a, size in enumerate(values.shape) if a not in axes]
    totals, counts = np.zeros(kept), np.zeros(kept)
    for position in np.ndindex(values.shape):
        if mask[position[: mask.ndim]]:
            place = tuple(i for a, i in enumerate(position) if a not in axes)
            totals[place] += values[position]
            counts[place] += 1
    return totals / np.maximum(counts, 1), counts


AXES = [0, 1, 2, -1, (0,), (0, 1), (1, 0), (0, 2), (-1, 1), (0, 1, 2)]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("masked", [False, True])
def test_masked_mean_over_axes_is_that_of_a_loop_and_zero_where_all_is_masked(axis, masked):
    values, mask = draw_values()
    mask = mask.at[:, 1].set(False).at[2].set(False) if masked else None
    poisoned = values if mask is None else jnp.where(mask[..., None], values, np.nan)
    got = jax.jit(jaxrnn.masked_mean, static_argnames="axis")(poisoned, mask, axis=axis)
    expected, _ = loop_mean(np.asarray(values), np.asarray(True if mask is None else mask), axis)
    assert_close(got, expected, length=values.size)


@pytest.mark.parametrize("axis", AXES)
def test_the_gradient_of_masked_mean_over_axes_is_one_over_each_count_despite_masked_nan(axis):
    values, mask = draw_values()
    mask = mask.at[:, 1].set(False).at[2].set(False)
    means, counts = loop_mean(np.asarray(values), np.asarray(mask), axis)
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(means.shape))
    poisoned = jnp.where(mask[..., None], values, np.nan)
    _, pull_back = jax.vjp(lambda v: jaxrnn.masked_mean(v, mask, axis=axis), poisoned)
    axes = tuple(a % 3 for a in (axis if isinstance(axis, tuple) else (axis,)))
    per_value = np.expand_dims(cotangent / np.maximum(counts, 1), axes)
    expected = np.where(np.asarray(mask)[..., None], per_value, np.zeros(values.shape))
    assert_close(pull_back(cotangent)[0], expected, length=1)


@pytest.mark.parametrize("axis", [3, (0, 5), -4])
def test_masked_mean_over_an_axis_that_is_out_of_range_is_rejected(axis):
    with pytest.raises(ValueError, match=r"axis .* out of bounds"):
        jaxrnn.masked_mean(*draw_values(), axis=axis)


def test_masked_mean_over_an_empty_axis_is_zero():
    assert_identical(jaxrnn.masked_mean(np.zeros((0, 2, 3)), axis=0), np.zeros((2, 3)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_masked_mean_on_an_explicit_mesh_is_that_without_one(masked, axis):
    values, mask = draw_values()
    expected = jaxrnn.masked_mean(values, mask if masked else None, axis=axis)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    set_mesh = getattr(jax, "set_mesh", None) or jax.sharding.use_mesh  # JAX 0.7.0 has the latter
    with set_mesh(mesh):
        values, mask = jax.device_put((values, mask), jax.P(None, "data"))
        got = jaxrnn.masked_mean(values, mask if masked else None, axis=axis)
    assert_identical(got, expected)


@pytest.mark.parametrize("mask", [None, np.zeros((0, 2), bool)])
def test_masked_mean_of_no_values_is_zero(mask):
    assert_identical(jaxrnn.masked_mean(np.zeros((0, 2, 3)), mask), np.float64(0))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_masked_mean_of_a_thousand_16_bit_floats_is_correctly_rounded(dtype, masked):
    # Their sum, 100 000, exceeds the range of float16, and bfloat16 cannot count beyond 2^8.
    values, mask = draw_values((250, 4), dtype, kept=0.9)
    values = values * 100
    mask = mask if masked else None
    mean = jaxrnn.masked_mean(values, mask)
    wide = np.asarray(values, np.float64)
    expected = wide.mean() if mask is None else wide[np.asarray(mask)].mean()
    # Half a unit in the last place, plus the rounding of the float32 sum, which is far smaller.
    assert mean.dtype == dtype
    assert abs(float(mean) - expected) <= 0.51 * float(jnp.finfo(dtype).eps) * expected


# The last step


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (5, 4, 3, 2)])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16, jnp.int32])
def test_last_valid_is_the_value_at_the_last_step_that_is_not_masked(shape, dtype):
    values, mask = draw_values(shape, dtype=dtype)
    mask = mask.at[:, 1].set(False).at[:, 2].set(True)
    poison = jnp.nan if jnp.issubdtype(dtype, jnp.floating) else 7
    poisoned = jnp.where(mask.reshape(*mask.shape, *[1] * (values.ndim - 2)), values, poison)
    expected = np.zeros(shape[1:], values.dtype)
    for row in range(shape[1]):
        steps = np.flatnonzero(mask[:, row])
        if steps.size:
            expected[row] = np.asarray(values)[steps[-1], row]
    got = jax.jit(jaxrnn.last_valid)(poisoned.astype(values.dtype), mask)
    assert_identical(got, expected)
    assert_identical(jaxrnn.last_valid(values), values[-1])
    assert_identical(jax.vmap(jaxrnn.last_valid, in_axes=1)(values, mask), expected)
    assert jaxrnn.last_valid(values[:0], mask[:0]).shape == shape[1:]


def test_the_gradient_of_last_valid_reaches_that_step_alone():
    values, mask = draw_values((6, 3, 2))
    ct = jnp.arange(1.0, 7.0).reshape(3, 2)
    poisoned = jnp.where(mask[..., None], values, jnp.nan)
    (gradient,) = jax.vjp(lambda values: jaxrnn.last_valid(values, mask), poisoned)[1](ct)
    expected = np.zeros(values.shape)
    for row in range(3):
        for step in np.flatnonzero(mask[:, row])[-1:]:
            expected[step, row] = ct[row]
    assert_identical(gradient, expected)


@pytest.mark.parametrize(
    ("values", "mask", "message"),
    [
        (jnp.zeros(()), None, r"values has shape \(\)"),
        (jnp.zeros((3, 2)), jnp.ones((2, 3), bool), r"mask has shape \(2, 3\)"),
        (jnp.zeros((3, 2)), jnp.ones(3), "mask"),
        (jnp.zeros((3, 2)), jnp.ones((), bool), r"mask has shape \(\)"),
    ],
)
def test_last_valid_refuses_what_does_not_fit(values, mask, message):
    with pytest.raises((TypeError, ValueError), match=message):
        jaxrnn.last_valid(values, mask)

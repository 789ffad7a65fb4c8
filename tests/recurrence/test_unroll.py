"""`unroll` against the NumPy oracle and against the plain scan of `step`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxrnn
from jaxrnn.matrices import LowRank
from jaxrnn.params import Cell
from jaxrnn.recurrence import plan
from jaxrnn.recurrence.plan import Plan, make_plan
from tests.support import oracle
from tests.support.checks import (
    JAX_ACTIVATIONS,
    assert_close,
    assert_identical,
    choose_strategy,
    draw_marks,
    draw_rnn,
    random_like,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")

T, B, D, H = 11, 3, 2, 4
DRAWS = 4
CHUNKS = itertools.cycle([None, 1, 3, T, 16])
STRATEGIES = ["before", "columns", "inside", "joined"]
NAMES = itertools.cycle(STRATEGIES)  # four, beside five chunks and seven of the next
FLAT = itertools.cycle([True, False, True, True, False, False, True])
CASES = [
    (name, masked, marked, reverse, next(CHUNKS), remat, next(NAMES), next(FLAT))
    for position, (remat, (name, masked, marked, reverse)) in enumerate(
        zip(
            itertools.cycle([False, False, True]),
            itertools.product(JAX_ACTIVATIONS, (False, True), (False, True), (False, True)),
            strict=False,
        )
    )
    # Half of them, in which each activation meets each pair of the others; soak has all.
    if position.bit_count() % 2
]


def draw(key, batch=(B,), steps=T, dtype=jnp.float64):
    """(params, h0, xs), mask, resets and cotangents for (h_last, hs)."""
    keys = jax.random.split(key, 6)
    params = draw_rnn(keys[0], D, H, dtype)
    h0 = jax.random.normal(keys[1], (*batch, H), dtype)
    xs = jax.random.normal(keys[2], (steps, *batch, D), dtype)
    mask, resets = draw_marks(keys[3], (steps, *batch))
    cotangents = (
        jax.random.normal(keys[4], (*batch, H), dtype),
        jax.random.normal(keys[5], (steps, *batch, H), dtype),
    )
    return (params, h0, xs), mask, resets, cotangents


def both(function, **options):
    """A jitted function of (arguments, mask, resets, cotangents) -> (outputs, gradients)."""

    @jax.jit
    def run(arguments, mask, resets, cotangents):
        def of_arguments(arguments):
            return function(*arguments, mask=mask, resets=resets, **options)

        outputs, pull = jax.vjp(of_arguments, arguments)
        return outputs, pull(cotangents)[0]

    return run


@pytest.mark.parametrize(
    ("name", "masked", "marked", "reverse", "chunk_size", "remat", "strategy", "flat"), CASES
)
def test_unroll_and_every_gradient_equal_the_oracle(
    key, monkeypatch, name, masked, marked, reverse, chunk_size, remat, strategy, flat
):
    choose_strategy(monkeypatch, strategy, flat=flat)
    activation = JAX_ACTIVATIONS[name]
    run = both(
        jaxrnn.unroll, activation=activation, reverse=reverse, chunk_size=chunk_size, remat=remat
    )
    for k in jax.random.split(key, DRAWS):
        arguments, mask, resets, cotangents = draw(k)
        mask, resets = mask if masked else None, resets if marked else None
        (h_last, hs), (gp, gh0, gxs) = run(arguments, mask, resets, cotangents)

        given = arguments[0]._asdict().items()
        p = {field: np.asarray(value) for field, value in given if value is not None}
        h0, xs = np.asarray(arguments[1]), np.asarray(arguments[2])
        mask = np.ones((T, B), bool) if mask is None else np.asarray(mask)
        resets = np.zeros((T, B), bool) if resets is None else np.asarray(resets)
        expected_last, expected_hs, tape = oracle.forward(p, h0, xs, mask, resets, reverse, name)
        expected = oracle.backward(p, xs, tape, name, *map(np.asarray, cotangents))
        assert_close((h_last, hs), (expected_last, expected_hs), length=T * (H + D))
        got = {field: value for field, value in gp._asdict().items() if value is not None}
        assert_close((got, gh0, gxs), expected, length=T * B * (H + D))


@pytest.mark.parametrize(
    ("depth", "directions", "name"),
    [
        (depth, directions, name)
        for (depth, directions), name in zip(
            itertools.product([1, 2, 3, 4], [1, 2]),
            itertools.cycle(["tanh", "relu", "softsign"]),
            strict=False,
        )
    ],
)
def test_a_deep_network_and_its_gradients_equal_the_oracle(key, depth, directions, name):
    activation = JAX_ACTIVATIONS[name]
    widths = [D, 3, 5, 4, 2][: depth + 1]
    layers, params, width = [], [], widths[0]
    for position, units in enumerate(widths[1:]):
        leaf = jaxrnn.vanilla_rnn(width, units, activation=activation, dtype=jnp.float64)
        drawn = tuple(
            draw_rnn(jax.random.fold_in(key, 10 * position + direction), width, units)
            for direction in range(directions)
        )
        layers.append(leaf if directions == 1 else jaxrnn.bidirectional(leaf, leaf))
        params.append(drawn[0] if directions == 1 else drawn)
        width = units * directions
    net, params = jaxrnn.stack(*layers), tuple(params)

    @jax.jit
    def run(params, xs, mask, resets, cotangent):
        ys, pull = jax.vjp(
            lambda p, x: net.unroll(p, None, x, mask=mask, resets=resets)[1], params, xs
        )
        return ys, *pull(cotangent)

    as_dicts = [
        [
            {f: np.asarray(v) for f, v in p._asdict().items() if v is not None}
            for p in ([q] if directions == 1 else q)
        ]
        for q in params
    ]
    for k in jax.random.split(key, DRAWS):
        (_, _, xs), mask, resets, _ = draw(k)
        cotangent = jax.random.normal(k, (T, B, width))
        ys, gp, gxs = run(params, xs, mask, resets, cotangent)
        expected = oracle.network(
            as_dicts, *(np.asarray(a) for a in (xs, mask, resets, cotangent)), name
        )
        length = depth * T * B * sum(widths)
        assert_close((ys, gxs), expected[::2], length=length)
        gradients = [p[f] for layer in expected[1] for p in layer for f in as_dicts[0][0]]
        assert_close(jax.tree.leaves(gp), gradients, length=length)


@pytest.mark.parametrize(
    ("chunk_size", "strategy", "reverse"), [(None, "joined", False), (4, "columns", True)]
)
@pytest.mark.parametrize("name", ["tanh", "identity", "sigmoid", "softplus"])
def test_gradients_of_second_order_pass_check_grads_in_both_modes(
    key, monkeypatch, name, chunk_size, strategy, reverse
):
    choose_strategy(monkeypatch, strategy, flat=not reverse)
    arguments, mask, resets, _ = draw(key, batch=(2,), steps=5)

    def run(params, h0, xs):
        return jaxrnn.unroll(
            params,
            h0,
            xs,
            activation=JAX_ACTIVATIONS[name],
            mask=mask,
            resets=resets,
            reverse=reverse,
            chunk_size=chunk_size,
        )

    check_grads(jax.jit(run), arguments, order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"chunk_size": 3}, {"remat": True}])
def test_any_number_of_batch_axes_and_any_length(key, batch, steps, options):
    (params, h0, xs), mask, resets, cotangents = draw(key, batch, steps)
    plain = {k: v for k, v in options.items() if k == "reverse"}
    got = both(jaxrnn.unroll, **options)((params, h0, xs), mask, resets, cotangents)
    expected = both(jaxrnn.unroll_plain, **plain)((params, h0, xs), mask, resets, cotangents)
    assert_close(got, expected, length=max(h0.size, 1) * max(steps, 1))


def test_length_zero_returns_the_state_given_in_both_directions(key):
    (params, h0, xs), _, _, _ = draw(key)
    mask = jnp.zeros((T, B), bool).at[:, 1].set(True)
    for reverse in (False, True):
        h_last, hs = jaxrnn.unroll(params, h0, xs, mask=mask, reverse=reverse)
        assert_identical(h_last[::2], h0[::2])
        assert not hs[:, ::2].any()
        assert (h_last[1] != h0[1]).all()
    h_last, _ = jaxrnn.unroll(params, None, xs, mask=mask)
    assert_identical(h_last[0], params.h0)


def test_right_padding_ends_with_each_sequence_s_own_last_state(key):
    (params, h0, xs), _, _, _ = draw(key)
    lengths = [4, T, 1]
    mask = jaxrnn.mask_from_lengths(jnp.asarray(lengths), T)
    for reverse in (False, True):
        h_last, hs = jaxrnn.unroll(params, h0, xs, mask=mask, reverse=reverse)
        for row, length in enumerate(lengths):
            alone = jaxrnn.unroll(params, h0[row], xs[:length, row], reverse=reverse)
            assert_close((h_last[row], hs[:length, row]), alone, length=T)
            assert_identical(h_last[row], hs[0 if reverse else length - 1, row])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"chunk_size": 3}, {"remat": True}])
@pytest.mark.parametrize("name", ["tanh", "relu", "softsign"])
def test_what_stands_in_masked_inputs_changes_no_bit(key, poison, options, name):
    (params, h0, xs), mask, resets, cotangents = draw(key)
    run = both(jaxrnn.unroll, activation=JAX_ACTIVATIONS[name], **options)
    clean, poisoned = (
        run((params, h0, jnp.where(mask[..., None], xs, value)), mask, resets, cotangents)
        for value in (0.0, poison)
    )
    assert_identical(poisoned, clean)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(poisoned))


def test_a_reset_stops_nan_in_the_state_before_it(key):
    (params, h0, xs), _, _, _cotangents = draw(key)
    resets = jnp.zeros((T, B), bool).at[4].set(True)
    xs = xs.at[2, 0].set(jnp.nan)
    h_last, hs = jaxrnn.unroll(params, h0, xs, resets=resets)
    assert jnp.isnan(hs[2:4, 0]).all()
    assert jnp.isfinite(hs[4:]).all()
    assert_close(h_last[0], jaxrnn.unroll(params, None, xs[4:, 0])[0], length=T)


def test_a_mark_on_a_masked_step_does_nothing(key):
    (params, h0, xs), mask, resets, cotangents = draw(key)
    for reverse in (False, True):
        run = both(jaxrnn.unroll, reverse=reverse)
        got = run((params, h0, xs), mask, resets, cotangents)
        assert_identical(got, run((params, h0, xs), mask, resets & mask, cotangents))


@pytest.mark.parametrize("chunk_size", [1, 3, 16, T])
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_chunks_change_nothing_but_rounding(key, chunk_size, remat, reverse):
    arguments, mask, resets, cotangents = draw(key)
    got = both(jaxrnn.unroll, chunk_size=chunk_size, remat=remat, reverse=reverse)(
        arguments, mask, resets, cotangents
    )
    expected = both(jaxrnn.unroll, chunk_size=T, reverse=reverse)(
        arguments, mask, resets, cotangents
    )
    assert_close(got, expected, length=T * B * H)


@pytest.mark.parametrize("shape", [(64, 1024, 4, 32), (60, 64, 4, 512), (61, 64, 4, 512)])
def test_the_chunks_chosen_by_default_change_nothing_but_rounding(key, shape):
    steps, batch, inputs, units = shape
    keys = jax.random.split(key, 3)
    params = draw_rnn(keys[0], inputs, units, jnp.float32)
    xs = jax.random.normal(keys[1], (steps, batch, inputs), jnp.float32)
    params = params._replace(w_hh=0.3 * params.w_hh)
    arguments = (params, jnp.zeros((batch, units), jnp.float32), xs)
    cotangents = random_like(keys[2], jaxrnn.unroll(*arguments))
    got = both(jaxrnn.unroll)(arguments, None, None, cotangents)
    expected = both(jaxrnn.unroll_plain)(arguments, None, None, cotangents)
    assert_close(got, expected, length=steps * batch)


@pytest.mark.parametrize(
    ("batch", "inputs", "units", "strategy", "flat"),
    [
        ((32,), 8, 32, "joined", True),
        ((1024,), 8, 32, "joined", True),
        ((2, 3), 8, 8, "joined", True),
        ((8,), 64, 64, "joined", True),
        ((32,), 64, 32, "before", True),
        ((32,), 8, 50, "joined", False),
        ((8,), 8, 128, "joined", False),
        ((128,), 128, 128, "before", False),
        ((64,), 64, 256, "joined", False),
        ((64,), 128, 256, "before", False),
        ((2,), 8, 256, "joined", False),
        ((8,), 8, 256, "columns", False),
        ((2,), 8, 512, "before", False),
        ((16,), 512, 512, "columns", False),
        ((32,), 512, 512, "before", False),
        ((), 8, 50, "columns", False),
        ((), 64, 50, "columns", False),
        ((), 64, 32, "before", False),
        ((), 8, 130, "before", False),
        ((), 8, 2048, "columns", False),
    ],
)
def test_the_plan_has_one_strategy_per_shape_on_a_cpu_and_before_elsewhere(
    monkeypatch, batch, inputs, units, strategy, flat
):
    h0, cell = jnp.zeros((*batch, units)), zero_cell(inputs, units)
    assert make_plan(cell, h0, 10) == Plan(strategy, 10, flat)
    noise = np.zeros(())
    assert make_plan(cell._replace(noise=noise), h0, 10) == Plan("before", 10, flat)
    thin = LowRank(np.zeros((units, 1)), np.zeros((units, 1)))
    assert make_plan(cell._replace(w_hh=thin), h0, 10) == Plan("before", 10, flat)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert make_plan(cell, h0, 10) == Plan("before", 10)


@pytest.mark.parametrize(("units", "older"), [(16, "joined"), (32, "joined"), (64, "before")])
def test_one_sequence_has_another_strategy_before_jax_0_12(monkeypatch, units, older):
    for two_are_fast, strategy in [(True, "inside"), (False, older)]:
        monkeypatch.setattr(plan, "_TWO_PRODUCTS_ARE_FAST", two_are_fast)
        assert make_plan(zero_cell(8, units), jnp.zeros(units), 10) == Plan(strategy, 10)


def test_an_activation_may_depend_on_the_unit(key):
    units = 8
    gains = np.linspace(0.1, 1, units)

    def scaled(a):
        return jnp.broadcast_to(gains, a.shape) * jnp.tanh(a)

    params = draw_rnn(key, D, units)
    h0, xs = jax.random.normal(key, (B, units)), jax.random.normal(key, (T, B, D))
    assert make_plan(zero_cell(D, units), h0, T).flat
    cotangents = random_like(key, (h0, jnp.zeros((T, B, units))))
    got, expected = (
        both(unroll, activation=scaled)((params, h0, xs), None, None, cotangents)
        for unroll in (jaxrnn.unroll, jaxrnn.unroll_plain)
    )
    assert_close(got, expected, length=T * B * units)


def zero_cell(inputs, units):
    return Cell(np.zeros((units, inputs)), np.zeros((units, units)), None, None, None, None)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_the_dtype_is_kept_and_low_precision_is_as_good_as_its_states(
    key, monkeypatch, dtype, strategy
):
    choose_strategy(monkeypatch, strategy, flat=strategy in ("before", "joined"))
    arguments, mask, resets, cotangents = draw(key, dtype=jnp.float64)
    arguments, cotangents = jax.tree.map(lambda a: a.astype(dtype), (arguments, cotangents))
    got = both(jaxrnn.unroll, chunk_size=4)(arguments, mask, resets, cotangents)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(got))
    exact = jax.tree.map(lambda a: a.astype(jnp.float64), (arguments, cotangents))
    expected = both(jaxrnn.unroll_plain)(exact[0], mask, resets, exact[1])
    # Products accumulate in float32; what is rounded to `dtype` is one state a step.
    assert_close(got, expected, length=T)


def test_products_of_bfloat16_accumulate_in_float32():
    units = 2048
    params = jaxrnn.RNNParams(
        jnp.zeros((units, 1), jnp.bfloat16), jnp.ones((units, units), jnp.bfloat16)
    )
    h0 = jnp.full((units,), 2.0**-9, jnp.bfloat16)
    h, _ = jaxrnn.unroll(params, h0, jnp.zeros((1, 1), jnp.bfloat16), activation=jax.nn.identity)
    assert (h == units * 2.0**-9).all()  # 2048 terms: in bfloat16 the sum would stop growing


def test_one_trace_serves_a_thousand_calls(key):
    (params, h0, xs), _, _, _ = draw(key)
    traces = []

    @jax.jit
    def run(params, h0, xs):
        traces.append(None)
        return jaxrnn.unroll(params, h0, xs)

    for _ in range(1000):
        h0, _ = run(params, h0, xs)
    assert len(traces) == 1
    assert jnp.isfinite(h0).all()


@pytest.mark.parametrize("options", [{}, {"chunk_size": 5}, {"chunk_size": 5, "reverse": True}])
@pytest.mark.parametrize("differentiate", [False, True])
def test_the_program_does_not_grow_with_the_length(options, differentiate):
    def count(jaxpr):
        inner = [
            p for e in jaxpr.eqns for p in jax.tree.leaves(list(e.params.values())) if is_jaxpr(p)
        ]
        return len(jaxpr.eqns) + sum(count(getattr(p, "jaxpr", p)) for p in inner)

    def is_jaxpr(p):
        return hasattr(getattr(p, "jaxpr", p), "eqns")

    def equations(steps):
        params = draw_rnn(jax.random.key(0), D, H)

        def total(params, xs):
            return jnp.sum(jaxrnn.unroll(params, None, xs, **options)[1])

        function = jax.grad(total) if differentiate else total
        return count(jax.make_jaxpr(function)(params, jnp.zeros((steps, D))).jaxpr)

    assert equations(10) == equations(10_000) > 0


def test_only_the_states_are_stored_for_the_backward_pass(key):
    (params, h0, xs), _, _, _ = draw(key)
    _, pull = jax.vjp(lambda p: jaxrnn.unroll(p, h0, xs), params)
    stored = [leaf.shape for leaf in jax.tree.leaves(pull) if leaf.size >= T * B * H]
    assert sorted(stored) == sorted([(T, B, H)] * len(stored))
    assert len(stored) <= 2  # the states, and the states before


def test_asking_for_the_last_state_alone_needs_memory_that_does_not_grow_with_the_length(key):
    net = jaxrnn.chunked(
        jaxrnn.stack(jaxrnn.vanilla_rnn(D, 64), jaxrnn.vanilla_rnn(64, 64), jaxrnn.dense(64, 1)),
        128,
    )
    # 64 units multiply their inputs inside each step, 96 before all of them.
    layers = [jaxrnn.vanilla_rnn(D, units) for units in (64, 96)]

    def temporary_bytes(layer, steps):
        params = layer.init(key)
        xs = jax.ShapeDtypeStruct((steps, 8, D), jnp.float32)
        last = jax.jit(lambda params, xs: layer.unroll(params, None, xs)[0])
        return last.lower(params, xs).compile().memory_analysis().temp_size_in_bytes

    for network in (*layers, net):
        short, long = (temporary_bytes(network, steps) for steps in (4096, 16384))
        inputs = 4 * 8 * D * (16384 - 4096)
        assert long - short <= inputs  # of which there may be a copy, and nothing else
        assert long < 4 * 8 * 64 * 4096  # all states of the shorter sequence


def test_hessian_jacfwd_and_vmap_of_grad_through_a_masked_reversed_stack(key):
    net = jaxrnn.stack(
        jaxrnn.vanilla_rnn(1, 3, dtype=jnp.float64), jaxrnn.vanilla_rnn(3, 2, dtype=jnp.float64)
    )
    params = net.init(key)
    xs = jax.random.normal(key, (6, 4, 1))
    mask = jaxrnn.mask_from_lengths([6, 3, 0, 1], 6)

    def loss(params, xs, mask):
        return jnp.sum(net.unroll(params, None, xs, mask=mask, reverse=True)[1] ** 2)

    hessian = jax.jit(jax.hessian(loss))(params, xs, mask)
    matrix = hessian[0].w_hh[0].w_hh.reshape(9, 9)
    assert_close(matrix, matrix.T, length=6 * 4 * 9)
    assert np.abs(matrix).max() > 1e-3
    forward, reverse = (jax.jit(j(loss))(params, xs, mask) for j in (jax.jacfwd, jax.jacrev))
    assert_close(forward, reverse, length=6 * 4 * 9)
    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 1, 1)))(params, xs, mask)
    assert_close(jax.tree.map(lambda g: g.sum(0), each), reverse, length=6 * 4 * 9)

"""Reservoirs: readouts against least squares in NumPy float64, rows in pieces, and the search."""

import functools
import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import initializers, reservoir
from jaxrnn.host import use_cpu_devices
from jaxrnn.sharding import data_mesh
from tests.support.checks import assert_close, assert_identical
from tests.support.processes import run_alone

T, B, D, H, OUT = 30, 3, 2, 6, 2
LENGTH = T * B * (1 + H + OUT)
PENALTIES = [1e-6, 0.1, 10.0, 1e4]
fit_ridge = jax.jit(reservoir.ridge_readout, static_argnums=2)


def rnn(**options):
    return reservoir.echo_state_network(D, H, **{"leak": 0.5, "dtype": np.float64, **options})


def draw(seed=0, steps=T):
    """Inputs [T, B, D] and targets [T, B, O] whose mean is not 0."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(steps, B, D)), 3 + rng.normal(size=(steps, B, OUT))


@functools.cache
def gather(layer, **options):
    """`gather_statistics` of a layer, compiled."""
    return jax.jit(functools.partial(reservoir.gather_statistics, layer, **options))


def as_rows(ys, targets):
    rows = np.concatenate([np.ones((*ys.shape[:-1], 1)), ys, targets], axis=-1, dtype=np.float64)
    return rows.reshape(-1, rows.shape[-1])


def solve(rows, penalty, num_targets=OUT):
    """(w, b) by least squares of the rows below which the penalty stands, as rows whose targets are
    0, without an entry for the intercept."""
    x, y = rows[:, :-num_targets], rows[:, -num_targets:]
    ridge = np.sqrt(penalty) * np.eye(x.shape[1])[1:]
    x, y = np.concatenate([x, ridge]), np.concatenate([y, np.zeros((len(ridge), num_targets))])
    solution = np.linalg.lstsq(x, y, rcond=None)[0]
    return solution[1:].T, solution[0]


def mean_squared_error(rows, w, b):
    features, num_targets = w.shape[1], w.shape[0]
    outputs = rows[:, 1 : 1 + features] @ np.asarray(w, np.float64).T + np.asarray(b, np.float64)
    return np.mean((outputs - rows[:, -num_targets:]) ** 2)


def assert_holds(statistics, rows):
    """The factor is triangular, and its products are those of the rows."""
    factor = np.asarray(statistics.factor)
    assert not np.tril(factor, -1).any()
    assert_close(factor.T @ factor, rows.T @ rows, length=LENGTH)
    assert statistics.num_rows == len(rows)


# Readouts


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_readout_is_that_of_least_squares_with_a_penalty_on_all_but_the_intercept(penalty):
    features, targets = np.random.default_rng(0).normal(2, 1, size=(T, H)), draw()[1][:, 0]
    rows = as_rows(features, targets)
    empty = reservoir.init_statistics(H, OUT, np.float64)
    readout = fit_ridge(reservoir.add_rows(empty, features, targets), penalty, OUT)
    w, b = solve(rows, penalty)
    # Features are 2 on average: the intercept is exact to the rounding of what cancels in it.
    assert_close(readout.params, jaxrnn.DenseParams(w, b), length=LENGTH)
    assert_close(readout.errors, mean_squared_error(rows, w, b)[None], length=LENGTH)
    assert readout.penalty == penalty
    if penalty == PENALTIES[-1]:  # of a penalty on it nothing would be left
        assert np.abs(w).max() < 0.01
        assert np.abs(readout.params.b - targets.mean(0)).max() < 0.01


def test_the_penalty_is_that_of_the_least_validation_error_and_errors_are_those_of_outputs():
    rng = np.random.default_rng(1)
    w = rng.normal(size=(OUT, 20))
    parts = []
    for count in (25, 40):
        features = rng.normal(size=(count, 20))
        parts.append((features, features @ w.T + 5 + 2 * rng.normal(size=(count, OUT))))
    empty = reservoir.init_statistics(20, OUT, np.float64)
    train, validation = (reservoir.add_rows(empty, *part) for part in parts)
    penalties = np.array([1e-8, 1e-2, 10, 1e3, 1e6])
    readout = fit_ridge(train, penalties, OUT, validation=validation)
    rows, others = (as_rows(*part) for part in parts)
    solutions = [solve(rows, penalty) for penalty in penalties]
    expected = np.array([mean_squared_error(others, *each) for each in solutions])
    assert_close(readout.errors, expected, length=25 * 23)
    assert_close(readout.params, jaxrnn.DenseParams(*solutions[2]), length=25 * 23)
    assert np.argmin(expected) == 2
    assert np.argmin([mean_squared_error(rows, *each) for each in solutions]) == 0
    assert readout.penalty == penalties[2]


def mackey_glass(steps, tau=17, substeps=10):
    """Mackey & Glass 1977, by Euler's method, [T, 1]."""
    delay = tau * substeps
    x = np.full(delay + steps * substeps, 1.2)
    for t in range(delay, len(x) - 1):
        late = x[t - delay]
        x[t + 1] = x[t] + (0.2 * late / (1 + late**10) - 0.1 * x[t]) / substeps
    return x[delay::substeps, None] - 0.9


def test_float32_keeps_the_precision_that_sums_of_products_lose():
    series, penalty, rows = mackey_glass(2701), 1e-10, slice(100, 2000)
    xs, targets = series[:-1], series[1:]
    layer = reservoir.echo_state_network(1, 100)
    params = layer.init(jax.random.key(0))

    def run(dtype):
        own = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        return layer.unroll(own, None, xs.astype(dtype))[1]

    ys, exact = run(np.float32), run(np.float64)

    def error(w, b, ys):
        """On the steps that were not fitted."""
        return np.sqrt(mean_squared_error(as_rows(ys, targets)[2000:], w, b))

    given = (each[:2000].astype(np.float32) for each in (xs, targets))
    _, readout = reservoir.fit_readout(layer, params, *given, penalties=penalty, washout=100)
    assert {leaf.dtype for leaf in readout.params} == {np.dtype(np.float32)}
    got = error(*readout.params, ys)
    expected = error(*solve(as_rows(exact, targets)[rows], penalty, 1), exact)
    assert got < 1.5 * expected

    plain = as_rows(ys, targets)[rows, 1:].astype(np.float32)
    means = plain.mean(0)
    x, y = np.split(plain - means, [100], axis=1)
    w = np.linalg.solve(x.T @ x + np.float32(penalty) * np.eye(100, dtype=np.float32), x.T @ y).T
    assert error(w, means[-1:] - w @ means[:-1], ys) > 3 * got


# Rows


def in_one_go(layer, params, xs, targets):
    return gather(layer)(params, None, xs, targets)


def in_chunks(size, layer, params, xs, targets):
    return gather(layer, chunk_size=size)(params, None, xs, targets)


def in_two_calls(layer, params, xs, targets):
    state, statistics = gather(layer)(params, None, xs[:11], targets[:11])
    return gather(layer)(params, state, xs[11:], targets[11:], statistics=statistics)


def of_each_sequence(layer, params, xs, targets):
    one = functools.partial(reservoir.gather_statistics, layer, params, None)
    state, parts = jax.vmap(one, in_axes=1)(xs, targets)
    return state, reservoir.merge_statistics(parts)


def with_two_batch_axes(layer, params, xs, targets):
    state, statistics = gather(layer)(params, None, xs[:, None], targets[:, None])
    return state[0], statistics


def of_outputs(layer, params, xs, targets):
    state, ys = layer.unroll(params, None, xs)
    some = reservoir.add_rows(reservoir.init_statistics(H, OUT, np.float64), ys[7:], targets[7:])
    return state, reservoir.add_rows(some, ys[:7], targets[:7])


ROUTES = {
    "in one go": in_one_go,
    "in chunks of 1": functools.partial(in_chunks, 1),
    "in chunks of 7": functools.partial(in_chunks, 7),
    "in chunks of 99": functools.partial(in_chunks, 99),
    "in two calls": in_two_calls,
    "of each sequence, merged": of_each_sequence,
    "with two batch axes": with_two_batch_axes,
    "of outputs": of_outputs,
}
LAYER = rnn()


@functools.cache
def unrolled():
    params = LAYER.init(jax.random.key(0))
    return params, *LAYER.unroll(params, None, draw()[0])


@pytest.mark.parametrize("route", ROUTES)
def test_by_every_route_the_rows_and_the_readout_are_those_of_outputs_and_targets(route):
    params, state, ys = unrolled()
    last, statistics = ROUTES[route](LAYER, params, *draw())
    assert_close(last, state, length=T * H)
    rows = as_rows(ys, draw()[1])
    assert_holds(statistics, rows)
    readout = fit_ridge(statistics, 0.1, OUT)
    assert_close(readout.params, jaxrnn.DenseParams(*solve(rows, 0.1)), length=LENGTH)


def test_masked_and_first_steps_are_no_rows_and_what_stands_there_changes_no_bit():
    params, washout = unrolled()[0], 4
    xs, targets = draw()
    mask = np.random.default_rng(2).random((T, B)) < 0.7
    mask[:, 0] = True
    counted = mask & (np.arange(T)[:, None] >= washout)
    run = gather(LAYER, washout=washout, chunk_size=8)

    def fit(fill):
        given = np.where(mask[..., None], xs, fill), np.where(counted[..., None], targets, fill)
        state, statistics = run(params, None, *given, mask=mask)
        return state, statistics, fit_ridge(statistics, 0.1, OUT)

    clean = fit(0.0)
    state, ys = LAYER.unroll(params, None, xs, mask=mask)
    assert_close(clean[0], state, length=T * H)
    assert_holds(clean[1], as_rows(ys, targets)[counted.ravel()])
    for poison in (np.nan, np.inf, 1e30):
        assert_identical(fit(poison), clean)


def test_fit_readout_runs_on_into_the_validation_rows():
    params, state, ys = unrolled()
    xs, targets = draw()
    last, readout = reservoir.fit_readout(
        LAYER,
        params,
        xs[:20],
        targets[:20],
        penalties=PENALTIES,
        validation=(xs[20:], targets[20:]),
        washout=3,
    )
    assert_close(last, state, length=T * H)
    fitted, others = as_rows(ys[3:20], targets[3:20]), as_rows(ys[20:], targets[20:])
    errors = [mean_squared_error(others, *solve(fitted, penalty)) for penalty in PENALTIES]
    assert_close(readout.errors, np.array(errors), length=LENGTH)


def test_gathering_holds_outputs_of_one_chunk_and_not_of_all_steps():
    layer = reservoir.echo_state_network(1, 100)
    params = jax.eval_shape(layer.init, jax.random.key(0))

    def temporary_bytes(steps):
        series = jax.ShapeDtypeStruct((steps, 1), jnp.float32)
        program = jax.jit(functools.partial(reservoir.gather_statistics, layer, chunk_size=400))
        compiled = program.lower(params, None, series, series).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    grown = temporary_bytes(16_000) - temporary_bytes(4_000)
    assert grown <= 12_000 * (4 + 4 + 2)  # copies of inputs, targets and flags; outputs have 400


# Networks


def test_mapping_over_settings_and_keys_equals_a_loop():
    xs, targets = draw()

    def fit(key, radius, leak, input_scale):
        layer = rnn(radius=radius, leak=leak, input_scale=input_scale)
        params = layer.init(key)
        state, statistics = reservoir.gather_statistics(layer, params, None, xs, targets)
        factor, readout = statistics.factor, reservoir.ridge_readout(statistics, 0.1, OUT)
        return params, state, factor.T @ factor, readout.params, readout.errors

    keys = jax.random.split(jax.random.key(1), 3)
    settings = np.array([[0.2, 0.9, 1.4], [0.3, 0.8, 1.0], [0.1, 1.0, 2.0]])
    mapped = jax.jit(jax.vmap(fit))(keys, *settings)
    alone = jax.jit(fit)
    for place, key in enumerate(keys):
        got = jax.tree.map(lambda leaf, at=place: leaf[at], mapped)
        assert_close(got, alone(key, *settings[:, place]), length=LENGTH)


WIRINGS = {
    "dense": ({}, 1e-5),
    "ring": ({"w_hh_init": initializers.ring()}, 1e-5),
    "fan_in": ({"fan_in": 8}, 0.02),  # "to about 1 %"
}


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_network_begins_with_the_radius_and_within_the_scales_asked_for(key, wiring):
    options, within = WIRINGS[wiring]
    layer = reservoir.echo_state_network(
        5, 200, radius=1.3, input_scale=0.25, bias_scale=0.5, dtype=np.float64, **options
    )
    params = layer.init(key)
    w = params.w_hh.dense() if wiring == "fan_in" else params.w_hh
    radius = np.abs(np.linalg.eigvals(np.asarray(w))).max()
    assert abs(radius / 1.3 - 1) <= within
    for drawn, scale in ((params.w_ih, 0.25), (params.b, 0.5)):
        largest = np.abs(drawn).max()
        assert 0.9 * scale < largest <= scale
        assert abs(np.mean(drawn)) <= 5 * scale / np.sqrt(3 * drawn.size)
    assert len({leaf.dtype for leaf in (params.w_ih, w, params.b)}) == 1
    assert layer.init(key).w_ih.dtype == np.float64


def test_a_network_of_fixed_fan_in_is_that_of_its_dense_matrix(key):
    layer = reservoir.echo_state_network(D, 50, fan_in=4, leak=0.3, dtype=np.float64)
    params = layer.init(key)
    assert isinstance(params.w_hh, jaxrnn.FixedFanIn)
    assert params.w_hh.values.shape == (50, 4)
    xs = draw()[0]
    dense = params._replace(w_hh=params.w_hh.dense())
    assert_close(layer.unroll(params, None, xs), layer.unroll(dense, None, xs), length=T * 50)


# The search


def search_data():
    t = np.arange(201)[:, None] * np.array([0.11, 0.17])
    series = np.sin(t) + np.cos(3 * t[:, ::-1])
    xs, targets = series[:-1], series[1:]
    return (xs[:140], targets[:140]), (xs[140:], targets[140:])


TRIALS = 32
PENALIZED = {"penalties": [1e-2, 1.0], "washout": 20}
RANGES = {"radius": (0.1, 1.5), "leak": (0.25, 0.5), "input_scale": (1e-3, 1e3)}


def run_search(**options):
    """With penalties that are large enough for errors to be exact to rounding."""
    given = {"num_trials": TRIALS, "bias_scale": (0.3, 0.3), "fan_in": 3, **RANGES, **PENALIZED}
    return reservoir.search(jax.random.key(3), 12, *search_data(), **given, **options)


@functools.cache
def searched():
    return run_search()


def test_the_network_found_has_the_least_validation_error_of_all_trials():
    network, params, trials = searched()
    train, validation = search_data()
    errors, best = np.asarray(trials.errors), int(np.argmin(trials.errors))
    assert errors.shape == (TRIALS,)
    assert errors[best] < 0.5 * np.median(errors)  # so that another would be noticed
    state, _ = network.unroll(params, None, train[0])
    ys = network.unroll(params, state, validation[0])[1]
    assert_close(np.mean((np.asarray(ys) - validation[1]) ** 2), errors[best], length=200 * 12)


def test_trials_can_be_made_again_from_their_keys_and_settings():
    _, (params, _), trials = searched()
    train, validation = search_data()
    best = int(np.argmin(trials.errors))

    @jax.jit
    def again(key, setting):
        layer = reservoir.echo_state_network(2, 12, fan_in=3, dtype=np.float64, **setting)
        own = layer.init(key)
        return own, reservoir.fit_readout(layer, own, *train, validation=validation, **PENALIZED)[1]

    for place in (best, (best + 1) % TRIALS):
        setting = {name: values[place] for name, values in trials.settings.items()}
        own, readout = again(trials.keys[place], setting)
        assert_close(readout.errors.min(), trials.errors[place], length=200 * 12)
        assert readout.penalty == trials.penalties[place]
        if place == best:
            assert_close(params, own, length=12)


def test_half_of_the_settings_fill_their_ranges_and_the_others_lie_near_the_best_of_these():
    settings = searched()[2].settings
    np.testing.assert_allclose(settings["bias_scale"], 0.3, rtol=1e-12)
    half = TRIALS // 2
    best = int(np.argmin(searched()[2].errors[:half]))
    for name, (low, high) in RANGES.items():
        shares = np.log(np.asarray(settings[name]) / low) / np.log(high / low)
        assert ((shares >= -1e-12) & (shares <= 1 + 1e-12)).all()
        expected = (np.arange(half) + 0.5) / half
        far = np.abs(np.sort(shares[:half]) - expected).max()
        assert far <= 1.95 / np.sqrt(half)  # Kolmogorov-Smirnov: 0.001
        assert np.abs(shares[half:] - shares[best]).max() <= 0.125 + 1e-12


def assert_same_search(got, expected):
    (_, params, trials), (_, others, expected_trials) = got, expected
    assert_identical(trials.settings, expected_trials.settings)
    assert_identical(trials.penalties, expected_trials.penalties)
    assert_close((params, trials.errors), (others, expected_trials.errors), length=200 * 12)


def search_on_two_devices():
    use_cpu_devices(2)
    mesh = data_mesh()
    assert mesh.size == 2
    assert_same_search(run_search(mesh=mesh, batch_size=5), run_search())


def test_a_search_on_two_devices_a_few_at_a_time_is_that_of_all_at_once(tmp_path):
    run_alone(search_on_two_devices, tmp_path)


# Documentation and bad input


def lorenz(steps, dt=0.02):
    """By a Runge-Kutta method of order 4, with mean 0 and variance 1, [T, 3]."""

    def rate(x):
        return np.array([10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]])

    x, series = np.ones(3), []
    for _ in range(200 + steps):
        k1 = rate(x)
        k2 = rate(x + dt / 2 * k1)
        k3 = rate(x + dt / 2 * k2)
        x = x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + rate(x + dt * k3))
        series.append(x)
    series = np.array(series[200:])
    return (series - series.mean(0)) / series.std(0)


@pytest.mark.usefixtures("as_on_the_command_line")
def test_the_example_of_the_module_forecasts_a_chaotic_series():
    lines = inspect.getdoc(reservoir).split("500 steps:\n")[1].split("\nOn a CPU")[0]
    series = lorenz(8501).astype(np.float32)
    names = {"jax": jax, "jaxrnn": jaxrnn, "xs": jnp.asarray(series)}
    exec(textwrap.dedent(lines), names)
    forecast = np.asarray(names["forecast"])
    assert forecast.shape == (500, 3)
    assert np.abs(forecast).max() < 2 * np.abs(series).max()
    errors = np.sqrt(np.mean((forecast - series[8001:]) ** 2, axis=1))
    assert errors[:25].max() < 0.05  # half a Lyapunov time
    assert names["fitted"].errors.shape == (3,)


def of_size(num_features, num_targets):
    return reservoir.init_statistics(num_features, num_targets)


def gather_with(**bad):
    layer = bad.pop("layer", LAYER)
    xs, targets = draw()
    given = {"xs": xs, "targets": targets, **bad}
    return reservoir.gather_statistics(layer, unrolled()[0], None, **given)


def search_with(**bad):
    data = search_data()
    given = {"train": data[0], "validation": data[1], "num_trials": 2, **bad}
    return reservoir.search(jax.random.key(0), 4, washout=5, **given)


def spoil(pair, value):
    xs, targets = pair
    return xs, np.where(np.arange(len(targets))[:, None] == 30, value, targets)


BAD = [
    (lambda: reservoir.ridge_readout(of_size(3, 1), 0.0, 1), ValueError, "penalties is [0.]"),
    (lambda: reservoir.ridge_readout(of_size(3, 1), -1.0, 1), ValueError, "penalties is [-1.]"),
    (lambda: reservoir.ridge_readout(of_size(3, 1), np.nan, 1), ValueError, "penalties is [nan]"),
    (
        lambda: reservoir.ridge_readout(of_size(3, 1), [1.0, 2.0], 1),
        ValueError,
        "penalties has shape (2,) with validation=None",
    ),
    (
        lambda: reservoir.ridge_readout(of_size(3, 1), [[1.0]], 1, validation=of_size(3, 1)),
        ValueError,
        "penalties has shape (1, 1)",
    ),
    (
        lambda: reservoir.ridge_readout(of_size(3, 1), [1.0], 1, validation=of_size(2, 1)),
        ValueError,
        "validation.factor has shape (4, 4), expected (5, 5)",
    ),
    (lambda: reservoir.ridge_readout(of_size(3, 1), 1.0, 0), ValueError, "num_targets is 0"),
    (
        lambda: reservoir.ridge_readout(of_size(3, 1), 1.0, 4),
        ValueError,
        "the number of features is 0",
    ),
    (lambda: of_size(0, 1), ValueError, "num_features is 0"),
    (lambda: of_size(1, 2.0), TypeError, "num_targets is 2.0"),
    (
        lambda: reservoir.add_rows(of_size(3, 1), np.ones((5, 3)), np.ones((4, 1))),
        ValueError,
        "targets has shape (4, 1), expected (5, 1)",
    ),
    (
        lambda: reservoir.add_rows(of_size(3, 1), np.ones((5, 2)), np.ones((5, 1))),
        ValueError,
        "statistics.factor has shape (5, 5), expected (4, 4)",
    ),
    (
        lambda: reservoir.add_rows(of_size(1, 1), np.ones((5, 1), int), np.ones((5, 1))),
        ValueError,
        "features has dtype int64",
    ),
    (
        lambda: reservoir.merge_statistics(of_size(3, 1)._replace(num_rows=np.ones(2))),
        ValueError,
        "parts.factor has shape (5, 5), expected (2, 5, 5)",
    ),
    (
        lambda: gather_with(targets=draw()[1][:-1]),
        ValueError,
        "targets has shape (29, 3, 2), expected (30, 3, 2)",
    ),
    (lambda: gather_with(targets=np.ones((T, B, OUT), int)), ValueError, "targets has dtype int64"),
    (lambda: gather_with(xs=draw()[0].tolist()), TypeError, "xs is a list"),
    (lambda: gather_with(washout=-1), ValueError, "washout is -1"),
    (lambda: gather_with(washout=2.0), TypeError, "washout is 2.0"),
    (lambda: gather_with(chunk_size=0), ValueError, "chunk_size is 0"),
    (lambda: gather_with(mask=np.ones((B, T), bool)), ValueError, "mask has shape (3, 30)"),
    (lambda: gather_with(layer=3), TypeError, "layer is a int, expected a Layer"),
    (
        lambda: gather_with(layer=jaxrnn.bidirectional(LAYER, LAYER)),
        ValueError,
        "layer is not causal",
    ),
    (lambda: rnn(fan_in=2, w_hh_init=abs), ValueError, "fan_in is 2 beside w_hh_init"),
    (lambda: rnn(fan_in=0), ValueError, "fan_in is 0"),
    (lambda: rnn(radius=0), ValueError, "radius is 0"),
    (lambda: rnn(input_scale=-1), ValueError, "input_scale is -1"),
    (lambda: rnn(bias_scale=np.nan), ValueError, "bias_scale is nan"),
    (lambda: rnn(leak=2.0), ValueError, "leak is 2.0"),
    (lambda: search_with(radius=(1.0, 0.5)), ValueError, "radius is (1.0, 0.5)"),
    (lambda: search_with(leak=(0.0, 0.5)), ValueError, "leak is (0.0, 0.5)"),
    (lambda: search_with(input_scale=(1.0, 2.0, 3.0)), ValueError, "input_scale is (1.0, 2.0, 3"),
    (lambda: search_with(num_trials=0), ValueError, "num_trials is 0"),
    (lambda: search_with(penalties=[0.0]), ValueError, "penalties is [0.]"),
    (lambda: search_with(fan_in=2, w_hh_init=abs), ValueError, "fan_in is 2 beside w_hh_init"),
    (lambda: search_with(train=spoil(search_data()[0], np.nan)), ValueError, "train or validat"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message), caught.value

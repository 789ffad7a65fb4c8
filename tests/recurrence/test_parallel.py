"""Time in parallel equals time in order: values, derivatives, and what is reported of it."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn import Parallel, diagnostics
from jaxrnn.host import use_cpu_devices
from jaxrnn.recurrence import side_by_side
from jaxrnn.recurrence.parallel import choose_num_chunks
from tests.support.checks import assert_close, draw_marks, draw_rnn, random_like
from tests.support.processes import PATIENCE, run_alone, run_together

D, H = 2, 5
FORGETS, REMEMBERS = 0.2, 1.05  # spectral norms of W


def draw(key, steps, batch, norm, masked=False, dtype=jnp.float64, units=H):
    """(params, h0, xs), (mask, resets), cotangents; W is orthogonal times `norm`."""
    keys = jax.random.split(key, 5)
    params = draw_rnn(keys[0], D, units, dtype)
    w_hh = jaxrnn.initializers.orthogonal(norm)(keys[1], (units, units), dtype)
    params = params._replace(w_hh=w_hh)
    h0 = jax.random.normal(keys[1], (*batch, units), dtype)
    xs = jax.random.normal(keys[2], (steps, *batch, D), dtype)
    marks = draw_marks(keys[3], (steps, *batch)) if masked else (None, None)
    outputs = h0, jnp.zeros((steps, *batch, units), dtype)
    return (params, h0, xs), marks, random_like(keys[4], outputs)


def with_gradients(unroll, **options):
    """``(arguments, marks, cotangents) -> outputs, gradients, tangents``, compiled."""

    @jax.jit
    def run(arguments, marks, cotangents):
        def of(arguments):
            return unroll(*arguments, mask=marks[0], resets=marks[1], **options)

        outputs, pull = jax.vjp(of, arguments)
        _, tangents = jax.jvp(of, (arguments,), (jax.tree.map(jnp.cos, arguments),))
        return outputs, pull(cotangents), tangents

    return run


def report_of(arguments, marks, parallel, **options):
    return diagnostics.parallel_report(
        *arguments, mask=marks[0], resets=marks[1], parallel=parallel, **options
    )


@pytest.mark.parametrize(
    ("steps", "batch", "reverse", "activation", "masked"),
    [
        (1280, (), False, jnp.tanh, False),
        (1283, (3,), True, jnp.tanh, True),
        (1281, (), True, jax.nn.silu, False),
        (1280, (2, 2), False, jax.nn.silu, True),
        (1280, (1,), True, jax.nn.relu, False),
        (1281, (1,), False, jnp.tanh, True),
    ],
)
def test_values_and_derivatives_are_those_of_the_steps_in_order(
    key, steps, batch, reverse, activation, masked
):
    parallel = Parallel(5)
    options = {"reverse": reverse, "activation": activation}
    in_parallel = with_gradients(jaxrnn.unroll, parallel=parallel, **options)
    in_order = with_gradients(jaxrnn.unroll_plain, **options)
    for norm in (FORGETS, REMEMBERS):
        arguments, marks, cotangents = draw(key, steps, batch, norm, masked)
        if masked and norm == FORGETS:  # else the probe may find nothing but skipped steps
            marks = marks[0] | (jax.random.uniform(key, marks[0].shape) < 0.5), marks[1]
        got = in_parallel(arguments, marks, cotangents)
        expected = in_order(arguments, marks, cotangents)
        assert_close(got, expected, length=steps * max(arguments[1].size, 1))
        report = report_of(arguments, marks, parallel, **options)
        if norm == FORGETS:
            assert report.agreed
            assert report.sweeps == 2
            assert 2 <= report.mended < steps // 5
            assert (report.residuals <= 32 * jnp.finfo(jnp.float64).eps).all()
        elif not masked:
            assert not report.forgets
            assert not report.agreed
            assert report.sweeps == 0


@pytest.mark.parametrize("steps", [60, 61])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("decay", "sweeps", "agreed"), [(0.05, 2, True), (0.3, 3, True), (1.0, 3, False)]
)
def test_what_does_not_agree_in_one_chunk_takes_more_sweeps_and_then_runs_in_order(
    key, steps, reverse, decay, sweeps, agreed
):
    def step(h, x):
        return decay * h + x

    xs = jax.random.normal(key, (steps, 3))
    h0 = jax.random.normal(key, (3,))
    run = functools.partial(
        side_by_side.run_side_by_side, step, step_in_order=step, reverse=reverse
    )
    last, states, report = run(h0, xs, 4, forgets=jnp.array(True))
    expected = jax.lax.scan(lambda h, x: (step(h, x),) * 2, h0, xs, reverse=reverse)
    assert_close((last, states), expected, length=steps)
    assert report.sweeps == sweeps
    assert report.agreed == agreed


def test_nan_in_the_inputs_is_found_and_not_taken_for_agreement(key):
    arguments, _, _ = draw(key, 1280, (), FORGETS)
    for steps in (slice(300, None), slice(300, 301)):
        xs = arguments[2].at[steps].set(jnp.nan)
        h, hs = jaxrnn.unroll(*arguments[:2], xs, parallel=Parallel(5))
        assert jnp.isnan(hs[300:]).all()
        assert jnp.isnan(h).all()
        assert_close(hs[:300], jaxrnn.unroll(*arguments)[1][:300], length=1280)


def test_second_derivatives_are_those_of_the_steps_in_order(key):
    (params, h0, xs), _, _ = draw(key, 1280, (), FORGETS)

    def energy(unroll, w, h0):
        h_last, hs = unroll(params._replace(w_hh=w), h0, xs)
        return jnp.sum(h_last**2) + jnp.sum(jnp.sin(hs))

    in_parallel = functools.partial(jaxrnn.unroll, parallel=Parallel(5))
    for transform in (jax.hessian, lambda f, **k: jax.jacrev(jax.grad(f, **k), **k)):
        got, expected = (
            jax.jit(transform(functools.partial(energy, unroll), argnums=0))(params.w_hh, h0)
            for unroll in (in_parallel, jaxrnn.unroll_plain)
        )
        assert_close(got, expected, length=1280 * H**2)


def test_networks_are_mapped_over_also_where_some_forget_and_some_do_not(key):
    (params, h0, xs), _, (_, cotangent) = draw(key, 1280, (), FORGETS)
    several = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), params)
    several = several._replace(w_hh=several.w_hh * jnp.array([1, 4.0])[:, None, None])

    def gradient(unroll):
        def one(params):
            hs, pull = jax.vjp(lambda params: unroll(params, h0, xs)[1], params)
            return hs, *pull(cotangent)

        return jax.jit(jax.vmap(one))(several)

    got = gradient(functools.partial(jaxrnn.unroll, parallel=Parallel(5)))
    assert_close(got, gradient(jaxrnn.unroll_plain), length=1280 * H)


def test_float32_differs_by_no_more_than_the_tolerance(key):
    arguments, marks, cotangents = draw(key, 9600, (), 0.9, dtype=jnp.float32)
    got = with_gradients(jaxrnn.unroll, parallel=Parallel())(arguments, marks, cotangents)
    exact = jax.tree.map(lambda a: a.astype(jnp.float64), (arguments, cotangents))
    expected = with_gradients(jaxrnn.unroll_plain)(exact[0], marks, exact[1])
    assert_close(got, expected, length=9600)
    assert report_of(arguments, marks, Parallel()).agreed


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_sequence_shorter_than_its_chunks_is_run(key, steps):
    arguments, marks, cotangents = draw(key, steps, (2,), FORGETS)
    got = with_gradients(jaxrnn.unroll, parallel=Parallel(5))(arguments, marks, cotangents)
    expected = with_gradients(jaxrnn.unroll_plain)(arguments, marks, cotangents)
    assert_close(got, expected, length=steps * 2)


@pytest.mark.parametrize(
    ("backend", "batch", "units", "steps", "expected"),
    [
        ("cpu", (), 64, 9600, 1),
        ("cpu", (), 65, 9600, 16),
        ("cpu", (1, 1), 128, 9600, 16),
        ("cpu", (2,), 256, 9600, 1),
        ("cpu", (4,), 512, 9600, 16),
        ("cpu", (5,), 512, 9600, 1),
        ("cpu", (), 128, 500, 5),
        ("cpu", (), 128, 63, 1),
        ("gpu", (), 64, 100_000, 250),  # a divisor near T / 256
        ("gpu", (32,), 512, 9600, 32),
        ("gpu", (), 64, 255, 1),
    ],
)
def test_the_number_of_chunks_follows_the_platform_the_batch_and_the_width(
    monkeypatch, backend, batch, units, steps, expected
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    h0 = jax.ShapeDtypeStruct((*batch, units), jnp.float32)
    assert choose_num_chunks(Parallel(), steps, h0) == expected
    assert choose_num_chunks(Parallel(3), steps, h0) == 3


def test_where_one_chunk_is_chosen_the_program_is_the_one_without_the_option(key):
    arguments, _, _ = draw(key, 640, (), FORGETS)
    texts = [
        str(jax.make_jaxpr(functools.partial(jaxrnn.unroll, parallel=parallel))(*arguments))
        for parallel in (None, Parallel())
    ]
    assert re.sub("0x[0-9a-f]+", "", texts[0]) == re.sub("0x[0-9a-f]+", "", texts[1])


# Over devices: a process has a fixed number of them


def split_time(reverse):
    use_cpu_devices(2)
    key = jax.random.key(0)
    mesh = jax.make_mesh((2,), ("time",), axis_types=(AxisType.Auto,))
    parallel = Parallel(5, axis_name="time")
    for norm in (FORGETS, REMEMBERS):
        (params, h0, xs), (mask, resets), (ct_last, ct) = draw(key, 2560, (2,), norm, masked=True)
        marks = mask | (jax.random.uniform(key, mask.shape) < 0.8), resets
        if norm == REMEMBERS:  # after a reset nothing is remembered
            marks = jnp.ones_like(mask), jnp.zeros_like(resets)

        def run(params, h0, xs, marks, ct_last, ct, unroll=None):
            def of(params, h0, xs):
                return unroll(params, h0, xs, mask=marks[0], resets=marks[1], reverse=reverse)

            outputs, pull = jax.vjp(of, params, h0, xs)
            return outputs, pull((ct_last, ct))

        def agreed(params, h0, xs, marks):
            options = {"mask": marks[0], "resets": marks[1], "reverse": reverse}
            return diagnostics.parallel_report(params, h0, xs, parallel=parallel, **options).agreed[
                None
            ]

        in_parallel = functools.partial(jaxrnn.unroll, parallel=parallel)
        specs = (P(), P(), P("time"), (P("time"),) * 2)
        mapped = jax.shard_map(
            functools.partial(run, unroll=in_parallel),
            mesh=mesh,
            in_specs=(*specs, P(), P("time")),
            out_specs=((P(), P("time")), (P(), P(), P("time"))),
        )
        arguments = (params, h0, xs, marks, ct_last, ct)
        asked = jax.shard_map(agreed, mesh=mesh, in_specs=specs, out_specs=P("time"))
        assert jax.jit(asked)(*arguments[:4]).tolist() == [norm == FORGETS] * 2
        expected = jax.jit(functools.partial(run, unroll=jaxrnn.unroll_plain))(*arguments)
        got = jax.device_get(jax.jit(mapped)(*arguments))
        assert_close(got, jax.device_get(expected), length=2560 * 2 * H, what=norm)


@pytest.mark.every_version
@pytest.mark.parametrize("reverse", [False, True])
def test_time_split_over_two_devices_gives_the_values_and_gradients_of_one(tmp_path, reverse):
    run_alone(split_time, tmp_path, reverse)


def split_time_over_processes(rank, port, folder):
    use_cpu_devices(2)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
    mesh = jax.make_mesh((4,), ("time",), axis_types=(AxisType.Auto,))
    arguments, _, (_, ct) = draw(jax.random.key(0), 2560, (2,), FORGETS)

    def gradient(params, h0, xs, ct):
        def of(params, h0, xs):
            return jaxrnn.unroll(params, h0, xs, parallel=Parallel(axis_name="time"))[1]

        hs, pull = jax.vjp(of, params, h0, xs)
        return jnp.sum(hs * ct)[None], pull(ct)[:2]

    specs = P(), P(), P("time"), P("time")
    placed = [
        jax.tree.map(lambda leaf, spec=spec: jax.device_put(leaf, NamedSharding(mesh, spec)), leaf)
        for leaf, spec in zip((*arguments, ct), specs, strict=True)
    ]
    mapped = jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=(P("time"), P()))
    parts, gradients = jax.jit(mapped)(*placed)
    own = [float(np.asarray(part.data)[0]) for part in parts.addressable_shards]
    leaves = [np.asarray(leaf.addressable_data(0)) for leaf in jax.tree.leaves(gradients)]
    np.savez(f"{folder}/{rank}.npz", *leaves, parts=own)


def test_time_split_over_two_processes_gives_the_values_and_gradients_of_one(tmp_path):
    with run_together(split_time_over_processes, tmp_path) as workers:
        for worker in workers:
            output = worker.communicate(timeout=PATIENCE)[0]
            assert worker.returncode == 0, output
    arguments, _, (_, ct) = draw(jax.random.key(0), 2560, (2,), FORGETS)
    hs, pull = jax.vjp(lambda *given: jaxrnn.unroll_plain(*given)[1], *arguments)
    leaves = jax.tree.leaves(pull(ct)[:2])
    parts = np.sum(np.reshape(hs * ct, (4, -1)), axis=1)
    for rank in (0, 1):
        with np.load(tmp_path / f"{rank}.npz") as found:
            got = [found[f"arr_{place}"] for place in range(len(leaves))]
            assert_close(got, leaves, length=2560 * 2 * H)
            assert_close(found["parts"], parts[2 * rank : 2 * rank + 2], length=2560 * 2 * H)


# What is refused, and what is recommended


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"parallel": 8}, TypeError, "parallel is 8, expected a jaxrnn.Parallel"),
        ({"parallel": Parallel(0)}, ValueError, "parallel.num_chunks is 0, expected an int"),
        ({"parallel": Parallel(2.0)}, TypeError, "parallel.num_chunks is 2.0, expected an int"),
        ({"parallel": Parallel(tolerance=-1)}, ValueError, "parallel.tolerance is -1, expected"),
        ({"parallel": Parallel(tolerance=np.ones(()))}, TypeError, "parallel.tolerance is array"),
        ({"parallel": Parallel(axis_name=3)}, TypeError, "parallel.axis_name is 3, expected"),
        ({"parallel": Parallel(), "remat": True}, ValueError, "given with remat=True"),
        (
            {"parallel": Parallel(), "chunk_size": 4},
            ValueError,
            "and chunk_size=4, expected neither",
        ),
    ],
)
def test_bad_options_are_refused_by_the_function_and_the_layer(key, options, error, message):
    arguments, _, _ = draw(key, 4, (), FORGETS)
    with pytest.raises(error, match=message):
        jaxrnn.unroll(*arguments, **options)
    with pytest.raises(error, match=message):
        jaxrnn.vanilla_rnn(D, H, **options)


@pytest.mark.usefixtures("as_on_the_command_line")
def test_the_examples_of_the_docstring_run_as_printed_and_give_the_steps_in_order():
    lines = inspect.getdoc(Parallel).splitlines()
    example = "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)
    example = example.partition("num_chunks:")[0]
    names = {"jax": jax, "jnp": jnp, "jaxrnn": jaxrnn, "P": jax.P}
    exec(example, names)
    layer = jaxrnn.vanilla_rnn(8, 256)
    expected = layer.unroll(names["params"], None, names["xs"])
    assert_close((names["h"], names["hs"]), expected, length=9600)


def test_memory_length_is_that_of_a_linear_network_and_decides_what_is_recommended(key):
    units = 72  # narrower networks run in order
    layer = jaxrnn.vanilla_rnn(D, units, activation=jax.nn.identity, dtype=jnp.float64)
    (params, _, xs), _, _ = draw(key, 6400, (), 0.5, units=units)
    length = int(diagnostics.memory_length(layer, params, None, xs))
    hs = np.asarray(layer.unroll(params, None, xs)[1])
    gap = np.where(np.arange(units) % 2, -1, 1)
    for steps in range(1, length + 1):
        gap = np.asarray(params.w_hh) @ gap
        agrees = np.abs(gap).max() <= 32 * np.finfo(np.float64).eps * np.abs(hs[:steps]).max()
        assert agrees == (steps == length) or abs(steps - length) <= 1  # rounding
    assert diagnostics.recommend_parallel(layer, params, None, xs) == Parallel(16)
    assert diagnostics.recommend_parallel(layer, params, None, xs[: 24 * length]) == Parallel(6)
    assert diagnostics.recommend_parallel(layer, params, None, xs[: 3 * length]) is None
    expanding = params._replace(w_hh=3 * params.w_hh)
    assert diagnostics.memory_length(layer, expanding, None, xs[:50]) == 51
    assert diagnostics.memory_length(layer, params, None, xs[:0]) == 1

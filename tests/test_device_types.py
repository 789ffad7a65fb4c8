"""Inside `jax.shard_map` with its type check on, and on a mesh of explicit axes, everything equals
one device: arrays carry there, in their types, how they are spread over devices.

A process has a fixed number of CPU devices: each test calls a function of this file in a new one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn import diagnostics
from jaxrnn.host import use_cpu_devices
from tests.support.checks import assert_close, draw_marks, draw_rnn, floating_leaves, random_like
from tests.support.layer_registry import TOKENS, one_per_function
from tests.support.processes import run_alone

pytestmark = pytest.mark.every_version

T, B, D, H = 6, 4, 3, 8  # units that the forward scan holds as rows of the whole batch
WHOLE, SPLIT = P(), P(None, "data")
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


def make_mesh(kind):
    return jax.make_mesh((2,), ("data",), axis_types=(kind,))


def in_typed_shard_map(function, specs, out_specs):
    """`function` inside ``jax.shard_map``, whose type check is on by default."""
    mesh = make_mesh(AUTO)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_specs))


def on_explicit_mesh(function, specs, out_specs):
    """`function` of arrays that are sharded over explicit axes; so are its outputs."""
    mesh = make_mesh(EXPLICIT)

    def place(spec, tree):
        return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec)), tree)

    def call(*arguments):
        with jax.set_mesh(mesh):
            arguments = tuple(map(place, specs, arguments))
            result = jax.jit(function)(*arguments)
        for spec, part in zip(out_specs, result, strict=True):
            for leaf in jax.tree.leaves(part):
                got = jax.typeof(leaf).sharding.spec
                assert got == P(*spec, *[None] * (leaf.ndim - len(spec))), (spec, got)
        return result

    return call


WAYS = {"typed shard_map": in_typed_shard_map, "explicit mesh": on_explicit_mesh}
OPTIONS = [
    {},
    {"reverse": True},
    {"activation": jax.nn.silu},
    {"chunk_size": 4},
    {"remat": True, "chunk_size": 2},
]


def compare_unrolls(way):
    key = jax.random.key(0)
    params = draw_rnn(key, D, H)
    h0, xs = jax.random.normal(key, (B, H)), jax.random.normal(key, (T, B, D))
    marks = draw_marks(key, (T, B))
    cotangents = random_like(key, (h0, jnp.zeros((T, B, H))))
    for plain in (False, True):
        for options in OPTIONS[: 3 if plain else None]:
            for mask, resets in (marks, (None, None)):
                unroll = functools.partial(
                    jaxrnn.unroll_plain if plain else jaxrnn.unroll, **options
                )

                def run(params, h0, xs, mask, resets, cotangents, unroll=unroll):
                    outputs, pull = jax.vjp(
                        lambda *a: unroll(*a, mask=mask, resets=resets), params, h0, xs
                    )
                    alone = unroll(params, None, xs, mask=mask, resets=resets)[1]
                    return outputs[0], outputs[1], alone, *pull(cotangents)

                arguments = (params, h0, xs, mask, resets, cotangents)
                # The typed transpose sums the gradient of what is whole over the devices.
                specs = (WHOLE, P("data"), SPLIT, SPLIT, SPLIT, (P("data"), SPLIT))
                outs = (P("data"), SPLIT, SPLIT, WHOLE, P("data"), SPLIT)
                if way == "explicit mesh":
                    arguments = (*arguments[:5], cotangents[1])
                    specs = (*specs[:5], SPLIT)
                    original = run

                    def run(*a, original=original):
                        return original(*a[:5], (jnp.zeros_like(a[1]), a[5]))

                expected = jax.jit(run)(*arguments)
                got = WAYS[way](run, specs, outs)(*arguments)
                assert_close(got, expected, length=T * B * H, what=(way, plain, options))


def compare_layers(way):
    del way  # both, beside one run on one device
    for name, call in one_per_function().items():
        layer, key = call(), jax.random.key(1)
        params = layer.init(key)
        if layer.reads_tokens:
            xs = jax.random.randint(key, (T, B), 0, TOKENS)
        else:
            xs = jax.random.normal(key, (T, B, layer.input_size))
        mask, resets = draw_marks(key, (T, B))
        cotangent = jax.random.normal(key, (T, B, layer.output_size))

        def run(params, xs, mask, resets, cotangent, layer=layer, key=key):
            free, rebuild = floating_leaves(params)

            def outputs(free):
                params = rebuild(free)
                # a device's own key would draw other units: what is random stays out of here
                state, ys = layer.unroll(params, None, xs, mask=mask, resets=resets)
                return ys + layer.step(params, state, xs[0])[1][None] if layer.causal else ys

            ys, pull = jax.vjp(outputs, free)
            return ys, *pull(cotangent)

        arguments = (params, xs, mask, resets, cotangent)
        specs = (WHOLE, *[SPLIT] * 4)
        expected = jax.jit(run)(*arguments)
        for way, spread in WAYS.items():
            got = spread(run, specs, (SPLIT, WHOLE))(*arguments)
            assert_close(got, expected, length=T * B * 10, what=(way, name))


def compare_dropout(way):
    """On an explicit mesh the units that are dropped are those of one device."""
    assert way == "explicit mesh"
    xs, key = jnp.ones((T, B, D)), jax.random.key(2)
    for shared in (False, True):
        layer = jaxrnn.dropout(D, 0.5, shared_over_time=shared)

        def run(xs, layer=layer):
            return (layer.unroll((), None, xs, key=key)[1],)

        got, expected = on_explicit_mesh(run, (SPLIT,), (SPLIT,))(xs), run(xs)
        np.testing.assert_array_equal(got[0], expected[0])
        assert 0 < np.mean(expected[0] == 0) < 1


def compare_training(way):
    layer, key = jaxrnn.deep_rnn((D, H, 2), dtype=jnp.float64), jax.random.key(3)
    xs, ys = jax.random.normal(key, (T, B, D)), jax.random.normal(key, (T, B, 2))
    optimizer = optax.sgd(0.05, momentum=0.9)
    start = jaxrnn.init_train_state(layer.init(key), optimizer, key)

    def train(state, xs, ys):
        def loss_fn(params, batch, key):
            del key
            loss = jnp.mean((layer.unroll(params, None, batch[0])[1] - batch[1]) ** 2)
            return (jax.lax.pmean(loss, "data") if way == "typed shard_map" else loss), {}

        step = jaxrnn.make_train_step(loss_fn, optimizer)
        state, metrics = jaxrnn.train_steps(step, state, lambda key, step: (xs, ys), 5)
        return (state.params, metrics["loss"])

    got = WAYS[way](train, (WHOLE, SPLIT, SPLIT), (WHOLE, WHOLE))(start, xs, ys)
    way = "one device"
    expected = jax.jit(train)(start, xs, ys)
    assert_close(got, expected, length=5 * T * B * H)


def compare_diagnostics(way):
    """Of each sequence of a batch, or from each start, that is split; whole parameters."""
    layer, key = jaxrnn.deep_rnn((D, H, 2), dtype=jnp.float64), jax.random.key(5)
    params = layer.init(key)
    xs = jax.random.normal(key, (B, T, D))
    starts = random_like(key, layer.initial_state(params, (B,)))

    def run(params, xs, starts):
        def each(diagnose, **options):
            return jax.vmap(lambda x: diagnose(layer, params, None, x, **options))(xs)

        def square(state, ys):
            return sum(jnp.sum(leaf**2) for leaf in (*jax.tree.leaves(state), ys))

        def regulariser(params):
            logs = jax.vmap(lambda x: diagnostics.gradient_norms_by_lag(layer, params, None, x))(xs)
            return jnp.sum(jnp.exp(logs))

        points = diagnostics.fixed_points(layer, params, None, starts, num_steps=2)
        return (
            each(diagnostics.state_jacobians),
            each(diagnostics.gradient_norms_by_lag),
            each(diagnostics.gradient_norms_by_lag, loss_fn=square),
            each(diagnostics.jacobian_singular_values),
            each(diagnostics.lyapunov_spectrum, num_exponents=3),
            (points.states, points.speeds, points.converged),
            jax.vmap(lambda x: diagnostics.saturated_fraction(x, threshold=0.5))(xs),
            jax.grad(regulariser)(params),
        )

    outs = (*[P("data")] * 7, WHOLE)
    got = WAYS[way](run, (WHOLE, P("data"), P("data")), outs)(params, xs, starts)
    assert_close(got, jax.jit(run)(params, xs, starts), length=T * B * H**2, what=way)


def shard_hidden_units(way):
    """Weights by rows over a second axis run on automatic axes; on explicit ones they are refused,
    with what to do."""
    assert way == "explicit mesh"
    key = jax.random.key(4)
    params, xs = draw_rnn(key, D, 2 * H), jax.random.normal(key, (T, B, D))
    expected = jaxrnn.unroll(params, None, xs)
    for kind in (AUTO, EXPLICIT):
        mesh = jax.make_mesh((1, 2), ("data", "model"), axis_types=(kind, kind))
        rows = jax.device_put(params, NamedSharding(mesh, P("model")))
        with jax.set_mesh(mesh):
            if kind == AUTO:
                got = jax.jit(jaxrnn.unroll)(rows, None, xs)
                assert_close(got, expected, length=T * H)
                continue
            whole = jax.sharding.reshard(rows, P())
            assert_close(jaxrnn.unroll(whole, None, xs), expected, length=T * H)
            with pytest.raises(ValueError, match=r"params.w_ih is sharded .*'model'.*reshard"):
                jaxrnn.unroll(rows, None, xs)


def split_second_batch_axis(way):
    """Of states [A, B, H] whose second axis is split no rows can be made."""
    key = jax.random.key(5)
    params, xs = draw_rnn(key, D, H), jax.random.normal(key, (T, 3, B, D))

    def run(params, xs):
        hs, pull = jax.vjp(lambda *a: jaxrnn.unroll(a[0], None, a[1])[1], params, xs)
        return hs, *pull(jnp.cos(hs))

    split = P(None, None, "data")
    got = WAYS[way](run, (WHOLE, split), (split, WHOLE, split))(params, xs)
    assert_close(got, jax.jit(run)(params, xs), length=3 * T * B * H, what=way)


TASKS = [compare_unrolls, compare_training, compare_diagnostics, split_second_batch_axis]
EXPLICIT_ALONE = [compare_dropout, shard_hidden_units]
CASES = [(task, way) for task in TASKS for way in WAYS]
CASES += [(task, "explicit mesh") for task in EXPLICIT_ALONE]
CASES += [(compare_layers, "both ways")]


def run_case(task, way):
    use_cpu_devices(2)
    jax.config.update("jax_disable_most_optimizations", True)  # programs that run once
    next(known for known, _ in CASES if known.__name__ == task)(way)


@pytest.mark.parametrize(("task", "way"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_what_arrays_say_of_devices_changes_no_value_and_no_gradient(tmp_path, task, way):
    run_alone(run_case, tmp_path, task.__name__, way)

"""Networks with a leak and with noise under transformations and over devices, and bad options."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn import LowRank
from jaxrnn.host import use_cpu_devices
from tests.support.checks import assert_close
from tests.support.leaky_cells import (
    LENGTH,
    PLAIN,
    B,
    D,
    H,
    assert_agree,
    bind,
    cheap_key,
    differentiated,
    draw,
    quickly,
)
from tests.support.processes import run_alone

pytestmark = pytest.mark.usefixtures("compile_quickly")

NAN = float("nan")


# Transformations and devices


def derivatives(call, marks, key):
    """Functions of the inputs, by the name of what they do with `call`."""

    def of(inputs):
        return call(inputs, marks, key)

    def energy(inputs):
        h, hs = of(inputs)
        return jnp.sum(h**2) + jnp.sum(jnp.sin(hs))

    def over_leaks(inputs):
        *others, leak, noise = inputs
        several = jnp.stack([leak, leak / 2, jnp.ones_like(leak)])
        each = jax.vmap(lambda a, s: jax.value_and_grad(energy)((*others, a, s)))
        return each(several, several * noise[None])

    return {
        "forward mode": jax.jacfwd(of),
        "reverse mode": jax.jacrev(of),
        "hessian": jax.hessian(energy),
        "vmap over leaks and noises": over_leaks,
    }


@pytest.mark.parametrize(
    ("name", "expected", "way"),
    [
        ("forward mode", "reverse mode", "whole"),
        ("reverse mode", "forward mode", "parallel"),
        ("hessian", "hessian", "whole"),
        ("vmap over leaks and noises", "vmap over leaks and noises", "parallel"),
    ],
)
def test_every_transformation_of_a_leaky_network_equals_that_of_the_plain_scan(name, expected, way):
    inputs, marks, _ = draw(0, "per unit", steps=3)
    run = quickly(derivatives(bind(way), marks, cheap_key(0))[name])
    run_plain = quickly(derivatives(bind(PLAIN), marks, cheap_key(0))[expected])
    assert_close(run(inputs), run_plain(inputs), length=LENGTH * H)


WHOLE, ROWS, STEPS = P(), P("data"), P(None, "data")
INPUTS = (WHOLE, ROWS, STEPS, WHOLE, WHOLE)
SPECS = INPUTS, (STEPS, STEPS), (ROWS, STEPS), WHOLE
OUTPUTS = (ROWS, STEPS), INPUTS


def mesh_of(kind, name="data"):
    return jax.make_mesh((2,), (name,), axis_types=(kind,))


def by_spec(function, specs, *trees):
    return jax.tree.map(function, specs, *trees, is_leaf=lambda node: isinstance(node, P))


def join(spec, one, other):
    """What two devices return: parts of an array, or of the sum that is a gradient."""
    if spec == WHOLE:
        return jax.tree.map(np.add, one, other)
    return np.concatenate([one, other], axis=spec.index("data"))


def split_the_batch_over_devices():
    use_cpu_devices(2)
    given, run = (*draw(0, "per unit"), jax.random.key(0)), differentiated(bind("whole"))

    def part(which):
        def cut(spec, tree):
            return tree if spec == WHOLE else np.split(tree, 2, spec.index("data"))[which]

        return jax.device_get(quickly(run)(*by_spec(cut, SPECS, given)))

    options = {"in_specs": SPECS, "out_specs": OUTPUTS, "mesh": mesh_of(AxisType.Auto)}
    got = jax.device_get(quickly(jax.shard_map(run, **options))(*given))
    assert_agree(got, by_spec(join, OUTPUTS, part(0), part(1)))

    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        placed = by_spec(lambda s, a: jax.device_put(a, NamedSharding(mesh, s)), SPECS, given)
        got = jax.device_get(quickly(run)(*placed))
    assert_agree(got, jax.device_get(quickly(run)(*given)))


def split_time_over_devices():
    use_cpu_devices(2)
    (params, h0, xs, leak, noise), _, _ = draw(0, steps=8)

    def run(params, h0, xs, leak, noise, key):
        parallel = jaxrnn.Parallel(axis_name="time")
        return jaxrnn.unroll(params, h0, xs, leak=leak, noise=noise, key=key, parallel=parallel)

    specs = P(), P(), P("time"), P(), P(), P()
    options = {"in_specs": specs, "out_specs": (P(), P("time"))}
    spread = quickly(jax.shard_map(run, mesh=mesh_of(AxisType.Auto, "time"), **options))
    for key in (None, jax.random.key(0)):
        got = jax.device_get(spread(params, h0, xs, leak, noise, key))
        expected = jaxrnn.unroll(params, h0, xs, leak=leak, noise=noise, key=key)
        assert_close(got, jax.device_get(expected), length=LENGTH, what=key)


def test_over_devices_a_batch_draws_as_its_parts_do_and_on_an_explicit_mesh_as_the_whole(
    tmp_path,
):
    run_alone(split_the_batch_over_devices, tmp_path)


def test_time_over_devices_draws_what_one_device_draws(tmp_path):
    run_alone(split_time_over_devices, tmp_path)


# Bad options

WRONG = [
    *({"leak": leak} for leak in (0, 0.0, -0.1, 1.1, NAN, True)),
    *({"leak": np.full(shape, 0.5)} for shape in (H + 1, (1,), (B, H), (H, H))),
    *({"leak": leak} for leak in ("0.5", [0.5] * H, np.array([0.5, 0.5, 0, 0.5]))),
    *({"noise": noise} for noise in (-0.1, NAN, np.inf, True, "0.1", [0.1] * H)),
    *({"noise": np.full(shape, 0.1)} for shape in (H + 1, (1,), (B, H))),
    {"key": 3},
    {"key": np.zeros(2, np.float32)},
    {"key": np.zeros((2, 2), np.uint32)},
]


@pytest.fixture
def compiled():
    """The names of what is compiled from here on."""
    names = []

    def listen(event, duration, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(about["fun_name"])

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def given(function):
    """Good arguments; `device_put` compiles nothing."""
    (params, _, xs, *_), _, _ = draw(0)
    return jax.device_put((params, None, xs[0] if function is jaxrnn.step else xs))


FUNCTIONS = [jaxrnn.unroll, jaxrnn.step]
RAW_KEY = np.zeros(2, np.uint32)


@pytest.mark.parametrize("options", WRONG)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_bad_leak_noise_or_key_is_refused_by_name_before_anything_is_compiled(
    compiled, function, options
):
    ((name, value),) = options.items()
    value = value if isinstance(value, str) else jax.device_put(value)
    with pytest.raises((TypeError, ValueError), match=rf"(?s)^{name} (is|has) .*expected"):
        function(*given(function), **{"key": RAW_KEY, name: value})
    assert not compiled
    if name != "key":
        with pytest.raises((TypeError, ValueError), match=rf"(?s)^{name} (is|has) .*expected"):
            jaxrnn.vanilla_rnn(D, H, **options)


@pytest.mark.parametrize("leak", [0, 1, 1.5, NAN, np.full(H + 1, 0.5), "0.5"])
def test_a_bad_leak_init_is_refused_by_name(key, leak):
    for function in (jaxrnn.vanilla_rnn, lambda *a, **k: jaxrnn.init_rnn(key, *a, **k)):
        with pytest.raises((TypeError, ValueError), match=r"^leak_init (is|has) .*expected"):
            function(D, H, leak_init=leak)


@pytest.mark.parametrize(
    "options", [{"leak": 1.5}, {"leak": np.zeros(H)}, {"noise": -0.1}, {"noise": np.float32(NAN)}]
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_numbers_that_are_known_are_refused_under_jit_too(function, options):
    (name,) = options
    *arguments, xs = given(function)
    with pytest.raises(ValueError, match=f"^{name} is .*expected numbers in"):
        jax.eval_shape(lambda xs: function(*arguments, xs, key=RAW_KEY, **options), xs)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_fixed_leak_beside_a_learned_one_is_refused(function):
    params, *others = given(function)
    with pytest.raises(ValueError, match=r"^leak is given beside params.leak"):
        function(params._replace(leak=np.zeros(H)), *others, leak=0.5)
    with pytest.raises(ValueError, match=r"^leak is given beside leak_init"):
        jaxrnn.vanilla_rnn(D, H, leak=0.5, leak_init=0.5)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"leak": np.zeros(H + 1)}, "params.leak"),
        ({"leak": np.zeros((1,))}, "params.leak"),
        ({"leak": np.zeros(H, int)}, "params.leak"),
        ({"leak": "0"}, "params.leak"),
        ({"w_hh": LowRank(np.ones((H, 2)), np.ones((H, 1)))}, "params.w_hh.n"),
        ({"w_hh": LowRank(np.ones((H + 1, 2)), np.ones((H + 1, 2)))}, "params.w_hh.m"),
        ({"w_hh": LowRank(np.ones(H), np.ones(H))}, "params.w_hh.m"),
        ({"w_hh": LowRank(np.ones((H, 2)), None)}, "params.w_hh.n"),
        ({"w_hh": LowRank(np.ones((H, 2), int), np.ones((H, 2)))}, "params.w_hh.m"),
        ({"w_hh": (np.ones((H, 2)), np.ones((H, 2)))}, "params.w_hh"),
    ],
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_bad_learned_leak_or_matrix_of_low_rank_is_refused_by_name(function, changed, name):
    params, *others = given(function)
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(name)} (is|has) .*expected"):
        function(params._replace(**changed), *others)

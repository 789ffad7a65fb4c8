"""All of JAX works on `unroll`: every transformation, every way to run and every way to shard a
function, by name, with a mask and resets and without. Each gives what the plain scan gives.
"""

import jax
import jax.numpy as jnp
import pytest
from jax import export, lax
from jax.experimental import checkify, jet
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn.host import use_cpu_devices
from tests.support.checks import assert_close, choose_strategy, draw_marks, draw_rnn, random_like
from tests.support.peers import import_peer
from tests.support.processes import run_alone

pytestmark = pytest.mark.usefixtures("compile_quickly")

T, B, D, H = 5, (2, 2), 2, 3
LENGTH = T * 4 * H**2
WHOLE_ONES, MASKED, PARALLEL = "whole", "masked", "masked, in parallel"
SETTINGS = [WHOLE_ONES, pytest.param(MASKED, marks=pytest.mark.every_version)]
in_each_setting = pytest.mark.parametrize("setting", [*SETTINGS, PARALLEL])


def draw(setting, steps=T):
    """((params, h0, xs), (mask, resets), cotangents of the outputs)."""
    keys = jax.random.split(jax.random.key(0), 5)
    h0, xs = jax.random.normal(keys[1], (*B, H)), jax.random.normal(keys[2], (steps, *B, D))
    marks = (None, None) if setting == WHOLE_ONES else draw_marks(keys[3], (steps, *B))
    cotangents = random_like(keys[4], (h0, jnp.zeros((steps, *B, H))))
    return (draw_rnn(keys[0], D, H), h0, xs), marks, cotangents


def bind(unroll, setting, **options):
    """`unroll` or `unroll_plain` as ``call(params, h0, xs, mask, resets)``: forward, or where there
    is a mask in reverse and in chunks."""
    options |= {"reverse": setting != WHOLE_ONES}
    if unroll is jaxrnn.unroll:
        extra = {MASKED: {"chunk_size": 2}, PARALLEL: {"parallel": jaxrnn.Parallel(2)}}
        options |= extra.get(setting, {})
    return lambda *a: unroll(*a[:3], mask=a[3], resets=a[4], **options)


@pytest.fixture(autouse=True)
def strategy(request, monkeypatch):
    """Two strategies whose programs differ most."""
    setting = request.getfixturevalue("setting") if "setting" in request.fixturenames else None
    choose_strategy(
        monkeypatch, "columns" if setting == MASKED else "joined", flat=setting == MASKED
    )


# Derivatives and maps: each equals that of the plain scan


def derivatives(call, marks):
    """Functions of (params, h0, xs), by the name of what they do with `call`."""

    def of(arguments):
        return call(*arguments, *marks)

    def energy(arguments):
        h_last, hs = of(arguments)
        return jnp.sum(h_last**2) + jnp.sum(jnp.sin(hs))

    def energy_of_state(arguments):
        return lambda h0: energy((arguments[0], h0, arguments[2]))

    def pushed(arguments):
        return jax.jvp(of, (arguments,), (jax.tree.map(jnp.cos, arguments),))

    def linearized(arguments):
        outputs, push = jax.linearize(of, arguments)
        return outputs, push(jax.tree.map(jnp.cos, arguments))

    def over_batch(axis):
        axes = (None, axis, axis + 1, *(None if mark is None else axis + 1 for mark in marks))
        return jax.vmap(call, in_axes=axes)

    def over_both(arguments):
        axes = (None, 0, 1, *(None if mark is None else 1 for mark in marks))
        return jax.vmap(jax.vmap(call, in_axes=axes), in_axes=axes)(*arguments, *marks)

    def repeated(arguments):  # a while_loop, which JAX differentiates forward alone
        def turn(carry):
            return carry[0] + 1, of((arguments[0], carry[1][0], arguments[2]))

        return lax.while_loop(lambda carry: carry[0] < 2, turn, (0, of(arguments)))[1]

    def summed(arguments):  # a fori_loop
        params, h0, xs = arguments
        return lax.fori_loop(0, 2, lambda _, e: e + energy((params, e * h0, xs)), jnp.ones(()))

    def one_by_one(arguments):  # a scan over networks
        several = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), arguments[0])
        return jnp.sum(lax.map(lambda p: energy((p, *arguments[1:])), several))

    def chosen(arguments):
        finite = jnp.all(jnp.isfinite(arguments[2]))
        return lax.cond(finite, energy, lambda a: jnp.sum(a[1]), arguments)

    def over_parameters(arguments):
        several = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), arguments[0])
        return jax.vmap(jax.grad(lambda p: energy((p, *arguments[1:]))))(several)

    return {
        "jvp": pushed,
        "vjp": lambda a: jax.vjp(of, a)[1](jax.tree.map(jnp.cos, of(a))),
        "linearize": linearized,
        "jacfwd": jax.jacfwd(of),
        "jacrev": jax.jacrev(of),
        "hessian": jax.hessian(energy),
        "jacrev of jacfwd": jax.jacrev(jax.jacfwd(energy)),
        "jacrev of grad": jax.jacrev(jax.grad(energy)),
        "grad of a jvp": jax.grad(lambda a: sum(map(jnp.sum, pushed(a)[1]))),
        "third derivatives": lambda a: jax.jacfwd(jax.hessian(energy_of_state(a)))(a[1]),
        "third derivatives in reverse": lambda a: jax.jacrev(
            jax.jacrev(jax.grad(energy_of_state(a)))
        )(a[1]),
        "cond": jax.value_and_grad(chosen),
        "fori_loop": jax.value_and_grad(summed),
        "while_loop": lambda a: jax.jvp(repeated, (a,), (jax.tree.map(jnp.cos, a),)),
        "scan": jax.value_and_grad(one_by_one),
        "vmap over a batch axis": lambda a: over_batch(0)(*a, *marks),
        "vmap over the other": lambda a: over_batch(1)(*a, *marks),
        "nested vmap": over_both,
        "vmap over parameters": over_parameters,
        "jacfwd of vmap of grad": lambda a: jax.jacfwd(
            lambda h: jax.vmap(jax.grad(energy_of_state(a)))(h[None])
        )(a[1]),
    }


NAMES = tuple(derivatives(None, (None, None)))
IN_PARALLEL = ("jvp", "vjp", "hessian", "jacrev", "while_loop", "nested vmap")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *((name, WHOLE_ONES) for name in NAMES),
        *(pytest.param(name, MASKED, marks=pytest.mark.every_version) for name in NAMES),
        *((name, PARALLEL) for name in IN_PARALLEL),
    ],
)
def test_every_transformation_equals_that_of_the_plain_scan(name, setting):
    arguments, marks, _ = draw(setting)
    got, expected = (
        jax.jit(derivatives(bind(unroll, setting), marks)[name])(arguments)
        for unroll in (jaxrnn.unroll, jaxrnn.unroll_plain)
    )
    assert_close(got, expected, length=LENGTH, what=name)


@in_each_setting
@pytest.mark.parametrize("name", ["jacrev", "nested vmap"])
def test_transformations_work_without_jit(name, setting):
    arguments, marks, _ = draw(setting)
    run = derivatives(bind(jaxrnn.unroll, setting), marks)[name]
    assert_close(run(arguments), jax.jit(run)(arguments), length=LENGTH, what=name)


@pytest.mark.parametrize("setting", SETTINGS)  # a while loop, of Parallel, has no transpose
def test_linear_transpose_of_a_linear_network_is_its_vjp(setting):
    (params, h0, xs), marks, cotangents = draw(setting)
    params = params._replace(b=None, h0=None)

    def linear(unroll):
        call = bind(unroll, setting, activation=jax.nn.identity)
        return lambda h0, xs: call(params, h0, xs, *marks)

    got = jax.jit(jax.linear_transpose(linear(jaxrnn.unroll), h0, xs))(cotangents)
    expected = jax.vjp(linear(jaxrnn.unroll_plain), h0, xs)[1](cotangents)
    assert_close(got, expected, length=LENGTH)


@pytest.mark.every_version
def test_jet_is_refused_by_the_scan_itself():
    (params, h0, xs), *_ = draw(WHOLE_ONES)
    with pytest.raises((KeyError, NotImplementedError), match="scan"):  # once it can, list it above
        jet.jet(lambda x: jaxrnn.unroll_plain(params, h0, x), (xs,), ([xs],))


# Ways to run: values and gradients are those of the plain scan under ``jit``


def with_gradients(call):
    """``run(arguments, marks, cotangents) -> (outputs, gradients)``."""

    def run(arguments, marks, cotangents):
        outputs, pull = jax.vjp(lambda a: call(*a, *marks), arguments)
        return outputs, *pull(cotangents)

    return run


def under(context):
    """Run inside a context of JAX's configuration."""

    def way(call):
        def run(*a):
            with context():
                return jax.jit(with_gradients(call))(*a)

        return run

    return way


def poisoned(call):
    """``jax.debug_nans`` with NaN in what is padding."""

    def run(arguments, marks, cotangents):
        params, h0, xs = arguments
        if marks[0] is not None:
            xs = jnp.where(marks[0][..., None], xs, jnp.nan)
        return under(lambda: jax.debug_nans(True))(call)((params, h0, xs), marks, cotangents)

    return run


def checked(call):
    def run(*a):
        error, result = jax.jit(checkify.checkify(with_gradients(call), checkify.float_checks))(*a)
        error.throw()
        return result

    return run


def donated(call):
    def run(arguments, marks, cotangents):
        given = jax.tree.map(jnp.copy, arguments)
        result = jax.jit(with_gradients(call), donate_argnums=0)(given, marks, cotangents)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
        return result

    return run


def ahead_of_time(call):
    return lambda *a: jax.jit(with_gradients(call)).lower(*a).compile()(*a)


def exported(call):
    """For three platforms, as bytes, of symbolic sizes T and B; with its gradient."""

    import_peer("flatbuffers")  # of the extra `interop`

    def run(arguments, marks, cotangents):
        t, b, c = export.symbolic_shape("t, b, c")
        params, *others = jax.tree.map(jax.typeof, (*arguments, *marks))
        axes = ((b, c), (t, b, c), (t, b, c), (t, b, c))
        specs = (
            None if leaf is None else leaf.update(shape=(*sizes, *leaf.shape[len(sizes) :]))
            for leaf, sizes in zip(others, axes, strict=True)
        )
        specs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, *specs))
        leaves, structure = jax.tree.flatten(specs)
        program = export.export(
            jax.jit(lambda *leaves: call(*jax.tree.unflatten(structure, leaves))),
            platforms=("cpu", "cuda", "tpu"),
        )(*leaves)
        program = export.deserialize(program.serialize(vjp_order=1))
        whole = with_gradients(lambda *a: program.call(*jax.tree.leaves(a)))
        return whole(arguments, marks, cotangents)

    return run


def keeping(policy):
    def way(call):
        return jax.jit(with_gradients(jax.checkpoint(call, policy=policy)))

    return way


POLICIES = jax.checkpoint_policies
WAYS_TO_RUN = {
    "eager": with_gradients,
    "jit": lambda call: jax.jit(with_gradients(call)),
    "lower and compile": ahead_of_time,
    "disable_jit": under(jax.disable_jit),
    "checking_leaks": under(jax.checking_leaks),
    "debug_nans with NaN in padding": poisoned,
    "checkify": checked,
    "donation": donated,
    "export of symbolic sizes for several platforms": exported,
    "remat": keeping(None),
    "remat that saves everything": keeping(POLICIES.everything_saveable),
    "remat that saves products": keeping(POLICIES.dots_saveable),
    "remat that saves products without batch": keeping(POLICIES.dots_with_no_batch_dims_saveable),
    "remat that offloads": keeping(
        POLICIES.offload_dot_with_no_batch_dims("device", "pinned_host")
    ),
}


@in_each_setting
@pytest.mark.parametrize("name", WAYS_TO_RUN)
def test_every_way_to_run_gives_the_values_and_gradients_of_the_plain_scan(name, setting):
    given = draw(setting)
    expected = jax.jit(with_gradients(bind(jaxrnn.unroll_plain, setting)))(*given)
    got = WAYS_TO_RUN[name](bind(jaxrnn.unroll, setting))(*given)
    assert_close(got, expected, length=LENGTH, what=name)


# Ways to shard: the batch over two devices. A process has a fixed number of CPU devices, so that
# all run in one process of its own.

WHOLE, ROWS, STEPS = P(), P("data"), P(None, "data")


def specs_of(given):
    """Partition specs of (arguments, marks, cotangents), and of (outputs, gradients)."""
    arguments, marks, _ = given
    whole = jax.tree.map(lambda _: WHOLE, arguments[0])
    pair = (ROWS, STEPS)
    return ((whole, *pair), (STEPS,) * len(marks), pair), (pair, (whole, *pair))


def mesh_of(kind):
    return jax.make_mesh((2,), ("data",), axis_types=(kind,))


def in_shard_map(typed):
    def way(call, given):
        def run(*a):
            outputs, (d_params, *others) = with_gradients(call)(*a)
            if not typed:  # the typed transpose sums what is whole over the devices by itself
                d_params = lax.psum(d_params, "data")
            return outputs, (d_params, *others)

        specs, out_specs = specs_of(given)
        mapped = jax.shard_map(
            run,
            mesh=mesh_of(AxisType.Auto),
            in_specs=specs,
            out_specs=out_specs,
            check_vma=typed,
        )
        return jax.jit(mapped)(*given)

    return way


def on_mesh(kind):
    def way(call, given):
        mesh, (specs, out_specs) = mesh_of(kind), specs_of(given)

        def place(spec, leaf):
            return None if leaf is None else jax.device_put(leaf, NamedSharding(mesh, spec))

        with jax.set_mesh(mesh):
            placed = jax.tree.map(place, specs, given, is_leaf=lambda node: isinstance(node, P))
            result = jax.jit(with_gradients(call))(*placed)
        if kind == AxisType.Explicit:  # what comes out is sharded as what went in
            jax.tree.map(check_spec, out_specs, result)
        return result

    return way


def check_spec(spec, leaf):
    got = jax.typeof(leaf).sharding.spec
    assert got == P(*spec, *[None] * (leaf.ndim - len(spec))), (got, spec)


def map_over_batch(wrap):
    """A map over the first batch axis, made by ``wrap(function, in_axes=, out_axes=)``."""

    def way(call, given):
        marks = tuple(None if mark is None else 1 for mark in given[1])
        axes = ((None, 0, 1), marks, (0, 1))
        run = wrap(with_gradients(call), in_axes=axes, out_axes=((0, 1), (0, 0, 1)))
        outputs, (d_params, *others) = run(*given)
        return outputs, (jax.tree.map(lambda leaf: leaf.sum(0), d_params), *others)

    return way


def vmap_over_mesh(function, **axes):
    """``vmap`` whose axis is that of the mesh."""
    mapped = jax.vmap(function, spmd_axis_name="data", **axes)

    def run(*a):
        with jax.set_mesh(mesh_of(AxisType.Auto)):
            return jax.jit(mapped)(*a)

    return run


WAYS_TO_SHARD = {
    "shard_map": in_shard_map(typed=True),
    "shard_map without its type check": in_shard_map(typed=False),
    "explicit mesh": on_mesh(AxisType.Explicit),
    "automatic mesh": on_mesh(AxisType.Auto),
    "vmap with spmd_axis_name": map_over_batch(vmap_over_mesh),
    "pmap": map_over_batch(jax.pmap),
}


def shard_in_every_way(setting):
    use_cpu_devices(2)
    given = draw(setting)
    expected = jax.jit(with_gradients(bind(jaxrnn.unroll_plain, setting)))(*given)
    for name, way in WAYS_TO_SHARD.items():
        got = way(bind(jaxrnn.unroll, setting), given)
        got, like = jax.device_get((got, expected))
        assert_close(got, like, length=LENGTH, what=name)


@in_each_setting
def test_every_way_to_shard_gives_the_values_and_gradients_of_the_plain_scan(tmp_path, setting):
    run_alone(shard_in_every_way, tmp_path, setting)

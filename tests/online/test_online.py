"""Gradients forward in time against back-propagation, and against their formulas in NumPy."""

import functools
import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn import FixedFanIn, LowRank, RNNParams, online
from jaxrnn.host import use_cpu_devices
from jaxrnn.sharding import data_mesh, shard_train_step
from tests.support.checks import add_noise, assert_close, assert_identical, draw_marks
from tests.support.processes import run_alone

pytestmark = pytest.mark.usefixtures("compile_quickly")

T, B, D, H = 12, 3, 2, 4
LENGTH = T * B * H * 8
f64 = np.float64
CELLS = {
    "plain": {},
    "leak": {"leak": 0.3, "use_bias": False},
    "all that is learned": {"leak_init": np.linspace(0.2, 0.7, H), "learn_h0": True},
    "one leak, relu, noise": {"leak_init": 0.4, "activation": jax.nn.relu, "noise": 0.2},
    "a leak per unit, silu": {"leak": np.linspace(0.1, 1, H), "activation": jax.nn.silu},
}
METHODS = {"rtrl": online.rtrl, "snap1": online.snap1, "rflo": online.rflo}


def with_readout(layer, outputs=1):
    return jaxrnn.stack(layer, jaxrnn.dense(layer.output_size, outputs, dtype=f64))


def draw(network, key, shape=(T, B)):
    """Parameters none of which is zero, inputs and targets."""
    keys = jax.random.split(key, 4)
    xs = jax.random.normal(keys[2], (*shape, network.input_size))
    targets = jax.random.normal(keys[3], (*shape, network.output_size))
    return add_noise(keys[1], network.init(keys[0]), 0.3), xs, targets


@functools.partial(jax.jit, static_argnums=(0,), static_argnames=("reverse",))
def differentiate(network, params, xs, targets, **marks):
    """The gradient of a loss of all outputs and of the last state."""

    def loss(params):
        state, ys = network.unroll(params, None, xs, **marks)
        last = jax.tree.leaves(state)[0]
        return jnp.sum(jnp.sin(ys) * targets) + jnp.sum(jnp.cos(last))

    return jax.grad(loss)(params)


def square_loss(network):
    def loss_fn(params, state, batch, key):
        x, target = batch
        state, y = network.step(params, state, x, key=key)
        return jnp.mean((y - target) ** 2), (state, {"output": jnp.mean(y)})

    return loss_fn


@pytest.mark.every_version
@pytest.mark.parametrize("name", list(CELLS))
def test_rtrl_is_back_propagation_under_masks_resets_and_in_reverse(key, name):
    networks = [
        with_readout(make(D, H, dtype=f64, **CELLS[name]))
        for make in (online.rtrl, jaxrnn.vanilla_rnn)
    ]
    params, xs, targets = draw(networks[0], key)
    mask, resets = draw_marks(key, (T, B))
    for marks in (
        {},
        {"mask": mask, "resets": resets},
        {"mask": mask, "resets": resets, "reverse": True},
    ):
        options = marks | ({"key": key} if "noise" in name else {})
        got, expected = (differentiate(n, params, xs, targets, **options) for n in networks)
        assert_close(got, expected, length=LENGTH, what=str(marks))


def test_rtrl_of_ten_drawn_shapes_is_back_propagation(key):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        inputs, units, steps = rng.integers(0, 4), rng.integers(1, 7), rng.integers(1, 40)
        shape = (int(steps), *map(int, rng.integers(1, 4, rng.integers(0, 3))))
        networks = [
            with_readout(make(int(inputs), int(units), learn_h0=True, dtype=f64), 2)
            for make in (online.rtrl, jaxrnn.vanilla_rnn)
        ]
        params, xs, targets = draw(networks[0], jax.random.fold_in(key, seed), shape)
        got, expected = (differentiate(n, params, xs, targets) for n in networks)
        assert_close(got, expected, length=np.prod(shape) * units * 8, what=str(shape))


def structured(make_w, values):
    """Layers of both kinds under a constraint: W is made of `values` within the call."""
    constraint = jaxrnn.Constraint(
        lambda key, params: (values, params._replace(w_hh=None)),
        lambda free, key=None: free[1]._replace(w_hh=make_w(free[0])),
    )
    return [
        with_readout(jaxrnn.constrained(make(D, H, dtype=f64, leak=0.5), constraint))
        for make in (online.rtrl, jaxrnn.vanilla_rnn)
    ]


@pytest.mark.parametrize("kind", ["low rank", "fixed fan-in", "dale"])
def test_rtrl_is_back_propagation_with_a_structured_and_with_a_constrained_matrix(key, kind):
    rng = np.random.default_rng(0)
    indices = np.array([[0, 1], [2, 2], [3, 1], [0, 3]])
    makers = {
        "low rank": (lambda v: LowRank(*v), (rng.normal(size=(2, H, 2)),)),
        "fixed fan-in": (lambda v: FixedFanIn(v, indices), (rng.normal(size=(H, 2)),)),
        "dale": (lambda v: v**2 * np.array([[1, 1, -1, 1.0]]), (rng.normal(size=(H, H)),)),
    }
    make_w, (values,) = makers[kind]
    networks = structured(make_w, jnp.asarray(values))
    params, xs, targets = draw(networks[0], key)
    got, expected = (differentiate(n, params, xs, targets) for n in networks)
    assert_close(got, expected, length=LENGTH)


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("make_w", [LowRank, FixedFanIn])
def test_a_structured_matrix_has_the_gradient_of_its_dense_one(key, name, make_w):
    rng = np.random.default_rng(1)
    if make_w is LowRank:
        w = LowRank(*jnp.asarray(rng.normal(size=(2, H, 2)) / 2))
    else:
        w = FixedFanIn(
            rng.normal(size=(H, 3)), np.array([[0, 1, 2], [1, 3, 0], [3, 1, 2], [3] * 3])
        )
    layer = METHODS[name](D, H, leak=0.5, dtype=f64)
    params, xs, targets = draw(layer, key)

    def loss(values, is_dense):
        own = w._replace(values=values) if make_w is FixedFanIn else values
        free = params._replace(w_hh=own.dense() if is_dense else own)
        return jnp.sum(layer.unroll(free, None, xs)[1] * targets)

    free = w.values if make_w is FixedFanIn else w
    got, expected = (jax.grad(loss)(free, is_dense) for is_dense in (False, True))
    assert_close(got, expected, length=LENGTH)


def take_apart(params, h, x, leak):
    """One step in NumPy: (h after it, the derivatives of each h_i by the parameters of its unit
    [H, K], the Jacobian [H, H])."""
    u, w, b = (np.asarray(leaf, f64) for leaf in params[:3])
    f = np.tanh(w @ h + u @ x + b)
    gain = leak * (1 - f**2)
    direct = gain[:, None] * np.concatenate([h, x, [1.0]])
    jacobian = (1 - leak) * np.eye(len(h)) + gain[:, None] * w
    return (1 - leak) * h + leak * f, direct, jacobian


def own_unit_alone(influence, direct, jacobian):
    """Menick et al. 2020: of the full influence [H, H, K], the entries that one step fills."""
    units = np.arange(len(direct))
    full = np.zeros((len(units), *direct.shape))
    full[units, units] = influence
    return np.einsum("lm,mik->lik", jacobian, full)[units, units] + direct


def decay_alone(influence, direct, jacobian, leak):
    """Murray 2019, entry by entry."""
    after = np.zeros_like(influence)
    for i in range(influence.shape[0]):
        for j in range(influence.shape[1]):
            after[i, j] = (1 - leak) * influence[i, j] + direct[i, j]
    return after


@pytest.mark.parametrize("name", ["snap1", "rflo"])
@pytest.mark.parametrize("leak", [1.0, 0.3])
def test_approximations_are_their_published_formulas(key, name, leak):
    layer = METHODS[name](D, H, leak=leak, dtype=f64)
    feedback = np.random.default_rng(0).normal(size=(2, H))
    readout = jaxrnn.dense(H, 2, dtype=f64)
    if name == "rflo":
        readout = online.feedback_alignment(readout, feedback)
    network = jaxrnn.stack(layer, readout)
    params, xs, targets = draw(network, key, (T,))

    def loss(params):
        _, ys = network.unroll(params, None, xs)
        return jnp.sum((ys - targets) ** 2) / 2

    got = jax.grad(loss)(params)
    move = own_unit_alone if name == "snap1" else functools.partial(decay_alone, leak=leak)
    h, influence = np.zeros(H), np.zeros((H, H + D + 1))
    expected, by_readout = np.zeros_like(influence), np.zeros((2, H))
    v, c = (np.asarray(leaf) for leaf in params[1])
    for x, target in zip(np.asarray(xs), np.asarray(targets), strict=True):
        h, direct, jacobian = take_apart(params[0], h, x, leak)
        influence = move(influence, direct, jacobian)
        error = v @ h + c - target
        expected += ((feedback if name == "rflo" else v).T @ error)[:, None] * influence
        by_readout += np.outer(error, h)
    of_layer = np.concatenate([got[0].w_hh, got[0].w_ih, got[0].b[:, None]], axis=1)
    assert_close(of_layer, expected, length=LENGTH)
    assert_close(got[1].w, by_readout, length=LENGTH)


def test_snap1_is_rtrl_where_w_is_diagonal_and_not_elsewhere(key):
    layers = [make(D, H, leak_init=0.5, dtype=f64) for make in (online.snap1, online.rtrl)]
    params, xs, targets = draw(layers[0], key)
    diagonal = params._replace(w_hh=jnp.diag(jnp.diagonal(params.w_hh)))
    got, full = (differentiate(layer, diagonal, xs, targets) for layer in layers)
    assert_close(got, full, length=LENGTH)
    got, full = (differentiate(layer, params, xs, targets) for layer in layers)
    assert float(jnp.abs(got.w_hh - full.w_hh).max()) > 0.01


def test_a_deep_network_is_exact_as_a_whole_and_at_its_top_but_not_below(key):
    def deep(make):
        return jaxrnn.stack(make(D, H, dtype=f64), make(H, 3, dtype=f64))

    plain = deep(jaxrnn.vanilla_rnn)
    params, xs, targets = draw(plain, key)
    mask, resets = draw_marks(key, (T, B))
    marks = {"mask": mask, "resets": resets}
    expected = differentiate(plain, params, xs, targets, **marks)
    whole = differentiate(online.exact(plain), params, xs, targets, **marks)
    assert_close(whole, expected, length=LENGTH)
    each = differentiate(deep(online.rtrl), params, xs, targets, **marks)
    assert_close(each[1], expected[1], length=LENGTH)
    assert float(jnp.abs(each[0].w_hh - expected[0].w_hh).max()) > 0.01
    first_step = [differentiate(n, params, xs[:1], targets[:1]) for n in (deep(online.rtrl), plain)]
    assert_close(*first_step, length=LENGTH)


def test_exact_is_back_propagation_for_a_layer_of_another_step_and_for_tokens(key):
    def step(params, h, x):
        candidate = jaxrnn.step(params[0], h, x)
        z = jax.nn.sigmoid(jaxrnn.step(params[1], h, x, activation=jax.nn.identity))
        h = z * h + (1 - z) * candidate
        return h, h

    def init(key):
        return tuple(jaxrnn.init_rnn(k, D, 3, dtype=f64) for k in jax.random.split(key))

    def zeros(params, batch_shape):
        return jnp.zeros((*batch_shape, 3))

    gated = jaxrnn.scanned(D, 3, init, zeros, step)
    tokens = jaxrnn.stack(
        jaxrnn.embedding(5, D, dtype=f64), jaxrnn.vanilla_rnn(D, 3, learn_h0=True, dtype=f64)
    )
    for layer in (gated, tokens):
        params, xs, targets = draw(layer, key)
        if layer is tokens:
            xs = jax.random.randint(key, (T, B), 0, 5)
        layers = online.exact(layer), layer
        got, expected = (differentiate(each, params, xs, targets) for each in layers)
        assert_close(got, expected, length=LENGTH)


def test_the_mean_over_time_is_the_loss_of_back_propagation_and_carries_on(key):
    networks = [with_readout(make(D, H, dtype=f64)) for make in (online.rtrl, jaxrnn.vanilla_rnn)]
    params, xs, targets = draw(networks[0], key)
    mean_loss = online.mean_over_time(square_loss(networks[0]))

    def plain_loss(params):
        return jnp.mean((networks[1].unroll(params, None, xs)[1] - targets) ** 2)

    start = networks[0].initial_state(params, (B,))
    compute = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
    (loss, (carry, metrics)), gradient = compute(params, start, (xs, targets), None)
    expected_loss, expected = jax.value_and_grad(plain_loss)(params)
    assert_close((loss, gradient), (expected_loss, expected), length=LENGTH)
    assert_close(metrics["output"], networks[1].unroll(params, None, xs)[1].mean(), length=LENGTH)
    halves, carry_on = [], start
    for low, high in ((0, 5), (5, T)):
        batch = xs[low:high], targets[low:high]
        (_, (carry_on, _)), g = compute(params, carry_on, batch, None)
        halves.append(optax.tree.scale(high - low, g))
    assert_close(jax.tree.map(jnp.add, *halves), optax.tree.scale(T, gradient), length=T)
    assert_close(carry_on, carry, length=LENGTH)


def test_training_on_a_stream_updates_at_every_step_or_every_k_and_maps_over_streams(key):
    network = with_readout(online.rtrl(D, H, dtype=f64))
    optimizer = optax.sgd(0.05, momentum=0.9)
    loss_fn = square_loss(network)
    params, xs, targets = draw(network, key, (T,))
    update = jaxrnn.make_train_step(online.mean_over_time(loss_fn), optimizer, has_carry=True)

    def begin(params):
        return jaxrnn.init_train_state(params, optimizer, key, carry=network.initial_state(params))

    for window in (1, 5):
        train = jax.jit(jaxrnn.truncate_train_step(update, window))
        state, metrics = train(begin(params), (xs, targets))
        assert metrics["loss"].shape == (-(-T // window),)
        by_hand, opt_state, carry = params, optimizer.init(params), network.initial_state(params)
        for low in range(0, T, window):
            total = jax.tree.map(jnp.zeros_like, params)
            steps = list(zip(xs[low : low + window], targets[low : low + window], strict=True))
            for step in steps:
                (_, (carry, _)), g = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
                    by_hand, carry, step, None
                )
                total = optax.tree.add_scale(total, 1 / len(steps), g)
            updates, opt_state = optimizer.update(total, opt_state)
            by_hand = optax.apply_updates(by_hand, updates)
        assert_close(state.params, by_hand, length=LENGTH)
        two = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]]), (xs, targets))
        states, _ = jax.vmap(train, in_axes=(None, 0))(begin(params), two)
        assert_close(jax.tree.map(lambda leaf: leaf[0], states.params), by_hand, length=LENGTH)


@pytest.mark.parametrize("name", list(METHODS))
def test_memory_does_not_grow_with_the_length_of_the_stream(name):
    network = jaxrnn.stack(METHODS[name](1, 8), jaxrnn.dense(8, 1))
    mean_loss = online.mean_over_time(square_loss(network))

    def temporary_bytes(steps, loss_fn):
        params = jax.eval_shape(network.init, jax.random.key(0))
        batch = [jax.ShapeDtypeStruct((steps, 1), np.float32)] * 2
        carry = jax.eval_shape(network.initial_state, params)
        gradient = jax.jit(lambda p, c, b: jax.grad(loss_fn, has_aux=True)(p, c, b, None)[0])
        program = gradient.lower(params, carry, tuple(batch)).compile()
        return program.memory_analysis().temp_size_in_bytes

    def through_time(params, carry, batch, key):
        _, ys = network.unroll(params, carry, batch[0])
        return jnp.mean((ys - batch[1]) ** 2), ()

    short, long = (temporary_bytes(steps, mean_loss) for steps in (1000, 10**6))
    assert long < short + 4 * 10**6 + 1000  # the outputs, which nobody reads, are not all kept
    assert temporary_bytes(10**6, through_time) > 10 * long


def test_the_input_gets_the_gradient_of_the_present_step_alone(key):
    layers = online.rtrl(D, H, dtype=f64), jaxrnn.vanilla_rnn(D, H, dtype=f64)
    params, xs, _ = draw(layers[0], key, (T,))

    def last(xs, layer):
        return jnp.sum(layer.unroll(params, None, xs)[1][-1])

    got, full = (jax.grad(last)(xs, layer) for layer in layers)
    assert not got[:-1].any()
    assert_close(got[-1], full[-1], length=LENGTH)


def test_errors_return_by_the_feedback_weights(key):
    feedback = np.random.default_rng(0).normal(size=(3, D))
    layer = jaxrnn.dense(D, 3, dtype=f64)
    aligned = online.feedback_alignment(layer, feedback)
    params, xs, targets = draw(layer, key)

    def loss(params, xs, layer):
        return jnp.sum(layer.unroll(params, None, xs)[1] * targets)

    got, plain = (jax.grad(loss, argnums=(0, 1))(params, xs, each) for each in (aligned, layer))
    assert_close(got[0], plain[0], length=LENGTH)
    assert_close(got[1], np.asarray(targets) @ feedback, length=3)
    assert_identical(*(each.unroll(params, None, xs) for each in (aligned, layer)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_16_bits_the_gradient_is_that_of_float32_up_to_rounding(key, dtype):
    eps = float(jnp.finfo(dtype).eps)
    gradients = []
    for kind in (dtype, "float32"):
        layer = online.rtrl(D, H, dtype=kind)
        params = optax.tree.cast(online.rtrl(D, H, dtype=dtype).init(key), kind)
        xs = jax.random.normal(key, (T, B, D), dtype).astype(kind)

        def loss(params, layer=layer, xs=xs):
            return jnp.sum(layer.unroll(params, None, xs)[1].astype(jnp.float32))

        gradients.append(jax.grad(loss)(params))
    for got, expected in zip(*map(jax.tree.leaves, gradients), strict=True):
        assert got.dtype == dtype
        error = jnp.abs(got.astype(jnp.float32) - expected).max()
        assert float(error) < 32 * eps * np.sqrt(T) * float(jnp.abs(expected).max())


def train_on_two_devices():
    """A stream per device, in `shard_map` with its type check on, on an explicit mesh and through
    `shard_train_step`: all equal one device."""
    use_cpu_devices(2)
    jax.config.update("jax_enable_x64", True)
    network = jaxrnn.stack(online.rtrl(D, H, dtype=f64), online.snap1(H, 3, leak=0.5, dtype=f64))
    key = jax.random.key(0)
    params, xs, targets = draw(network, key, (T, 4))
    optimizer = optax.sgd(0.1)
    mean_loss = online.mean_over_time(square_loss(network))
    update = jaxrnn.make_train_step(mean_loss, optimizer, has_carry=True)

    def begin(params):
        carry = network.initial_state(params, (4,))
        return jaxrnn.init_train_state(params, optimizer, key, carry=carry)

    compute = jax.value_and_grad(mean_loss, has_aux=True)
    (loss, _), gradient = jax.jit(compute)(params, begin(params).carry, (xs, targets), None)

    def local(params, xs, targets):
        carry = network.initial_state(params, xs.shape[1:2])
        (loss, _), gradient = compute(params, carry, (xs, targets), None)
        return jax.lax.pmean(loss, "data"), jax.tree.map(lambda g: g / 2, gradient)

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (jax.P(), jax.P(None, "data"), jax.P(None, "data"))
    mapped = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=jax.P()))
    assert_close(mapped(params, xs, targets), (loss, gradient), length=LENGTH)

    explicit = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(explicit):
        placed = [
            jax.device_put(a, jax.NamedSharding(explicit, jax.P(None, "data")))
            for a in (xs, targets)
        ]
        whole = jax.device_put(params, jax.NamedSharding(explicit, jax.P()))

        @jax.jit
        def on_mesh(params, xs, targets):
            _, ys = network.unroll(params, None, xs)
            return jnp.mean((ys - targets) ** 2)

        got = jax.value_and_grad(on_mesh)(whole, *placed)
    assert_close(jax.device_get(got), (loss, gradient), length=LENGTH)

    step = shard_train_step(update, data_mesh())
    state, _ = step(begin(params), (xs, targets))
    expected, _ = update(begin(params), (xs, targets))
    assert_close(jax.device_get(state.params), expected.params, length=LENGTH)


@pytest.mark.every_version
def test_streams_on_two_devices_have_the_gradients_of_one(tmp_path):
    run_alone(train_on_two_devices, tmp_path)


def test_the_examples_of_the_module_run(as_on_the_command_line):
    pieces = inspect.getdoc(online).split("\n\n")
    code = [piece for piece in pieces if piece.startswith("    ")]
    names = {"jax": jax, "jnp": jnp, "jaxrnn": jaxrnn, "optax": optax}
    names |= {"xs": jnp.ones((30, 2), np.float32), "targets": jnp.ones((30, 1), np.float32)}
    exec("\n".join(map(textwrap.dedent, code)), names)
    assert names["metrics"]["loss"].shape == (30,)
    assert names["metrics"]["loss"][-1] < names["metrics"]["loss"][0]


FINE = jaxrnn.vanilla_rnn(D, H)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: online.rtrl(D, H, chunk_size=3), ValueError, "chunk_size is 3"),
        (lambda: online.snap1(D, H, remat=True), ValueError, "remat is True"),
        (lambda: online.rflo(D, 0), ValueError, "hidden_size is 0"),
        (lambda: online.rflo(D, H, leak=2.0), ValueError, "leak is 2.0"),
        (lambda: online.exact("rnn"), TypeError, "layer is a str"),
        (lambda: online.exact(jaxrnn.bidirectional(FINE, FINE)), ValueError, "layer is not causal"),
        (
            lambda: online.feedback_alignment(FINE, np.ones((D, H))),
            ValueError,
            r"feedback has shape \(2, 4\), expected \(4, 2\)",
        ),
        (lambda: online.feedback_alignment(FINE, [[1.0]]), TypeError, "feedback is a list"),
        (lambda: online.feedback_alignment(None, np.ones((D, H))), TypeError, "layer is a None"),
        (
            lambda: online.feedback_alignment(jaxrnn.embedding(3, 2), np.ones((2, 3))),
            ValueError,
            "layer reads tokens",
        ),
        (lambda: online.mean_over_time(None), TypeError, "loss_fn is None"),
        (
            lambda: online.mean_over_time(square_loss(FINE))(
                FINE.init(jax.random.key(0)), None, (np.ones((3, D)), np.ones((4, D))), None
            ),
            ValueError,
            "batch has",
        ),
        (
            lambda: online.exact(jaxrnn.vanilla_rnn(D, H)).initial_state(
                RNNParams(np.ones((H, D)), FixedFanIn(np.ones((H, 1)), np.ones((H, 1), int)))
            ),
            ValueError,
            "a leaf of params has dtype",
        ),
    ],
)
def test_bad_input_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()

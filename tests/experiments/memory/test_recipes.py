"""The problems of memory read back from their inputs, and the recipes by hand."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.memory import climbing, recipes
from experiments.memory.blocks import Blocks
from experiments.memory.recipes import RECIPES
from experiments.shared.tasks import PROBLEMS
from jaxrnn import RNNParams
from tests.support.checks import assert_close, assert_identical, random_like

EPS = float(np.finfo(np.float32).eps)
NAMES = tuple(PROBLEMS)
# What runs once is not worth optimizing.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
LEAST_MIXED = {"latch": 5, "order": 10, "adding": 2}  # the shortest sequence of a mixed batch


pytestmark = pytest.mark.usefixtures("as_on_the_command_line")


def draw(name, key, length, size, mixed=False):
    drawn = compiled(PROBLEMS[name].draw, static_argnums=(1, 2, 3))(key, length, size, mixed)
    return jax.tree.map(np.asarray, drawn)


def keys(count=2, seed=0):
    return jax.random.split(jax.random.key(seed), count)


# The problems, read back from their inputs


def lengths_of(name, batch):
    return batch.last if name == "latch" else batch.last + 1


def read_symbols(xs):
    assert set(np.unique(xs)) == {0, 1}
    np.testing.assert_array_equal(xs.sum(axis=-1), 1)
    return xs.argmax(axis=-1)


def read_latch(xs, lengths):
    assert xs.shape[2] == 1
    assert np.isin(xs[0], [-1, 1]).all()
    assert (np.abs(xs[1:]) != 1).all()  # noise, of which 1 has probability 0
    return xs[0, :, 0] > 0, []


def read_order(xs, lengths):
    assert xs.shape[2] == 6
    symbols = read_symbols(xs)
    places = [np.flatnonzero(column < 2) for column in symbols.T]
    assert {len(each) for each in places} == {2}
    first, second = np.array(places).T
    for place, low, high in ((first, 1, 2), (second, 4, 5)):
        assert (place >= lengths * low // 10).all()
        assert (place < lengths * high // 10).all()
    signals = [symbols[place, np.arange(len(lengths))] for place in (first, second)]
    return 2 * signals[0] + signals[1], [first, second]


def read_adding(xs, lengths):
    numbers, marks = np.moveaxis(xs, 2, 0)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert np.isin(marks, [0, 1]).all()
    places = [np.flatnonzero(column) for column in marks.T]
    assert {len(each) for each in places} == {2}
    first, second = np.array(places).T
    assert (first < lengths // 2).all()
    assert (second >= lengths // 2).all()
    assert (second < lengths).all()
    return (numbers * marks).sum(axis=0), [first, second]


def read_copy(xs, lengths):
    assert xs.shape[2] == 10
    symbols = read_symbols(xs)
    assert (symbols[:10] < 8).all()
    assert (symbols[-11] == 9).all()
    assert (symbols[10:-11] == 8).all()
    assert (symbols[-10:] == 8).all()
    return np.concatenate([np.full_like(symbols[10:], 8), symbols[:10]]), []


READ = {"latch": read_latch, "order": read_order, "adding": read_adding, "copy": read_copy}
EXTRA = {"latch": 1, "order": 0, "adding": 0, "copy": 20}  # steps more than the length


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mixed", [False, True])
def test_a_batch_is_what_its_problem_says(name, mixed):
    problem = PROBLEMS[name]
    for place, size in ((0, 1), (43, 64)):
        length = problem.shortest + place
        batch = draw(name, jax.random.key(place), length, size, mixed)
        assert batch.xs.shape == (length + EXTRA[name], size, problem.input_size)
        assert batch.last.shape == (size,)
        targets, _ = READ[name](batch.xs, lengths_of(name, batch))
        assert batch.targets.shape == targets.shape
        # The sum of two numbers is rounded once.
        np.testing.assert_allclose(batch.targets, targets, rtol=EPS if name == "adding" else 0)
        if mixed and name != "copy":
            least = min(LEAST_MIXED[name], length)
            assert batch.last.min() >= least - (name != "latch")
            assert batch.last.max() < len(batch.xs)
            assert size < 64 or len(np.unique(batch.last)) > 3
        else:
            np.testing.assert_array_equal(batch.last, len(batch.xs) - 1)


def assert_uniform(values, choices):
    """Each choice as often as the others, within 5 standard deviations of a binomial count."""
    assert np.isin(values, choices).all()
    counts = np.array([np.sum(values == choice) for choice in choices])
    share = np.size(values) / len(choices)
    assert (np.abs(counts - share) <= 5 * math.sqrt(share)).all(), counts


def test_classes_symbols_and_places_are_balanced():
    size, length = 4000, 40
    latch, order, adding, copy = (draw(name, jax.random.key(3), length, size) for name in NAMES)
    assert_uniform(latch.targets, range(2))
    noise = latch.xs[1:].astype(float)
    assert abs(noise.mean()) <= 5 / math.sqrt(noise.size)
    assert abs(noise.var() - 1) <= 5 * math.sqrt(2 / noise.size)
    assert_uniform(order.targets, range(4))
    distractors = order.xs.argmax(axis=-1)
    assert_uniform(distractors[distractors >= 2], range(2, 6))
    lengths = np.full(size, length)
    places = read_order(order.xs, lengths)[1] + read_adding(adding.xs, lengths)[1]
    for place, window in zip(places, ((4, 8), (16, 20), (0, 20), (20, 40)), strict=True):
        assert_uniform(place, range(*window))
    assert_uniform((10 * adding.xs[..., 0]).astype(int), range(10))
    assert_uniform(copy.targets[-10:], range(8))


@pytest.mark.parametrize("name", LEAST_MIXED)
def test_every_second_length_of_a_mixed_batch_is_drawn_with_a_uniform_logarithm(name):
    size, longest, least = 5000, 60, LEAST_MIXED[name]
    drawn = lengths_of(name, draw(name, jax.random.key(5), longest, 2 * size, mixed=True))
    np.testing.assert_array_equal(drawn[::2], longest)
    lengths = drawn[1::2]
    assert (lengths.min(), lengths.max()) == (least, longest)
    ends = np.arange(least, longest + 1)
    wanted = np.log((ends + 1) / least) / np.log((longest + 1) / least)
    got = np.array([np.mean(lengths <= end) for end in ends])
    # Dvoretzky, Kiefer & Wolfowitz: exceeded with a probability of 2 exp(-2 n d^2) = 1e-6.
    assert np.abs(got - wanted).max() <= math.sqrt(math.log(2e6) / (2 * size))


def best_guess(name, targets, length):
    """The outputs of a guess that remembers nothing, from what is most frequent."""
    if name == "adding":
        return np.full((len(targets), 1), targets.mean())
    if name != "copy":
        classes = PROBLEMS[name].output_size
        parts = np.bincount(targets, minlength=classes) / len(targets)
        return np.broadcast_to(np.log(parts), (len(targets), classes))
    outputs = np.zeros((*targets.shape, 9))
    outputs[:-10, :, 8], outputs[-10:, :, 8] = 100, -100
    return outputs


@pytest.mark.parametrize("name", NAMES)
def test_the_blind_loss_is_what_the_best_guess_loses(name):
    size, length, problem = 20000, 11, PROBLEMS[name]
    # Of n draws the entropy of K frequencies is below log K by chi^2 / 2n: K - 1 on average, and
    # never 20 more. A squared error has variance 1/15 - 1/36. A sum of 32-bit logarithms rounds.
    tolerance = {"latch": 21 / size, "order": 23 / size, "copy": 32 * EPS}.get(name)
    targets = draw(name, jax.random.key(length), length, size).targets
    guess = jnp.asarray(best_guess(name, targets, length), jnp.float32)
    loss = float(problem.loss(guess, jnp.asarray(targets)))
    wanted = {"latch": math.log(2), "order": math.log(4), "adding": 1 / 6}
    wanted["copy"] = 10 * math.log(8) / (length + 20)
    assert problem.blind_loss(length) == pytest.approx(wanted[name], rel=1e-12)
    error = tolerance or 5 * math.sqrt((1 / 15 - 1 / 36) / size)
    assert loss == pytest.approx(wanted[name], abs=error)
    assert not problem.solves(length, loss, float(problem.right(guess, jnp.asarray(targets))))


def test_what_is_right_and_what_is_solved_by_hand():
    outputs, targets = jnp.array([[0.1], [0.5], [1.0]]), jnp.array([0.0, 1.0, 1.19])
    assert float(PROBLEMS["adding"].loss(outputs, targets)) == pytest.approx(0.2961 / 3, rel=1e-6)
    assert float(PROBLEMS["adding"].right(outputs, targets)) == pytest.approx(2 / 3)
    some = jnp.array([[1.0, 0.0], [0.0, 3.0]])
    wanted = (math.log1p(math.exp(-1)) + math.log1p(math.exp(3))) / 2
    assert float(PROBLEMS["latch"].loss(some, jnp.array([0, 0]))) == pytest.approx(wanted, rel=1e-6)
    assert float(PROBLEMS["latch"].right(some, jnp.array([0, 0]))) == 0.5
    late, wanted = jax.nn.one_hot(jnp.full((15, 1), 3), 9), jnp.full((15, 1), 3).at[:7].set(8)
    assert float(PROBLEMS["copy"].right(late, wanted)) == pytest.approx(0.8)
    half = 5 * math.log(8) / 30
    for name, length, solved, failed in (
        ("latch", 5, (9.0, 0.99), (0.0, 0.98)),
        ("order", 10, (9.0, 1.0), (0.0, 0.999)),
        ("adding", 5, (0.01, 0.0), (0.0101, 1.0)),
        ("copy", 10, (half, 0.0), (half * 1.001, 1.0)),
    ):
        assert PROBLEMS[name].solves(length, *solved)
        assert not PROBLEMS[name].solves(length, *failed)
        assert not PROBLEMS[name].solves(length, math.nan, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_draw_follows_from_its_key_under_jit_and_vmap(name):
    some = keys(3)

    def drawn(key):
        return PROBLEMS[name].draw(key, 12, 4, True)

    mapped, jitted = compiled(jax.vmap(drawn))(some), compiled(drawn)
    for place, key in enumerate(some):
        batch = jax.tree.map(lambda leaf, at=place: leaf[at], mapped)
        # A program of its own may round a normal number in another way.
        assert_close(batch, jitted(key), length=1)
        assert_identical(jitted(key), jitted(key))
    assert len({np.asarray(xs).tobytes() for xs in mapped.xs}) == 3


# The recipes


BLOCKS = {
    "blocks": Blocks(24, 72, 16, 16),
    "switches": Blocks(switches=24),
    "rotations": Blocks(rotations=72),
    "sums": Blocks(features=16, sums=16),
}


def widths(recipe):
    if recipe.name in BLOCKS:
        return [sum(BLOCKS[recipe.name])]
    return [64] * (3 if recipe.name == "deep" else 1)


@functools.cache
def all_params():
    """The parameters of a network of each recipe for `copy`, compiled at once."""

    def init(recipe, key):
        return tuple(layer.init(key) for layer in recipe.build(10, 9))

    key = jax.random.key(0)
    return compiled(lambda: {name: init(recipe, key) for name, recipe in RECIPES.items()})()


def params_of(name):
    return all_params()[name]


def count_parameters(recipe, input_size, output_size):
    """As the recipes' summaries and Cho et al. 2014 have them."""
    size, count = input_size, 0
    for width in widths(recipe):
        count += (1 if recipe.vanilla else 3) * width * (size + width + 1)
        size = width
    started = size if recipe.name in ("learned start", *BLOCKS) else 0
    return count + started + (size + 1) * output_size


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_for_every_problem_at_its_size(name):
    recipe = RECIPES[name]
    assert max(widths(recipe)) <= 128
    for problem in PROBLEMS.values():

        def drawn(key, problem=problem):
            layers = recipe.build(problem.input_size, problem.output_size)
            params = tuple(layer.init(key) for layer in layers)
            recipe.full_optimizer().init(params)
            return params, problem.draw(key, 10, 5, recipe.mixes)

        def objective(params, batch, problem=problem):
            return climbing._objective(problem, recipe, params, batch, jax.random.key(0))

        params, batch = jax.eval_shape(drawn, jax.random.key(0))
        count = count_parameters(recipe, problem.input_size, problem.output_size)
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
        assert recipe.vanilla == all(isinstance(layer, RNNParams) for layer in params[0])
        grads = jax.eval_shape(jax.grad(objective), params, batch)
        assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)


def unroll_by_hand(layer, xs, activation, added=0.0):
    """h_t = f(W h_{t-1} + U x_t + b + what is added), in float64; [T, B, H]."""
    w_ih, w_hh, b, h0 = (None if a is None else np.asarray(a, np.float64) for a in layer[:4])
    h = np.broadcast_to(np.zeros(len(w_hh)) if h0 is None else h0, (xs.shape[1], len(w_hh)))
    hs = []
    for drive in xs.astype(np.float64) @ w_ih.T + b + added:
        h = activation(h @ w_hh.T + drive)
        hs.append(h)
    return np.array(hs)


def relu(a):
    return np.maximum(a, 0)


def test_a_vanilla_recipe_is_the_vanilla_recurrence_and_a_linear_readout():
    names = [name for name in RECIPES if RECIPES[name].vanilla]
    batch = draw("copy", jax.random.key(1), 1, 3)

    @compiled
    def answer(params):
        noise = random_like(jax.random.key(2), params)
        params = jax.tree.map(lambda leaf, change: leaf + 0.01 * change, params, noise)
        problem = PROBLEMS["copy"]
        return params, {
            name: climbing._answer(problem, RECIPES[name], params[name], batch) for name in names
        }

    params, answers = answer({name: params_of(name) for name in names})
    for name in names:
        layers, readout = params[name]
        expected = batch.xs
        for layer in layers:
            expected = unroll_by_hand(layer, expected, relu if "relu" in name else np.tanh)
        expected = expected @ np.asarray(readout.w, np.float64).T + np.asarray(readout.b)
        assert_close(answers[name], expected, length=len(batch.xs) * 128, what=name)


def recurrent_matrix(name):
    return np.asarray(params_of(name)[0][0].w_hh, np.float64)


def test_the_starts_are_what_the_recipes_say():
    for name in ("identity tanh", "identity relu", "relu growing"):
        np.testing.assert_array_equal(recurrent_matrix(name), np.eye(recipes._UNITS))
    for name in ("lecture", "deep", "orthogonal relu", "steady", "growing", "rotations"):
        for layer in params_of(name)[0]:
            w = np.asarray(layer.w_hh, np.float64)
            # A reflection for each unit, each of which rounds a few times.
            np.testing.assert_allclose(w @ w.T, np.eye(len(w)), atol=4 * len(w) * EPS)
            assert np.abs(w - np.eye(len(w))).max() > 0.5
    radius = np.abs(np.linalg.eigvals(recurrent_matrix("radius 1.2"))).max()
    assert radius == pytest.approx(1.2, rel=1e-4)  # the start promises about 1e-5
    np.testing.assert_array_equal(params_of("learned start")[0][0].h0, 0)
    assert params_of("lecture")[0][0].h0 is None


def split_units(blocks):
    """Where the units of each block stand."""
    ends = np.cumsum((0, *blocks))
    return [slice(*pair) for pair in itertools.pairwise(ends)]


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_start_as_they_say_and_stay_apart(name):
    blocks = BLOCKS[name]
    switches, rotations, features, sums = split_units(blocks)
    (layer,), readout = (jax.tree.map(np.asarray, part) for part in params_of(name))
    w = layer.w_hh.copy()
    np.testing.assert_array_equal(w[switches, switches], 4 * np.eye(blocks.switches))
    np.testing.assert_array_equal(w[sums, sums], np.eye(blocks.sums))
    turned = w[rotations, rotations].astype(float)
    limit = 4 * max(blocks.rotations, 1) * EPS  # see above
    np.testing.assert_allclose(turned @ turned.T, np.eye(blocks.rotations), atol=limit)
    for unit, value in ((switches, 1), (slice(blocks.switches, None), 0)):
        np.testing.assert_array_equal(layer.h0[unit], value)
    for entries, scale in (
        (layer.w_ih[switches], 3.0),
        (layer.w_ih[rotations], 0.003),
        (layer.w_ih[features], 2.0),
        (layer.w_ih[sums], 0.0),
        (w[sums, features], 0.003),
        (readout.w[:, switches], 0.01),
        (readout.w[:, rotations], 0.01 / 0.003),
        (readout.w[:, features], 0.01),
        (readout.w[:, sums], 0.01 / 0.003),
    ):
        if entries.size:
            # The standard deviation of n normal numbers is off by 1 / sqrt(2n) of itself.
            assert math.sqrt(np.mean(np.square(entries, dtype=np.float64))) == pytest.approx(
                scale, rel=5 / math.sqrt(2 * entries.size)
            )
    for to, of in ((each, each) for each in (switches, rotations, sums)):
        w[to, of] = 0
    w[sums, features] = 0
    np.testing.assert_array_equal(w, 0)
    assert not layer.b.any()


def test_each_block_has_its_own_rates_and_nothing_else_learns():
    blocks = Blocks(2, 3, 4, 5)
    switches, rotations, features, sums = split_units(blocks)
    optimizer = blocks.optimizer()
    layers, readout = blocks.layers(3), blocks.readout(14, 2)
    key = jax.random.key(0)
    params = tuple(layer.init(key) for layer in layers), readout.init(key)
    grads = random_like(jax.random.key(1), params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    # Adam's first step is its rate against the gradient's sign, but for 1e-8 of the gradient.
    (layer,), last = jax.tree.map(lambda u, g: -np.asarray(u) * np.sign(g), updates, grads)
    recurrent = np.zeros((14, 14))
    recurrent[switches, switches] = 2e-3
    recurrent[rotations, rotations] = recurrent[sums, sums] = 3e-6
    recurrent[sums, features] = 1e-4
    np.testing.assert_allclose(layer.w_hh, recurrent, rtol=1e-5)
    for units, inputs, bias, start, out in (
        (switches, 1e-2, 2e-3, 2e-3, 2e-3),
        (rotations, 3e-4, 3e-6, 0, 2e-3 / 0.003),
        (features, 3e-3, 3e-3, 0, 2e-3),
        (sums, 0, 1e-4, 0, 2e-3 / 0.003),
    ):
        np.testing.assert_allclose(layer.w_ih[units], inputs, rtol=1e-5)
        np.testing.assert_allclose(layer.b[units], bias, rtol=1e-5)
        np.testing.assert_allclose(layer.h0[units], start, rtol=1e-5)
        np.testing.assert_allclose(last.w[:, units], out, rtol=1e-5)
    np.testing.assert_allclose(last.b, 2e-3, rtol=1e-5)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def test_the_gru_is_that_of_cho_2014_and_unrolled_it_is_stepped():
    (layer,) = RECIPES["GRU"].layers(3)
    params = random_like(jax.random.key(0), layer.init(jax.random.key(1)))
    params = jax.tree.map(lambda leaf: leaf / 4, params)
    xs = jax.random.normal(jax.random.key(2), (5, 2, 3))
    state, hs = layer.unroll(params, None, xs)
    # Equations 5 to 8 with biases; z says what is kept, and the recipe's update what is not.
    (w_u, b_u), (w_r, b_r), (w_c, b_c) = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    h = np.zeros((2, layer.output_size))
    stepped = layer.initial_state(params, (2,))
    for x, got in zip(np.asarray(xs, np.float64), hs, strict=True):
        z = sigmoid(-(x @ w_u[:, :3].T + h @ w_u[:, 3:].T + b_u))
        r = sigmoid(x @ w_r[:, :3].T + h @ w_r[:, 3:].T + b_r)
        candidate = np.tanh(x @ w_c[:, :3].T + (r * h) @ w_c[:, 3:].T + b_c)
        h = z * h + (1 - z) * candidate
        stepped, y = layer.step(params, stepped, jnp.asarray(x, jnp.float32))
        assert_close(got, h, length=5 * 67)
        assert_close(y, got, length=5 * 67)
    assert_close(state, stepped, length=5 * 67)


def tiny_params():
    """Two layers' parameters in the structure of a recipe's."""
    layer = jax.tree.map(jnp.asarray, RNNParams(np.ones((3, 2)), np.ones((3, 3)), np.ones(3), None))
    return (layer,), {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}


def gradient_of_norm(norm):
    noise = random_like(jax.random.key(7), tiny_params())
    return jax.tree.map(lambda leaf: leaf * norm / optax.tree.norm(noise), noise)


OPTIMIZERS = {
    (recipe.optimizer, recipe.clip): name
    for name, recipe in RECIPES.items()
    if name not in BLOCKS  # which have shapes of their own, and do not clip
}


@pytest.mark.parametrize("name", OPTIMIZERS.values())
def test_an_optimizer_clips(name):
    recipe, params = RECIPES[name], tiny_params()
    optimizer = recipe.full_optimizer()
    update, state = compiled(optimizer.update), optimizer.init(params)
    for norm in (0.001, 100.0):
        updates, after = update(gradient_of_norm(norm), state, params)
        # Adam's first moment is a tenth of the first gradient that it is given.
        moments = [mu for _, mu in optax.tree.get_all_with_path(after, "mu")]
        wanted = min(norm, recipe.clip or math.inf) / 10
        assert float(optax.tree.norm(moments)) == pytest.approx(wanted, rel=1e-5)
        assert all(leaf.all() for leaf in jax.tree.leaves(updates))

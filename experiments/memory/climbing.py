"""Train a recipe at increasing lengths of a problem, all seeds in parallel, until it fails."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments.memory.recipes import Recipe
from experiments.shared.findings import Data
from experiments.shared.tasks import Batch, MemoryProblem
from jaxrnn import (
    Array,
    Key,
    Layer,
    Params,
    State,
    TrainState,
    diagnostics,
    init_train_state,
    scanned,
    train_steps,
)
from jaxrnn import make_train_step as make_step

_STEPS_A_CALL = 50  # from one validation to the next
_PENALIZED = 4  # sequences of a batch whose gradient norms are regularised
_AT_ONCE = 200  # sequences evaluated at once, to bound memory
_MEASURED = 4  # sequences and directions over which gradient norms are averaged
_LAGS = 40  # maximum number of lags whose norms are kept
# Compiling takes longer than running; at this level it takes less, and runs were as fast.
_quick_to_compile: Any = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 1}
)


class Effort(NamedTuple):
    """The budget of one length.

    steps: maximum number of training steps. sequence_steps: maximum of training steps times length.
    batch_size, test: sequences per training step, and per test.
    """

    steps: int
    sequence_steps: int
    batch_size: int
    test: int


class _Climb(NamedTuple):
    """Networks [S, ...] in training: their states, the factor [S] on each one's learning rate, the
    parameters and optimizer states with the best validation loss [S], and the validations [S] since
    then."""

    state: TrainState
    scale: np.ndarray
    best: tuple[Params, Any]
    best_loss: np.ndarray
    since: np.ndarray


def climb(
    problem: MemoryProblem,
    recipe: Recipe,
    lengths: tuple[int, ...],
    effort: Effort,
    keys: Key,
) -> Iterator[Data]:
    """Train one network for each of `keys` [S] at each length, and yield the results per length.

    Ends after the first length that fewer than half of the networks solve.
    """
    fresh = _start(problem, recipe, keys)
    state = fresh
    for length in lengths:
        state = state if recipe.grows else fresh
        before = _measure_norms(problem, recipe, length, state.params, keys)
        state, steps, skipped = _train(problem, recipe, length, effort, state)
        loss, right = evaluate(problem, recipe, length, effort.test, state.params, keys)
        solved = np.array([problem.solves(length, *pair) for pair in zip(loss, right, strict=True)])
        yield {
            "length": length,
            "steps": steps,
            "loss": loss,
            "right": right,
            "solved": solved,
            "skipped": skipped,
            "lags": _lags(length),
            "norms_before": np.asarray(before),
            "norms_after": np.asarray(_measure_norms(problem, recipe, length, state.params, keys)),
            "params": state.params,
        }
        if np.mean(solved) < 0.5:
            return


@functools.partial(_quick_to_compile, static_argnums=(0, 1))
def _start(problem: MemoryProblem, recipe: Recipe, keys: Key) -> TrainState:
    recurrent, readout = recipe.build(problem.input_size, problem.output_size)

    def one(key: Key) -> TrainState:
        key_recurrent, key_readout, key_run = jax.random.split(key, 3)
        params = (recurrent.init(key_recurrent), readout.init(key_readout))
        return init_train_state(params, recipe.full_optimizer(), key_run)

    return jax.vmap(one)(keys)


def _train(
    problem: MemoryProblem,
    recipe: Recipe,
    length: int,
    effort: Effort,
    state: TrainState,
) -> tuple[TrainState, np.ndarray, np.ndarray]:
    """Train each network until it solves its validation sequences by a margin.

    A network that gets much worse, or no better for long, is reset to its best state and continues
    with half its learning rate. Returns the best networks, and the numbers [S] of steps taken and
    of steps skipped.
    """
    seeds = len(state.step)
    most = min(effort.steps, effort.sequence_steps // length)
    best = (state.params, state.opt_state)
    run = _Climb(state, np.ones(seeds), best, np.full(seeds, np.inf), np.zeros(seeds, int))
    steps, passed, all_skipped = np.zeros((3, seeds), int)
    running = np.ones(seeds, bool)
    while True:
        keys = jax.vmap(jax.random.fold_in)(run.state.key, run.state.step)
        loss, right = evaluate(problem, recipe, length, effort.test, run.state.params, keys)
        loss = np.where(np.isfinite(loss), loss, np.inf)
        run = _keep_best(run, loss, running, recipe)
        passed = np.where(_has_margin(problem, length, loss, right), passed + 1, 0)
        running = running & (passed < recipe.passes)
        if not running.any() or np.max(steps) + _STEPS_A_CALL > most:
            break
        state, skipped = _advance(problem, recipe, length, effort.batch_size, run.state, run.scale)
        steps, run = steps + _STEPS_A_CALL * running, run._replace(state=state)
        all_skipped = all_skipped + np.where(running, skipped, 0)
    params, opt_state = run.best
    return run.state._replace(params=params, opt_state=opt_state), steps, all_skipped


def _has_margin(
    problem: MemoryProblem, length: int, losses: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Whether each network solves the problem with a loss far below that of a memoryless guess."""
    margin = problem.margin * problem.blind_loss(length)
    return np.array(
        [
            problem.solves(length, loss, part) and loss <= margin
            for loss, part in zip(losses, right, strict=True)
        ]
    )


def _keep_best(run: _Climb, losses: np.ndarray, running: np.ndarray, recipe: Recipe) -> _Climb:
    """Record the new best networks, and reset those that got much worse, or no better for long, to
    their best."""
    now = (run.state.params, run.state.opt_state)
    better = running & (losses < run.best_loss)
    best, best_loss = _choose(better, now, run.best), np.where(better, losses, run.best_loss)
    since = np.where(better, 0, run.since + 1)
    lost = running & (~(losses <= 2 * best_loss + 0.1) | (since > recipe.patience))
    params, opt_state = _choose(lost | ~running, best, now)
    scale = np.where(lost, np.maximum(run.scale / 2, recipe.least), run.scale)
    state = run.state._replace(params=params, opt_state=opt_state)
    return _Climb(state, scale, best, best_loss, np.where(lost, 0, since))


def _choose(mask: np.ndarray, yes: Any, no: Any) -> Any:
    """One of two stacks of networks [S, ...], network by network."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, yes, no)


@functools.partial(_quick_to_compile, static_argnums=(0, 1, 2, 3))
def _advance(
    problem: MemoryProblem,
    recipe: Recipe,
    length: int,
    batch_size: int,
    state: TrainState,
    scale: Array,
) -> tuple[TrainState, Array]:
    """Take some training steps with every network, each with its scaled learning rate, and count
    those that were skipped."""

    def loss_fn(params: Params, batch: Batch, key: Key) -> tuple[Array, dict[str, Array]]:
        return _objective(problem, recipe, params, batch, key), {}

    def make_batch(key: Key, step: Array) -> Batch:
        del step
        return problem.draw(key, length, batch_size, recipe.mixes)

    def one(state: TrainState, scale: Array) -> tuple[TrainState, Array]:
        optimizer = optax.chain(recipe.full_optimizer(), optax.scale(scale))
        start = state._replace(opt_state=(state.opt_state, optax.EmptyState()))
        step = make_step(loss_fn, optimizer)
        state, history = train_steps(step, start, make_batch, _STEPS_A_CALL)
        return state._replace(opt_state=state.opt_state[0]), jnp.sum(history["skipped"])

    return jax.vmap(one)(state, scale)


def evaluate(
    problem: MemoryProblem, recipe: Recipe, length: int, sequences: int, params: Params, keys: Key
) -> tuple[np.ndarray, np.ndarray]:
    """The loss and the fraction right, each [S], on sequences of a length drawn from `keys` [S];
    their number is rounded up to whole batches."""
    loss, right = _evaluate(problem, recipe, length, sequences, params, keys)
    return np.asarray(loss), np.asarray(right)


def _answer(problem: MemoryProblem, recipe: Recipe, params: Params, batch: Batch) -> Array:
    """The outputs that count: those of the last steps [B, O], or all [T, B, O]."""
    recurrent, readout = recipe.build(batch.xs.shape[-1], problem.output_size)
    hs = recurrent.unroll(params[0], None, batch.xs)[1]
    if problem.everywhere:
        return readout.unroll(params[1], None, hs)[1]
    return readout.step(params[1], None, hs[batch.last, jnp.arange(hs.shape[1])])[1]


def _objective(
    problem: MemoryProblem, recipe: Recipe, params: Params, batch: Batch, key: Key
) -> Array:
    """What is minimised: the loss, with the recipe's noise and regulariser."""
    if recipe.noisy:
        params, batch = _add_noise(recipe, params, batch, key)
    loss = problem.loss(_answer(problem, recipe, params, batch), batch.targets)
    if recipe.steadiness:
        loss = loss + recipe.steadiness * _unsteadiness(problem, recipe, params, batch)
    return loss


def _add_noise(recipe: Recipe, params: Params, batch: Batch, key: Key) -> tuple[Params, Batch]:
    """A network of one layer in which each noisy unit has one more input, of its own: the sum of
    four random signs, which is cheap and nearly normal, divided by its standard deviation of 2."""
    (layer,), readout = params
    units = recipe.noisy
    octets = jax.random.bits(key, (*batch.xs.shape[:2], -(-units // 2)), jnp.uint8)
    signs = 2.0 * jnp.unpackbits(octets, axis=-1, count=4 * units) - 1.0
    noises = jnp.sum(signs.reshape(*octets.shape[:2], units, 4), axis=-1) / 2
    xs = jnp.concatenate([batch.xs, noises], axis=-1)
    scales = recipe.noise * jnp.eye(len(layer.w_hh), units)
    w_ih = jnp.concatenate([layer.w_ih, scales], axis=1)
    return ((layer._replace(w_ih=w_ih),), readout), batch._replace(xs=xs)


def _unsteadiness(problem: MemoryProblem, recipe: Recipe, params: Params, batch: Batch) -> Array:
    """How far each step is from keeping the norm of the gradient that it passes back, squared and
    summed. A step that receives or passes back no gradient does not count.

    Source: Pascanu, Mikolov & Bengio 2013, equation 9.
    """
    recurrent, readout = recipe.build(problem.input_size, problem.output_size)

    def loss_fn(hs: Array, targets: Array) -> Array:  # [T, H], of one sequence
        counted = hs[:, None] if problem.everywhere else hs[-1:]
        apply = readout.unroll if problem.everywhere else readout.step
        return problem.loss(apply(params[1], None, counted)[1], targets[..., None])

    def one(xs: Array, targets: Array) -> Array:
        def late_loss(state: State, before: Array) -> Array:
            return loss_fn(jnp.concatenate([before[1:], state[-1][None]]), targets)

        whole = (params[0], None, xs)
        passed = diagnostics.gradient_norms_by_lag(
            recurrent, *whole, lambda state, hs: loss_fn(hs, targets)
        )
        received = diagnostics.gradient_norms_by_lag(_delayed(recurrent), *whole, late_loss)
        counts = jnp.isfinite(passed[1:]) & jnp.isfinite(received[:-1])
        growth = jnp.where(counts, passed[1:] - received[:-1], 0.0)
        return jnp.sum((jnp.exp(growth) - 1) ** 2)

    some = slice(0, _PENALIZED)
    targets = batch.targets[:, some] if problem.everywhere else batch.targets[some]
    axis = 1 if problem.everywhere else 0
    return jnp.mean(jax.vmap(one, in_axes=(1, axis))(batch.xs[:, some], targets))


def _delayed(recurrent: Layer) -> Layer:
    """A stack whose output is its last layer's state before the step. The gradient that a state
    receives, as `gradient_norms_by_lag` counts it, then includes that of its own output."""

    def step(params: Params, state: State, x: Array) -> tuple[State, Array]:
        return recurrent.step(params, state, x)[0], state[-1]

    sizes = (recurrent.input_size, recurrent.output_size)
    return scanned(*sizes, recurrent.init, recurrent.initial_state, step)


@functools.partial(_quick_to_compile, static_argnums=(0, 1, 2, 3))
def _evaluate(
    problem: MemoryProblem, recipe: Recipe, length: int, sequences: int, params: Params, keys: Key
) -> tuple[Array, Array]:
    def one(params: Params, key: Key) -> tuple[Array, Array]:
        batch = problem.draw(key, length, min(sequences, _AT_ONCE))
        outputs = _answer(problem, recipe, params, batch)
        return problem.loss(outputs, batch.targets), problem.right(outputs, batch.targets)

    def network(pair: tuple[Params, Key]) -> tuple[Array, Array]:
        params, key = pair
        parts = jax.random.split(jax.random.fold_in(key, length), -(-sequences // _AT_ONCE))
        return jax.tree.map(jnp.mean, jax.lax.map(lambda part: one(params, part), parts))

    return jax.lax.map(network, (params, keys))


@functools.partial(_quick_to_compile, static_argnums=(0, 1, 2))
def _measure_norms(
    problem: MemoryProblem, recipe: Recipe, length: int, params: Params, keys: Key
) -> Array:
    """log of the norm of u^T d h_T / d h_{T-k}, [S, K], the mean over some sequences, each with its
    own random unit vector u."""
    recurrent, _ = recipe.build(problem.input_size, problem.output_size)

    def one(params: Params, xs: Array, key: Key) -> Array:
        def project(state: Any, ys: Array) -> Array:
            del ys
            flat = ravel_pytree(state)[0]
            direction = jax.random.normal(key, flat.shape)
            return jnp.vdot(direction, flat) / jnp.linalg.norm(direction)

        return diagnostics.gradient_norms_by_lag(recurrent, params, None, xs, project)

    def network(params: Params, key: Key) -> Array:
        key_data, *key_directions = jax.random.split(key, 1 + _MEASURED)
        xs = problem.draw(key_data, length, _MEASURED).xs
        logs = jax.vmap(one, in_axes=(None, 1, 0))(params[0], xs, jnp.stack(key_directions))
        return jnp.mean(logs[:, _lags(length)], axis=0)

    return jax.vmap(network)(params, keys)


def _lags(length: int) -> np.ndarray:
    return np.unique(np.geomspace(1, length, _LAGS).astype(int))

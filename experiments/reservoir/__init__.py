"""Reservoirs: networks that stay as they were drawn, with a linear readout fitted in one pass.

Claims: such a network of 100 units predicts the Mackey-Glass series to 0.002 one step ahead, and
goes on by itself; of 500 units it follows NARMA-10 to a fifth of its standard deviation, better
than a linear readout of the last inputs; run free it forecasts Lorenz-63 for 8 Lyapunov times; and
the memory of its inputs depends on its spectral radius and its leak, the longest at a radius near 1
without a leak. Refuted by the errors on the test rows, and by the map of the memory capacity.

Spectral radius, leak, scales and penalty are chosen by `jaxrnn.reservoir.search` on validation
rows, with smaller networks where these are large; then networks of several seeds with these
settings are tested. A free run takes the settings, of 16 from the better half, and the penalty
whose free runs over the validation rows stay right for longest: what predicts one step best may be
unstable when it reads its own outputs. NRMSE is the root mean square error over the standard
deviation of the target. Sources: Jaeger 2001, "Short term memory in echo state networks"; Jaeger &
Haas 2004, "Harnessing nonlinearity".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

import jaxrnn
from experiments.data.chaotic_systems import SYSTEMS, simulate
from experiments.data.delay_systems import draw_narma, simulate_mackey_glass
from experiments.dynamics.measures import LIMIT, run_free, valid_steps
from experiments.reservoir.findings import judge
from experiments.shared.findings import Data, Result
from experiments.shared.options import Positive, RunConfig
from experiments.shared.output import Tick
from jaxrnn import Array, Key, Layer, Params, reservoir

_TRAIN, _VALIDATION, _TEST = 6000, 2000, 12_000
_WASHOUT = 200
_WARM_UP, _STARTS = 200, 50
_PENALTIES = (1e-11, 1e-9, 1e-7, 1e-5, 1e-3)
_LOOK = 1000  # steps of the free runs over validation rows
_FINALISTS = 16  # settings that are compared by their free runs
_AHEAD = 84  # steps of the free run of Mackey-Glass that are scored (Jaeger & Haas 2004)
_DELAY_LINE = 20  # inputs that the linear readout beside NARMA-10 reads


@dataclass(frozen=True)
class Config(RunConfig):
    """The options of `reservoir`."""

    mackey_units: Positive = 100
    """Units of the reservoirs that predict Mackey-Glass one step ahead."""
    hidden_size: Positive = 500
    """Units of the other reservoirs."""
    search_size: Positive = 200
    """Units of the networks of the search at most."""
    trials: Annotated[Positive, Field(multiple_of=2)] = 192
    """Settings that the search tries for each task."""
    seeds: Positive = 5
    """Networks with the chosen settings that are tested."""
    memory_units: Positive = 100
    """Units of the reservoirs whose memory capacity is mapped."""
    radii: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.5)
    """Spectral radii of the map."""
    leaks: tuple[float, ...] = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Leaks of the map."""
    quick: bool = False
    """Fewer trials, units and seeds."""


class Prediction(NamedTuple):
    """A task: inputs and targets [T, ...] with the rows of training, validation and test in this
    order."""

    name: str
    xs: Array
    targets: Array
    units: int

    def cut(self, start: int, stop: int) -> tuple[Array, Array]:
        """Inputs and targets of some rows."""
        return self.xs[start:stop], self.targets[start:stop]


def run(config: Config, progress: Tick) -> Result:
    """Search, fit and test every task; then map the memory."""
    if config.quick:
        config = dataclasses.replace(config, hidden_size=200, trials=16, seeds=2)
    data: Data = {"tasks": {}}
    tasks = _make_tasks(config)
    for number, task in enumerate(tasks):
        progress(0.85 * number / len(tasks), task.name)
        data["tasks"][task.name] = _solve(config, task)
    progress(0.85, "memory")
    data["memory"] = {
        "radii": np.asarray(config.radii),
        "leaks": np.asarray(config.leaks),
        "units": config.memory_units,
        "capacity": _map_memory(config),
    }
    return Result(data, judge(data))


def _make_tasks(config: Config) -> list[Prediction]:
    total = _TRAIN + _VALIDATION + _TEST + 1
    tasks = []
    for delay in (17, 30):
        series = jnp.asarray(simulate_mackey_glass(delay, total), jnp.float32)[:, None]
        pair = series[:-1], series[1:]
        tasks.append(Prediction(f"mackey-glass {delay}", *pair, config.mackey_units))
    inputs, outputs = draw_narma(jax.random.key(config.seed), total)
    reads, writes = (jnp.asarray(each, jnp.float32)[:, None] for each in (inputs, outputs))
    tasks.append(Prediction("narma", reads[:-1], writes[1:], config.hidden_size))
    simulated = simulate(SYSTEMS["lorenz"], total)
    simulated = (simulated - simulated[:_TRAIN].mean(0)) / simulated[:_TRAIN].std(0)
    states = jnp.asarray(simulated, jnp.float32)
    return [*tasks, Prediction("lorenz", states[:-1], states[1:], config.hidden_size)]


def _solve(config: Config, task: Prediction) -> Data:
    """The chosen settings, the errors of a step of each seed, and what a free run gives."""
    key_search, key_seeds = jax.random.split(jax.random.key(config.seed + 1))
    _, _, trials = reservoir.search(
        key_search,
        min(task.units, config.search_size),
        task.cut(0, _TRAIN),
        task.cut(_TRAIN, _TRAIN + _VALIDATION),
        num_trials=config.trials,
        penalties=_PENALTIES,
        washout=_WASHOUT,
    )
    order = np.argsort(np.asarray(trials.errors))
    network = _make_network(task, trials, int(order[0]))
    seeds = jax.random.split(key_seeds, config.seeds)
    fit = _make_fit(task)

    def fit_seeds(trial: int) -> Fitted:
        setting = {name: each[trial] for name, each in trials.settings.items()}
        return fit(seeds, jax.tree.map(lambda v: jnp.full(len(seeds), v), setting))

    fitted = fit_seeds(int(order[0]))
    errors = _test_steps(network, fitted.params, task)
    spread = float(jnp.std(task.targets[_TRAIN + _VALIDATION :]))
    setting: Any = {name: float(each[order[0]]) for name, each in trials.settings.items()}
    data: Data = {"setting": setting, "rmse": errors, "nrmse": errors / spread, "units": task.units}
    if task.name == "narma":
        return data | {"delay_line": _fit_delay_line(task) / spread}
    spaced = np.unique(np.linspace(0, (len(order) - 1) // 2, _FINALISTS).astype(int))
    first = jnp.asarray(order[spaced])
    finalists = fit(trials.keys[first], {name: v[first] for name, v in trials.settings.items()})
    chosen = int(first[finalists.valid.max(axis=1).argmax()])
    network = _make_network(task, trials, chosen)
    free = fit_seeds(chosen)
    best = free.valid.argmax(axis=1)
    readouts = jax.tree.map(lambda leaf: leaf[np.arange(len(best)), best], free.readouts)
    return data | _test_free(network, (free.params[0], readouts), task, spread)


def _make_network(task: Prediction, trials: reservoir.Trials, trial: int) -> Layer:
    setting: Any = {name: float(each[trial]) for name, each in trials.settings.items()}
    rnn = reservoir.echo_state_network(task.xs.shape[1], task.units, **setting)
    return jaxrnn.stack(rnn, jaxrnn.dense(task.units, task.targets.shape[1]))


class Fitted(NamedTuple):
    """Reservoirs [N] of one task: their parameters with the readout of the least validation error,
    the readouts [N, P] of each penalty, and for how many steps each is right, run free over the
    validation rows, [N, P]."""

    params: Params
    readouts: Params
    valid: np.ndarray


def _make_fit(task: Prediction) -> Callable[[Key, dict[str, Array]], Fitted]:
    """A function that fits reservoirs with keys [N] and settings [N], one after the other."""
    train, validation = task.cut(0, _TRAIN), task.cut(_TRAIN, _TRAIN + _VALIDATION)
    size, runs_free = task.targets.shape[1], task.name != "narma"
    windows = jaxrnn.sliding_windows(validation[0], _WARM_UP + _LOOK, stride=100)
    true = np.asarray(windows[_WARM_UP:])

    @jax.jit
    def fit(key: Key, setting: dict[str, Any]) -> tuple[Params, Params, Any]:
        rnn = reservoir.echo_state_network(task.xs.shape[1], task.units, **setting)
        params = rnn.init(key)
        state, rows = reservoir.gather_statistics(rnn, params, None, *train, washout=_WASHOUT)
        _, others = reservoir.gather_statistics(rnn, params, state, *validation)
        best = reservoir.ridge_readout(rows, _PENALTIES, size, validation=others).params
        if not runs_free:
            return (params, best), (), ()
        network = jaxrnn.stack(rnn, jaxrnn.dense(task.units, size))

        def try_penalty(penalty: Array) -> tuple[Params, Array]:
            readout = reservoir.ridge_readout(rows, penalty, size).params
            return readout, run_free(network, (params, readout), windows[:_WARM_UP], _LOOK)

        return (params, best), *jax.lax.map(try_penalty, jnp.asarray(_PENALTIES))

    def fit_all(keys: Key, settings: dict[str, Array]) -> Fitted:
        trials = [_take((keys, settings), place) for place in range(len(keys))]
        found = [fit(*trial) for trial in trials]
        params, readouts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(f[:2] for f in found))
        valid = [valid_steps(np.asarray(runs), true).mean(1) for *_, runs in found if runs_free]
        return Fitted(params, readouts, np.asarray(valid))

    return fit_all


def _take(tree: Any, place: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[place], tree)


def _test_steps(network: Layer, params: Params, task: Prediction) -> np.ndarray:
    """The root mean square error of each seed on the test rows, one step ahead, [S]."""
    xs, targets = task.cut(_TRAIN + _VALIDATION - _WASHOUT, len(task.xs))

    def test(params: Params) -> Array:
        _, ys = network.unroll(params, None, xs)
        return jnp.sqrt(jnp.mean((ys - targets)[_WASHOUT:] ** 2))

    return np.asarray(jax.jit(jax.vmap(test))(params))


def _test_free(network: Layer, params: Params, task: Prediction, spread: float) -> Data:
    """Free runs from test rows: how long they are right, or for Mackey-Glass the error at one step
    far ahead."""
    lorenz = task.name == "lorenz"
    steps = 2200 if lorenz else 500
    first = _TRAIN + _VALIDATION
    starts = np.linspace(first + _WARM_UP, len(task.xs) - steps - 1, _STARTS).astype(int)
    warm_up = task.xs[starts - _WARM_UP + np.arange(_WARM_UP)[:, None]]
    true = np.asarray(task.xs[starts + np.arange(steps)[:, None]])
    free = jax.jit(jax.vmap(lambda params: run_free(network, params, warm_up, steps)))
    runs = np.asarray(free(params))
    time = SYSTEMS["lorenz"].lyapunov_time if lorenz else 1.0
    valid = valid_steps(runs, true) / time
    ahead = np.sqrt(np.mean((runs - true)[:, _AHEAD - 1, :, 0] ** 2, axis=1)) / spread
    shown = {"run": runs[0, :, 0, 0], "true": true[:, 0, 0], "limit": LIMIT}
    return {"valid": valid, "ahead": ahead, "shown": shown}


def _fit_delay_line(task: Prediction) -> float:
    """The error of a linear readout of the last inputs."""
    line = jaxrnn.scanned(
        1,
        _DELAY_LINE,
        lambda key: (),
        lambda params, batch: jnp.zeros((*batch, _DELAY_LINE)),
        lambda params, state, x: (jnp.concatenate([x, state[..., :-1]], axis=-1),) * 2,
    )
    train, validation = task.cut(0, _TRAIN), task.cut(_TRAIN, _TRAIN + _VALIDATION)
    options: Any = {"penalties": _PENALTIES, "validation": validation, "washout": _WASHOUT}
    _, readout = jax.jit(lambda: reservoir.fit_readout(line, (), *train, **options))()
    network = jaxrnn.stack(line, jaxrnn.dense(_DELAY_LINE, 1))
    params = jax.tree.map(lambda leaf: leaf[None], ((), readout.params))
    return float(_test_steps(network, params, task)[0])


def _map_memory(config: Config) -> np.ndarray:
    """The memory capacity at each radius and leak, [radii, leaks], in one vmapped call: the sum,
    over delays of up to twice the units, of the squared correlation of the delayed input with the
    best linear readout."""
    units, delays = config.memory_units, 2 * config.memory_units
    steps = 4000 + delays
    inputs = jax.random.uniform(jax.random.key(config.seed + 2), (steps,), minval=-0.8, maxval=0.8)
    shifted = jnp.stack([jnp.roll(inputs, delay) for delay in range(1, delays + 1)], axis=1)
    xs, targets, half = inputs[delays:, None], shifted[delays:], 2500

    def measure(radius: Array, leak: Array) -> Array:
        layer = reservoir.echo_state_network(
            1, units, radius=radius, leak=leak, input_scale=0.1, bias_scale=1e-6
        )
        params = layer.init(jax.random.key(config.seed + 3))
        state, readout = reservoir.fit_readout(
            layer, params, xs[:half], targets[:half], penalties=1e-9, washout=_WASHOUT
        )
        _, hs = layer.unroll(params, state, xs[half:])
        ys = hs @ readout.params.w.T  # a bias changes no correlation
        return jnp.sum(_squared_correlations(ys, targets[half:]))

    over_leaks = jax.vmap(measure, in_axes=(None, 0))
    both = jax.vmap(over_leaks, in_axes=(0, None))
    return np.asarray(jax.jit(both)(jnp.asarray(config.radii), jnp.asarray(config.leaks)))


def _squared_correlations(ys: Array, targets: Array) -> Array:
    ys, targets = ys - ys.mean(0), targets - targets.mean(0)
    both = jnp.sum(ys * targets, axis=0) ** 2
    return both / jnp.maximum(jnp.sum(ys**2, axis=0) * jnp.sum(targets**2, axis=0), 1e-30)

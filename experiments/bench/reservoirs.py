"""Reservoirs beside reservoirpy: fit and run one, run a large sparse one, fit many at once.

Each with its defaults: ours float32 with a dense W, reservoirpy's float64 with a tenth of the
connections. All have one thread of LAPACK (`experiments/__init__.py`), reservoirpy too.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.entrants import Unavailable
from experiments.bench.peers import load
from experiments.shared.findings import Data, Finding
from experiments.shared.timing import time_in_turn
from jaxrnn import Array, reservoir, stack
from jaxrnn.layers import dense

_STEPS = 10_000
_WASHOUT = 100
_PENALTY = 1e-6
_CONNECTIVITY = 0.1  # reservoirpy's default
_LARGE, _FAN_IN = 10_000, 10
_MANY, _MANY_UNITS, _MANY_STEPS = 64, 300, 2000

OURS, NUMPY, COMPILED = "jaxrnn", "reservoirpy", "reservoirpy on JAX"


def measure_reservoirs(
    units: Sequence[int], repeats: int, *, peers: bool, quick: bool = False
) -> list[Data]:
    """Median seconds of each contender in each case."""
    rows = []
    series = _make_series(2000 if quick else _STEPS)
    for size in units:
        calls = {OURS: _fit_and_run(size, series)}
        if peers:
            calls |= _peers(size, series)
        rows.append(_time(f"fit and run, {size} units", calls, repeats))
    large = 500 if quick else _LARGE
    calls = {OURS: _run_sparse(large, series)}
    if peers:
        calls |= _peers(large, series, connectivity=_FAN_IN / large, fit=False)
    rows.append(_time(f"run, {large} units with {_FAN_IN} inputs", calls, 1))
    count, size = (4, 30) if quick else (_MANY, _MANY_UNITS)
    short = series[:_MANY_STEPS]
    calls = {OURS: _fit_many(count, size, short)}
    if peers:
        calls |= {
            name: _repeat(call, count) for name, call in _peers(size, short, run=False).items()
        }
    rows.append(_time(f"fit {count} of {size} units", calls, 1))
    return rows


def judge_reservoirs(rows: list[Data]) -> list[Finding]:
    """How much faster than reservoirpy."""
    least = {"fit and run": 3.0, "run": 1.0, "fit": 10.0}
    compared = [row for row in rows if len(row["seconds"]) > 1]
    if not compared:
        return []
    told, good = [], []
    for row in compared:
        seconds = row["seconds"]
        ratios = {n: seconds[n] / seconds[OURS] for n in seconds if n != OURS}
        needed = least[row["case"].partition(",")[0] if "," in row["case"] else "fit"]
        good.append(min(ratios.values()) >= needed)
        told.append(f"{row['case']}: " + ", ".join(f"{r:.1f} ({n})" for n, r in ratios.items()))
    return [
        Finding(
            "reservoirs",
            "Reservoirs are fitted and run faster than by reservoirpy.",
            "3 times as fast to fit and run one, ahead with 10,000 units, 10 times for 64 at once",
            "; ".join(told),
            all(good),
        )
    ]


def _time(case: str, calls: dict[str, Callable[[], Any]], repeats: int) -> Data:
    seconds = time_in_turn(*calls.values(), repeats=repeats)
    return {"case": case, "seconds": dict(zip(calls, seconds, strict=True))}


def _make_series(steps: int) -> np.ndarray:
    """A sum of two sines of incommensurable periods, [steps + 1, 1]."""
    t = np.arange(steps + 1)
    return (np.sin(t / 5) + np.sin(t / 7.3))[:, None].astype(np.float32) / 2


def _fit_and_run(units: int, series: np.ndarray) -> Callable[[], Any]:
    rnn = reservoir.echo_state_network(1, units)
    network = stack(rnn, dense(units, 1))
    params = jax.jit(rnn.init)(jax.random.key(0))

    @jax.jit
    def call(params: Any, series: Array) -> Array:
        xs, targets = series[:-1], series[1:]
        options: Any = {"penalties": _PENALTY, "washout": _WASHOUT}
        _, fitted = reservoir.fit_readout(rnn, params, xs, targets, **options)
        return network.unroll((params, fitted.params), None, xs)[1]

    return functools.partial(call, params, jnp.asarray(series))


def _run_sparse(units: int, series: np.ndarray) -> Callable[[], Any]:
    rnn = reservoir.echo_state_network(1, units, fan_in=_FAN_IN)
    params = jax.jit(rnn.init)(jax.random.key(0))
    run = jax.jit(lambda params, xs: rnn.unroll(params, None, xs)[1])
    return functools.partial(run, params, jnp.asarray(series[:-1]))


def _fit_many(count: int, units: int, series: np.ndarray) -> Callable[[], Any]:
    rnn = reservoir.echo_state_network(1, units)
    keys = jax.random.split(jax.random.key(0), count)
    params = jax.jit(jax.vmap(rnn.init))(keys)

    @jax.jit
    def call(params: Any, series: Array) -> Any:
        def fit(one: Any) -> Any:
            options: Any = {"penalties": _PENALTY, "washout": _WASHOUT}
            return reservoir.fit_readout(rnn, one, series[:-1], series[1:], **options)[1].params

        return jax.lax.map(fit, params)

    return functools.partial(call, params, jnp.asarray(series))


def _peers(
    units: int,
    series: np.ndarray,
    *,
    connectivity: float = _CONNECTIVITY,
    fit: bool = True,
    run: bool = True,
) -> dict[str, Callable[[], Any]]:
    """reservoirpy's calls, NumPy's and JAX's, if it is installed."""
    found: dict[str, Callable[[], Any]] = {}
    for name, module in ((NUMPY, "reservoirpy.nodes"), (COMPILED, "reservoirpy.jax.nodes")):
        try:
            nodes = load(module)
        except Unavailable:
            continue
        found[name] = functools.partial(_call_peer, nodes, units, series, connectivity, fit, run)
    return found


def _call_peer(
    nodes: Any, units: int, series: np.ndarray, connectivity: float, fit: bool, run: bool
) -> Any:
    xs, targets = series[:-1], series[1:]
    states = _make_peer(nodes, units, connectivity)
    if not fit:
        return np.asarray(states.run(xs))
    network = states >> nodes.Ridge(ridge=_PENALTY)
    with warnings.catch_warnings():  # recent LAPACKs call so small a penalty ill-conditioned
        warnings.simplefilter("ignore")
        network.fit(xs, targets, warmup=_WASHOUT)
    return np.asarray(network.run(xs)) if run else None


@functools.cache
def _make_peer(nodes: Any, units: int, connectivity: float) -> Any:
    """A reservoir whose matrix is drawn outside the clock, as ours is."""
    made = nodes.Reservoir(units, sr=0.9, rc_connectivity=connectivity, seed=0)
    made.run(np.zeros((1, 1), np.float32))
    return made


def _repeat(call: Callable[[], Any], count: int) -> Callable[[], Any]:
    def repeated() -> None:
        for _ in range(count):
            call()

    return repeated

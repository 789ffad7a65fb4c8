"""The whole loop of training, data included, as one writes it in each framework; and a sweep.

Every loop trains the same network, a vanilla layer and a readout, from the same weights, with Adam,
to say what it read two steps ago; every batch is drawn anew. What each needed:

- flax: `nnx.split` once and a jitted step with optax that draws its batch, as its guide on
  performance has it, so that no module is traversed at each step.
- torch: `nn.RNN` and fused Adam, with one thread or one per core, whichever is faster.
- torch.func: `vmap` has no rule for `nn.RNN`, so the loop over time is written out.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from experiments.bench.cases import Shape4
from experiments.bench.entrants import Unavailable, interleave
from experiments.bench.findings import Unmeasured
from experiments.bench.peers import load
from experiments.bench.torch_loops import (
    DELAY,
    RATE,
    Loop,
    torch_loop,
    torch_mapped,
    torch_sweep,
)
from experiments.shared.devices import largest_divisor
from experiments.shared.findings import Data, Finding
from experiments.shared.timing import time_in_turn
from jaxrnn import (
    Array,
    Key,
    Layer,
    Params,
    TrainState,
    deep_rnn,
    fit,
    init_train_state,
    make_train_step,
    train_steps,
)
from jaxrnn.sharding import data_mesh

OURS, FLAX, TORCH, MAPPED = "jaxrnn", "flax", "torch", "torch.func.vmap"
_STEPS, _SWEPT_STEPS = 100, 2  # of a turn
_CHECKED, _AVERAGED = 300, 50  # steps before the losses are compared, and how many last ones
_BLOCK = 16  # networks at a time on one device
_FASTER = {TORCH: 5.0, FLAX: 1.5}


def measure_loops(
    shape: Shape4,
    networks: int,
    seed: int,
    seconds: float,
    least_rounds: int,
    *,
    peers: bool = True,
    quick: bool = False,
) -> Data:
    """Microseconds per training step of each loop, and its loss after some steps; then those of a
    sweep, per network and step."""
    makers: dict[str, Any] = {OURS: _library_loop}
    sweeps: dict[str, Any] = {OURS: _library_sweep}
    if peers:
        makers |= {FLAX: _flax_loop, TORCH: torch_loop}
        sweeps |= {TORCH: torch_sweep, MAPPED: torch_mapped}
    network, params = _start(shape, seed)
    whole = dict(_enter(makers, lambda make: make(shape, network, params, seed)))
    checked = _AVERAGED if quick else _CHECKED
    losses = {name: float(np.mean(loop(checked)[-_AVERAGED:])) for name, loop in whole.items()}
    times = interleave(
        {name: functools.partial(loop, _STEPS) for name, loop in whole.items()},
        seconds,
        least_rounds,
    )
    swept = dict(_enter(sweeps, lambda make: make(shape, network, params, networks, seed)))
    turns = [functools.partial(loop, _SWEPT_STEPS) for loop in swept.values()]
    rounds = time_in_turn(*turns, repeats=1 if quick else 3)
    return {
        "shape": shape,
        "networks": networks,
        "losses": losses,
        "microseconds": {n: 1e6 * statistics.median(t) / _STEPS for n, t in times.items()},
        "swept_microseconds": {
            name: 1e6 * seconds / _SWEPT_STEPS / networks
            for name, seconds in zip(swept, rounds, strict=True)
        },
    }


def judge_loops(loops: Data) -> list[Finding]:
    """The whole loop, and the sweep, beside those of torch and flax."""
    times, swept, losses = (loops[n] for n in ("microseconds", "swept_microseconds", "losses"))
    shape = ",".join(map(str, loops["shape"]))
    claim = f"The whole loop at {shape}, data drawn on the fly, is faster in `fit`."
    criterion = "5 times as fast as torch's, 1.5 times as flax's; the same loss within 10 %"
    ratios = {name: times[name] / times[OURS] for name in times if name != OURS}
    listed = [f"{name} {ratio:.2f}" for name, ratio in ratios.items()]
    apart = max(abs(loss / losses[OURS] - 1) for loss in losses.values())
    whole = Finding(
        "loop",
        claim,
        criterion,
        f"{', '.join(listed)} times; {1e6 / times[OURS]:,.0f} steps per second; losses "
        f"{apart:.1%} apart",
        all(ratio >= _FASTER[name] for name, ratio in ratios.items()) and apart <= 0.1,
    )
    claim = f"A sweep over {loops['networks']} such networks is faster in one `vmap`."
    criterion = "faster than torch in a loop and than torch.func.vmap"
    beside = {name: swept[name] / swept[OURS] for name in swept if name != OURS}
    listed = [f"{name} {ratio:.1f}" for name, ratio in beside.items()]
    sweep = Finding(
        "sweep",
        claim,
        criterion,
        f"{', '.join(listed)} times; {swept[OURS]:.0f} microseconds per network and step",
        all(ratio > 1 for ratio in beside.values()),
    )
    absent = "no other framework took part"
    return [
        found if others else Unmeasured(found.name, found.claim, found.criterion, absent, False)
        for found, others in ((whole, ratios), (sweep, beside))
    ]


def _enter(makers: dict[str, Any], make: Callable[[Any], Loop]) -> Iterator[tuple[str, Loop]]:
    """The loops of the frameworks that are installed."""
    for name, maker in makers.items():
        try:
            yield name, make(maker)
        except Unavailable:
            continue


def _start(shape: Shape4, seed: int) -> tuple[Layer, Params]:
    inputs, units = shape[2:]
    network = deep_rnn((inputs, units, inputs))
    return network, network.init(jax.random.key(seed))


# The library


def _library_loop(shape: Shape4, network: Layer, params: Params, seed: int) -> Loop:
    optimizer = optax.adam(RATE)
    train_step = make_train_step(_loss_fn(network), optimizer)
    make_batch = _batches(shape)
    state = init_train_state(params, optimizer, jax.random.key(seed))

    def loop(steps: int) -> list[float]:
        nonlocal state
        state, history = fit(train_step, state, make_batch, steps)
        return list(history["loss"])

    return loop


def _library_sweep(shape: Shape4, network: Layer, params: Params, networks: int, seed: int) -> Loop:
    """Networks split over all devices; each device runs so few at a time that they stay in its
    cache."""
    mesh = data_mesh(jax.devices()[: largest_divisor(networks, len(jax.devices()))])
    part = PartitionSpec(mesh.axis_names)
    loss_fn, make_batch = _loss_fn(network), _batches(shape)
    rates = jnp.full(networks, RATE)

    def start(key: Key) -> TrainState:
        return init_train_state(params, optax.adam(RATE), key)

    @functools.partial(jax.jit, static_argnums=0)
    def advance(steps: int, rates: Array, states: TrainState) -> tuple[TrainState, Array]:
        def one(rate_and_state: tuple[Array, TrainState]) -> tuple[TrainState, Array]:
            rate, state = rate_and_state
            train_step = make_train_step(loss_fn, optax.adam(rate))
            state, history = train_steps(train_step, state, make_batch, steps)
            return state, history["loss"]

        def share(rates: Array, states: TrainState) -> tuple[TrainState, Array]:
            return jax.lax.map(one, (rates, states), batch_size=_BLOCK)

        run = jax.shard_map(share, mesh=mesh, in_specs=part, out_specs=part, check_vma=False)
        return run(rates, states)

    states = jax.vmap(start)(jax.random.split(jax.random.key(seed), networks))

    def loop(steps: int) -> list[float]:
        nonlocal states
        states, losses = advance(steps, rates, states)
        return list(np.asarray(losses).mean(axis=0))

    return loop


def _loss_fn(network: Layer) -> Any:
    def loss_fn(params: Params, xs: Array, key: Key) -> tuple[Array, dict[str, Array]]:
        del key
        ys = network.unroll(params, None, xs)[1]
        return jnp.mean((ys[DELAY:] - xs[:-DELAY]) ** 2), {}

    return loss_fn


def _batches(shape: Shape4) -> Any:
    def make_batch(key: Key, step: Array) -> Array:
        del step
        return jax.random.normal(key, shape[:3])

    return make_batch


# The others


def _flax_loop(shape: Shape4, network: Layer, params: Params, seed: int) -> Loop:
    del network
    nnx = load("flax.nnx")
    _, batch, inputs, units = shape
    rnn, readout = params
    cell = nnx.SimpleCell(inputs, units, rngs=nnx.Rngs(0))
    cell.dense_i.kernel[...], cell.dense_i.bias[...] = rnn.w_ih.T, rnn.b
    cell.dense_h.kernel[...] = rnn.w_hh.T
    last = nnx.Linear(units, inputs, rngs=nnx.Rngs(0))
    last.kernel[...], last.bias[...] = readout.w.T, readout.b
    model = nnx.List([nnx.RNN(cell, time_major=True), last])
    graph, weights, rest = nnx.split(model, nnx.Param, ...)
    adam = optax.adam(RATE)

    def loss_of(weights: Any, xs: Array) -> Array:
        layer, last = nnx.merge(graph, weights, rest)
        ys = last(layer(xs, initial_carry=jnp.zeros((batch, units))))
        return jnp.mean((ys[DELAY:] - xs[:-DELAY]) ** 2)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any) -> tuple[Any, Array]:
        weights, moments, key = state
        key, part = jax.random.split(key)
        loss, gradient = jax.value_and_grad(loss_of)(weights, jax.random.normal(part, shape[:3]))
        updates, moments = adam.update(gradient, moments, weights)
        return (optax.apply_updates(weights, updates), moments, key), loss

    weights = jax.tree.map(jnp.copy, weights)
    state = (weights, adam.init(weights), jax.random.key(seed))

    def loop(steps: int) -> list[float]:
        nonlocal state
        losses = []
        for _ in range(steps):
            state, loss = step(state)
            losses.append(loss)
        return [float(loss) for loss in jax.device_get(losses)]

    return loop

"""A report on any network: gradient by lag, Lyapunov exponents, Jacobians, saturation.

Claims: the largest Lyapunov exponent of a network under a task's inputs predicts how fast the
gradient of the task's loss decays with the lag; and training on the task slows that decay. Refuted,
for the given network, by the gradient on the same sequences, before and after training. A vector of
random direction has a component of 1/sqrt(N) of its length along the direction that grows most, so
the growth of a gradient and of a tangent vector may differ by log(N) / 2 nats over a sequence. (The
loss of `copy` counts every output: its gradient accumulates on the way, and the bound need not
hold.)

The network is drawn from `--seed` and the options, or read from a file with `--network`. Each run
writes the network that it trained as network.safetensors, and its description beside it as
network.json.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.gradients.findings import judge
from experiments.gradients.network import (
    ACTIVATIONS,
    FILE,
    ActivationName,
    Kind,
    build,
    read_network,
    save,
)
from experiments.shared.findings import Data, Result
from experiments.shared.options import InputError, Positive, PositiveFloat, RunConfig, write_config
from experiments.shared.output import Tick
from experiments.shared.tasks import PROBLEMS, Batch, MemoryProblem
from jaxrnn import (
    Array,
    Initializer,
    Key,
    Layer,
    NonFiniteError,
    Params,
    clip_by_global_norm,
    diagnostics,
    fit,
    init_train_state,
    initializers,
    make_train_step,
)

_STARTS: dict[str, Callable[[float, int], Initializer]] = {
    "orthogonal": lambda gain, size: initializers.orthogonal(gain),
    "identity": lambda gain, size: initializers.identity(gain),
    "normal": lambda gain, size: initializers.normal(gain / math.sqrt(size)),
    "uniform": lambda gain, size: initializers.uniform(gain / math.sqrt(size)),
    "radius": lambda gain, size: initializers.scaled_spectral_radius(gain),
}
_TESTED = 1000  # sequences on which the loss is computed
_STEPS_A_CALL = 100


@dataclass(frozen=True)
class Config(RunConfig):
    """The options of `gradients`."""

    task: Literal["latch", "order", "adding", "copy"] = "latch"
    """What the network is trained on: hold a sign, tell an order, add two numbers, copy symbols."""
    length: Positive = 20
    """The task's length: the number of steps to remember over."""
    network: Path | None = None
    """A network.safetensors of an earlier run: measure this network, and train it further."""
    hidden_size: Positive | None = None
    """Hidden units of each layer: 64, or the file's."""
    layers: Positive | None = None
    """Vanilla layers: 1, or the file's."""
    activation: ActivationName | None = None
    """Activation: tanh, or the file's."""
    start: Literal["orthogonal", "identity", "normal", "uniform", "radius"] | None = None
    """How the recurrent matrices are initialised: orthogonal; radius: spectral radius --gain."""
    gain: PositiveFloat | None = None
    """Factor on the initial recurrent matrices: 1."""
    learning_rate: PositiveFloat = 0.003
    """Adam's learning rate."""
    clip: PositiveFloat = 1.0
    """Global norm at which the gradient is clipped."""
    train_steps: Positive = 1000
    """Training steps."""
    batch_size: Positive = 32
    """Sequences per training step."""
    sequences: Positive = 16
    """Fresh sequences on which the network is measured; figures show their median and spread."""


def run(config: Config, progress: Tick) -> Result:
    """Measure the network, train it, and measure it again on the same sequences."""
    problem = PROBLEMS[config.task]
    if config.length < problem.shortest:
        wanted = f"expected at least {problem.shortest} with --task {config.task}"
        raise InputError(f"--length is {config.length}, {wanted}")
    read = None
    if config.network is not None:
        read = read_network(config.network, problem)
        _check_options(config, config.network, read[0])
    if config.folder is not None:
        write_config(config.folder, config)
    kind, params = read or _draw_network(config, problem)
    _, key_run, key_measured, key_test = _split(config)
    measured = problem.draw(key_measured, config.length, config.sequences)
    test = problem.draw(key_test, config.length, _TESTED)
    progress(0.0, "measuring before training")
    before = _measure(problem, kind, params, measured, test)
    params = _train(config, problem, build(problem, kind), params, key_run, progress)
    progress(0.9, "measuring after training")
    data: Data = {
        **kind._asdict(),
        "task": config.task,
        "length": config.length,
        "train_steps": config.train_steps,
        "blind_loss": problem.blind_loss(config.length),
        "aligning": _aligning(len(measured.xs)),
        "product_steps": _product_steps(len(measured.xs)),
        "before": before,
        "after": _measure(problem, kind, params, measured, test),
    }
    if config.folder is not None:
        save(config.folder / FILE, problem, kind, params)
    return Result(data, judge(data))


def _split(config: Config) -> Key:
    """The keys of the parameters, of training, and of the measured and the test sequences."""
    return jax.random.split(jax.random.key(config.seed), 4)


# The network


def _draw_network(config: Config, problem: MemoryProblem) -> tuple[Kind, Params]:
    kind = Kind(config.hidden_size or 64, config.layers or 1, config.activation or "tanh")
    start = _STARTS[config.start or "orthogonal"](config.gain or 1.0, kind.hidden_size)
    return kind, jax.jit(build(problem, kind, start).init)(_split(config)[0])


def _check_options(config: Config, path: Path, kind: Kind) -> None:
    """Refuse options that contradict the file, and a folder in which it would be overwritten."""
    for option, had in kind._asdict().items():
        got = getattr(config, option)
        if got not in (None, had):
            name = option.replace("_", "-")
            raise InputError(f"--{name} is {got}, but the network in {path} has {had}")
    for name, start in (("start", config.start), ("gain", config.gain)):
        if start is not None:
            raise InputError(
                f"--{name} is {start}, but the network in {path} is initialised already"
            )
    if config.folder is not None and (config.folder / FILE).resolve() == path.resolve():
        raise InputError(f"--folder is {config.folder}, where {path} would be overwritten")


# Training and measurement


def _answers(problem: MemoryProblem, ys: Array) -> Array:
    """The outputs [T, B, O] that count: all, or the last [B, O]."""
    return ys if problem.everywhere else ys[-1]


def _train(
    config: Config, problem: MemoryProblem, network: Layer, params: Params, key: Key, progress: Tick
) -> Params:
    def loss_fn(params: Params, batch: Batch, key: Key) -> tuple[Array, dict[str, Array]]:
        del key
        ys = network.unroll(params, None, batch.xs)[1]
        return problem.loss(_answers(problem, ys), batch.targets), {}

    def make_batch(key: Key, step: Array) -> Batch:
        del step
        return problem.draw(key, config.length, config.batch_size)

    def report(state: Any, metrics: Data) -> None:
        done = float(state.step) / config.train_steps
        progress(0.3 + 0.6 * done, f"training: loss {metrics['loss'][-1]:.4g}")

    optimizer = optax.chain(clip_by_global_norm(config.clip), optax.adam(config.learning_rate))
    state = init_train_state(params, optimizer, key)
    step = make_train_step(loss_fn, optimizer)
    options: Any = {"steps_per_call": _STEPS_A_CALL, "max_skipped": 1, "callback": report}
    try:
        return fit(step, state, make_batch, config.train_steps, **options)[0].params
    except NonFiniteError as error:
        raise InputError(
            f"loss or gradient is not finite after {error.state.step} training steps; try a lower "
            "--learning-rate or --gain"
        ) from None


def _aligning(steps: int) -> int:
    """The number of first steps, in which tangent vectors align with the growing directions."""
    return steps // 5


def _product_steps(steps: int) -> list[int]:
    """The numbers of last steps over which Jacobians are multiplied."""
    return sorted({round(count) for count in np.linspace(1, steps, 5)})


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measure(
    problem: MemoryProblem, kind: Kind, params: Params, measured: Batch, test: Batch
) -> Data:
    """Diagnostics of each sequence of `measured` [T, B], leading axis B; the loss on `test`."""
    network, steps = build(problem, kind), len(measured.xs)
    activation = ACTIVATIONS[kind.activation]

    def one(xs: Array, targets: Array) -> Data:
        def loss_fn(state: Any, ys: Array) -> Array:
            del state
            return problem.loss(_answers(problem, ys[:, None]), targets[..., None])

        def singular_values(count: int) -> Array:
            state, _ = network.unroll(params, None, xs[: steps - count])
            last = xs[steps - count :]
            return diagnostics.jacobian_singular_values(network, params, state, last)

        def advance(state: Any, x: Array) -> tuple[Any, Array]:
            state, _ = network.step(params, state, x)
            return state, jnp.concatenate(jax.tree.leaves(state))

        hs = lax.scan(advance, network.initial_state(params), xs)[1]
        whole = (network, params, None, xs)
        return {
            "gradients": diagnostics.gradient_norms_by_lag(*whole, loss_fn),  # [T + 1]
            "jacobians": diagnostics.gradient_norms_by_lag(*whole),  # [T + 1]
            "exponents": diagnostics.lyapunov_spectrum(
                network, params, None, xs[:-1], discard=_aligning(steps)
            ),  # [N], of the steps whose Jacobians the gradient passes from lag 1 on
            "singular_values": jnp.stack([*map(singular_values, _product_steps(steps))]),  # [K, N]
            "saturated": diagnostics.saturated_fraction(hs, activation=activation, axis=-1),  # [T]
        }

    each = jax.vmap(one, in_axes=(1, 1 if problem.everywhere else 0))
    answers = _answers(problem, network.unroll(params, None, test.xs)[1])
    return {
        **each(measured.xs, measured.targets),
        "loss": problem.loss(answers, test.targets),
        "right": problem.right(answers, test.targets),
    }

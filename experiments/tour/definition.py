"""The step is the formula, and unrolling it is a feed-forward network with shared weights.

Claim 1: ``h_t = tanh(w h_{t-1} + u x_t (+ b))``, for one step and for several in a row. Refuted by
a value that differs by more than rounding explains from the formula, computed with ``math.tanh`` on
plain Python floats.

Claim 2: `unroll` is a feed-forward network with one layer per time step, whose weights are shared.
Refuted if its values or gradients differ by more than rounding explains from those of a network
with a copy of the weights for every step, the gradients of the copies summed.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.findings import Data, Finding
from experiments.shared.output import Tick
from jaxrnn import RNNParams, init_rnn, step, unroll


@dataclass(frozen=True)
class Config:
    """Claims 1 and 2."""

    draws: int = 200
    """Random univariate networks for claim 1."""
    unrolled_steps: int = 5
    """Consecutive steps for claim 1."""
    num_steps: int = 12
    """T of the network of claim 2."""
    batch_size: int = 8
    """Sequences of claim 2."""
    input_size: int = 4
    """Input features of claim 2."""
    hidden_size: int = 16
    """Hidden units of claim 2."""


def measure(config: Config, seed: int, tick: Tick) -> Data:
    """Compare with the formula, and with separate copies of the weights."""
    tick(0.0, "the formula")
    formula = _compare_with_formula(config, np.random.default_rng(seed))
    tick(0.3, "a copy of the weights for every step")
    with jax.enable_x64(True):
        copies = _compare_with_copies(config, jax.random.key(seed))
    return {"formula": formula, "copies": copies}


def judge(data: Data) -> list[Finding]:
    """The findings of claims 1 and 2."""
    formula, copies = data["formula"], data["copies"]
    return [
        Finding(
            "1",
            "The step is h_t = tanh(w h_{t-1} + u x_t), with and without a bias.",
            f"error <= {formula['tolerance_eps']:.0f} eps per step "
            "(4 roundings before the tanh, 4 in float32's tanh), univariate, float32",
            f"max error {formula['one_step_eps']:.1f} eps in one step, "
            f"{formula['unrolled_eps']:.1f} eps after {formula['steps']} steps "
            f"({formula['draws']} networks)",
            formula["one_step_eps"] <= formula["tolerance_eps"]
            and formula["unrolled_eps"] <= formula["tolerance_eps"] * formula["steps"],
            required=True,
        ),
        Finding(
            "2",
            "Unrolled, it is a feed-forward network, one layer per time step, with shared weights.",
            f"values and gradients within {copies['tolerance']:.1e} = eps sqrt(T B H), float64",
            f"max relative difference {copies['values']:.1e} in values, "
            f"{copies['gradients']:.1e} in gradients",
            max(copies["values"], copies["gradients"]) <= copies["tolerance"],
            required=True,
        ),
    ]


def _compare_with_formula(config: Config, rng: np.random.Generator) -> Data:
    """The largest errors over random univariate networks, in units of float32's eps."""
    one_step, unrolled = jax.jit(step), jax.jit(unroll)
    eps = float(jnp.finfo(jnp.float32).eps)
    step_error, unrolled_error = 0.0, 0.0
    for draw in range(config.draws):
        w, u, b, h0 = rng.normal(size=4).astype(np.float32)
        xs = rng.normal(size=(config.unrolled_steps, 1)).astype(np.float32)
        bias = jnp.full(1, b) if draw % 2 else None
        params = RNNParams(jnp.full((1, 1), u), jnp.full((1, 1), w), bias)
        start = jnp.full(1, h0)
        expected = _compute_states(
            float(w), float(u), float(b) if draw % 2 else 0.0, float(h0), xs[:, 0]
        )
        first = one_step(params, start, xs[0])
        _, states = unrolled(params, start, xs)
        step_error = max(step_error, abs(float(first[0]) - expected[0]))
        errors = np.abs(np.asarray(states[:, 0], np.float64) - expected)
        unrolled_error = max(unrolled_error, float(errors.max()))
    return {
        "one_step_eps": step_error / eps,
        "unrolled_eps": unrolled_error / eps,
        "tolerance_eps": 8.0,
        "steps": config.unrolled_steps,
        "draws": config.draws,
    }


def _compute_states(w: float, u: float, b: float, h: float, xs: np.ndarray) -> list[float]:
    """The state after each input, in plain Python floats."""
    states = []
    for x in xs:
        h = math.tanh(w * h + u * float(x) + b)
        states.append(h)
    return states


def _compare_with_copies(config: Config, key: jax.Array) -> Data:
    """The largest relative differences from a network with a copy of the weights per step."""
    keys = jax.random.split(key, 4)
    shape = (config.num_steps, config.batch_size)
    params = init_rnn(keys[0], config.input_size, config.hidden_size, dtype=jnp.float64)
    params = params._replace(b=jax.random.normal(keys[3], (config.hidden_size,), jnp.float64))
    xs = jax.random.normal(keys[1], (*shape, config.input_size), jnp.float64)
    cotangents = jax.random.normal(keys[2], (*shape, config.hidden_size), jnp.float64)

    def shared(params: RNNParams, xs: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, states = unroll(params, None, xs)
        return jnp.sum(states * cotangents), states

    def separate(copies: list[RNNParams], xs: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = jnp.zeros_like(cotangents[0])
        layers = []
        for copy, x in zip(copies, xs, strict=True):
            h = jnp.tanh(h @ copy.w_hh.T + x @ copy.w_ih.T + copy.b)
            layers.append(h)
        states = jnp.stack(layers)
        return jnp.sum(states * cotangents), states

    gradient = functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    (grads, d_xs), values = jax.jit(gradient(shared))(params, xs)
    copies = [params] * config.num_steps
    (copy_grads, copy_d_xs), copy_values = jax.jit(gradient(separate))(copies, xs)
    summed = jax.tree.map(lambda *parts: sum(parts), *copy_grads)
    terms = config.num_steps * config.batch_size * config.hidden_size
    return {
        "values": _measure_difference(values, copy_values),
        "gradients": _measure_difference((grads, d_xs), (summed, copy_d_xs)),
        "tolerance": float(jnp.finfo(jnp.float64).eps) * math.sqrt(terms),
    }


def _measure_difference(got: Any, expected: Any) -> float:
    """The largest difference of any array, relative to that array's largest entry."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return max(float(jnp.max(jnp.abs(g - e)) / jnp.max(jnp.abs(e))) for g, e in pairs)

"""Random search for the settings of a reservoir."""

# Without `from __future__ import annotations`, for which pdoc cannot show the fields of NamedTuples
# (https://github.com/mitmproxy/pdoc/issues/765).
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxrnn._checks import as_array, check_key, check_size
from jaxrnn._types import Array, Key, accumulation_dtype
from jaxrnn.layers.combinators import stack
from jaxrnn.layers.contract import Layer
from jaxrnn.layers.pointwise import DenseParams, dense
from jaxrnn.params import RNNParams
from jaxrnn.reservoir.echo_state import echo_state_network
from jaxrnn.reservoir.ridge import fit_readout


class Trials(NamedTuple):
    """The reservoirs of a search, N of them."""

    keys: Array
    """The keys of their parameters, [N]."""

    settings: dict[str, Array]
    """`echo_state_network`'s radius, leak, input_scale and bias_scale, each [N]."""

    penalties: Array
    """The penalty chosen for each, [N]."""

    errors: Array
    """The mean squared error of each on the validation rows, [N]."""


def search(
    key: Key,
    hidden_size: int,
    train: tuple[Array, Array],
    validation: tuple[Array, Array],
    *,
    num_trials: int = 64,
    radius: tuple[float, float] = (0.1, 1.5),
    leak: tuple[float, float] = (0.1, 1.0),
    input_scale: tuple[float, float] = (0.01, 10.0),
    bias_scale: tuple[float, float] = (0.01, 2.0),
    penalties: Sequence[float] | Array = (1e-8, 1e-6, 1e-4, 1e-2),
    washout: int = 100,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> tuple[Layer, tuple[RNNParams, DenseParams], Trials]:
    """Random search: fit many reservoirs at once, and keep the one with the least validation error.

    Half of the trials are drawn from the given ranges, the others around the best of these, within
    a quarter of each range.

    Args:
      key: draws the settings, and the parameters of each reservoir.
      hidden_size: H of all.
      train, validation: (xs [T, *B, D], targets [T, *B, O]); the second follows on the first.
      num_trials: N, an even number.
      radius, leak, input_scale, bias_scale: ranges, in which each is uniform on a logarithmic
        scale.
      penalties: those of `ridge_readout`, of which each reservoir has the best.
      washout: the first steps, which are not fitted.
      batch_size: how many reservoirs run at once on a device; by default all of its part, but on a
        CPU one after the other, which is faster there for large ones.
      mesh: splits the trials over the devices of a mesh, as `jaxrnn.sharding.data_mesh` makes it.
        Half their number is a multiple of that of the devices.
      options: others of `echo_state_network`.

    Returns:
      (network, params, trials): the best one as ``stack(echo_state_network, dense)`` with its
      parameters, and what was tried.
    """
    check_key("key", key)
    num_trials = check_size("num_trials", num_trials)
    if num_trials % 2:
        raise ValueError(f"num_trials is {num_trials}, expected an even number")
    inputs, targets = (as_array("train", each) for each in train)
    options = {"dtype": targets.dtype, **options}

    def make(setting: dict[str, Any]) -> Layer:
        return echo_state_network(inputs.shape[-1], hidden_size, **setting, **options)

    def attempt(trial: Any, data: Any) -> tuple[RNNParams, DenseParams, Array, Array]:
        (key, setting), (train, validation) = trial, data
        layer = make(setting)
        params = layer.init(key)
        _, readout = fit_readout(
            layer, params, *train, penalties=penalties, validation=validation, washout=washout
        )
        return params, readout.params, readout.penalty, jnp.nanmin(readout.errors)

    data = (inputs, targets), validation
    run = _over_trials(attempt, data, batch_size or _default_batch(num_trials), mesh)
    given = radius, leak, input_scale, bias_scale
    ranges = dict(zip(("radius", "leak", "input_scale", "bias_scale"), given, strict=True))
    trials = _search_twice(run, key, num_trials // 2, ranges, accumulation_dtype(targets.dtype))
    best = int(jnp.nanargmin(trials.errors))
    setting = {name: float(values[best]) for name, values in trials.settings.items()}
    params, readout, _, _ = jax.jit(attempt)((trials.keys[best], setting), data)
    network = stack(make(setting), dense(hidden_size, targets.shape[-1], dtype=readout.w.dtype))
    return network, (params, readout), trials


def _default_batch(num_trials: int) -> int:
    return 1 if jax.default_backend() == "cpu" else num_trials


def _over_trials(
    attempt: Callable[[Any, Any], Any], data: Any, batch_size: int, mesh: Mesh | None
) -> Callable[[Any], tuple[Array, Array]]:
    """A compiled function of trials [N] to the penalty and the error of each."""

    def attempt_all(trials: Any, data: Any) -> Any:
        return lax.map(lambda trial: attempt(trial, data)[2:], trials, batch_size=batch_size)

    run = attempt_all
    if mesh is not None:
        parts = P(mesh.axis_names)
        run = jax.shard_map(attempt_all, mesh=mesh, in_specs=(parts, P()), out_specs=parts)
    compiled = jax.jit(run)
    return lambda trials: compiled(trials, data)


def _search_twice(
    run: Callable[[Any], tuple[Array, Array]], key: Key, count: int, ranges: Any, dtype: Any
) -> Trials:
    """`count` trials from the ranges, and as many around the best of these."""
    key_settings, key_params = jax.random.split(key)
    keys = jax.random.split(key_params, 2 * count)
    wide = _draw_settings(key_settings, count, ranges, dtype)
    first = run((keys[:count], wide))
    if bool(jnp.all(jnp.isnan(first[1]))):
        raise ValueError("train or validation has entries that are not finite numbers")
    best = int(jnp.nanargmin(first[1]))
    near = {name: _narrow(ranges[name], float(each[best])) for name, each in wide.items()}
    close = _draw_settings(jax.random.fold_in(key_settings, 1), count, near, dtype)
    second = run((keys[count:], close))
    settings, (penalties, errors) = jax.tree.map(
        lambda *parts: jnp.concatenate(parts), (wide, first), (close, second)
    )
    return Trials(keys, settings, penalties, errors)


def _draw_settings(key: Key, count: int, ranges: dict[str, Any], dtype: Any) -> dict[str, Array]:
    """`count` numbers for each name, uniform on a logarithmic scale within its range."""
    uniform = jax.random.uniform(key, (len(ranges), count), dtype)
    settings = {}
    for (name, ends), each in zip(ranges.items(), uniform, strict=True):
        if len(ends) != 2 or not 0 < ends[0] <= ends[1]:
            raise ValueError(f"{name} is {ends}, expected two numbers above 0, the smaller first")
        low, high = (jnp.asarray(np.log(end), dtype) for end in ends)
        settings[name] = jnp.exp(low + each * (high - low))
    return settings


def _narrow(ends: tuple[float, float], middle: float) -> tuple[float, float]:
    """A quarter of a range, on a logarithmic scale, around one of its numbers."""
    reach = (ends[1] / ends[0]) ** 0.125
    return max(ends[0], middle / reach), min(ends[1], middle * reach)

"""Reservoir computing: a recurrent network that stays as it was drawn, and a linear readout.

Only the readout is fitted, by ridge regression, from statistics that one pass over a series of any
length gathers. One-step forecasts of a series [T, D], and then a free run of 500 steps:

    from jaxrnn import reservoir

    rnn = reservoir.echo_state_network(3, 300, radius=0.9, input_scale=0.5)
    params = rnn.init(jax.random.key(0))
    train, validation = (xs[:6000], xs[1:6001]), (xs[6000:8000], xs[6001:8001])
    state, fitted = reservoir.fit_readout(
        rnn, params, *train, penalties=[1e-8, 1e-6, 1e-4], validation=validation, washout=100
    )
    network = jaxrnn.stack(rnn, jaxrnn.dense(300, 3))
    params = (params, fitted.params)
    state, (_, forecast) = jaxrnn.generate(network, params, (state, ()), xs[8000], 500)

On a CPU the factorisations are LAPACK's, whose threads wait for each other very long where other
programs use the cores too: set the environment variable OPENBLAS_NUM_THREADS to 1 there, before the
process starts.

Everything is pure, and so a ``vmap`` over keys, radii, leaks and scales fits hundreds of reservoirs
at once; `search` draws them and keeps the best.

Source: Jaeger 2001, "The 'echo state' approach to analysing and training recurrent neural
networks"; Lukosevicius 2012, "A practical guide to applying echo state networks".
"""

# Without `from __future__ import annotations`, for which pdoc cannot show the fields of NamedTuples
# (https://github.com/mitmproxy/pdoc/issues/765).
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxrnn import initializers
from jaxrnn._checks import (
    as_array,
    check_floating,
    check_key,
    check_mask,
    check_positive,
    check_shape,
    check_size,
)
from jaxrnn._types import Activation, Array, Initializer, Key, Params, State, accumulation_dtype
from jaxrnn.layers.combinators import stack
from jaxrnn.layers.contract import Layer, check_layer
from jaxrnn.layers.pointwise import DenseParams, dense
from jaxrnn.layers.recurrent import vanilla_rnn
from jaxrnn.params import RNNParams, vary_with
from jaxrnn.recurrence.chunks import scan_chunks
from jaxrnn.recurrence.parallel import Parallel
from jaxrnn.recurrence.reference import zero_masked


def echo_state_network(
    input_size: int,
    hidden_size: int,
    *,
    radius: float | Array = 0.9,
    leak: float | Array | None = None,
    input_scale: float | Array = 1.0,
    bias_scale: float | Array = 0.1,
    fan_in: int | None = None,
    w_hh_init: Initializer | None = None,
    activation: Activation = jnp.tanh,
    dtype: Any = jnp.float32,
    parallel: Parallel | None = None,
) -> Layer:
    """A `jaxrnn.vanilla_rnn` with the initial parameters of a reservoir.

    Args:
      input_size, hidden_size: D and H.
      radius: the spectral radius of W; above 0.
      leak: see `jaxrnn.step`.
      input_scale, bias_scale: U and b are uniform between minus and plus these; above 0.
      fan_in: for large H, how many inputs from other units each unit has (`jaxrnn.FixedFanIn`).
        None is a dense matrix of normal numbers.
      w_hh_init: draws W before it is scaled, in place of `fan_in`: `jaxrnn.initializers.ring`,
        ``sparse(0.1, normal())``.
      activation, dtype, parallel: as in `jaxrnn.vanilla_rnn`.

    Radius, leak and scales may be traced scalars.
    """
    radius = check_positive("radius", radius)
    input_scale = check_positive("input_scale", input_scale)
    bias_scale = check_positive("bias_scale", bias_scale)
    if fan_in is not None and w_hh_init is not None:
        raise ValueError(f"fan_in is {fan_in} beside w_hh_init, expected one of them")
    if fan_in is not None:
        w_hh_init = initializers.fixed_fan_in(fan_in)
    elif w_hh_init is None:
        w_hh_init = initializers.normal()
    layer = vanilla_rnn(
        input_size,
        hidden_size,
        activation=activation,
        w_ih_init=initializers.uniform(input_scale),
        w_hh_init=initializers.with_spectral_radius(radius, w_hh_init),
        leak=leak,
        dtype=dtype,
        parallel=parallel,
    )

    def init(key: Key) -> RNNParams:
        key_weights, key_bias = jax.random.split(key)
        params = layer.init(key_weights)
        draw = initializers.uniform(bias_scale)
        return params._replace(b=draw(key_bias, (hidden_size,), params.w_ih.dtype))

    return layer._replace(init=init)


class Statistics(NamedTuple):
    """What a linear regression needs of its rows, [1, features, targets] of N numbers each."""

    factor: Array
    """[N, N]: the triangular factor R of the rows' QR decomposition, ``R^T R`` being the sum of
    their outer products. Unlike that sum it loses no digits of the rows."""

    num_rows: Array
    """The number of rows, [] floating-point."""


class Readout(NamedTuple):
    """A fitted linear readout."""

    params: DenseParams
    """For `jaxrnn.dense`: w [O, F] and b [O]."""

    penalty: Array
    """The penalty that it was fitted with, []."""

    errors: Array
    """The mean squared error of each penalty, [P], on the validation rows, or without such on those
    that the readout was fitted to."""


def init_statistics(num_features: int, num_targets: int, dtype: Any = jnp.float32) -> Statistics:
    """The statistics of no rows."""
    size = 1 + check_size("num_features", num_features) + check_size("num_targets", num_targets)
    dtype = accumulation_dtype(dtype)
    return Statistics(jnp.zeros((size, size), dtype), jnp.zeros((), dtype))


def add_rows(
    statistics: Statistics, features: Array, targets: Array, mask: Array | None = None
) -> Statistics:
    """`statistics` with the rows of features [*R, F] and targets [*R, O] whose mask [*R] is True.

    What stands in the other rows, NaN included, has no effect.
    """
    features, targets = as_array("features", features), as_array("targets", targets)
    check_floating("features", features)
    check_shape("targets", targets, (*features.shape[:-1], *targets.shape[-1:]))
    size = 1 + features.shape[-1] + targets.shape[-1]
    check_shape("statistics.factor", statistics.factor, (size, size))
    mask = check_mask("mask", mask, features.shape[:-1])
    dtype = statistics.factor.dtype
    ones = jnp.ones((*features.shape[:-1], 1), dtype)
    rows = jnp.concatenate([ones, features.astype(dtype), targets.astype(dtype)], axis=-1)
    rows = zero_masked(mask, rows).reshape(-1, size)
    factor = jnp.linalg.qr(jnp.concatenate([statistics.factor, rows]), mode="r")
    return Statistics(factor, statistics.num_rows + jnp.sum(rows[:, 0]))


def merge_statistics(parts: Statistics) -> Statistics:
    """One of many, whose leaves have a leading axis: what ``vmap``, ``jax.lax.all_gather`` and a
    ``shard_map`` over parts of the rows return."""
    size = parts.factor.shape[-1]
    check_shape("parts.factor", parts.factor, (*parts.num_rows.shape, size, size))
    factor = jnp.linalg.qr(parts.factor.reshape(-1, size), mode="r")
    return Statistics(factor, jnp.sum(parts.num_rows))


def gather_statistics(
    layer: Layer,
    params: Params,
    state: State,
    xs: Array,
    targets: Array,
    *,
    mask: Array | None = None,
    washout: int = 0,
    chunk_size: int | None = None,
    statistics: Statistics | None = None,
) -> tuple[State, Statistics]:
    """Run a layer over a series and gather the statistics of its outputs and the targets.

    One compiled pass over chunks of time: of the outputs, only one chunk is ever in memory.

    Args:
      layer: a causal layer.
      params, state: as in `layer.unroll`; a state of None means the initial state.
      xs: inputs [T, *B, D].
      targets: [T, *B, O].
      mask: as in `layer.unroll`; masked steps are not rows.
      washout: the first steps of this call that are no rows, since the state still depends on
        where it began.
      chunk_size: time steps per chunk, by default for four rows per number in a row.
      statistics: those of earlier calls, to be continued.

    Returns:
      (the last state, the statistics), in the result type of outputs and targets.
    """
    check_layer("layer", layer, causal=True)
    washout = check_size("washout", washout, at_least=0)
    xs, targets = as_array("xs", xs), as_array("targets", targets)
    check_floating("targets", targets)
    steps = xs.shape if layer.reads_tokens else xs.shape[:-1]
    check_shape("targets", targets, (*steps, *targets.shape[-1:]))
    mask = check_mask("mask", mask, targets.shape[:-1])
    after, ys = jax.eval_shape(layer.unroll, params, state, xs)
    if statistics is None:
        dtype = jnp.result_type(ys.dtype, targets.dtype)
        statistics = init_statistics(ys.shape[-1], targets.shape[-1], dtype)
    if chunk_size is None:
        rows_per_step = max(int(np.prod(targets.shape[1:-1])), 1)
        chunk_size = max(4 * statistics.factor.shape[0] // rows_per_step, 1)
    chunk_size = check_size("chunk_size", chunk_size)
    counted = jnp.broadcast_to(
        lax.expand_dims(jnp.arange(xs.shape[0]) >= washout, range(1, targets.ndim - 1)),
        targets.shape[:-1],
    )
    if state is None:
        state = layer.initial_state(params, targets.shape[1:-1])
    state = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), state, after)
    carry = vary_with((state, statistics), (params, xs, targets, mask))

    def run(carry: tuple[State, Statistics], chunk: Any) -> tuple[Any, None]:
        (state, statistics), ((xs, targets, mask, counted), _) = carry, chunk
        state, ys = layer.unroll(params, state, xs, mask=mask)
        rows = counted if mask is None else counted & mask
        return (state, add_rows(statistics, ys, targets, rows)), None

    chunks = (xs, targets, mask, counted)
    return scan_chunks(run, carry, chunks, chunk_size, reverse=False)[0]


def ridge_readout(
    statistics: Statistics,
    penalties: float | Sequence[float] | Array,
    num_targets: int,
    *,
    validation: Statistics | None = None,
) -> Readout:
    """The readout ``y = w x + b`` that minimises the sum over rows of ``|y - target|^2`` plus
    `penalties` times ``|w|^2``, without a penalty on b.

    Solved from the triangular factor, and not from sums of products, of which float32 has too few
    digits for small penalties.

    Args:
      statistics: of the rows to fit, as `gather_statistics` or `add_rows` returned them.
      penalties: one, or several [P], all above 0.
      num_targets: O, the last columns of the rows.
      validation: statistics of other rows, by which the penalty is chosen if there are several.

    Returns:
      The readout with the smallest error.
    """
    num_targets = check_size("num_targets", num_targets)
    # In NumPy, whose numbers are known in ``jit`` too.
    if not any(isinstance(each, jax.core.Tracer) for each in jax.tree.leaves(penalties)):
        known = np.atleast_1d(np.asarray(penalties))
        if not np.all(known > 0):
            raise ValueError(f"penalties is {known}, expected numbers above 0")
    penalties = jnp.atleast_1d(jnp.asarray(penalties, statistics.factor.dtype))
    if penalties.ndim != 1 or (penalties.shape[0] != 1 and validation is None):
        raise ValueError(
            f"penalties has shape {penalties.shape} with validation={validation}, expected one "
            "penalty, or several [P] with rows to choose by"
        )
    factor, size = statistics.factor, statistics.factor.shape[0]
    features = size - 1 - num_targets
    check_size("the number of features", features)
    if validation is not None:
        check_shape("validation.factor", validation.factor, factor.shape)
    # Behind the first row and column, R is that of the rows with their means subtracted.
    centred = factor[1 : features + 1, 1:]
    scored = statistics if validation is None else validation

    def fit(penalty: Array) -> tuple[Array, Array, Array]:
        ridge = jnp.sqrt(penalty) * jnp.eye(features, size - 1, dtype=factor.dtype)
        r = jnp.linalg.qr(jnp.concatenate([centred, ridge]), mode="r")
        w = jax.scipy.linalg.solve_triangular(r[:features, :features], r[:features, features:])
        b = (factor[0, features + 1 :] - factor[0, 1 : features + 1] @ w) / factor[0, 0]
        unit = jnp.eye(num_targets, dtype=factor.dtype)
        residual = scored.factor @ jnp.concatenate([b[None], w, -unit])
        return w, b, jnp.sum(residual**2) / (scored.num_rows * num_targets)

    ws, bs, errors = lax.map(fit, penalties)
    best = jnp.argmin(jnp.where(jnp.isnan(errors), jnp.inf, errors))
    return Readout(DenseParams(ws[best].T, bs[best]), penalties[best], errors)


def fit_readout(
    layer: Layer,
    params: Params,
    xs: Array,
    targets: Array,
    *,
    penalties: float | Sequence[float] | Array,
    validation: tuple[Array, Array] | None = None,
    state: State = None,
    washout: int = 0,
    mask: Array | None = None,
) -> tuple[State, Readout]:
    """Run a layer over inputs and targets and fit a readout of its outputs.

    `gather_statistics`, and then `ridge_readout`. The inputs and targets of `validation` follow on
    those that are fitted: the layer runs on from its last state.

    Returns:
      (the last state, behind the validation rows if there are such, and the readout).
    """
    state, rows = gather_statistics(layer, params, state, xs, targets, mask=mask, washout=washout)
    others = None
    if validation is not None:
        state, others = gather_statistics(layer, params, state, *validation)
    return state, ridge_readout(rows, penalties, targets.shape[-1], validation=others)


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
        CPU one after the other, which is faster there from about 200 units on.
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
    dtype = accumulation_dtype(targets.dtype)
    key_settings, key_params = jax.random.split(key)
    ranges = {
        "radius": radius,
        "leak": leak,
        "input_scale": input_scale,
        "bias_scale": bias_scale,
    }
    keys = jax.random.split(key_params, num_trials)
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

    def attempt_all(trials: Any, data: Any) -> Any:
        size = batch_size or (1 if jax.default_backend() == "cpu" else num_trials)
        return lax.map(lambda trial: attempt(trial, data)[2:], trials, batch_size=size)

    run, data = attempt_all, ((inputs, targets), validation)
    if mesh is not None:
        parts = P(mesh.axis_names)
        run = jax.shard_map(attempt_all, mesh=mesh, in_specs=(parts, P()), out_specs=parts)
    run = jax.jit(run)
    first = num_trials // 2
    settings = _draw_settings(key_settings, first, ranges, dtype)
    found = run((keys[:first], settings), data)
    if bool(jnp.all(jnp.isnan(found[1]))):
        raise ValueError("train or validation has entries that are not finite numbers")
    best = int(jnp.nanargmin(found[1]))
    near = {name: _narrow(ranges[name], float(each[best])) for name, each in settings.items()}
    closer = _draw_settings(jax.random.fold_in(key_settings, 1), first, near, dtype)
    found = _append(found, run((keys[first:], closer), data))
    settings, (chosen, errors) = _append(settings, closer), found
    best = int(jnp.nanargmin(errors))
    setting = {name: float(values[best]) for name, values in settings.items()}
    params, readout, _, _ = jax.jit(attempt)((keys[best], setting), data)
    network = stack(make(setting), dense(hidden_size, targets.shape[-1], dtype=dtype))
    return network, (params, readout), Trials(keys, settings, chosen, errors)


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


def _append(one: Any, other: Any) -> Any:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), one, other)

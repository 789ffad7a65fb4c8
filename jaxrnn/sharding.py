"""Data parallelism: one train step over all cores, all local devices, or many hosts.

Every device holds the whole state and a part of the batch and computes the gradient of its part;
the gradients are averaged in one all-reduce per update. Nothing is exchanged inside the loop over
time.

One host. A CPU counts as one device, on which each time step's product with W runs on a single
core; `use_cpu_devices` makes every core a device, and `jaxrnn.host.keep_memory` keeps freed memory
mapped. A script begins with them::

    keep_memory()
    use_cpu_devices()  # no effect on GPU and TPU
    mesh = data_mesh()
    train_step = shard_train_step(make_train_step(loss_fn, optimizer), mesh)
    state = replicate(init_train_state(params, optimizer, key), mesh)
    state, history = fit(train_step, state, make_batch, num_steps)

A truncated step is sharded in the same way; the recurrent states that it carries are split too::

    train_step = make_train_step(loss_fn, optimizer, has_carry=True)
    train_step = shard_train_step(truncate_train_step(train_step, window), mesh)
    state = state._replace(carry=shard_batch(carry, mesh, 0))

Many hosts. The same script is started once per host, with one more line before any array is made::

    jax.distributed.initialize("10.0.0.1:1234", num_processes, process_id)

Slurm, Open MPI and TPU pods fill in the arguments by themselves. `data_mesh` then holds the devices
of all processes; every process makes the same calls in the same order and ends with the same state.
Inside `fit`, `make_batch` makes the batch of all processes; a host that reads its own data places
its part with `shard_batch` and calls the jitted step in a loop. Only process 0
(``jax.process_index() == 0``) writes files, under a temporary name first and then by
``os.replace``, so that a crash never damages what was saved.

If a process dies, the others end with an error: a step fails as soon as the connection breaks, and
the process ends at the latest ``heartbeat_timeout_seconds`` after the last sign of life (an
argument of ``jax.distributed.initialize``, 100 by default; 10 is enough on a reliable network).
Start all of them again from what was saved.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrnn._checks import check_function, check_shape
from jaxrnn._types import Array, Key
from jaxrnn.host import use_cpu_devices as use_cpu_devices  # noqa: PLC0414
from jaxrnn.training.update import Metrics, TrainState, TrainStep


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, ``"data"``, over `devices`; by default over those of all processes.

    Raises:
      ValueError: `devices` is empty.
    """
    chosen = np.array(jax.devices() if devices is None else list(devices))
    if not chosen.size:
        raise ValueError("devices is empty, expected at least one device")
    return Mesh(chosen, ("data",))


def shard_train_step(
    train_step: TrainStep,
    mesh: Mesh,
    *,
    batch_axes: Any = 1,
    carry_axes: Any = 0,
    weight_fn: Callable[[Any], Array] | None = None,
) -> TrainStep:
    """`train_step` over all devices of `mesh`: still a pure function ``(state, batch) -> (state,
    metrics)``, for `fit`, `train_steps`, ``jit`` and ``vmap``.

    Every device runs the loss on its part of the batch; loss, metrics and gradients are averaged in
    one all-reduce per update, and every device makes the same update.

    Args:
      train_step: as `jaxrnn.make_train_step` or `jaxrnn.truncate_train_step` makes it. Each device
        has a key of its own, derived from the run's key and the device's place in the mesh: if the
        loss draws, a run depends on the number of devices.
      mesh: as `data_mesh` makes it. A mesh of several axes is split over all of them.
      batch_axes: the axis along which the batch is split, 1 for time-major arrays [T, B, ...]. An
        int, None for an array that every device reads whole, or a pytree of these that is a prefix
        of the batch, as ``in_axes`` of ``vmap``: ``(1, 0)`` for sequences [T, B, D] with labels
        [B].
      carry_axes: the axis along which ``state.carry`` is split, 0 for states [B, H]; an int or a
        pytree of ints that is a prefix of the carry.
      weight_fn: ``batch -> weight``, a scalar of at least 0 for a device's part of the batch (of
        one window, if the step is truncated); by default all parts have the same weight. For a loss
        that is a mean over unmasked steps, use ``lambda batch: jnp.sum(batch.mask)``: the weighted
        mean of the parts' means is the mean over the whole batch, as on one device. A part of
        weight 0 is left out, NaN included.

    Returns:
      The step. Its state is whole on every device, apart from the carry, which remains split. It
      compiles once if the state is placed so beforehand: with `replicate`, and the carry with
      ``state._replace(carry=shard_batch(carry, mesh, carry_axes))``. (If `mesh` has axes of type
      Explicit, `fit` and `train_steps` require a carry to be placed so.) Its metrics are those of
      `train_step`, averaged as the loss is, so that integers and bools become floating-point;
      ``grad_norm`` is that of the averaged gradient. A metric with an entry per sequence cannot be
      averaged and is refused.

    Raises:
      TypeError, ValueError: an argument is not as described. From the step, when it is traced:
        `batch_axes` or `carry_axes` does not fit, or an axis cannot be split evenly.
    """
    _check_shareable(train_step)
    _check_mesh(mesh)
    if weight_fn is not None:
        check_function("weight_fn", weight_fn)
    if any(axis is None for axis in jax.tree.leaves(carry_axes, is_leaf=_is_none)):
        raise TypeError("carry_axes has None, expected ints: each device has its own sequences")

    def average(tree: Any, part: Any) -> Any:
        weight = jnp.ones(()) if weight_fn is None else jnp.asarray(weight_fn(part))
        check_shape("the result of weight_fn", weight, ())
        return _average(tree, weight, mesh.axis_names)

    def sharded_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        batch_specs = _split("batch", batch, mesh, batch_axes, mesh.size)
        carry_specs = _split("carry", state.carry, mesh, carry_axes, mesh.size)
        whole: Any = P()
        state_specs = TrainState(whole, whole, whole, whole, carry_specs)
        shapes = _metric_shapes(train_step, state, batch)
        _check_time_is_whole(shapes, batch_specs)

        def step_on_device(state: TrainState, part: Any) -> tuple[TrainState, Metrics]:
            own = state._replace(key=_own_key(state.key, mesh))
            after, metrics = train_step(own, part, average=average)
            _check_metrics(metrics, shapes)
            return after._replace(key=state.key), metrics

        # With check_vma JAX would add all-reduces of its own to the gradient.
        return jax.shard_map(
            step_on_device,
            mesh=mesh,
            in_specs=(state_specs, batch_specs),
            out_specs=(state_specs, whole),
            check_vma=False,
        )(_reshard(state, mesh, state_specs), _reshard(batch, mesh, batch_specs))

    return sharded_step


def shard_batch(batch: Any, mesh: Mesh, batch_axes: Any = 1) -> Any:
    """Place a batch on the devices of `mesh`, each with its part.

    Args:
      batch: a pytree of arrays; with many processes this process's part. The whole is all parts
        joined along the batch axis, in the order of the mesh's devices.
      mesh: as `data_mesh` makes it.
      batch_axes: as for `shard_train_step`. An array with None must be the same in all processes.

    Returns:
      The whole batch: global arrays, split over the mesh.

    Raises:
      TypeError, ValueError: `batch_axes` does not fit the batch, or `batch` cannot be split evenly
        over this process's devices of the mesh.
    """
    _check_mesh(mesh)
    specs = _split("batch", batch, mesh, batch_axes, max(len(mesh.local_devices), 1))

    def place(leaf: Any, spec: P) -> Array:
        return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), np.asarray(leaf))

    return jax.tree.map(place, batch, specs)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Place a pytree of arrays, say a TrainState, whole on every device of `mesh`.

    The arrays are copies. All processes must give the same values: JAX compares them.
    """
    _check_mesh(mesh)
    sharding = NamedSharding(mesh, P())

    def place(leaf: Any) -> Array:
        if jnp.issubdtype(getattr(leaf, "dtype", float), jax.dtypes.prng_key):
            data = place(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.device_put(np.asarray(leaf), sharding)

    return jax.tree.map(place, tree)


def _split(name: str, tree: Any, mesh: Mesh, axes: Any, parts: int) -> Any:
    """How each array of the batch, or of the carry, is split, once it has been checked that `parts`
    divides it."""

    def spec_of(axis: int | None, leaf: Any) -> P:
        if axis is None:
            return P()
        shape = np.shape(leaf)
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise TypeError(f"{name}_axes has {axis!r}, expected ints and None")
        if not -len(shape) <= axis < len(shape):
            raise ValueError(f"{name}_axes has {axis}, but {name} has an array of shape {shape}")
        axis %= len(shape)
        if shape[axis] % parts:
            raise ValueError(
                f"{name} has an array of shape {shape} with a batch axis {axis} of {shape[axis]}, "
                f"expected a multiple of {parts}, the number of devices that it is split over"
            )
        return P(*[None] * axis, mesh.axis_names)

    try:
        jax.tree.map(lambda axis, part: None, axes, tree, is_leaf=_is_none)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}_axes is {axes!r}, expected a prefix of the {name}, "
            f"which is {jax.tree.structure(tree)}"
        ) from error

    def specs_of(axis: int | None, part: Any) -> Any:
        return jax.tree.map(partial(spec_of, axis), part)

    return jax.tree.map(specs_of, axes, tree, is_leaf=_is_none)


def _is_none(axis: Any) -> bool:
    return axis is None


def _own_key(key: Key, mesh: Mesh) -> Key:
    """A device's own key.

    Each step folds its number into the run's key, counting up from 0; places count down from 2**32
    - 1, so that no device's key is that of a step.
    """
    place = lax.axis_index(mesh.axis_names).astype(jnp.uint32)
    return jax.random.fold_in(key, ~place)


def _check_shareable(train_step: Any) -> None:
    """Refuse a step whose gradients cannot be averaged."""
    check_function("train_step", train_step)
    if "average" not in inspect.signature(train_step).parameters:
        raise TypeError(
            f"train_step is {train_step!r:.60}, which has no argument average, expected a step "
            "that make_train_step or truncate_train_step makes"
        )


def _metric_shapes(train_step: TrainStep, state: TrainState, batch: Any) -> Any:
    """The shapes of the metrics of the whole batch, as if on one device."""

    def describe(leaf: Any) -> jax.ShapeDtypeStruct:
        aval = jax.typeof(leaf)
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)

    _, metrics = jax.eval_shape(train_step, *jax.tree.map(describe, (state, batch)))
    return jax.tree.map(jnp.shape, metrics)


def _check_time_is_whole(shapes: Any, specs: Any) -> None:
    """Refuse to split time under a truncated step, whose loss is [windows]."""
    splits_time = any(spec and spec[0] is not None for spec in jax.tree.leaves(specs))
    if splits_time and shapes.get("loss", ()):
        raise ValueError(
            "batch_axes has 0, expected other axes: axis 0 of a truncated step's batch is time"
        )


def _check_metrics(metrics: Metrics, whole: Any) -> None:
    """Refuse metrics whose shapes depend on the size of the batch."""
    for name, metric in metrics.items():
        shapes = jax.tree.map(jnp.shape, metric)
        if shapes != whole[name]:
            raise ValueError(
                f"train_step returns the metric {name!r} of shape {shapes} for a part of the "
                f"batch and {whole[name]} for the whole, expected one that can be averaged"
            )


def _average(tree: Any, weight: Array, axes: tuple[str, ...]) -> Any:
    """The weighted mean over devices, in one all-reduce of one array."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    kinds = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    dtype = max([jnp.dtype(jnp.float32), *kinds], key=lambda dtype: jnp.finfo(dtype).bits)
    flat, unravel = ravel_pytree([leaf.astype(dtype) for leaf in leaves])
    weight = weight.astype(dtype)
    weighted = jnp.where(weight > 0, weight * flat, jnp.zeros_like(flat))
    total = lax.psum(jnp.concatenate([weight[None], weighted]), axes)
    divisor = jnp.where(total[0] > 0, total[0], jnp.ones_like(total[0]))
    means = [
        mean.astype(leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else mean
        for mean, leaf in zip(unravel(total[1:] / divisor), leaves, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), means)


def _reshard(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """Split `tree` by `specs`; on axes of type Auto `shard_map` does so by itself."""
    if AxisType.Explicit not in mesh.axis_types:
        return tree

    def place(spec: P, part: Any) -> Any:
        return jax.sharding.reshard(part, NamedSharding(mesh, spec))

    return jax.tree.map(place, specs, tree)


def _check_mesh(mesh: Any) -> None:
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh is a {type(mesh).__name__}, expected a jax.sharding.Mesh")

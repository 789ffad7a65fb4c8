"""Data parallelism: one train step over all cores, all local devices, or many hosts.

Every device holds the whole state and a part of the batch, takes the gradient of its part, and the
gradients are averaged in one all-reduce a step. Nothing is exchanged inside the loop over time.

One host. A CPU counts as one device, and one step's product of a recurrent network runs on one of
its cores; `use_cpu_devices` makes every core a device, and `jaxrnn.host.keep_memory` spares the
mapping of memory. The script begins with them::

    keep_memory()
    use_cpu_devices()  # of no effect on GPU and TPU
    mesh = data_mesh()
    train_step = make_sharded_train_step(loss_fn, optimizer, mesh)
    state = replicate(init_train_state(params, optimizer, key), mesh)
    state, history = fit(train_step, state, make_batch, num_steps)

Many hosts. The same script is started once a host, with one line before any array is made::

    jax.distributed.initialize("10.0.0.1:1234", num_processes, process_id)

whose arguments Slurm, Open MPI and TPU pods fill in themselves. `data_mesh` then holds the devices
of all processes; every process makes the same calls in the same order, and ends with the same
state. What `make_batch` makes inside `fit` is the batch of all processes; a host that reads data of
its own places its part with `shard_batch` and calls the jitted step in a loop. Only process 0
(``jax.process_index() == 0``) writes files, to a temporary name first and then ``os.replace``, so
that what was saved survives a crash at any moment.

Where a process dies, the others end with an error: a step fails as soon as the connection breaks,
and the process ends at the latest ``heartbeat_timeout_seconds`` after the last sign of life (an
argument of ``jax.distributed.initialize``, 100 by default; 10 does on a reliable network). Start
all of them again from what was saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrnn._checks import check_function, check_shape, check_size
from jaxrnn._types import Array, Key
from jaxrnn.host import use_cpu_devices as use_cpu_devices  # noqa: PLC0414
from jaxrnn.training.update import (
    LossFn,
    Metrics,
    TrainState,
    TrainStep,
    WindowLossFn,
    check_optimizer,
    make_update,
    over_windows,
    with_carry,
    without_carry,
)


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, ``"data"``, over `devices`; by default over those of all processes.

    Raises:
      ValueError: `devices` is empty.
    """
    chosen = np.array(jax.devices() if devices is None else list(devices))
    if not chosen.size:
        raise ValueError("devices is empty, expected at least one device")
    return Mesh(chosen, ("data",))


def make_sharded_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    batch_axes: Any = 1,
    weight_fn: Callable[[Any], Array] | None = None,
) -> TrainStep:
    """A pure training step ``(state, batch) -> (state, metrics)`` over all devices of `mesh`.

    It is the step of `make_train_step`, for `fit`, ``jit`` and ``vmap`` as that one is. `loss_fn`
    runs on every device, on its part of the batch; the loss, the metrics and the gradients are then
    averaged over the devices in one all-reduce, and every device takes the same update.

    Args:
      loss_fn: ``(params, batch, key) -> (loss, metrics)`` as for `make_train_step`. Each device
        gets its own key, the step's with the device's place in the mesh folded in: where the loss
        draws, a run depends on the number of devices.
      optimizer: any optax transformation. It sees averaged gradients.
      mesh: as `data_mesh` makes it. A mesh of several axes is split over all of them.
      batch_axes: the axis along which the batch is split, 1 for time-major arrays [T, B, ...]. An
        int, None for what every device gets whole, or a pytree of these that is a prefix of the
        batch, as ``in_axes`` of ``vmap``: ``(1, 0)`` for sequences [T, B, D] with labels [B].
      weight_fn: ``batch -> weight``, a scalar of at least 0 for a device's part of the batch; by
        default all parts count alike. For a loss that is a mean over unmasked steps, give ``lambda
        batch: jnp.sum(batch.mask)``: the weighted mean of the parts' means is the mean over the
        whole batch, as on one device. A part of weight 0 is left out, NaN included.

    Returns:
      The step. Its state is whole on every device: with `replicate` before `fit` it is compiled
      once. Its metrics are those of `make_train_step`, averaged as the loss is; integers and bools
      become floating-point by it. A metric with an entry for each sequence cannot be averaged, and
      is refused. ``grad_norm`` is that of the averaged gradient. A ``state.carry`` is refused.

    Raises:
      TypeError, ValueError: an argument is not as described. From the step, when it is traced:
        `batch_axes` does not fit the batch, or the batch cannot be split evenly.
    """
    check_function("loss_fn", loss_fn)
    step = _shard_step(without_carry(loss_fn), optimizer, mesh, batch_axes, None, weight_fn)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        if state.carry is not None:
            raise ValueError(
                "state.carry is given, expected None: make_sharded_truncated_train_step carries it"
            )
        return step(state, batch)

    return train_step


def make_sharded_truncated_train_step(
    loss_fn: WindowLossFn,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    window: int,
    *,
    batch_axes: Any = 1,
    carry_axes: Any = 0,
    weight_fn: Callable[[Any], Array] | None = None,
) -> TrainStep:
    """The step of `make_truncated_train_step` over all devices of `mesh`.

    Every device carries the states of its own streams, and the gradients of each window are
    averaged in one all-reduce.

    Args:
      loss_fn: as for `make_truncated_train_step`; it runs on every device, on its streams.
      window: the most steps of one window.
      batch_axes: as for `make_sharded_train_step`. The batch is time-major: axis 0 cannot be split.
      carry_axes: the axis along which the carry is split, 0 for states [B, H]; an int or a pytree
        of ints that is a prefix of the carry.
      optimizer, mesh, weight_fn: as for `make_sharded_train_step`; `weight_fn` is given a window.

    Returns:
      The step. Its metrics are [windows]. The carry that it returns stays split; placed so before
      `fit`, ``state._replace(carry=shard_batch(carry, mesh, carry_axes))`` of a replicated state,
      it is compiled once.

    Raises:
      TypeError, ValueError: as `make_sharded_train_step` does, and for `window` or `carry_axes`.
    """
    check_function("loss_fn", loss_fn)
    window = check_size("window", window)
    if any(axis is None for axis in jax.tree.leaves(carry_axes, is_leaf=lambda axis: axis is None)):
        raise TypeError("carry_axes has None, expected ints: each device has streams of its own")
    if 0 in jax.tree.leaves(batch_axes):
        raise ValueError("batch_axes has 0, expected other axes: axis 0 is time and not split")
    windows = (window, carry_axes)
    return _shard_step(with_carry(loss_fn), optimizer, mesh, batch_axes, windows, weight_fn)


def _shard_step(
    loss_fn: WindowLossFn,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    batch_axes: Any,
    windows: tuple[int, Any] | None,
    weight_fn: Callable[[Any], Array] | None,
) -> TrainStep:
    """A train step over devices; `windows` are the steps of one and the axes of the carry."""
    check_optimizer(optimizer)
    _check_mesh(mesh)
    if weight_fn is not None:
        check_function("weight_fn", weight_fn)

    whole: Any = P()

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        specs = _split("batch", batch, mesh, batch_axes, mesh.size)
        parts = TrainState(whole, whole, whole, whole, whole)
        first = batch
        if windows is not None:
            window, carry_axes = windows
            carry = _split("carry", state.carry, mesh, carry_axes, mesh.size)
            parts = parts._replace(carry=carry)
            first = jax.tree.map(lambda leaf: leaf[:window], batch)
        shapes = _metric_shapes(loss_fn, state, first)

        def loss_of_part(params: Any, carry: Any, part: Any, key: Key) -> Any:
            key = jax.random.fold_in(key, lax.axis_index(mesh.axis_names))
            loss, (carry, metrics) = loss_fn(params, carry, part, key)
            _check_metrics(metrics, shapes)
            return loss, (carry, metrics)

        def average(tree: Any, part: Any) -> Any:
            weight = jnp.ones(()) if weight_fn is None else jnp.asarray(weight_fn(part))
            check_shape("the result of weight_fn", weight, ())
            return _average(tree, weight, mesh.axis_names)

        update = make_update(loss_of_part, optimizer, average)
        step = update if windows is None else over_windows(update, windows[0])
        # With check_vma JAX would put all-reduces of its own into the gradient.
        sharded = jax.shard_map(
            step, mesh=mesh, in_specs=(parts, specs), out_specs=(parts, whole), check_vma=False
        )
        return sharded(state, batch)

    return train_step


def shard_batch(batch: Any, mesh: Mesh, batch_axes: Any = 1) -> Any:
    """Place a batch on the devices of `mesh`, each with its part.

    Args:
      batch: a pytree of arrays; with many processes this process's part. The whole is all parts
        joined along the batch axis, in the order of the mesh's devices.
      mesh: as `data_mesh` makes it.
      batch_axes: as for `make_sharded_train_step`. What is None must be the same in all processes.

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

    def is_none(axis: Any) -> bool:
        return axis is None

    try:
        jax.tree.map(lambda axis, part: None, axes, tree, is_leaf=is_none)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}_axes is {axes!r}, expected a prefix of the {name}, "
            f"which is {jax.tree.structure(tree)}"
        ) from error

    def specs_of(axis: int | None, part: Any) -> Any:
        return jax.tree.map(partial(spec_of, axis), part)

    return jax.tree.map(specs_of, axes, tree, is_leaf=is_none)


def _metric_shapes(loss_fn: WindowLossFn, state: TrainState, batch: Any) -> Any:
    """The shapes of the metrics of the whole batch."""

    def metrics_of(state: TrainState, batch: Any) -> Metrics:
        return loss_fn(state.params, state.carry, batch, state.key)[1][1]

    return jax.tree.map(jnp.shape, jax.eval_shape(metrics_of, state, batch))


def _check_metrics(metrics: Metrics, whole: Any) -> None:
    """Refuse metrics whose shapes depend on the size of the batch."""
    for name, metric in metrics.items():
        shapes = jax.tree.map(jnp.shape, metric)
        if shapes != whole[name]:
            raise ValueError(
                f"loss_fn returns the metric {name!r} of shape {shapes} for a part of the "
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


def _check_mesh(mesh: Any) -> None:
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh is a {type(mesh).__name__}, expected a jax.sharding.Mesh")
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(f"mesh has axes {mesh.axis_types}, expected AxisType.Auto (data_mesh)")

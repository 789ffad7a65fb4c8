"""Which devices train what: each a share of the networks, or a share of every batch."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax.sharding import Mesh

from experiments.shared.options import InputError
from jaxrnn.host import use_cpu_devices
from jaxrnn.sharding import data_mesh


class Placement(NamedTuple):
    """The devices to train on, and whether each has a share of the networks or of every batch."""

    mesh: Mesh
    networks_split: bool


def present_devices(count: int | None) -> None:
    """Let a CPU present `count` devices, by default one per core.

    Raises:
      InputError: JAX has already started with another number than the one asked for.
    """
    try:
        use_cpu_devices(count)
    except RuntimeError as error:  # by default, the devices that JAX has started with will do
        if count is not None:
            raise InputError(f"--devices: {error}") from None


def place_networks(networks: int, batch_size: int, devices: int | None) -> Placement:
    """Divide the networks evenly, or, if they cannot be and `devices` is given, the batch.

    Args:
      batch_size: sequences per batch; 1 if a batch cannot be split.
      devices: the most to use; None is all of them, and never splits a batch.

    Raises:
      InputError: there are fewer devices than `devices`.
    """
    available = jax.devices()
    if devices is not None and devices > len(available):
        raise InputError(f"--devices is {devices}, but there are {len(available)}")
    most = devices or len(available)
    shares = largest_divisor(networks, most)
    networks_split = shares > 1 or devices is None
    if not networks_split:
        shares = largest_divisor(batch_size, most)
    return Placement(data_mesh(available[:shares]), networks_split)


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is `most` at most."""
    return max(divisor for divisor in range(1, most + 1) if number % divisor == 0)

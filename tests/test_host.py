"""Process-wide settings: CPU cores as devices, and reuse of freed memory.

Both can be set only once per process, so most tests here start processes of their own.
"""

import os
import platform
import resource

import jax
import jax.numpy as jnp
import pytest

from jaxrnn import sharding
from jaxrnn.host import keep_memory, use_cpu_devices
from tests.support.processes import run_alone

GLIBC = platform.libc_ver()[0] == "glibc"
SIZE = 2**25  # of float32: 128 MiB, four times what the GNU C library keeps by default


def test_use_cpu_devices_makes_every_core_a_device(tmp_path):
    run_alone(start_with_cores_as_devices, tmp_path)


def start_with_cores_as_devices():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert use_cpu_devices(cores + 2) == cores + 2
    assert use_cpu_devices() == cores  # JAX has not started, so the number can still change
    assert len(jax.devices()) == cores
    assert use_cpu_devices() == cores
    with pytest.raises(RuntimeError, match=f"comes too late.* with {cores} CPU device"):
        use_cpu_devices(cores + 1)
    assert sharding.data_mesh().shape == {"data": cores}
    assert sharding.data_mesh(jax.devices()[:1]).shape == {"data": 1}


def test_a_late_call_is_accepted_only_with_the_present_number_of_devices():
    count = len(jax.local_devices(backend="cpu"))
    assert use_cpu_devices(count) == count
    with pytest.raises(RuntimeError, match="before the first array, or start the process with"):
        use_cpu_devices(count + 1)


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "2"])
def test_a_count_that_is_not_a_positive_int_is_rejected(count):
    with pytest.raises((TypeError, ValueError), match="count is"):
        use_cpu_devices(count)


def test_after_keep_memory_freed_pages_are_reused(tmp_path):
    run_alone(fill_kept_memory, tmp_path)


def fill_kept_memory():
    assert keep_memory() == GLIBC
    assert use_cpu_devices(2) == 2  # keep_memory has not started JAX
    fill = jax.jit(lambda value: jnp.full(SIZE, value, jnp.float32))
    pages = 4 * SIZE // resource.getpagesize()
    mapped = []
    for value in range(8):  # a thread may free an array late, so that only a later call reuses it
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        assert fill(float(value)).block_until_ready()[-1] == value
        mapped.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert not GLIBC or min(mapped) < pages // 10, mapped


def test_keep_memory_does_nothing_with_another_c_library(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_memory()

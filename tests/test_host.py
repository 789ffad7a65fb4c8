"""A script's first calls: the cores of a CPU become devices, and freed memory is kept.

Both are settled once a process, so that the tests of them run in processes of their own.
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
NUMBERS = 2**25  # of float32: 128 MiB, four times what the GNU C library ever keeps by itself


def test_the_cores_of_a_cpu_become_its_devices(tmp_path):
    run_alone(start_with_cores_as_devices, tmp_path)


def start_with_cores_as_devices():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert use_cpu_devices(cores + 2) == cores + 2
    assert use_cpu_devices() == cores  # it has started nothing, so that it can be said anew
    assert len(jax.devices()) == cores
    assert use_cpu_devices() == cores
    with pytest.raises(RuntimeError, match=f"comes too late.* with {cores} CPU device"):
        use_cpu_devices(cores + 1)
    assert sharding.data_mesh().shape == {"data": cores}
    assert sharding.data_mesh(jax.devices()[:1]).shape == {"data": 1}


def test_the_devices_that_there_are_may_be_asked_for_late():
    there = len(jax.local_devices(backend="cpu"))
    assert use_cpu_devices(there) == there
    with pytest.raises(RuntimeError, match="before the first array, or start the process with"):
        use_cpu_devices(there + 1)


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "2"])
def test_a_number_of_devices_is_a_positive_int(count):
    with pytest.raises((TypeError, ValueError), match="count is"):
        use_cpu_devices(count)


def test_memory_that_was_freed_is_kept(tmp_path):
    run_alone(fill_kept_memory, tmp_path)


def fill_kept_memory():
    assert keep_memory() == GLIBC
    assert use_cpu_devices(2) == 2  # it starts nothing, so that devices can still be asked for
    fill = jax.jit(lambda value: jnp.full(NUMBERS, value, jnp.float32))
    pages = 4 * NUMBERS // resource.getpagesize()
    mapped = []
    for value in range(8):  # what a thread frees late is there for a later call
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        assert fill(float(value)).block_until_ready()[-1] == value
        mapped.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert not GLIBC or min(mapped) < pages // 10, mapped


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_memory()

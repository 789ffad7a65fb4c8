"""What a script tells its process before the first array: how a CPU's cores and memory are used."""

from __future__ import annotations

import ctypes
import os
import platform

import jax

from jaxrnn._checks import check_size

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of malloc.h


def use_cpu_devices(count: int | None = None) -> int:
    """Let the CPU present its cores as devices. A script calls this first.

    JAX fixes the number of CPU devices when it first uses one: when an array is made, a function
    runs, or devices are listed. Importing jax or jaxrnn does not. Other devices are not affected.

    Args:
      count: devices of this process; by default the cores that it may run on.

    Returns:
      The number of CPU devices that this process has.

    Raises:
      TypeError, ValueError: `count` is not an int of at least 1.
      RuntimeError: it comes too late, and the number of devices is another one.
    """
    count = count_cores() if count is None else check_size("count", count)
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:  # JAX has started
        started = len(jax.local_devices(backend="cpu"))
        if started != count:
            raise RuntimeError(
                f"use_cpu_devices({count}) comes too late: JAX has started with {started} CPU "
                "device(s), and the number is fixed from then on. Call it before the first array, "
                f"or start the process with the environment variable JAX_NUM_CPU_DEVICES={count}"
            ) from error
    return count


def keep_memory() -> bool:
    """Let the process keep the memory of freed arrays for the next ones. A script calls this first.

    On a CPU, JAX asks the C library for the memory of every result and every temporary, and gives
    it back at once. The GNU C library hands large blocks on to the system, which maps them anew,
    page by page, at the next call. With this call the process keeps its largest size to its end,
    and all threads that start later share one arena.

    Returns:
      Whether the C library does so: True with the GNU C library, otherwise False, without effect.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))  # -1: never
    mallopt = ctypes.CDLL(None).mallopt
    return sum(mallopt(name, value) for name, value in settings) == len(settings)


def count_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Process-wide settings for a script's first lines: a CPU's devices and its memory allocator."""

from __future__ import annotations

import ctypes
import os
import platform

import jax

from jaxrnn._checks import check_size

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # M_TRIM_THRESHOLD etc. of malloc.h


def use_cpu_devices(count: int | None = None) -> int:
    """Make the CPU's cores available as JAX devices. Call it at the start of a script.

    JAX fixes the number of CPU devices at first use: when an array is created, a function runs, or
    devices are listed. Importing jax or jaxrnn is not a use. GPUs and TPUs are not affected. If the
    environment variable NPROC is not set, it is set to one thread of XLA more than CPU devices.

    Args:
      count: the number of CPU devices; by default the number of cores available to this process.

    Returns:
      The number of CPU devices of this process.

    Raises:
      TypeError, ValueError: `count` is not an int of at least 1.
      RuntimeError: JAX has already started with another number of CPU devices.
    """
    count = count_cores() if count is None else check_size("count", count)
    # XLA (seen with jaxlib 0.10.2) hangs where every thread of its pool waits for a factorisation
    # in a loop, as all devices may; it reads the number of threads from this variable.
    os.environ.setdefault("NPROC", str(max(count, count_cores()) + 1))
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:  # JAX has started
        started = len(jax.local_devices(backend="cpu"))
        if started != count:
            raise RuntimeError(
                f"use_cpu_devices({count}) comes too late: JAX has started with {started} CPU "
                "device(s) and cannot change their number. Call it before the first array, "
                f"or start the process with the environment variable JAX_NUM_CPU_DEVICES={count}"
            ) from error
    return count


def keep_memory() -> bool:
    """Keep the memory of freed arrays in the process for reuse. Call it at the start of a script.

    On a CPU, JAX allocates every result and temporary with the C library and frees it as soon as
    possible. The GNU C library returns large blocks to the operating system, which has to map them
    again, page by page, at the next call. After this call nothing is returned, so that the process
    remains at its peak size, and all threads started later share one arena.

    Returns:
      True if the setting has taken effect, which requires the GNU C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))  # -1: never
    mallopt = ctypes.CDLL(None).mallopt
    return sum(mallopt(name, value) for name, value in settings) == len(settings)


def count_cores() -> int:
    """The number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""How the C library's allocator treats the buffers of XLA's CPU backend."""

import ctypes
import importlib.util
import platform
from importlib import metadata

import jax

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next allocation instead of giving it back to the kernel.

    A training step on the CPU allocates and frees the same large buffers again and again; by default each comes from a
    fresh ``mmap`` and is paid for in page faults. Costs nothing in peak memory of one step; the process keeps its peak.

    Threads that have allocated before keep arenas of their own: call it before jax starts its backend.

    Returns:
      Whether the C library took the settings; False where it is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST_INT), (_M_ARENA_MAX, 1))
    return all([mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in settings])


def keep_freed_memory_on_cpu() -> bool:
    """`keep_freed_memory` where jax will run on a CPU, which is found out without starting a backend."""
    platforms = jax.config.values["jax_platforms"]
    if platforms:
        return platforms.split(",")[0] == "cpu" and keep_freed_memory()
    plugins = metadata.entry_points(group="jax_plugins")
    if plugins or any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu")):
        return False
    return keep_freed_memory()

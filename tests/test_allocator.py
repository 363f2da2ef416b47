import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
if sys.argv[1] == "keep":
    from i3d_jax.allocator import keep_freed_memory
    assert keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    block = c.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    c.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_memory_is_used_again():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True).stdout)
        for how in ("keep", "default")
    }
    assert faults["keep"] < faults["default"] / 10


@pytest.mark.parametrize("platforms, cpu", [("cpu", True), ("cuda,cpu", False), ("tpu", False)])
def test_the_platform_is_found_out_without_starting_a_backend(platforms, cpu):
    code = (
        "from jax._src import xla_bridge; from i3d_jax import allocator\n"
        "allocator.keep_freed_memory = lambda: True\n"
        "print(allocator.keep_freed_memory_on_cpu(), xla_bridge.backends_are_initialized())"
    )
    environment = os.environ | {"JAX_PLATFORMS": platforms}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.split() == [str(cpu), "False"]

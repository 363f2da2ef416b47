"""What the machine can do, and how much of its memory is used."""

import resource
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Dense bfloat16 FLOP/s of one chip, from the vendors' data sheets; the longest name that a device's kind holds counts.
_PEAK = {
    "TPU v4": 275e12,
    "TPU v5": 459e12,  # as JAX calls the v5p
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}
_MEASURED_SIZE = 1024


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """FLOP/s of all devices together: the data sheet's bfloat16 figure; None for an accelerator that is not known.

    On CPUs that of a float32 matrix product measured here: the devices of all processes are taken for one machine.
    """
    kind = devices[0].device_kind
    known = [name for name in _PEAK if name in kind]
    if known:
        return _PEAK[max(known, key=len)] * len(devices)
    return _measure(jax.local_devices()[0]) if devices[0].platform == "cpu" else None


def _measure(device: jax.Device) -> float:
    """FLOP/s of a float32 matrix product of 1024 x 1024, the best of several."""
    x = jax.device_put(jnp.ones((_MEASURED_SIZE, _MEASURED_SIZE)), device)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    best = float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - begun)
    return 2 * _MEASURED_SIZE**3 / best


def peak_memory() -> float:
    """Most bytes in use so far: of the fullest device of this process, or, on CPU, of the process itself."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if stat and "peak_bytes_in_use" in stat]
    if peaks:
        return float(max(peaks))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)

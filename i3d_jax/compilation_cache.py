"""Compiled programs are kept on disk, so that the second start of a program compiles nothing."""

import hashlib
import os
import platform
import sys
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

_LARGEST = 2 * 1024**3  # bytes; the least recently used programs go first
_SHORTEST_SECONDS = 0.1  # a compilation that takes less is not worth a file


def keep_programs() -> None:
    """Turn JAX's persistent compilation cache on, in ``~/.cache/i3d_jax/programs`` (or below ``$XDG_CACHE_HOME``).

    Does nothing where the cache has a place already (``JAX_COMPILATION_CACHE_DIR``) or is switched off
    (``JAX_ENABLE_COMPILATION_CACHE=false``). A place that cannot be written is announced once, and nothing is kept.
    Programs of a CPU hold instructions that another one may lack: each kind of processor has a folder of its own.
    """
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] is not None or not settings["jax_enable_compilation_cache"]:
        return
    folder: Path | str = "~/.cache"
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")  # RuntimeError: a user without home
        folder = cache / "i3d_jax" / "programs" / _processor()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(folder)
    except (OSError, RuntimeError) as error:
        print(f"compiled programs are not kept: {folder} cannot be written ({type(error).__name__})", file=sys.stderr)
        jax.config.update("jax_enable_compilation_cache", False)  # said once
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _LARGEST)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST_SECONDS)
    compilation_cache.reset_cache()  # one that was found to be off by an earlier compilation would stay off


def _processor() -> str:
    """Machine type and a digest of what its processor can do."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"

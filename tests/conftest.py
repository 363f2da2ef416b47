"""Settings of every test: eight emulated CPU devices, quick compilation, no rank promotion, the same examples.

The files that take longest come first, so that no worker is left with one of them when the others have nothing to do.
"""

import atexit
import os
import shutil
import tempfile

from tests.quick_compilation import FLAGS

# Read by jax when it is imported first, here and in the programs that tests start. Of flags given twice the last one
# counts: XLA_FLAGS=--xla_backend_optimization_level=3 asks for LLVM's optimisation.
_FLAGS = ["--xla_force_host_platform_device_count=8", *FLAGS]
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, os.environ.get("XLA_FLAGS", "")]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Many tests train the same small model: its programs are compiled once for all of them, and for all their processes.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs = tempfile.mkdtemp(prefix="programs-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, _programs, ignore_errors=True)

import jax  # noqa: E402
from hypothesis import settings  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# No deadline: the first example compiles.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")

_LONGEST = (  # the first minutes of a suite of ten
    "tests/training/test_step.py",
    "tests/test_runs.py",
    "tests/test_contract.py",
    "tests/test_hosts.py",
    "tests/test_notebooks.py",
    "tests/test_family.py",
    "tests/test_resumption.py",
    "tests/test_damaged_runs.py",
)


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))

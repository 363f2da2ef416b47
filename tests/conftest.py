"""Settings of every test: eight emulated CPU devices, quick compilation, no rank promotion, the same examples."""

import os

# Read by jax when it is imported first, here and in the programs that tests start. Compiling takes most of the time of
# the tests, and a third of it without LLVM's optimisation; XLA_FLAGS=--xla_backend_optimization_level=3 asks for it.
_FLAGS = ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0")
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, os.environ.get("XLA_FLAGS", "")]).strip()  # the last one counts
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
from hypothesis import settings  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# No deadline: the first example compiles.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")

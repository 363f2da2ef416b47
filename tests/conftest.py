"""Settings of every test: eight emulated CPU devices, no rank promotion, the same examples in every run."""

import os

# Read by jax when it is imported first.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
from hypothesis import settings  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# No deadline: the first example compiles.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")

"""The Gumbel-Softmax temperature as a function of the step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from i3d_jax.model.gates import GateConfig
from i3d_jax.types import Array

Annealing = Callable[[Array], jax.Array]


def annealing(config: GateConfig, total_steps: int) -> Annealing | None:
    """Step (from 0) -> factor of ``config.temperature``, 1 at the first step; None where tau stays as it is.

    With r = final_temperature / temperature and t from 0 to 1 over the ``total_steps`` steps, the factor is r**t
    (exponential) or 1 + (r - 1) t (linear). A function of the step alone: a resumed training goes on as it would have.
    """
    if config.final_temperature is None:
        return None
    ratio = config.final_temperature / config.temperature

    def factor(step: Array) -> jax.Array:
        done = jnp.minimum(jnp.asarray(step, jnp.float32) / max(total_steps - 1, 1), 1.0)
        if config.annealing == "linear":
            return 1.0 + (ratio - 1.0) * done
        return jnp.float32(ratio) ** done

    return factor

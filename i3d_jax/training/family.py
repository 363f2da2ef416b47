"""Several trainings in one program: their states are stacked, and the step is mapped over them.

    state [K, ...], batch, member [K] -> state [K, ...], metrics [K]

The batch is one for all, and so is what depends on it alone: audio, features and augmentation are computed once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from i3d_jax.training.sharding import Parallel
from i3d_jax.training.step import TrainState, init_state

# All have done the same number of steps.
_AXES = TrainState(step=None, params=0, opt_state=0, bad_steps=0)  # type: ignore[arg-type]


@dataclass(frozen=True)
class FamilyConfig:
    """Trainings that run as one program, each with its own folder: every seed with every lambda."""

    seeds: int = 1
    """Members for each lambda: their seeds count up from ``seed``. The order of the data is the same for all."""
    lambdas: tuple[float, ...] = ()
    """Weights of the utility loss, each a member for each seed; empty: ``loss.utility_weight``."""

    @property
    def size(self) -> int:
        """Number of members."""
        return self.seeds * max(1, len(self.lambdas))


@dataclass(frozen=True)
class Stacked:
    """Trainings side by side; of a single one nothing is stacked.

    Attributes:
      count: K, how many.
    """

    count: int

    def join(self, trees: Sequence[Any]) -> Any:
        """K trees as one, whose arrays lead with the axis K."""
        return trees[0] if self.count == 1 else jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)

    def init_state(self, params: Sequence[Any], optimizer: optax.GradientTransformation) -> TrainState:
        """State at step 0 of K parameter trees."""
        if self.count == 1:
            return init_state(params[0], optimizer)
        state: TrainState = jax.vmap(lambda own: init_state(own, optimizer), out_axes=_AXES)(self.join(params))
        return state

    def map(self, step: Any, parallel: Parallel) -> Any:
        """(state, batch, member) -> (state, metrics) of one training as that of all, jitted; the state is donated."""
        mapped = jax.vmap(step, in_axes=(_AXES, None, 0), out_axes=(_AXES, 0))
        return jax.jit(mapped, donate_argnums=0, out_shardings=parallel.replicated)

    def part(self, tree: Any, index: int) -> Any:
        """What of stacked arrays belongs to one member, copied on the devices."""
        return tree if self.count == 1 else _take(tree, index)

    def split(self, tree: Any) -> list[Any]:
        """The same for all members, of arrays on the host."""
        if self.count == 1:
            return [tree]
        return [jax.tree.map(lambda x: x[index], tree) for index in range(self.count)]  # noqa: B023


@jax.jit
def _take(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), tree)

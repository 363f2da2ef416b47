"""Data parallelism over the local devices: ``jax.jit`` with a mesh; batches are split, parameters replicated.

The step is written for the global batch, so its losses, clipping and random numbers mean the same on any number of
devices; the compiler inserts the reductions.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from i3d_jax.types import Batch

_Plan = TypeVar("_Plan")


@dataclass(frozen=True)
class DataParallel:
    """Placement of batches and parameters on a mesh with one axis, ``data``."""

    mesh: Mesh

    @classmethod
    def over_devices(cls, batch_multiple: int, devices: list[jax.Device] | None = None) -> "DataParallel":
        """Over the local devices.

        Raises:
          ValueError: batches of a multiple of ``batch_multiple`` rows cannot be split evenly over the devices.
        """
        devices = jax.local_devices() if devices is None else devices
        if batch_multiple % len(devices):
            raise ValueError(
                f"batching.batch_multiple={batch_multiple} is not a multiple of the {len(devices)} devices: "
                f"set it to {-(-batch_multiple // len(devices)) * len(devices)}"
            )
        return cls(jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices))

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of parameters and optimiser state."""
        return NamedSharding(self.mesh, P())

    @property
    def rows(self) -> NamedSharding:
        """Sharding of a batch: the leading axis over ``data``."""
        return NamedSharding(self.mesh, P("data"))

    def put_batch(self, batch: Any) -> Any:
        """Place a host batch, rows split over the devices."""
        return jax.device_put(batch, self.rows)

    def prefetch(self, batches: Iterable[tuple[int, _Plan, Batch]], count: int) -> Iterator[tuple[int, _Plan, Batch]]:
        """Place the batches of (step, plan, batch), ``count`` of them ahead of the one that is taken."""
        placed: deque[tuple[int, _Plan, Batch]] = deque()
        for step, planned, batch in batches:
            placed.append((step, planned, self.put_batch(batch)))
            if len(placed) > count:
                yield placed.popleft()
        yield from placed

    def replicate(self, tree: Any) -> Any:
        """Place a tree on every device."""
        return jax.device_put(tree, self.replicated)

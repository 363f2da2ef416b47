"""Placement of a training on a mesh of devices with the axes ``data`` and ``fsdp``.

Batches are split over both axes. Parameters and optimiser state are split over ``fsdp``, each array along one axis by a
rule, and a layer's parameters are gathered where they are used (`Parallel.gather`). The step is written for the global
batch, so its losses, clipping and random numbers mean the same on any number of devices; the compiler inserts the
communication.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from i3d_jax.data.loader import Share

_SMALLEST_SPLIT = 4096  # elements; splitting less saves nothing and costs a message
_STACKED = ("layers", "predictor")  # whose leading axis is that of the layers, over which the encoder scans


@dataclass(frozen=True)
class ParallelConfig:
    """How a training is spread over devices. It changes neither losses nor noise, so a run may resume with another."""

    data: int = -1
    """Devices that split batches and hold all parameters each; -1: all that ``fsdp`` leaves."""
    fsdp: int = 1
    """Devices that split batches, parameters and optimiser state (ZeRO 3); -1: all that ``data`` leaves."""
    accumulate: int = 1
    """Parts in which a batch is computed, one after another, before one update."""
    coordinator: str = ""
    """Where several processes meet: ``host:port`` of the first one, with $JAX_NUM_PROCESSES and $JAX_PROCESS_ID set
    for each; ``auto`` on a TPU pod, SLURM, Open MPI or Kubernetes; empty takes $JAX_COORDINATOR_ADDRESS, if any."""
    lost_after_seconds: int = 100
    """Silence of a process after which the others end, so that all can be started again."""


def mesh_shape(config: ParallelConfig, devices: int) -> tuple[int, int]:
    """Sizes of the axes (data, fsdp) for so many devices.

    Raises:
      ValueError: they do not multiply to the number of devices.
    """
    data, fsdp = config.data, config.fsdp
    if data == -1:
        data = devices // fsdp
    elif fsdp == -1:
        fsdp = devices // data
    if data * fsdp != devices:
        raise ValueError(
            f"parallel.data={config.data} and parallel.fsdp={config.fsdp} do not make {devices} devices: expected "
            "sizes whose product is that, or -1 for one of them"
        )
    return data, fsdp


@dataclass(frozen=True)
class Parallel:
    """Placement of batches and parameters on a mesh."""

    mesh: Mesh

    @classmethod
    def over_devices(
        cls, config: ParallelConfig, batch_multiple: int, devices: Sequence[jax.Device] | None = None
    ) -> "Parallel":
        """Over the devices of all processes, or over those given.

        Raises:
          ValueError: the sizes do not make the number of devices, or batches of a multiple of ``batch_multiple`` rows
            cannot be split evenly.
        """
        devices = jax.devices() if devices is None else devices
        parts = len(devices) * config.accumulate
        if batch_multiple % parts:
            accumulated = f" x {config.accumulate} parts" if config.accumulate > 1 else ""
            raise ValueError(
                f"batching.batch_multiple={batch_multiple} is not a multiple of the {len(devices)} devices{accumulated}"
                f": set it to {-(-batch_multiple // parts) * parts}"
            )
        shape = mesh_shape(config, len(devices))
        return cls(jax.make_mesh(shape, ("data", "fsdp"), (AxisType.Auto, AxisType.Auto), devices=devices))

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of what every device holds."""
        return NamedSharding(self.mesh, P())

    @property
    def rows(self) -> NamedSharding:
        """Sharding of a batch: the leading axis over all devices."""
        return NamedSharding(self.mesh, P(("data", "fsdp")))

    def shardings(self, tree: Any) -> Any:
        """Shardings of parameters, of optimiser state, or of anything that holds them.

        An array of at least 4096 elements is split along its longest axis that ``fsdp`` divides, never along the axis
        of the layers; others are replicated.
        """
        return jax.tree_util.tree_map_with_path(self._sharding, tree)

    def _sharding(self, path: Any, leaf: Any) -> NamedSharding:
        size = self.mesh.shape["fsdp"]
        stacked = any(getattr(key, "key", None) in _STACKED for key in path)
        axes = [axis for axis in range(int(stacked), leaf.ndim) if leaf.shape[axis] % size == 0]
        if size == 1 or not axes or leaf.size < _SMALLEST_SPLIT:
            return self.replicated
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(self.mesh, P(*(None,) * longest, "fsdp"))

    def place(self, tree: Any) -> Any:
        """Place a training state, or parameters, by the rule of `shardings`; all processes hold the same."""
        return jax.tree.map(_put, tree, self.shardings(tree))

    def share(self) -> Share | None:
        """Rows of a batch whose devices belong to this process; None in a single process."""
        if jax.process_count() == 1:
            return None
        own = [i for i, device in enumerate(self.mesh.devices.flat) if device.process_index == jax.process_index()]
        return Share(self.mesh.devices.size, tuple(own))

    def fetch(self, tree: Any) -> Any:
        """Whole arrays on the host of every process."""
        if jax.process_count() > 1:
            tree = self.replicate(tree)
        return jax.device_get(tree)

    @property
    def gather(self) -> Callable[[Any], Any] | None:
        """Within a compiled program, split arrays to whole ones on every device; None when nothing is split."""
        if self.mesh.shape["fsdp"] == 1:
            return None
        return lambda tree: jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self.replicated), tree)

    def replicate(self, tree: Any) -> Any:
        """Place a tree on every device, from wherever its arrays are."""
        return jax.jit(_identity, out_shardings=self.replicated)(tree)

    def put_batch(self, batch: Any) -> Any:
        """Place a host batch, rows split over the devices; of each array a process places only the rows of its own."""
        return jax.tree.map(lambda x: _put(x, self.rows), batch)


def _identity(tree: Any) -> Any:
    return tree


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

"""What a training step needs of a device's memory, and what batch fits: ``python -m i3d_jax.cli.memory --config=FILE``.

The step is compiled at the lengths of the longest utterances, once for each remat policy and two or three sizes of
batch, and the compiler's figures are read; nothing is run and no data is needed. ``--topology=v5e:2x4`` compiles for
TPUs that are not here (``pip install libtpu``), otherwise for the devices of this machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import jax

from i3d_jax.experiment import ExperimentConfig, parse_command_line, run_program
from i3d_jax.model.encoder import Remat
from i3d_jax.programs import BatchShape, ProgramFigures, compile_ahead, topology_devices


@dataclass(frozen=True)
class MemoryFlags:
    """Flags of the memory command."""

    gigabytes: float = 16.0
    """Memory of one device that a step may use, in 10^9 bytes."""
    topology: str = ""
    """TPUs to compile for, such as ``v5e:2x4`` or ``v5p:2x2x2``; empty: the devices of this machine."""
    seconds: float = 0.0
    """Length of the longest utterances; 0 takes ``data.max_seconds``."""
    labels_per_second: float = 6.0
    """Tokens of the densest utterances."""


def main(argv: list[str]) -> None:
    """Print a table of remat policies, and the batch that fits with each."""
    flags, config = parse_command_line(argv, MemoryFlags, description=__doc__ or "")
    if flags.gigabytes <= 0:
        raise ValueError(f"--gigabytes={flags.gigabytes}: expected a positive number")
    devices = topology_devices(flags.topology) if flags.topology else jax.devices()
    seconds = flags.seconds or config.data.max_seconds
    labels = max(1, round(flags.labels_per_second * seconds))
    print(
        f"{config.name}, {config.model.precision}, {len(devices)} x {devices[0].device_kind}: utterances of "
        f"{seconds:g} s, {flags.gigabytes:g} GB a device"
    )
    print("| remat | rows | --batching.seconds-per-batch | GB a device | of it parameters, optimiser, batch |")
    print("| --- | --- | --- | --- | --- |")
    for remat in get_args(Remat):
        chosen = replace(config, training=replace(config.training, remat=remat))
        shape, figures = largest_batch(chosen, BatchShape(0, seconds, labels), devices, flags.gigabytes * 1e9)
        total, held = figures.bytes / 1e9, figures.argument_bytes / 1e9
        if not shape.rows:
            print(f"| {remat} | none | {config.batching.batch_multiple} rows need more | {total:.2f} | {held:.2f} |")
        else:
            print(f"| {remat} | {shape.rows} | {shape.rows * seconds:g} | {total:.2f} | {held:.2f} |", flush=True)


def largest_batch(
    config: ExperimentConfig, shape: BatchShape, devices: Sequence[jax.Device], budget: float
) -> tuple[BatchShape, ProgramFigures]:
    """The largest batch whose training step fits, and the compiler's figures for it.

    Memory grows almost linearly with the rows: two sizes are compiled, then what the line through them promises, and so
    on between the largest that fits and the smallest that does not, as far as lines promise more.

    Args:
      config: the experiment.
      shape: length and labels of the batch.
      devices: to compile for.
      budget: bytes of one device.

    Returns:
      The batch with its rows, a multiple of ``batching.batch_multiple``; 0 rows, with the figures of the smallest
      batch, if not even that fits.
    """
    multiple = config.batching.batch_multiple
    tried: dict[int, ProgramFigures] = {}

    def size(count: int) -> int:
        if count not in tried:
            tried[count] = compile_ahead(config, "train", replace(shape, rows=count * multiple), devices)
        return tried[count].bytes

    if size(1) > budget:
        return replace(shape, rows=0), tried[1]
    low, high = 1, 2
    while True:
        slope = (size(high) - size(low)) / (high - low)
        guess = low + math.floor((budget - size(low)) / slope)
        if size(high) <= budget:
            if guess <= high:
                break
            low, high = high, guess
        elif guess == low:
            return replace(shape, rows=low * multiple), tried[low]
        elif size(guess) <= budget:
            low = guess
        else:
            high = guess
    return replace(shape, rows=high * multiple), tried[high]


if __name__ == "__main__":
    run_program(main)

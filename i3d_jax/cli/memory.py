"""What a training step needs of a device's memory, and what batch fits: ``python -m i3d_jax.cli.memory --config=FILE``.

The step is compiled for the longest rows, slowed down or joined as they may be, once for each remat policy and a few
sizes of batch, and the compiler's figures are read; nothing is run and no data is needed. ``--topology=v5e:2x4``
compiles for TPUs that are not here (``pip install libtpu``), otherwise for the devices of this machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import jax

from i3d_jax.data.batching import longest_bucket
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
    """Length of the longest recordings; 0 takes ``data.max_seconds``."""
    labels_per_second: float = 6.0
    """Tokens of the densest utterances."""


def main(argv: list[str]) -> None:
    """Print a table of remat policies, and the batch that fits with each."""
    flags, config = parse_command_line(argv, MemoryFlags, description=__doc__ or "")
    if flags.gigabytes <= 0:
        raise ValueError(f"--gigabytes={flags.gigabytes}: expected a positive number")
    devices = topology_devices(flags.topology) if flags.topology else jax.devices()
    recorded = flags.seconds or config.data.max_seconds
    seconds = longest_row(config, recorded)
    labels = max(1, round(flags.labels_per_second * max(recorded, config.augment.concatenate_seconds)))
    print(
        f"{config.name}, {config.model.precision}, {len(devices)} x {devices[0].device_kind}: rows of "
        f"{seconds:g} s, {flags.gigabytes:g} GB a device"
    )
    print("| remat | rows | --batching.seconds-per-batch | GB a device | of it parameters, optimiser, batch |")
    print("| --- | --- | --- | --- | --- |")
    for remat in get_args(Remat):
        chosen = replace(config, training=replace(config.training, remat=remat))
        shape, figures = largest_batch(chosen, BatchShape(0, seconds, labels), devices, flags.gigabytes * 1e9)
        wanted = (
            str(math.ceil(shape.rows * seconds)) if shape.rows else f"{config.batching.batch_multiple} rows need more"
        )
        told = f"{figures.bytes / 1e9:.2f} | {figures.argument_bytes / 1e9:.2f}" if figures else "refused |"
        print(f"| {remat} | {shape.rows} | {wanted} | {told} |", flush=True)


def longest_row(config: ExperimentConfig, recorded: float) -> float:
    """Seconds of the longest rows that the plan makes of recordings up to so many: slowed down, joined, rounded up."""
    rate = config.data.sample_rate
    longest = max(recorded / min(config.augment.speeds), config.augment.concatenate_seconds)
    return longest_bucket(math.ceil(longest * rate), rate) / rate


def largest_batch(
    config: ExperimentConfig, shape: BatchShape, devices: Sequence[jax.Device], budget: float
) -> tuple[BatchShape, ProgramFigures | None]:
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
      batch (None if the compiler refuses that), if not even that fits.
    """
    multiple = config.batching.batch_multiple
    tried: dict[int, ProgramFigures | None] = {}

    def size(count: int) -> float:
        if count not in tried:
            try:
                tried[count] = compile_ahead(config, "train", replace(shape, rows=count * multiple), devices)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                tried[count] = None  # more than the device has, says its compiler
        figures = tried[count]
        return figures.bytes if figures else math.inf

    def promised(low: int, high: int) -> int:
        """The largest that fits by the line through two sizes; in the middle if there is none."""
        if math.isinf(size(high)):
            return (low + high) // 2
        slope = (size(high) - size(low)) / (high - low)
        return low + math.floor((budget - size(low)) / max(slope, 1))

    def found(count: int) -> tuple[BatchShape, ProgramFigures | None]:
        return replace(shape, rows=count * multiple), tried[count]

    if size(1) > budget:
        return replace(shape, rows=0), tried[1]
    low, high = 1, 2
    while size(high) <= budget:
        if (guess := promised(low, high)) <= high:
            return found(high)
        low, high = high, guess
    while (guess := promised(low, high)) > low:
        low, high = (guess, high) if size(guess) <= budget else (low, guess)
    return found(low)


if __name__ == "__main__":
    run_program(main)

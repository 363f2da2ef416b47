"""Step time, memory and cost of the paper's trainings on accelerators, on paper: bounds and a communication model.

Command: ``python benchmarks/cost_model.py AHEAD.json [--json FILE]`` with the figures that ``compile_ahead.py --json``
wrote. Nothing is run. For a step of 96 rows of 16 s, all branches computed:

    compute   model FLOPs / (devices x peak)          3 x forward; 4 x with remat=full
    memory    (2 x work space + 28 bytes x parameters) / bandwidth      every activation written and read once; Adam
    network   2 (n - 1) / n x bytes of the gradients / bandwidth of the links      a ring; nothing overlaps
    at best   max(compute, memory) + network
    likely    compute / 0.4 + network                 40 % of the peak, as well-kept programs of this kind reach

Peaks, bandwidths and prices are those of ``HARDWARE``: data sheets and list prices, to be replaced by one's own.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compile_ahead import CONFIGS, SHAPE

from i3d_jax import files
from i3d_jax.audio.frontend import num_frames
from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.model.flops import count_flops

HOURS_OF_AUDIO = {"librispeech100": 100.6}
EFFICIENCY = 0.4
ADAM_BYTES = 28  # read and write parameter and moments, read the gradient, in float32


@dataclass(frozen=True)
class Hardware:
    """One kind of machine: bfloat16 FLOP/s, memory and its bandwidth, links, of one chip; price of a chip hour."""

    name: str
    topology: str
    chips: int
    peak: float
    gigabytes: float
    memory_bandwidth: float
    link_bandwidth: float
    dollars: float


HARDWARE = (
    Hardware("v5e-8", "v5e:2x4", 8, 197e12, 16, 819e9, 200e9, 1.20),
    Hardware("v5p, 8 chips", "v5p:2x2x2", 8, 459e12, 95, 2765e9, 600e9, 4.20),
    Hardware("8 x H100", "v5p:2x2x2", 8, 989e12, 80, 3350e9, 450e9, 11.0),  # memory as compiled for the v5p
)


def training_flops(config: ExperimentConfig) -> float:
    """Of one step: forward and backward of full rows."""
    frames = num_frames(config.frontend, int(SHAPE.seconds * config.data.sample_rate))
    forward = count_flops(
        config.model,
        num_mels=config.frontend.num_mels,
        vocab_size=config.tokenizer.vocab_size + 1,
        num_frames=int(frames),
        executed=None,
    )
    return 3 * SHAPE.rows * float(forward[0])


def estimate(config: ExperimentConfig, machine: Hardware, compiled: dict[str, Any]) -> dict[str, Any]:
    """One row of the table."""
    flops = training_flops(config)
    gradients = compiled["collectives"]["all-reduce"][1]
    parameters = gradients / 4
    work_space = compiled["bytes"] - compiled["argument_bytes"]
    compute = flops / (machine.chips * machine.peak)
    memory = (2 * work_space + ADAM_BYTES * parameters) / machine.memory_bandwidth
    network = 2 * (machine.chips - 1) / machine.chips * gradients / machine.link_bandwidth
    likely = compute / EFFICIENCY + network
    audio = HOURS_OF_AUDIO[config.name.split("_")[0]] * config.training.epochs * 3600
    steps = audio / (SHAPE.rows * SHAPE.seconds)
    hours = steps * likely / 3600
    return {
        "config": config.name,
        "machine": machine.name,
        "gigabytes": compiled["bytes"] / 1e9,
        "of": machine.gigabytes,
        "compute_ms": 1e3 * compute,
        "memory_ms": 1e3 * memory,
        "network_ms": 1e3 * network,
        "at_best_ms": 1e3 * (max(compute, memory) + network),
        "likely_ms": 1e3 * likely,
        "steps": round(steps),
        "hours": hours,
        "dollars": hours * machine.chips * machine.dollars,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ahead")
    parser.add_argument("--json", default="")
    flags = parser.parse_args()
    compiled = [row for row in json.loads(Path(flags.ahead).read_text()) if row["program"] == "train"]
    table = []
    for path in CONFIGS:
        config = load_config(path)
        for machine in HARDWARE:
            fitting = [
                row
                for row in compiled
                if (row["config"], row["topology"]) == (config.name, machine.topology)
                and (row["precision"], row["remat"], row["fsdp"]) == ("bfloat16", "dense", 1)
            ]
            if not fitting:
                raise ValueError(f"{flags.ahead}: no training step of {config.name} for {machine.topology}")
            table.append(estimate(config, machine, fitting[0]))
    print("| config | machine | GB of | compute ms | memory | network | at best | likely | steps | hours | dollars |")
    print("| --- " * 11 + "|")
    for row in table:
        times = " | ".join(f"{row[f'{key}_ms']:.1f}" for key in ("compute", "memory", "network", "at_best", "likely"))
        print(
            f"| {row['config']} | {row['machine']} | {row['gigabytes']:.1f} of {row['of']} | {times} | {row['steps']} "
            f"| {row['hours']:.1f} | {row['dollars']:.0f} |"
        )
    if flags.json:
        files.write_text(flags.json, json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()

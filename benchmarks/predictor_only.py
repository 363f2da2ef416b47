"""Training the gate predictor alone against training everything: seconds of a step, and memory.

Command: ``python benchmarks/predictor_only.py --json=predictor_only.json``; about three minutes on two cores. The model
is the paper's, from `configs/librispeech100_i3d_{local,global}.py`, the batch random. Steps are timed in turns (paired
ratios); memory is the compiler's plan: arguments, results and work space.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import finish, milliseconds, paired, parse, ratio
from benchmarks.peak_memory import filled
from i3d_jax.experiment import load_config
from i3d_jax.programs import BatchShape, abstract
from i3d_jax.training.compiled import program_bytes
from i3d_jax.training.optimizer import Trainable

CONFIGS = Path(__file__).parents[1] / "configs"
LABELS = 40


def step_of(predictor: str, trainable: Trainable, flags: Any) -> tuple[Callable[[], Any], dict[str, int]]:
    """A training step that goes on from its own result, and bytes of its program."""
    config = load_config(CONFIGS / f"librispeech100_i3d_{predictor}.py")
    encoder = replace(config.model.encoder, num_layers=flags.layers)
    config = replace(
        config,
        model=replace(config.model, encoder=encoder),
        training=replace(config.training, trainable=trainable),
    )
    function, shapes = abstract(config, "train", BatchShape(flags.rows, flags.seconds, LABELS))
    compiled = function.lower(*shapes).compile()
    state, batch, member = filled(shapes)
    samples = np.full(batch.num_samples.shape, batch.waveform.shape[1], np.int32)
    batch = batch._replace(num_samples=samples, num_labels=np.full_like(samples, LABELS))
    states = [state]

    def run() -> Any:
        new, metrics = compiled(states.pop(), batch, member)
        states.append(new)
        return metrics

    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes[0].opt_state))
    work = compiled.memory_analysis().temp_size_in_bytes
    return run, {"bytes": program_bytes(compiled), "work_bytes": work, "optimizer_bytes": size}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)


def main() -> None:
    """Measure, print the table, and write it."""
    flags = parse(__doc__ or "", 5, add_flags)
    rows, ratios = [], {}
    print("| predictor | trained | step, ms | MB in all | work space | optimiser state |\n|" + " --- |" * 6)
    for predictor in ("local", "global"):
        trainables: tuple[Trainable, ...] = ("all", "predictor")
        steps = {trainable: step_of(predictor, trainable, flags) for trainable in trainables}
        times = paired({name: run for name, (run, _) in steps.items()}, flags.rounds)
        for name, (_, sizes) in steps.items():
            row = {"predictor": predictor, "trainable": name, "milliseconds": milliseconds(times[name]), **sizes}
            rows.append(row)
            memory = " | ".join(f"{size / 1e6:.1f}" for size in sizes.values())
            print(f"| {predictor} | {name} | {row['milliseconds']:.0f} | {memory} |", flush=True)
        faster = ratio(times["all"], times["predictor"])
        ratios |= {f"{predictor}_time_all_over_predictor_{key}": value for key, value in faster.items()}
        sizes = [steps[name][1] for name in trainables]
        ratios[f"{predictor}_memory_all_over_predictor"] = sizes[0]["bytes"] / sizes[1]["bytes"]
    finish(flags, {"rows": rows}, ratios)


if __name__ == "__main__":
    main()

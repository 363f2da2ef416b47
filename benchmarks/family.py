"""A family in one program against its members one after another: seconds of a training step.

Command: ``python benchmarks/family.py --json=family.json``. For K = 1, 2, 4 and 8 members it times one step of the
mapped program and K steps of the single one, on the same batch, interleaved, and prints a Markdown table of medians;
about five minutes on two cores. The default size is that of the demo.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax.audio.frontend import SAMPLE_RATE
from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.model.asr import ASRModel
from i3d_jax.programs import jit_train_step, member_of
from i3d_jax.training.compiled import program_bytes
from i3d_jax.training.family import Stacked
from i3d_jax.training.optimizer import make_optimizer
from i3d_jax.training.sharding import Parallel, ParallelConfig
from i3d_jax.training.step import TrainState, init_state
from i3d_jax.types import Batch

_ROOT = Path(__file__).parents[1]


def make_config(layers: int, width: int) -> ExperimentConfig:
    """The gated model of the demo in another size."""
    config = load_config(_ROOT / "configs" / "demo.py")
    encoder = replace(config.model.encoder, num_layers=layers, d_model=width, ffn_dim=4 * width)
    return replace(config, model=replace(config.model, encoder=encoder))


def make_batch(rows: int, seconds: float, vocab_size: int) -> Batch:
    """Noise, with eight labels a row."""
    rng = np.random.default_rng(0)
    samples = round(seconds * SAMPLE_RATE)
    return Batch(
        rng.normal(0, 0.1, (rows, samples)).astype(np.float32),
        np.full(rows, samples, np.int32),
        rng.integers(2, vocab_size - 1, (rows, 8)).astype(np.int32),
        np.full(rows, 8, np.int32),
        np.ones(rows, bool),
        np.arange(rows, dtype=np.uint32),
    )


def seconds_of(run: Callable[[], Any]) -> float:
    """Wall time of a call."""
    begun = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begun


class Program:
    """A compiled step with its state, which every call moves on."""

    def __init__(self, step: Any, state: TrainState, batch: Batch, member: Any):
        begun = time.perf_counter()
        self._program = step.lower(state, batch, member).compile()
        self.compile_seconds = time.perf_counter() - begun
        self.bytes = program_bytes(self._program)
        self._state, self._batch, self._member = state, batch, member

    def __call__(self) -> Any:
        """One step; its metrics."""
        self._state, metrics = self._program(self._state, self._batch, self._member)
        return metrics


def measure(config: ExperimentConfig, batch: Batch, vocab_size: int, counts: list[int], rounds: int) -> list[Any]:
    """A row of figures for each number of members."""
    model = ASRModel(config.model, config.frontend.num_mels, vocab_size)
    optimizer = make_optimizer(config.optimizer, 10_000)
    parallel = Parallel.over_devices(ParallelConfig(), len(batch.valid), jax.devices()[:1])
    step = jit_train_step(config, model, optimizer, None, parallel, None, 1000)
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))  # what is on the device is donated
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    placed = parallel.put_batch(batch)
    member = parallel.replicate(member_of(config))
    single = Program(step, parallel.place(init_state(params, optimizer)), placed, member)
    rows = []
    for count in counts:
        state = init_state(params, optimizer)
        shared = state.step
        state = jax.tree.map(lambda x, count=count: jnp.stack([x] * count), state)._replace(step=shared)
        own = [member_of(replace(config, seed=seed)) for seed in range(count)]
        members = parallel.replicate(jax.tree.map(lambda *x: np.stack(x), *own))
        family = Program(Stacked(count).map(step, parallel), parallel.place(state), placed, members)
        del state
        together, apart = [], []
        for index in range(rounds + 1):
            times = seconds_of(family), sum(seconds_of(single) for _ in range(count))
            if index:  # the first one warms up
                together.append(times[0])
                apart.append(times[1])
        ratios = [b / a for a, b in zip(together, apart, strict=True)]
        rows.append(
            {
                "members": count,
                "parameters_each": size,
                "family_seconds": statistics.median(together),
                "one_by_one_seconds": statistics.median(apart),
                "speedup": statistics.median(ratios),
                "speedup_range": [min(ratios), max(ratios)],
                "family_gigabytes": family.bytes / 1e9,
                "single_gigabytes": single.bytes / 1e9,
                "family_compile_seconds": family.compile_seconds,
                "single_compile_seconds": single.compile_seconds,
            }
        )
    return rows


def main() -> None:
    """Measure, print the table, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=96, help="d_model; the feed-forward blocks have four times that")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.75, help="of audio in a row")
    parser.add_argument("--vocabulary", type=int, default=200)
    parser.add_argument("--members", default="1,2,4,8", help="numbers of members, separated by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file for the figures")
    flags = parser.parse_args()
    config = make_config(flags.layers, flags.width)
    batch = make_batch(flags.rows, flags.seconds, flags.vocabulary)
    counts = [int(count) for count in flags.members.split(",")]
    rows = measure(config, batch, flags.vocabulary, counts, flags.rounds)
    print(
        f"{flags.layers} layers of {flags.width}, {rows[0]['parameters_each'] / 1e6:.2f} M parameters each, batch of "
        f"{flags.rows} x {flags.seconds} s, {jax.devices()[0].device_kind}, medians of {flags.rounds}\n"
    )
    print("| members | family, s/step | one by one, s | times as fast (range) | GB, family | GB, one | compile, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        low, high = row["speedup_range"]
        print(
            f"| {row['members']} | {row['family_seconds']:.3f} | {row['one_by_one_seconds']:.3f} | "
            f"{row['speedup']:.2f} ({low:.2f} to {high:.2f}) | {row['family_gigabytes']:.2f} | "
            f"{row['single_gigabytes']:.2f} | {row['family_compile_seconds']:.0f} |"
        )
    if flags.json:
        place = {"device": jax.devices()[0].device_kind, "machine": platform.machine(), "cpus": os.cpu_count()}
        settings = {key: str(value) for key, value in vars(flags).items()}
        flags.json.write_text(json.dumps({"settings": settings, **place, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

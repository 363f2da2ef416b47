"""Size and time of a checkpoint of the paper's model, and how often to save on many devices.

Command: ``python benchmarks/checkpoint_at_scale.py [--json FILE]``. It saves and restores the training state of
``configs/librispeech100_i3d_global.py`` three times (random numbers, which do not compress) and prints the medians.
Then, for pods of several sizes, the interval between checkpoints that loses least time (Young, 1974; Daly, 2006):
sqrt(2 * save * M), with a mean time M between interruptions of the whole pod, and the share of time lost by saving
(save / interval), computing again (interval / 2 M) and starting again (restart / M).

ASSUMED, not measured: an interruption of one device each ``--device-hours``, independently, each of which stops all of
them, and ``--restart`` seconds until training goes on (machines, compilation, reading the index, the plan).
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from etils import epath

sys.path.insert(0, str(Path(__file__).parents[1]))

from i3d_jax.experiment import find_config, load_config
from i3d_jax.model.asr import ASRModel
from i3d_jax.training.checkpoint import Checkpoints
from i3d_jax.training.optimizer import make_optimizer
from i3d_jax.training.step import TrainState, init_state

DEVICES = (8, 256, 1024, 4096, 16384)


def make_state() -> TrainState:
    """A training state of the paper's model, with random numbers in place of what training would leave."""
    config = load_config(find_config("configs/librispeech100_i3d_global.py"))
    model = ASRModel(config.model, config.frontend.num_mels, config.tokenizer.vocab_size + 1)
    state = init_state(jax.jit(model.init)(jax.random.key(0)), make_optimizer(config.optimizer, 10**6))
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    random = (
        jax.random.normal(key, x.shape) if jnp.issubdtype(x.dtype, jnp.floating) else x
        for key, x in zip(keys, leaves, strict=True)
    )
    return jax.tree.unflatten(tree, random)


def measure(state: TrainState) -> dict[str, float]:
    """Parameters, bytes on disk, median seconds of three times."""
    pauses, saves, restores = [], [], []
    with tempfile.TemporaryDirectory() as place, Checkpoints(epath.Path(place), average_best=1) as checkpoints:
        for step in (1, 2, 3):
            state = state._replace(step=jnp.int32(step))
            start = time.perf_counter()
            checkpoints.save(state)
            pauses.append(time.perf_counter() - start)
            checkpoints.wait()
            saves.append(time.perf_counter() - start)
            start = time.perf_counter()
            jax.block_until_ready(checkpoints.restore(state))
            restores.append(time.perf_counter() - start)
        size = sum(path.stat().st_size for path in Path(place, "checkpoints", "3").rglob("*") if path.is_file())
    count = sum(x.size for x in jax.tree.leaves(state.params))
    return {
        "parameters": count,
        "bytes": size,
        "pause_s": statistics.median(pauses),
        "save_s": statistics.median(saves),
        "restore_s": statistics.median(restores),
    }


def plan(devices: int, device_hours: float, save: float, restart: float) -> tuple[float, float, float]:
    """Seconds between interruptions, best seconds between checkpoints, and share of time lost."""
    between = 3600 * device_hours / devices
    interval = math.sqrt(2 * save * between)
    return between, interval, save / interval + interval / 2 / between + restart / between


def main() -> None:
    """Print what was measured, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write what was measured and the rows to this file, too")
    parser.add_argument("--device-hours", type=float, nargs="+", default=(50000.0, 5000.0))
    parser.add_argument("--restart", type=float, default=300.0)
    args = parser.parse_args()
    found = measure(make_state())
    print(
        f"{found['parameters'] / 1e6:.1f} M parameters, {found['bytes'] / 1e6:.0f} MB "
        f"({found['bytes'] / found['parameters']:.2f} bytes a parameter), training held up for "
        f"{found['pause_s']:.2f} s, saved in {found['save_s']:.1f} s, restored in {found['restore_s']:.1f} s\n"
    )
    print(
        "| devices | hours of a device (assumed) | hours between interruptions | minutes between checkpoints | lost |"
    )
    print("| --- " * 5 + "|")
    rows = []
    for hours in args.device_hours:
        for devices in DEVICES:
            between, interval, lost = plan(devices, hours, found["save_s"], args.restart)
            rows.append({"devices": devices, "device_hours": hours, "between_s": between, "interval_s": interval})
            rows[-1]["lost"] = lost
            print(f"| {devices:,} | {hours:,.0f} | {between / 3600:,.3g} | {interval / 60:,.3g} | {lost:.1%} |")
    if args.json:
        args.json.write_text(json.dumps({**found, "restart_s": args.restart, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

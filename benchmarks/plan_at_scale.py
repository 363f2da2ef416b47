"""Memory and time of the batch plan for simulated corpora, up to 100 million utterances.

Command: ``python benchmarks/plan_at_scale.py [UTTERANCES ...] [--json FILE]``. Without numbers: 1e5, 1e6, 1e7, 1e8.
Lengths are log-normal, 3.6 s on average (100 million are 100,000 hours), cut to 0.5 to 30 s; labels come at 4 a second.
Batches are those of ``configs/librispeech100_transformer.py``. Each size runs alone in a process of its own, whose
address space is limited to ``--gibibytes`` and to three quarters of the memory that is free; what needs more is
reported as not fitting. It prints a Markdown table, times in seconds of one processor:

- held: resident memory that the planner and one planned epoch add, bytes per utterance
- peak: the process's largest resident memory, lengths and label counts (8 bytes per utterance) included
- construct; plan: one epoch; count: the batches of one epoch, without planning it
- resume: ``locate`` of a step in the middle of epoch ``--late-epoch`` and its batch, in a planner that knows no epoch
- batches/s: taking the planned batches of an epoch one after another, in one thread
"""

import argparse
import gc
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from i3d_jax.data.batching import BatchingConfig, BatchPlanner

SIZES = (10**5, 10**6, 10**7, 10**8)
SPEEDS = {"1": (1.0,), "0.9, 1, 1.1": (0.9, 1.0, 1.1)}
MEAN_SECONDS, SIGMA = 3.6, 0.7
ITERATED = 20000  # batches at most
COLUMNS = ("held_bytes", "peak_gib", "construct_s", "plan_s", "count_s", "resume_s", "batches_per_s")


def status(field: str) -> int:
    """Bytes of a field of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def available() -> int:
    """Bytes of free memory of the machine."""
    line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable"))
    return 1024 * int(line.split()[1])


def simulate(utterances: int) -> tuple[np.ndarray, np.ndarray]:
    """[utterances] int32 samples at 16 kHz, and label counts."""
    rng = np.random.default_rng(0)
    lengths, labels = np.empty(utterances, np.int32), np.empty(utterances, np.int32)
    for start in range(0, utterances, 2**20):
        part = slice(start, min(start + 2**20, utterances))
        seconds = rng.lognormal(np.log(MEAN_SECONDS) - SIGMA**2 / 2, SIGMA, part.stop - start).clip(0.5, 30)
        lengths[part], labels[part] = seconds * 16000, seconds * 4 + 1
    return lengths, labels


def measure(utterances: int, speeds: tuple[float, ...], late_epoch: int, joined: float) -> dict[str, float]:
    """The columns of a row; what memory does not suffice for is missing."""
    config = BatchingConfig(seconds_per_batch=1600.0, num_buckets=8)
    found: dict[str, float] = {}
    before = status("VmRSS")

    def timed(name: str, start: float, parts: int = 1) -> None:
        found[name] = (time.process_time() - start) / parts

    def make() -> BatchPlanner:
        return BatchPlanner(*simulate(utterances), config, speeds=speeds, seed=1, concatenate_seconds=joined)

    try:
        lengths, labels = simulate(utterances)
        start = time.process_time()
        planner = BatchPlanner(lengths, labels, config, speeds=speeds, seed=1, concatenate_seconds=joined)
        timed("construct_s", start)
        del lengths, labels
        start = time.process_time()
        batches = planner.epoch(0)
        timed("plan_s", start)
        gc.collect()
        found["held_bytes"] = (status("VmRSS") - before) / utterances
        count = min(len(batches), ITERATED)
        start = time.process_time()
        for position in range(count):
            assert len(batches[position].indices)
        found["batches_per_s"] = count / (time.process_time() - start)
        steps = len(batches)
        start = time.process_time()
        assert planner.steps_before(1) == steps
        timed("count_s", start)
        del planner, batches
        planner = make()
        start = time.process_time()
        epoch, position = planner.locate(int((late_epoch + 0.5) * steps))
        assert len(planner.epoch(epoch)[position].indices)
        timed("resume_s", start)
    except MemoryError:
        pass
    found["peak_gib"] = status("VmHWM") / 2**30
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("utterances", nargs="*", type=lambda text: int(float(text)), default=SIZES)
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    parser.add_argument("--gibibytes", type=float, default=14.0)
    parser.add_argument("--late-epoch", type=int, default=5)
    parser.add_argument("--joined", type=float, default=0.0, help="concatenate_seconds of the plan")
    parser.add_argument("--alone", help=argparse.SUPPRESS)  # speeds, in the process that measures
    args = parser.parse_args()
    if args.alone:
        limit = int(min(args.gibibytes * 2**30, 0.75 * available()))
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        row = measure(args.utterances[0], SPEEDS[args.alone], args.late_epoch, args.joined)
        print(json.dumps(row))
        return
    rows: list[dict[str, Any]] = []
    names = ("held, bytes/utt.", "peak, GiB", "construct, s", "plan, s", "count, s", "resume, s", "batches/s")
    print(f"| utterances | hours | speeds | {' | '.join(names)} |")
    print("| --- " * (len(names) + 3) + "|", flush=True)
    for utterances in args.utterances:
        for speeds in SPEEDS:
            options = [f"--gibibytes={args.gibibytes}", f"--late-epoch={args.late_epoch}", f"--joined={args.joined}"]
            command = [sys.executable, __file__, str(utterances), f"--alone={speeds}", *options]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}: status {done.returncode}\n{done.stderr[-2000:]}")
            row = json.loads(done.stdout)
            rows.append({"utterances": utterances, "speeds": SPEEDS[speeds], **row})
            cells = [f"{row[key]:,.4g}" if key in row else "does not fit" for key in COLUMNS]
            hours = utterances * MEAN_SECONDS / 3600
            print(f"| {utterances:.0e} | {hours:,.0f} | {speeds} | {' | '.join(cells)} |", flush=True)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

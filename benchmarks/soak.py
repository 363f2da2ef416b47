"""Kills a training again and again at random moments, and compares what comes out with an undisturbed one.

Command: ``python benchmarks/soak.py [KILLS] [SEED]``, 50 and 0 if left out; about twenty minutes on two cores. It
trains ``tests/tiny_config.py`` with a checkpoint every three steps, and starts it again after every SIGKILL, a new run
when one is finished, until all kills are done. It ends with status 1 when a start fails, does not resume from the
newest complete checkpoint, loses more than two intervals (a checkpoint that is still being written counts for nothing,
and the next save waits for it), or a finished run has other parameters or losses than the undisturbed one.
"""

import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from i3d_jax.training.recovery import steps_in
from tests.trainings import keeping_programs, log_lines, losses, same_parameters, start

INTERVAL = 3  # training.checkpoint_every_steps of the experiment


@dataclass(frozen=True)
class Attempt:
    """One start of a training."""

    killed: bool
    done_before: int
    """Newest step that was logged before."""
    resumed_from: int | None
    """Step; 0 from the beginning, None if it did not come as far."""
    first_step_seconds: float | None
    """From the start of the process to its first step."""
    seconds: float
    """To its end."""


def complete(run: Path) -> list[int]:
    """Steps of the checkpoints that have a manifest."""
    return [step for step in steps_in(run / "checkpoints") if (run / f"checkpoints/{step}/manifest.json").exists()]


def is_saving(run: Path) -> bool:
    """Whether a checkpoint or candidate was being written when the training was killed."""
    folders = [path for place in ("checkpoints", "best") for path in (run / place).glob("[0-9]*")]
    return any(not (folder / "manifest.json").exists() for folder in folders)


def attempt(run: Path, programs: Path, killed_after: float | None = None) -> Attempt:
    """Start a training, and kill it after so many seconds if it still runs."""
    newest, done_before, begun = max([0, *complete(run)]), max([0, *losses(run)]), time.time()
    process = start(run, **keeping_programs(programs))
    killed = False
    try:
        text, _ = process.communicate(timeout=killed_after)
    except subprocess.TimeoutExpired:
        process.kill()
        killed = True
        text, _ = process.communicate()
    if not killed and process.returncode:
        raise SystemExit(f"{run.name} ended with status {process.returncode}\n{text}")
    times = [line["time"] for line in log_lines(run, "train") if line["time"] > begun]
    found = re.search(r"resumed from step (\d+)", text)
    resumed_from = int(found[1]) if found else 0 if times else None
    if resumed_from not in (None, newest):
        raise SystemExit(f"{run.name} resumed from step {resumed_from}, and step {newest} is complete\n{text}")
    first_step_seconds = round(times[0] - begun, 1) if times else None
    return Attempt(killed, done_before, resumed_from, first_step_seconds, round(time.time() - begun, 1))


def report(attempts: list[Attempt], saving: int, finished: int) -> None:
    """Print the table, and end with status 1 if too much was lost."""
    lost = [a.done_before - a.resumed_from for a in attempts if a.resumed_from is not None and a.done_before]
    fresh = [a.first_step_seconds for a in attempts if a.first_step_seconds and not a.resumed_from]
    again = [a.first_step_seconds for a in attempts if a.first_step_seconds and a.resumed_from]
    rows = {
        "kills": sum(a.killed for a in attempts),
        "kills within a save": saving,
        "runs finished, all bit-equal to the undisturbed one": finished,
        "steps done again after a kill: median, most": f"{statistics.median(lost):g}, {max(lost)}",
        "seconds from start to first step, fresh: median": f"{statistics.median(fresh):.1f} ({len(fresh)} starts)",
        "seconds from start to first step, resumed: median": f"{statistics.median(again):.1f} ({len(again)} starts)",
    }
    print("\n| what | value |\n| --- | --- |")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    if max(lost) > 2 * INTERVAL:
        raise SystemExit(f"more than {2 * INTERVAL} steps were lost")


def main(kills: int = 50, seed: int = 0) -> None:
    """Run, and end with status 1 at the first thing that is not as it should be."""
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        attempt(folder / "compiled", folder / "programs")
        attempts, saving, finished = [attempt(folder / "undisturbed", folder / "programs")], 0, 0
        print(f"undisturbed: {attempts[0]}, {len(losses(folder / 'undisturbed'))} steps", flush=True)
        whole = attempts[0].seconds
        while (left := kills - sum(a.killed for a in attempts)) or attempts[-1].killed:
            run = folder / f"run{finished}"
            attempts.append(attempt(run, folder / "programs", moments.uniform(0, whole) if left else None))
            print(f"{run.name}: {attempts[-1]}, steps {max([0, *losses(run)])}, complete {complete(run)}", flush=True)
            if attempts[-1].killed:
                saving += is_saving(run)
                continue
            undisturbed = folder / "undisturbed"
            if not same_parameters(run, undisturbed) or losses(run) != losses(undisturbed):
                raise SystemExit(f"{run.name} has other parameters or losses than the undisturbed run")
            finished += 1
            if attempts[-1].resumed_from == 0:
                whole = attempts[-1].seconds  # other work on the machine comes and goes
        report(attempts, saving, finished)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

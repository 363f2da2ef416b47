"""Kills a training again and again at random moments, and compares what comes out with an undisturbed one.

Command: ``python benchmarks/soak.py [KILLS] [SEED]``, 50 and 0 if left out; about ten minutes on two cores. It trains
``tests/tiny_config.py`` with a checkpoint every three steps. After every SIGKILL the next start must resume, at most a
checkpoint interval (and the step under way) before the last logged step; every finished run must equal the undisturbed
one bit by bit, parameters and log. A finished run is followed by a new one until all kills are done.
"""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
INTERVAL = 3  # training.checkpoint_every_steps of the experiment


def start(workdir: Path, cache: Path) -> subprocess.Popen[str]:
    """A training; what it prints goes to ``output.txt`` beside its folder."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "train.py", "--config=tests/tiny_config.py", f"--workdir={workdir}", "--no-test"]
    with workdir.with_suffix(".txt").open("w") as output:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output, text=True)


def steps(workdir: Path) -> list[tuple[int, float]]:
    """(step, loss) of every complete log line of a training step."""
    log, found = workdir / "log.jsonl", []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue  # cut by the kill
        if values["kind"] == "train":
            found.append((values["step"], values["loss"]))
    return found


def resumed(workdir: Path) -> int:
    """Step from which the last start went on; 0 from the beginning."""
    found = re.search(r"resumed from step (\d+)", workdir.with_suffix(".txt").read_text())
    return int(found[1]) if found else 0


def same(ours: Path, theirs: Path) -> bool:
    """Whether two finished runs hold the same parameters and logged the same losses."""
    with np.load(ours / "model/params.npz") as a, np.load(theirs / "model/params.npz") as b:
        equal = a.files == b.files and all(np.array_equal(a[name], b[name]) for name in a.files)
    return equal and steps(ours) == steps(theirs)


def main(kills: int = 50, seed: int = 0) -> None:
    """Run, and end with status 1 at the first thing that is not as it should be."""
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        undisturbed, cache = folder / "undisturbed", folder / "compiled"
        for _ in range(2):  # the second time nothing is compiled
            subprocess.run(["rm", "-rf", str(undisturbed)], check=True)
            begun = time.monotonic()
            if start(undisturbed, cache).wait():
                raise SystemExit(undisturbed.with_suffix(".txt").read_text())
        whole = time.monotonic() - begun
        print(f"undisturbed: {whole:.1f} s, {len(steps(undisturbed))} steps", flush=True)
        done, finished, worst, runs = 0, 0, 0, 0
        while done < kills or runs > finished:
            run = folder / f"run{finished}"
            runs = finished + 1
            before, logged = max([0, *(step for step, _ in steps(run))]), len(steps(run))
            process = start(run, cache)
            try:
                code = process.wait(timeout=moments.uniform(0, whole) if done < kills else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                done += 1
                code = None
            text = run.with_suffix(".txt").read_text()
            if "resumed from step" in text or "M parameters" in text and len(steps(run)) != logged:  # it trained
                worst = max(worst, before - resumed(run))
            if code is None:
                print(f"kill {done}: {before} steps before, {max([0, *(s for s, _ in steps(run))])} now", flush=True)
            elif code or not same(run, undisturbed):
                raise SystemExit(f"run {finished} ended with status {code} or other bits\n{text}")
            else:
                finished += 1
        print(f"{done} kills, {finished} runs finished, all bit-equal; at most {worst} steps were done again")
        if worst > INTERVAL + 1:
            raise SystemExit(f"more than {INTERVAL + 1} steps were lost")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

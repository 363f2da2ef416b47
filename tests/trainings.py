"""Trainings of the tiny model in processes of their own: started, and read from their folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.quick_compilation import FLAGS

ROOT = Path(__file__).parents[1]


def start(workdir, *arguments, script="train.py", config="tests/tiny_config.py", devices=1, text=True, **variables):
    """One process with so many emulated devices; what it prints goes to a pipe, as text or bytes.

    It leads a process group, so that a signal can go to its workers as well.
    """
    flags = " ".join([f"--xla_force_host_platform_device_count={devices}", *FLAGS])
    return subprocess.Popen(
        [sys.executable, script, f"--config={config}", f"--workdir={workdir}", "--no-test", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=text,
        start_new_session=True,
    )


def keeping_programs(folder):
    """Variables with which trainings find the programs that one before them compiled."""
    return {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def log_lines(workdir, *kinds):
    """Lines of the log, of some kinds or all; one that a kill cut off is left out."""
    log, lines = workdir / "log.jsonl", []
    for text in log.read_text().splitlines() if log.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in lines if not kinds or line["kind"] in kinds]


def losses(workdir):
    """Step -> loss."""
    return {line["step"]: line["loss"] for line in log_lines(workdir, "train")}


def same_parameters(a, b):
    """Whether the final models of two runs are equal bit by bit."""
    with np.load(a / "model/params.npz") as ours, np.load(b / "model/params.npz") as theirs:
        return ours.files == theirs.files and all(np.array_equal(ours[name], theirs[name]) for name in ours.files)

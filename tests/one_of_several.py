"""``train.py`` as one of several processes; the last gets ``$SIGNAL`` when step ``$SIGNAL_AFTER`` is saved."""

import os
import signal
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from i3d_jax.experiment import run_program
from i3d_jax.training.checkpoint import Checkpoints


def save(checkpoints, state, real=Checkpoints.save):
    real(checkpoints, state)
    if int(state.step) == int(os.environ["SIGNAL_AFTER"]):
        checkpoints.wait()
        if jax.process_index() == jax.process_count() - 1:
            os.kill(os.getpid(), signal.Signals[os.environ["SIGNAL"]])


if __name__ == "__main__":
    if "SIGNAL_AFTER" in os.environ:
        Checkpoints.save = save
    run_program(train.main)

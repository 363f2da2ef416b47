"""A training that is killed and asked to end, and goes on as if it had not been."""

import os
import re
import signal
import time

from i3d_jax.training.preemption import RESUMABLE
from tests import trainings
from tests.trainings import log_lines


def test_killed_anywhere_the_resumed_run_is_bit_equal(tmp_path):
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    programs = trainings.keeping_programs(tmp_path / "programs")

    def start(workdir, *arguments):
        everything = ("--model.gates.final-temperature=0.5", "--model.decoder.num-layers=1", "--loss.ctc-weight=0.5")
        return trainings.start(workdir, "--training.epochs=3", *everything, *arguments, text=False, **programs)

    output, _ = (process := start(undisturbed)).communicate(timeout=300)
    assert process.returncode == 0, output.decode()
    assert b"\r" not in output and b"\x1b" not in output, "plain lines where there is no terminal"
    total = log_lines(undisturbed)[-1]["step"]
    for stop, how in ((total // 3, signal.SIGKILL), (2 * total // 3, signal.SIGTERM)):
        process = start(killed, "--batching.num-workers=2")
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if (lines := log_lines(killed)) and lines[-1]["step"] >= stop:
                break
            time.sleep(0.01)
        if how == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, how)  # as schedulers do
        output, _ = process.communicate(timeout=60)  # ends with the last worker
        assert not (killed / "model").exists()
    assert process.returncode == RESUMABLE
    saved = re.search(r"train\.py: ended on request after step (\d+), which is saved; the same", output.decode())
    assert saved and (killed / "checkpoints" / saved[1] / "manifest.json").exists(), output.decode()
    output, _ = (process := start(killed)).communicate(timeout=300)
    assert process.returncode == 0, output.decode()
    assert f"resumed from step {saved[1]}\n".encode() in output
    assert trainings.same_parameters(killed, undisturbed)
    steps = [(line["step"], line["kind"]) for line in log_lines(killed, "train", "dev")]
    assert steps == [(line["step"], line["kind"]) for line in log_lines(undisturbed, "train", "dev")]
    assert trainings.losses(killed) == trainings.losses(undisturbed)

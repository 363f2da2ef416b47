"""The loop around a step: when it gives up, and how it ends on request."""

import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from i3d_jax.data.batching import BatchingConfig, BatchPlanner
from i3d_jax.data.corpora import Corpus, Utterance
from i3d_jax.training.loop import Run, TrainingConfig, TrainingDiverged, fit
from i3d_jax.training.losses import LossTotals
from i3d_jax.training.meter import Meter
from i3d_jax.training.preemption import Preempted, Preemption
from i3d_jax.training.step import StepMetrics, TrainState

CORPUS = Corpus("c", tuple(Utterance(f"u{i}", "A", 1600, "s", np.zeros(1600, np.float32)) for i in range(8)), 16000)
PLANNER = BatchPlanner(np.full(8, 1600), np.ones(8, int), BatchingConfig(0.2, 1, batch_multiple=2))


class Logger:
    def __init__(self):
        self.lines = []

    def scalars(self, *_, **__):
        pass

    def advance(self, step):
        pass

    def message(self, text):
        self.lines.append(text)


def run(bad_steps, stop=lambda: False, names=("",)):
    """The state that was saved last, and what was logged; the n-th step reports ``bad_steps[n]``."""
    saved, logger = [], Logger()
    shape = () if len(names) == 1 else (len(names),)

    def step(state, batch):
        totals = LossTotals(*(np.ones(shape, np.float32) for _ in LossTotals._fields))
        bad = np.array(bad_steps[int(state.step)], np.int32)
        return state._replace(step=state.step + 1), StepMetrics(totals, np.ones(shape, np.float32), bad)

    step.seconds = 0.0
    config = TrainingConfig(epochs=len(bad_steps) // 4, checkpoint_every_steps=1000, max_bad_steps=3)
    steps = range(PLANNER.steps_before(config.epochs))
    assert len(steps) == len(bad_steps)
    batches = ((i, PLANNER.epoch(i // 4)[i % 4], None) for i in steps)
    try:
        fit(
            TrainState(np.int32(0), {}, {}, np.int32(0)),
            step,
            batches,
            planner=PLANNER,
            name_of=lambda index: CORPUS.utterances[index].id,
            config=config,
            schedule=lambda step: 1.0,
            checkpoints=SimpleNamespace(
                save=lambda s: saved.append(int(s.step)),
                save_candidate=lambda *_: None,
                wait=lambda: saved.append("complete"),
            ),
            runs=[Run(logger, Meter(CORPUS), lambda *_: {"wer": 1.0}, name) for name in names],
            stop=stop,
        )
    finally:
        run.saved, run.lines = saved, logger.lines


def test_consecutive_bad_steps_end_the_training_and_their_utterances_are_known():
    with pytest.raises(TrainingDiverged, match="3 consecutive steps with a non-finite") as caught:
        run([0, 1, 0, 0, 1, 2, 3, 0])
    expected = {step: [f"u{i}" for i in PLANNER.epoch(1)[step - 5].indices] for step in (5, 6, 7)}
    assert caught.value.utterances == expected
    assert [line.split(":")[0] for line in run.lines] == ["step 2", "step 5", "step 6", "step 7"]


def test_single_bad_steps_are_passed_over():
    run([0, 1, 0, 1, 2, 0, 1, 2])
    assert run.saved == [4, 8]


def test_the_member_of_a_family_that_diverged_is_named():
    with pytest.raises(TrainingDiverged, match="seed1: 3 consecutive steps with a non-finite") as caught:
        run([(0, 0), (1, 0), (2, 1), (0, 2), (0, 3), (0, 0), (0, 0), (0, 0)], names=("seed0", "seed1"))
    assert list(caught.value.utterances) == [3, 4, 5] and caught.value.run == "seed1"
    lines = [("seed0", 2), ("seed0", 3), ("seed1", 3), ("seed1", 4), ("seed1", 5)]
    assert [line.partition(": loss")[0] for line in run.lines] == [f"{name}: step {step}" for name, step in lines]


def test_a_request_is_noted_and_ends_the_training_after_the_step():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        asked = []

        def stop():
            asked.append(1)
            if len(asked) == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return preemption.asked()

        with pytest.raises(Preempted, match="after step 6, which is saved"):
            run([0] * 8, stop)
    assert run.saved == [4, 6, "complete"]
    assert signal.getsignal(signal.SIGTERM) == before

"""The training loop: steps, logs, dev evaluations, checkpoints; it can be killed anywhere and resumed bit-equal."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import jax
import optax

from i3d_jax.data.batching import BatchPlanner
from i3d_jax.data.epoch_plan import PlannedBatch
from i3d_jax.model.encoder import Remat
from i3d_jax.training.checkpoint import Checkpoints
from i3d_jax.training.family import Stacked
from i3d_jax.training.meter import StepMeter
from i3d_jax.training.optimizer import Trainable
from i3d_jax.training.preemption import Preempted
from i3d_jax.training.step import StepMetrics, TrainBatch, TrainState
from i3d_jax.training.summaries import RunLogger


@dataclass(frozen=True)
class LoopConfig:
    """Length of a training, its evaluations and checkpoints."""

    epochs: int = 50
    """Passes over the training set."""
    eval_every_epochs: int = 1
    """Dev evaluation and selection every so many epochs."""
    average_best: int = 10
    """Checkpoints, best first, averaged into the final model."""
    best_by: str = "latest"
    """What makes a checkpoint best: the lowest of a dev metric, or being the ``latest``."""
    checkpoint_every_steps: int = 1000
    """Steps between checkpoints for resuming (one is written at every evaluation too)."""
    keep_last: int = 2
    """Newest checkpoints kept for resuming, at least 2: one is complete while the next is written."""
    keep_every_steps: int = 0
    """Checkpoints at its multiples are kept for good; 0: none. Itself a multiple of ``checkpoint_every_steps``."""
    max_bad_steps: int = 10
    """Consecutive steps with a non-finite loss or gradient that are skipped before the run stops."""
    log_every_steps: int = 20
    """Steps between log lines."""


@dataclass(frozen=True)
class TrainingConfig(LoopConfig):
    """Training of a recogniser."""

    best_by: Literal["wer", "latest"] = "wer"
    """What makes a checkpoint best: the lowest dev WER, or being the latest. A gated fine-tuning starts with every
    gate open, so that its lowest WERs belong to checkpoints that skip nothing: it wants ``latest``."""
    trainable: Trainable = "all"
    """What is trained: all parameters, or only those of the gate predictor of a warm-started model (``predictor``)."""
    remat: Remat = "none"
    """What is computed again for the gradient instead of kept in memory: ``none``, everything but what dense layers
    return (``dense``), or everything but the inputs of the layers (``full``)."""


class TrainingDiverged(RuntimeError):
    """Too many consecutive steps had a non-finite loss or gradient.

    Attributes:
      utterances: ids of the utterances of each of these steps.
      run: name of the member of a family; empty for a training alone.
    """

    def __init__(self, message: str, utterances: Mapping[int, Sequence[str]], run: str = ""):
        super().__init__(message)
        self.utterances = dict(utterances)
        self.run = run


class Step(Protocol):
    """(state, batch) -> (state, metrics), such as ``training.compiled.CompiledStep``."""

    @property
    def seconds(self) -> float:
        """Spent compiling so far."""
        ...

    def __call__(self, state: TrainState, batch: Any, /) -> tuple[TrainState, StepMetrics]:
        """One step."""
        ...


@dataclass(frozen=True)
class Run:
    """What is told of one training, of those that a step makes at once.

    Attributes:
      logger: where to log.
      meter: sums up what is logged.
      evaluate: (step, params) -> dev metrics; called at the evaluation steps.
      name: leads messages about it; empty for a training alone.
      bad_batches: step -> ids of its utterances, of consecutive steps that were skipped.
    """

    logger: RunLogger
    meter: StepMeter
    evaluate: Callable[[int, Any], Mapping[str, float]]
    name: str = ""
    bad_batches: dict[int, list[str]] = field(default_factory=dict)

    def add(
        self, done: int, metrics: StepMetrics, planned: PlannedBatch, name_of: Callable[[int], str], max_bad_steps: int
    ) -> None:
        """Count a step that is done.

        Raises:
          TrainingDiverged: it is one too many of those that were not finite.
        """
        self.meter.add(metrics, planned)
        bad = int(metrics.bad_steps)
        if not bad:
            self.bad_batches.clear()
            return
        self.bad_batches[done] = [name_of(int(i)) for i in planned.indices]
        names, title = ", ".join(self.bad_batches[done]), f"{self.name}: " if self.name else ""
        self.logger.message(f"{title}step {done}: loss or gradient is not finite, update skipped ({names})")
        if bad >= max_bad_steps:
            raise TrainingDiverged(
                f"{title}{bad} consecutive steps with a non-finite loss or gradient, the last on {names}: "
                "lower optimizer.learning-rate or check what they hold",
                self.bad_batches,
                self.name,
            )


def evaluation_steps(planner: BatchPlanner, config: LoopConfig) -> set[int]:
    """Steps after which the dev set is evaluated: every ``eval_every_epochs`` epochs, and the last."""
    epochs = range(config.eval_every_epochs, config.epochs + 1, config.eval_every_epochs)
    return {planner.steps_before(epoch) for epoch in [*epochs, config.epochs]}


def fit(
    state: TrainState,
    step: Step,
    batches: Iterable[tuple[int, PlannedBatch, TrainBatch]],
    *,
    planner: BatchPlanner,
    name_of: Callable[[int], str],
    config: LoopConfig,
    schedule: optax.Schedule,
    checkpoints: Checkpoints,
    runs: Sequence[Run],
    stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Run ``batches`` through the step.

    The metrics of a step are read after the next one was dispatched, so that the host does not hold up the device.

    Args:
      state: where to start, stacked for several runs; ``state.step`` is the number of batches already consumed.
      step: (state, batch) -> (state, metrics); its ``seconds`` went into compiling.
      batches: (index of the step, plan, placed batch) from ``state.step`` on.
      planner: the plan, for epochs and totals.
      name_of: index in the training set -> name, for messages.
      config: of the loop.
      schedule: learning rate of an update, for the log.
      checkpoints: where to save.
      runs: what is told of each training that the step makes, one or several.
      stop: asked after every step whether to save and end.

    Raises:
      TrainingDiverged: ``max_bad_steps`` consecutive steps were not finite; the message names their last utterances.
      Preempted: ``stop`` said so.
    """
    evaluations = evaluation_steps(planner, config)
    compiling = step.seconds
    stacked = Stacked(len(runs))
    for run in runs:
        batches = run.meter.waiting(batches)
        run.meter.reset()
    pending: tuple[int, PlannedBatch, StepMetrics] | None = None

    def read() -> None:
        nonlocal pending, compiling
        if pending is None:
            return
        done, planned, metrics = pending
        pending = None
        logged = done % config.log_every_steps == 0 or done in evaluations
        for run, own in zip(runs, stacked.split(jax.device_get(metrics)), strict=True):
            run.add(done, own, planned, name_of, config.max_bad_steps)
            if logged:
                run.meter.pause(step.seconds - compiling)
                values = run.meter.summary() | {"learning_rate": float(schedule(done - 1))}
                run.logger.scalars(done, values, "train", epoch=_epoch(planner, done))
                run.meter.reset()
            else:
                run.logger.advance(done)
        if logged:
            compiling = step.seconds

    for index, planned, batch in batches:
        state, metrics = step(state, batch)
        done = index + 1
        read()
        pending = (done, planned, metrics)
        if done in evaluations:
            read()
            for member, run in enumerate(runs):
                params = stacked.part(state.params, member)
                dev = run.evaluate(done, params)
                score = -float(done) if config.best_by == "latest" else float(dev[config.best_by])
                checkpoints.save_candidate(done, params, score, member)
                run.logger.scalars(done, dev, "dev", epoch=_epoch(planner, done))
            for run in runs:
                run.meter.reset()
        if done in evaluations or done % config.checkpoint_every_steps == 0:
            read()  # before the checkpoint: a resumed run logs from the step after it
            checkpoints.save(state)
        if stop():
            read()
            checkpoints.save(state)
            checkpoints.wait()
            raise Preempted(f"ended on request after step {done}, which is saved; the same command resumes it")
    read()
    return state


def _epoch(planner: BatchPlanner, done: int) -> float:
    epoch, position = planner.locate(done - 1)
    return epoch + (position + 1) / planner.steps_in_epoch(epoch)

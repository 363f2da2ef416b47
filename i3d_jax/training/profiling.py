"""A trace of some training steps, for TensorBoard's profiler or https://ui.perfetto.dev."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from etils import epath

from i3d_jax.training.step import StepMetrics, TrainBatch, TrainState


def parse_steps(text: str) -> range | None:
    """``FIRST:LAST``, both included, as a range of steps counted from 1; None for an empty text.

    Raises:
      ValueError: it is neither.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    steps = range(int(match[1]), int(match[2]) + 1) if match else range(0)
    if not steps or steps.start < 1:
        raise ValueError(f"--profile-steps={text}: expected FIRST:LAST such as 10:15, steps counted from 1")
    return steps


class TracedStep:
    """A training step, used as a context manager; while those of ``steps`` run, a trace is written.

    Args:
      step: (state, batch) -> (state, metrics), with ``seconds`` that went into other things.
      done: steps done before the first call.
      steps: counted from 1; None for no trace.
      folder: for the trace.
      say: told what became of it.

    Attributes:
      done: steps done.
    """

    def __init__(self, step: Any, done: int, steps: range | None, folder: epath.Path, say: Callable[[str], None]):
        self._step, self.done, self._folder, self._say = step, done, folder, say
        self._left = steps or range(0)
        self._tracing = False
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Spent compiling and on the trace so far."""
        return float(self._step.seconds) + self._seconds

    def __call__(self, state: TrainState, batch: TrainBatch) -> tuple[TrainState, StepMetrics]:
        """One step."""
        if not self._tracing and self.done + 1 in self._left:
            self._left = self._left[self.done + 1 - self._left.start :]
            jax.block_until_ready(state)  # the steps before are no part of it
            self._start()
        state, metrics = self._step(state, batch)
        self.done += 1
        if self._tracing and self.done == self._left[-1]:
            jax.block_until_ready(state)
            self._stop()
        return state, metrics

    def _start(self) -> None:
        with self._noting():
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def _stop(self) -> None:
        self._tracing = False
        whole = f"steps {self._left.start} to {self.done}" if self.done in self._left else "no whole step"
        with self._noting():
            jax.profiler.stop_trace()
            self._say(f"trace of {whole} in {self._folder}")
        self._left = range(0)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Notes the time; a trace that fails is said and does not end the training."""
        begun = time.monotonic()
        try:
            yield
        except (RuntimeError, OSError) as error:
            self._say(f"no trace in {self._folder}: {str(error).partition(chr(10))[0]}")
            self._left = range(0)
        self._seconds += time.monotonic() - begun

    def __enter__(self) -> "TracedStep":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._tracing:
            self._stop()
        elif self._left and kind is None:
            self._say(f"no trace: none of the steps {self._left.start} to {self._left[-1]} ran")

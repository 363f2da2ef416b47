"""A trace of some training steps, for TensorBoard's profiler or https://ui.perfetto.dev."""

import re
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
from etils import epath

_Batch = TypeVar("_Batch", bound=tuple)


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


def traced(batches: Iterable[_Batch], steps: range | None, folder: epath.Path) -> Iterator[_Batch]:
    """The same batches (index of the step from 0, ...); while those of ``steps`` run, a trace is written.

    The trace ends when the batch after the next is asked for: by then the last of the steps is done, for its metrics
    were read.
    """
    tracing = False
    try:
        for batch in batches:
            number = batch[0] + 1
            if steps and not tracing and number == steps.start:
                jax.profiler.start_trace(str(folder))
                tracing = True
            elif tracing and steps and number > steps[-1] + 1:
                jax.profiler.stop_trace()
                tracing, steps = False, None
            yield batch
    finally:
        if tracing:
            jax.profiler.stop_trace()

"""Ending a training on request: schedulers send SIGTERM some time before they take the machine away."""

import itertools
import signal
from types import FrameType
from typing import Any

import jax

RESUMABLE = 75
"""Exit status of a training that ended on request (EX_TEMPFAIL of sysexits.h): start it again to go on."""


_asked = itertools.count(1)


class Preempted(RuntimeError):
    """The training ended on request; everything up to its last step is saved."""


class Preemption:
    """Notes SIGTERM, used as a context manager in the main thread.

    Of several processes JAX's own service notes it for all, and they agree on the step after which they end.
    """

    def __init__(self) -> None:
        """Nothing is noted before it is entered."""
        self._asked = False
        self._before: Any = None

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def asked(self) -> bool:
        """Whether to end after this step; every process asks after every step."""
        if jax.process_count() == 1:
            return self._asked
        from jax.experimental import multihost_utils

        # The service waits for a number that only grows: not for the step, of which a process may train two runs.
        return bool(multihost_utils.reached_preemption_sync_point(next(_asked)))

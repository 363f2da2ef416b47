"""A TensorBoard event file, written in the thread of the caller.

``SummaryWriter`` of tensorboardX writes in a thread of its own: an error of the disk ends that thread, and the training
then waits for ever for its full queue.
"""

import contextlib
import socket
import time

import numpy as np
from etils import epath
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter, directory_check

from i3d_jax import files


class EventFile:
    """One new file in ``folder``, which is made when missing.

    Args:
      folder: where TensorBoard looks.
      start_step: TensorBoard forgets what earlier files hold at or beyond it.
      seconds_between_flushes: at most so much is lost to a kill.

    Raises:
      OSError: in every method, the file cannot be written; the error names it.
    """

    def __init__(self, folder: epath.PathLike, start_step: int, seconds_between_flushes: float = 120.0):
        # The suffix keeps two processes started within a second apart: names hold the time in seconds only.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.from_{start_step}"
        self._path = epath.Path(folder) / name
        self._seconds_between_flushes = seconds_between_flushes
        with files.naming(self._path):
            directory_check(str(self._path.parent))
            self._records = RecordWriter(str(self._path))
        self._flushed = time.monotonic()
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=start_step, session_log=SessionLog(status=SessionLog.START)))
        self.flush()

    def scalar(self, name: str, value: float, step: int) -> None:
        """Adds a number."""
        self._add(Event(step=step, summary=summary.scalar(name, value)))

    def text(self, name: str, text: str, step: int) -> None:
        """Adds a text."""
        self._add(Event(step=step, summary=summary.text(name, text)))

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Adds a picture [H, W, 3] uint8."""
        self._add(Event(step=step, summary=summary.image(name, pixels, dataformats="HWC")))

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """Adds how values [B] are distributed."""
        self._add(Event(step=step, summary=summary.histogram(name, values, bins="auto")))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        with files.naming(self._path):
            self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed > self._seconds_between_flushes:
            self.flush()

    def flush(self) -> None:
        """Writes out what is buffered."""
        with files.naming(self._path):
            self._records.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes; the file is closed even if that fails."""
        try:
            self.flush()
        finally:
            with contextlib.suppress(OSError):  # that of flush, again
                self._records.close()

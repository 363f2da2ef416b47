"""Saving in the background: training goes on as soon as the arrays are copied to the host.

    start:  wait for the save before -> copy the arrays -> return
    thread: write aside -> rename -> delete what is not kept any more (Orbax) -> manifest

What fails in the thread is raised by the next ``start`` or ``wait``, in every process.
"""

import concurrent.futures
import logging
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import multihost

from i3d_jax import files, hosts
from i3d_jax.manifest import write_manifest
from i3d_jax.training import recovery

UNFINISHED = ".orbax-checkpoint-tmp"
"""In the names of folders that Orbax has not renamed yet."""


_Done = concurrent.futures.Future[None]


class Saver:
    """Saves one checkpoint at a time: a complete one is never replaced by one that is not complete yet."""

    def __init__(self, resume: ocp.CheckpointManager):
        """For the checkpoints of ``resume`` and those beside them."""
        self._resume = resume
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: tuple[ExitStack, _Done, _Done] | None = None

    def start(
        self, manager: ocp.CheckpointManager, step: int, tree: Any, notes: Mapping[str, Any], **options: Any
    ) -> None:
        """Copy arrays to the host, and save them from there while they change or their buffers are donated.

        Args:
          manager: where to.
          step: its number.
          tree: of arrays.
          notes: JSON values to keep in its manifest.
          **options: of the manager's ``save``.

        Raises:
          OSError: this one or the one before it cannot be written; those before are untouched.
          RuntimeError: there are later steps.
        """
        self.wait()
        safe = self._resume.latest_step()
        with ExitStack() as handlers:
            handlers.enter_context(_no_traceback_of_orbax())
            handlers.enter_context(self._in_one_line(manager, step, safe))
            # On a CPU the copies are views: JAX does not reuse a donated buffer of which there is one.
            args = ocp.args.StandardSave(tree)
            if not manager.save(step, args=args, custom_metadata=recovery.origin(safe), **options):
                raise RuntimeError(
                    f"{manager.directory}: step {step} was not saved, there are later ones: {manager.all_steps()}"
                )
            written = self._thread.submit(manager.wait_until_finished)
            described = self._thread.submit(_describe, written, manager, step, dict(notes))
            self._pending = handlers.pop_all(), written, described

    def wait(self, alone: bool = False) -> None:
        """Until what was started is complete.

        Args:
          alone: do not wait for the other processes, which may be elsewhere after a failure.

        Raises:
          OSError: it cannot be written; those before it are untouched.
        """
        if self._pending is None:
            return
        (handlers, written, described), self._pending = self._pending, None
        with handlers:
            written.result()  # a process that fails here ends, and the others find it lost
            if alone:
                described.result()
            else:
                hosts.first(described.result)

    def close(self) -> None:
        """Ends the thread; nothing is pending any more."""
        self._thread.shutdown()

    @contextmanager
    def _in_one_line(self, manager: ocp.CheckpointManager, step: int, safe: int | None) -> Iterator[None]:
        folder, place = manager.directory, self._resume.directory
        try:
            yield
        except (OSError, ValueError) as error:  # TensorStore raises ValueError
            _settle(manager)
            lost = error.__cause__
            if isinstance(lost, jax.errors.JaxRuntimeError):  # a process that did not write its part
                raise lost from error
            if (reason := files.system_error(error)) is None:
                raise
            if hosts.is_first():  # another one would take from under its hands what the first may still write
                for unfinished in (folder / str(step), *folder.glob(f"{step}{UNFINISHED}*")):
                    _remove(unfinished)
            trained = (
                f"nothing was saved before it: {files.remedy(reason)} and give the same command again"
                if safe is None
                else f"training up to step {safe} is safe in {place}: {files.remedy(reason)} and give the same command "
                "again to resume"
            )
            raise OSError(f"{folder}: step {step} cannot be saved ({reason.strerror}); {trained}") from error


def _describe(written: _Done, manager: ocp.CheckpointManager, step: int, notes: Mapping[str, Any]) -> None:
    written.result()
    if hosts.is_first() and step in manager.all_steps():  # a candidate can be the worst, and gone again
        write_manifest(manager.directory / str(step), notes)


def barrier(**options: Any) -> None:
    """Where threads of Orbax wait for those of other processes.

    Orbax comes here after a failure too, to wait for others who wait elsewhere: the failure is told without them.
    """
    if sys.exc_info()[0] is None:
        multihost.get_barrier_sync_fn()(**options)


def _settle(manager: ocp.CheckpointManager) -> None:
    """Waits for the threads of a failed save; what each of them raises, once, is known already.

    The manager gives up with the first that fails, while the others still make folders and files.
    """
    for _ in range(5):
        with suppress(Exception):
            manager.close()
            break
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            with suppress(Exception):
                thread.join(timeout=60)


def _remove(folder: epath.Path) -> None:
    """Removes a folder into which TensorStore, whose threads cannot be waited for, may still write a little."""
    gone = 0
    for _ in range(100):
        with suppress(OSError):  # not empty: written to meanwhile
            gone = 0 if folder.exists() else gone + 1
            if gone == 3:
                return
            folder.rmtree(missing_ok=True)
        time.sleep(0.1)


@contextmanager
def _no_traceback_of_orbax() -> Iterator[None]:
    """Keep Orbax and TensorStore from printing tracebacks of what they raise as well."""
    orbax, tasks, hook = logging.getLogger("absl"), logging.getLogger("asyncio"), sys.unraisablehook

    def quieter(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    orbax.addFilter(_not_an_error_of_orbax)
    # The first write that fails ends the event loop to which the others, in threads of their own, still report, and
    # their folder goes. They may tell after the save, when the training is over: what keeps them quiet stays then.
    tasks.addFilter(_not_an_error_of_orbax)
    sys.unraisablehook = quieter
    try:
        yield
    except BaseException:
        warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)  # those not begun
        orbax.addFilter(_not_of_a_removed_save)
        raise
    else:
        orbax.removeFilter(_not_an_error_of_orbax)
        tasks.removeFilter(_not_an_error_of_orbax)
        sys.unraisablehook = hook


def _not_of_a_removed_save(record: logging.LogRecord) -> bool:
    return UNFINISHED not in record.getMessage()


def _not_an_error_of_orbax(record: logging.LogRecord) -> bool:
    told = f"{record.pathname} {record.getMessage()} {record.exc_info}"
    error = record.exc_info[1] if record.exc_info else None
    lost = record.name == "asyncio" and isinstance(error, OSError)  # of a write that nobody asks any more names neither
    return record.levelno < logging.ERROR or not (lost or any(name in told for name in ("orbax", "tensorstore")))

"""One process at a time writes in a folder."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable

from etils import epath

from i3d_jax import files

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class FolderLock:
    """Holds ``<folder>/.lock``; used as a context manager.

    The lock is the kernel's (``flock``) and ends with the process, however that ends: the file stays and means nothing
    by itself. It names the process that held it last. Where there are no such locks (a remote path, some network
    file systems) a line says so and nothing is locked.

    Args:
      folder: an existing folder.
      work: what is done with the folder, for messages: "being <work>".
      elsewhere: the option that names another folder.
      say: told when nothing can be locked.

    Raises:
      ValueError: on entering, another process holds it.
      OSError: on entering, the folder cannot be written.
    """

    def __init__(
        self,
        folder: epath.Path,
        work: str = "trained",
        elsewhere: str = "--workdir",
        say: Callable[[str], None] = print,
    ):
        self._folder, self._work, self._elsewhere, self._say = folder, work, elsewhere, say
        self._descriptor: int | None = None

    def __enter__(self) -> "FolderLock":
        if "://" in os.fspath(self._folder):
            self._say(f"{self._folder} is remote and not locked: see to it that no other process writes there")
            return self
        try:
            # Not inherited by programs that are started meanwhile, which would prolong the lock.
            self._descriptor = os.open(os.path.join(os.fspath(self._folder), ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
            self._lock(self._descriptor)
            os.ftruncate(self._descriptor, 0)
            holder = {"pid": os.getpid(), "host": socket.gethostname()}
            os.pwrite(self._descriptor, f"{json.dumps(holder)}\n".encode(), 0)
        except OSError as error:
            self._release()
            advice = files.remedy(error)
            raise OSError(
                f"{self._folder} cannot be written ({error.strerror}): {advice} or choose another {self._elsewhere}"
            ) from error
        except BaseException:
            self._release()
            raise
        return self

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            try:
                holder = json.loads(os.pread(descriptor, 1000, 0))
                who = f"process {holder['pid']} on {holder['host']}"
            except (ValueError, KeyError, TypeError):  # it has just begun
                who = "another process"
            raise ValueError(
                f"{self._folder} is being {self._work} by {who}: wait for its end or choose another {self._elsewhere}"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._say(
                f"{self._folder} cannot be locked ({error.strerror}): see to it that no other process writes there"
            )

    def __exit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

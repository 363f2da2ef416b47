"""Atomic file writing, on local disks and on cloud storage alike, and words for what prevents it."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from etils import epath


def absolute(path: epath.PathLike) -> epath.Path:
    """The path from the root; that of a cloud storage is one already."""
    return epath.Path(path) if "://" in os.fspath(path) else epath.Path(path).absolute()


def expanded(path: epath.PathLike) -> epath.Path:
    """As `absolute`, of a path that may begin with ``~``."""
    return absolute(epath.Path(path).expanduser())


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes ``data`` to ``path`` through a temporary neighbour and a rename: readers see the old file or the new one.

    Missing parent folders are made.

    Raises:
      OSError: it cannot be written; the error names ``path``, or the folder that cannot be made.
    """
    target = epath.Path(path)
    # Processes of several containers may have one number.
    temporary = target.parent / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    target.parent.mkdir(parents=True, exist_ok=True)
    with naming(target):
        try:
            temporary.write_bytes(data)
            temporary.replace(target)
        except BaseException:
            with suppress(OSError):  # of a disk that is read-only by now
                temporary.unlink(missing_ok=True)
            raise


def write_text(path: epath.PathLike, text: str) -> None:
    """As ``write_bytes``, in UTF-8; bytes of file names that are none become escapes, the same in Python and JSON."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def read_text(path: epath.PathLike) -> str:
    """A text in UTF-8, without the byte order mark that it may begin with.

    Raises:
      ValueError: it is not UTF-8.
    """
    try:
        return epath.Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}") from None


def is_regular_file(path: epath.PathLike) -> bool:
    """Whether `path` leads to a file with contents of its own; False for pipes, whose reading would wait, and nothing.

    Raises:
      PermissionError: a folder on the way may not be searched.
    """
    if "://" in os.fspath(path):
        return bool(epath.Path(path).is_file())
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except PermissionError:
        raise
    except (OSError, ValueError):  # nothing there, a loop of links, a name that no file can have
        return False


def json_default(value: Any) -> Any:
    """``default`` of ``json.dumps``: arrays (numpy, jax) and their scalars become lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r} cannot be written as JSON")


@contextmanager
def naming(path: epath.PathLike) -> Iterator[None]:
    """Lets errors of the system name ``path``: those of writing to an open file name nothing."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def system_error(error: BaseException) -> OSError | None:
    """The error of the operating system in an exception or its causes; libraries in C++ give only its words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause
        for code in (*_FULL, *_CLOSED, errno.EIO):
            if os.strerror(code) in str(cause):
                return OSError(code, os.strerror(code))
        cause = cause.__cause__ or cause.__context__
    return None


def remedy(error: OSError) -> str:
    """What to do about an error of the operating system while writing."""
    if error.errno in _FULL:
        return "free space"
    if error.errno in _CLOSED:
        return "make it writable"
    return "mend that"


def describe(error: OSError) -> str:
    """An error of the operating system in one line: path, reason, and a remedy where one is known."""
    if error.errno is None or error.filename is None:
        return str(error)
    advice = f"; {remedy(error)} and run again" if error.errno in (*_FULL, *_CLOSED) else ""
    return f"{error.filename}: {error.strerror}{advice}"

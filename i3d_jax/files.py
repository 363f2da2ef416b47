"""Atomic file writing, on local disks and on cloud storage alike."""

import os
import stat
from typing import Any

from etils import epath


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes ``data`` to ``path`` through a temporary neighbour and a rename: readers see the old file or the new one.

    Missing parent folders are made.
    """
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: epath.PathLike, text: str) -> None:
    """As ``write_bytes``, in UTF-8."""
    write_bytes(path, text.encode())


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

"""One training in a run directory; the lock ends with its process, however that ends."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from i3d_jax.folder_lock import FolderLock

HOLD = """
import sys, time
from etils import epath
from i3d_jax.folder_lock import FolderLock
with FolderLock(epath.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_is_told_who_is_first_and_a_kill_leaves_no_lock(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    try:
        assert process.stdout.readline() == b"held\n"
        holder = f"is being trained by process {process.pid} on {socket.gethostname()}"
        with pytest.raises(ValueError, match=holder), FolderLock(epath.Path(tmp_path)):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with FolderLock(epath.Path(tmp_path)):
        assert f'"pid": {os.getpid()}' in (tmp_path / ".lock").read_text()
        with pytest.raises(ValueError, match=f"process {os.getpid()}"), FolderLock(epath.Path(tmp_path)):
            pass
    with FolderLock(epath.Path(tmp_path)):
        pass


def test_where_there_are_no_locks_a_line_says_so(tmp_path, monkeypatch):
    said = []
    with FolderLock(epath.Path("gs://bucket/run"), say=said.append):
        pass

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with FolderLock(epath.Path(tmp_path), say=said.append):
        pass
    assert len(said) == 2 and "gs://bucket/run is remote and not locked" in said[0]
    assert "cannot be locked (No locks available)" in said[1]


def test_a_read_only_directory_is_named(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(os, "open", refuse)
    with (
        pytest.raises(OSError, match=r"cannot be written \(Read-only file system\): make it writable or choose"),
        FolderLock(epath.Path(tmp_path)),
    ):
        pass

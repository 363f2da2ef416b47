import errno
import os

import numpy as np
import pytest
from etils import epath

from i3d_jax import files


def test_writes_whole_files_or_none(tmp_path, monkeypatch):
    path = tmp_path / "a" / "b.txt"
    files.write_text(path, "é")
    files.write_text(path, "second")
    assert path.read_bytes() == b"second"

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(type(epath.Path(path)), "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_text(path, "third")
    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_json_default():
    assert files.json_default(np.arange(2)) == [0, 1]
    with pytest.raises(TypeError, match="set .* cannot be written as JSON"):
        files.json_default({1})


def test_errors_of_the_system_name_the_file_and_a_remedy(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(FileExistsError) as caught:
        files.write_text(tmp_path / "file" / "x.json", "{}")
    assert files.describe(caught.value) == f"{tmp_path}/file: File exists"

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(epath.Path(tmp_path)), "write_bytes", full)
    with pytest.raises(OSError) as caught:
        files.write_text(tmp_path / "x.json", "{}")
    assert files.describe(caught.value) == f"{tmp_path}/x.json: No space left on device; free space and run again"


def test_the_systems_words_are_found_in_errors_of_other_libraries():
    error = ValueError("RESOURCE_EXHAUSTED: Failed to write 5 bytes: No space left on device [os_error_code='28']")
    assert files.system_error(error).errno == errno.ENOSPC
    assert files.system_error(ValueError("shapes differ")) is None
    assert [files.remedy(OSError(code, "")) for code in (errno.EFBIG, errno.EROFS, errno.EIO)] == [
        "free space",
        "make it writable",
        "mend that",
    ]

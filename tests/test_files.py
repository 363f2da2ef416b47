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

"""Digests: any flipped byte, cut or lost file is found."""

import hashlib
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax import manifest
from i3d_jax.manifest import NAME, Damaged, check_manifest, contents_digest, write_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("manifest") / "folder"
    (path / "deep" / "er").mkdir(parents=True)
    (path / "one").write_bytes(bytes(range(100)))
    (path / "deep" / "er" / "two").write_bytes(b"two")
    write_manifest(path, {"tokenizer": "abc"})
    return path


def test_a_whole_folder_gives_its_notes(folder):
    (folder / "unlisted").write_text("more")
    assert check_manifest(folder) == {"tokenizer": "abc"}
    (folder / "unlisted").unlink()


@given(st.data())
def test_any_flipped_bit_and_any_cut_is_found(folder, data):
    name = data.draw(st.sampled_from(["one", "deep/er/two", NAME]))
    whole = (folder / name).read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.booleans()):
        damaged = damaged[:position]
    (folder / name).write_bytes(bytes(damaged))
    try:
        with pytest.raises(Damaged, match=f"^{name} has"):
            check_manifest(folder)
    finally:
        (folder / name).write_bytes(whole)
    check_manifest(folder)


def test_lost_files_are_named(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "deep" / "er" / "two").unlink()
    with pytest.raises(Damaged, match="^deep/er/two is missing"):
        check_manifest(copy)
    (copy / NAME).unlink()
    with pytest.raises(FileNotFoundError, match=NAME):
        check_manifest(copy)


def test_the_digest_of_contents_is_that_of_the_bytes_wherever_they_are(tmp_path):
    data = os.urandom(3 << 20)
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(data)
        assert contents_digest(tmp_path / name) == hashlib.sha256(data).hexdigest()
    (tmp_path / "one").write_bytes(data[:-1])
    assert contents_digest(tmp_path / "one") == hashlib.sha256(data[:-1]).hexdigest()
    with pytest.raises(FileNotFoundError, match="none: no such file"):
        contents_digest(tmp_path / "none")


def test_an_unchanged_file_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("one")
    first = contents_digest(path)
    monkeypatch.setattr(manifest, "_describe", lambda _: {"sha256": "read again"})
    assert contents_digest(path) == first
    os.utime(path, ns=(1, 1))
    assert contents_digest(path) == "read again"


def test_the_digest_of_a_folder_is_that_of_what_it_holds(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing there"):
        contents_digest(tmp_path)
    (tmp_path / "params").write_text("a bundle")
    alone = contents_digest(tmp_path)
    (tmp_path / NAME).write_text("with or without a manifest")
    assert contents_digest(tmp_path) == alone
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "params").write_text("a bundle")
    assert contents_digest(tmp_path) == alone, "that of a run is that of its model"
    (tmp_path / "model" / "params").write_text("another")
    assert contents_digest(tmp_path) != alone

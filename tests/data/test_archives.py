import bz2
import io
import lzma
import tarfile

import numpy as np
import pytest
import soundfile
from etils import epath

from i3d_jax.audio.integrity import AudioError, DamagedAudio
from i3d_jax.data import archives, folder
from i3d_jax.data.archives import find_archives, read_archive
from i3d_jax.data.corpora import DUPLICATE
from i3d_jax.data.records import make_record
from tests.data.tiny_librispeech import flac, subset_files, write_archive


def read(path):
    rejected = {}
    return list(read_archive(epath.Path(path), rejected)), rejected


@pytest.mark.parametrize("transcript_first", [True, False])
def test_streams_both_orders_of_members(tmp_path, transcript_first):
    files = subset_files("dev-clean", transcript_first=transcript_first)
    records, rejected = read(write_archive(tmp_path / "dev-clean.tar.gz", files))
    assert not rejected
    audio = {name.split("/")[-1][:-5]: data for name, data in files if name.endswith(".flac")}
    assert {r.id: r.audio for r in records} == audio  # byte for byte
    first = next(r for r in records if r.id == "103-1240-0001")
    assert (first.text, first.speaker, first.chapter) == ("DEV WORD B", "103", "1240")
    assert (first.num_samples, first.sample_rate) == (soundfile.info(io.BytesIO(first.audio)).frames, 16000)


def test_yields_a_chapter_before_the_next_is_read(tmp_path):
    chapters = tuple((str(speaker), "1", 4) for speaker in range(1, 30))
    path = write_archive(tmp_path / "dev-clean.tar", subset_files("dev-clean", chapters))
    positions = []
    stream = read_archive(epath.Path(path), {}, positions.append)
    next(stream)
    assert positions[-1] < path.stat().st_size / 4
    assert len(list(stream)) == 4 * 29 - 1
    assert positions[-1] == path.stat().st_size and positions == sorted(positions)


def test_what_waits_for_a_transcript_is_bounded(tmp_path, monkeypatch):
    files = sorted(subset_files("dev-clean"), key=lambda file: file[0].endswith(".txt"))  # transcripts at the end
    path = write_archive(tmp_path / "dev-clean.tar.gz", files)
    assert len(read(path)[0]) == 6
    monkeypatch.setattr(archives, "_MOST_WAITING_BYTES", 20000)
    with pytest.raises(ValueError, match=r"dev-clean\.tar\.gz: .* came before its transcripts .*prepare the folder"):
        read(path)


def test_what_cannot_be_used_is_counted(tmp_path):
    place = "LibriSpeech/dev-clean/5/50"
    whole = flac(5)
    lines = "".join(f"5-50-{i:04d} {'' if i == 3 else 'WORD'}\n" for i in range(6))
    files = [
        (f"{place}/5-50-0000.flac", whole),
        (f"{place}/5-50-0001.flac", whole[: len(whole) // 2]),
        (f"{place}/5-50.trans.txt", lines.encode()),
        (f"{place}/5-50-0002.flac", b"no audio"),
        (f"{place}/5-50-0003.flac", whole),
        (f"{place}/5-50-0009.flac", whole),
        (f"{place}/5-50-0000.flac", flac(6)),
        ("LibriSpeech/dev-clean/5/5-50-0005.flac", whole),
        ("LibriSpeech/dev-clean/6/60/6-60-0000.flac", whole),
        (f"{place}/._5-50-0004.flac", b"a resource fork"),
    ]
    records, rejected = read(write_archive(tmp_path / "dev-clean.tar.gz", files))
    assert [r.id for r in records] == ["5-50-0000"] and records[0].audio == whole
    assert rejected == {
        DamagedAudio.reason: ["5-50-0001"],
        AudioError.reason: ["5-50-0002"],
        folder.EMPTY_TRANSCRIPT: ["5-50-0003"],
        folder.NO_TRANSCRIPT: ["5-50-0009", "6-60-0000"],
        DUPLICATE: ["5-50-0000"],
        archives.MISPLACED: ["LibriSpeech/dev-clean/5/5-50-0005.flac"],
        folder.NO_AUDIO: ["5-50-0004", "5-50-0005"],
    }


def test_hostile_members_are_counted_and_never_followed(tmp_path):
    def member(name, kind=tarfile.REGTYPE, target=""):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        return info

    place = "LibriSpeech/dev-clean/19/198"
    hostile = {
        archives.UNSAFE_NAME: [member("/etc/19-198-0007.flac"), member(f"{place}/../../../../up.flac")],
        archives.LINK: [
            member(f"{place}/19-198-0004.flac", tarfile.SYMTYPE, "/etc/passwd"),
            member(f"{place}/19-198-0005.flac", tarfile.LNKTYPE, f"{place}/19-198-0000.flac"),
        ],
        archives.DEVICE: [member(f"{place}/19-198-0006.flac", tarfile.CHRTYPE), member("\x1b[2J", tarfile.FIFOTYPE)],
    }
    members = [info for infos in hostile.values() for info in infos]
    records, rejected = read(write_archive(tmp_path / "dev-clean.tar.gz", subset_files("dev-clean"), members))
    assert len(records) == 6
    assert set(rejected) == set(hostile)
    for reason, infos in hostile.items():
        assert rejected[reason] == [info.name.replace("\x1b", "\\x1b") for info in infos]
    assert [p.name for p in tmp_path.iterdir()] == ["dev-clean.tar.gz"]


def test_a_size_beyond_any_file_ends_the_reading(tmp_path):
    info = tarfile.TarInfo("LibriSpeech/dev-clean/19/198/19-198-0000.flac")
    info.size = 1 << 80
    path = tmp_path / "dev-clean.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(ValueError, match=r"dev-clean\.tar: truncated or corrupt archive \(a member of \d+ bytes\)"):
        read(path)


def test_a_file_named_by_a_dot_is_passed_over(tmp_path):
    path = write_archive(tmp_path / "dev-clean.tar", [(".", b"x"), *subset_files("dev-clean")])
    assert len(read(path)[0]) == 6


def test_a_damaged_archive_is_named(tmp_path):
    good = write_archive(tmp_path / "dev-clean.tar.gz", subset_files("dev-clean"))
    plain = write_archive(tmp_path / "plain" / "dev-clean.tar", subset_files("dev-clean"))
    data, tar = good.read_bytes(), plain.read_bytes()
    with tarfile.open(plain) as members:
        boundary = members.getmembers()[3].offset
    half = len(data) // 2
    damaged = {
        "half": data[:half],
        "checksum": data[:-8] + bytes(8),
        "trailer": data[:-8],
        "bits": data[:half] + bytes(64) + data[half + 64 :],
        "empty": b"",
        "text": b"<html>404</html>" * 100,
        "tar half": tar[: len(tar) // 2],
        "tar cut between members": tar[:boundary],
        "tar header": tar[:boundary] + b"\xff" * 512 + tar[boundary + 512 :],
        "bz2": bz2.compress(tar)[:-1000],
        "xz": lzma.compress(tar)[:-1000],
    }
    for case, content in damaged.items():
        good.write_bytes(content)
        with pytest.raises(ValueError, match=r"dev-clean\.tar\.gz: truncated or corrupt archive"):
            read(good)
            pytest.fail(case)
    for content in (bz2.compress(tar), lzma.compress(tar), tar):
        good.write_bytes(content)
        assert len(read(good)[0]) == 6


def test_wrong_archives(tmp_path):
    path = write_archive(tmp_path / "dev-clean.tar.gz", subset_files("dev-other"))
    with pytest.raises(ValueError, match=r"dev-clean\.tar\.gz: holds 'dev-other', expected 'dev-clean'"):
        read(path)
    write_archive(path, [("notes/readme.txt", b"hello")])
    with pytest.raises(ValueError, match="no audio at LibriSpeech/dev-clean/"):
        read(path)
    with pytest.raises(FileNotFoundError, match="no such archive"):
        read(tmp_path / "dev-other.tar.gz")
    write_archive(tmp_path / "dev-clean.tar", [])
    with pytest.raises(ValueError, match=r"dev-clean\.tar\.gz: dev-clean\.tar is there too"):
        find_archives(epath.Path(tmp_path))


@pytest.mark.parametrize(
    ("container", "subtype", "stored"),
    [
        ("WAV", "PCM_16", "FLAC"),
        ("WAV", "PCM_24", "FLAC"),
        ("WAV", "PCM_U8", "FLAC"),
        ("WAV", "FLOAT", "WAV"),
        ("WAV", "PCM_32", "WAV"),
        ("OGG", "VORBIS", "OGG"),
    ],
)
def test_only_lossless_audio_is_encoded_again(container, subtype, stored):
    buffer = io.BytesIO()
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (4000, 2))
    soundfile.write(buffer, samples, 8000, format=container, subtype=subtype)
    record = make_record("a-b", "A", buffer.getvalue(), "file")
    assert (record.num_samples, record.sample_rate, record.speaker, record.chapter) == (4000, 8000, "a", "")
    assert soundfile.info(io.BytesIO(record.audio)).format == stored
    assert (record.audio == buffer.getvalue()) == (stored != "FLAC")
    before, after = (soundfile.read(io.BytesIO(data), dtype="float32")[0] for data in (buffer.getvalue(), record.audio))
    np.testing.assert_array_equal(before, after)

"""The prepare command: archives and folders in, TFDS data sets out."""

import json
import os
import signal
import subprocess
import sys

import pytest
import soundfile

from i3d_jax.audio.integrity import EmptyAudio
from i3d_jax.cli import prepare
from i3d_jax.data.archives import MISPLACED
from i3d_jax.data.corpora import DataConfig, load_corpus
from i3d_jax.data.folder import BAD_NAME
from tests.data.tiny_librispeech import CHAPTERS, flac, subset_files, write_archive, write_folder


def shards(destination):
    return sorted(str(p.relative_to(destination)) for p in destination.rglob("*.array_record*"))


@pytest.fixture
def downloads(tmp_path):
    """Two archives of LibriSpeech, and one of a file that is no subset."""
    for subset, first in (("dev-clean", True), ("train-clean-100", False)):
        write_archive(tmp_path / "downloads" / f"{subset}.tar.gz", subset_files(subset, transcript_first=first))
    write_archive(tmp_path / "downloads" / "raw-metadata.tar.gz", [])
    return tmp_path / "downloads"


def run(capsys, *arguments):
    prepare.main([str(argument) for argument in arguments])
    return capsys.readouterr().out.splitlines()


def test_the_source_that_is_printed_is_read(downloads, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = run(capsys, downloads, "out", "--splits=dev-clean")[-1].removeprefix("use it with --data.source=")
    assert len(load_corpus(DataConfig(source=source, cache_dir=str(tmp_path / "cache")), "dev-clean")) == 6


def test_archives_become_splits(downloads, tmp_path, capsys):
    lines = run(capsys, downloads, tmp_path / "out")
    assert [line.split(" utterances")[0] for line in lines[:3]] == [
        "librispeech/dev_clean: 6",
        "librispeech/train_clean_100: 6",
        "12",
    ]
    assert lines[-1] == f"use it with --data.source=tfds:{tmp_path}/out/librispeech"
    assert shards(tmp_path / "out") == [
        f"librispeech/{split}/1.0.0/librispeech-{split}.array_record-00000-of-00001"
        for split in ("dev_clean", "train_clean_100")
    ]
    report = json.loads((tmp_path / "out/librispeech/dev_clean/1.0.0/prepare_report.json").read_text())
    seconds = sum(soundfile.info(p).duration for p in _unpacked(tmp_path, "dev-clean").rglob("*.flac"))
    assert report == {
        "dataset": "librispeech",
        "split": "dev_clean",
        "origin": str(downloads / "dev-clean.tar.gz"),
        "utterances": 6,
        "hours": pytest.approx(seconds / 3600, abs=1e-4),
        "speakers": 2,
        "characters": " ABCDEORVW",
        "sample_rates": [16000],
        "rejected": {},
    }


def _unpacked(tmp_path, subset):
    return write_folder(tmp_path / "unpacked", subset_files(subset))


def test_tfds_reads_what_is_prepared(downloads, tmp_path, capsys):
    import tensorflow_datasets as tfds

    run(capsys, downloads, tmp_path / "out")
    places = [tmp_path / "out/librispeech" / split / "1.0.0" for split in ("dev_clean", "train_clean_100")]
    source = tfds.builder_from_directory(places[0]).as_data_source("dev_clean[:50%]")
    assert len(source) == 3 and source[0]["audio"].startswith(b"fLaC")
    both = tfds.builder_from_directories(places)
    assert {split: info.num_examples for split, info in both.info.splits.items()} == {
        "dev_clean": 6,
        "train_clean_100": 6,
    }
    assert len(both.as_data_source("dev_clean+train_clean_100")) == 12
    assert "tensorflow" not in sys.modules


def test_large_splits_have_several_shards(downloads, tmp_path, capsys, monkeypatch):
    from i3d_jax.data import tfds_builders

    monkeypatch.setattr(tfds_builders, "_SHARD_BYTES", 50_000)
    run(capsys, downloads, tmp_path / "out", "--splits=dev-clean")
    names = shards(tmp_path / "out")
    count = len(names)
    assert count >= 3
    assert [name[-14:] for name in names] == [f"{i:05d}-of-{count:05d}" for i in range(count)]


def test_finished_splits_are_kept(downloads, tmp_path, capsys):
    out = tmp_path / "out"
    run(capsys, downloads / "dev-clean.tar.gz", out)
    shard = out / shards(out)[0]
    before = shard.stat().st_mtime_ns
    lines = run(capsys, downloads, out, "--splits=dev_clean+train-clean-100")
    assert "kept, made from" in lines[0] and "kept" not in lines[1]
    assert shard.stat().st_mtime_ns == before and len(shards(out)) == 2


def test_a_failure_leaves_no_split(downloads, tmp_path, capsys):
    archive = downloads / "train-clean-100.tar.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-2000])
    with pytest.raises(ValueError, match=r"train-clean-100\.tar\.gz: truncated or corrupt archive"):
        run(capsys, downloads, tmp_path / "out")
    assert made(tmp_path / "out/librispeech/train_clean_100") == []
    assert len(shards(tmp_path / "out")) == 1  # dev-clean was finished
    archive.write_bytes(whole)
    capsys.readouterr()
    assert "kept" in run(capsys, downloads, tmp_path / "out")[0]
    assert len(shards(tmp_path / "out")) == 2


def test_a_full_disk_leaves_no_split(downloads, tmp_path, capsys, monkeypatch):
    from i3d_jax.data import tfds_builders

    class Full(tfds_builders.ArrayRecordWriter):
        def close(self):
            raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(tfds_builders, "ArrayRecordWriter", Full)
    with pytest.raises(OSError, match=r"dev_clean/.*: cannot write the shards \(.*No space left.*is the disk full\?"):
        run(capsys, downloads, tmp_path / "out")
    assert made(tmp_path / "out/librispeech/dev_clean") == []


# Stops, as if the disk were slow, when a third of the utterances is written.
SLOW = """
import sys, time
from i3d_jax.data import archives
from i3d_jax.cli import prepare

make = archives.make_record
made = []
def slow(*arguments):
    made.append(arguments)
    if len(made) == 3:
        print("writing", flush=True)
        time.sleep(60)
    return make(*arguments)
archives.make_record = slow
prepare.main(sys.argv[1:])
"""


def test_a_killed_run_is_repeated(downloads, tmp_path, capsys):
    out = tmp_path / "out"
    command = [sys.executable, "-c", SLOW, str(downloads), str(out), "--splits=dev-clean"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        holder = rf"dev_clean is being prepared by process {process.pid} on .*: wait for its end or choose another DST"
        with pytest.raises(ValueError, match=holder):
            run(capsys, downloads, out, "--splits=dev-clean")
        process.send_signal(signal.SIGKILL)
    (left,) = made(out / "librispeech/dev_clean")
    assert left.startswith("incomplete.") and not shards(out)
    # Killed a moment later, the folder would have been complete but for its name.
    (out / "librispeech/dev_clean" / left / "dataset_info.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no prepared data set"):
        load(out, tmp_path)
    lines = run(capsys, downloads, out, "--splits=dev-clean")
    assert "kept" not in lines[0]
    assert made(out / "librispeech/dev_clean") == ["1.0.0"]
    assert len(load(out, tmp_path)) == 6


def made(split):
    return [path.name for path in split.iterdir() if path.name != ".lock"]


def load(out, tmp_path):
    return load_corpus(DataConfig(source=f"tfds:{out}", cache_dir=str(tmp_path / "cache")), "dev-clean")


def test_names_that_are_no_text_are_counted(tmp_path, capsys):
    root = write_folder(tmp_path / "corpus", subset_files("dev-clean"))
    odd = os.fsdecode(b"19-198-\xe9.flac")
    (root / "LibriSpeech/dev-clean/19/198" / odd).write_bytes(flac(0))
    arguments = (tmp_path / "out", f"--cache-dir={tmp_path / 'cache'}", "--splits=dev-clean")
    run(capsys, root, *arguments)
    (report,) = (tmp_path / "out").rglob("prepare_report.json")
    assert json.loads(report.read_text())["rejected"] == {BAD_NAME: [odd.removesuffix(".flac")]}
    path = write_archive(tmp_path / "tars" / "dev-clean.tar", [*subset_files("dev-clean"), (f"LibriSpeech/{odd}", b"")])
    run(capsys, path.parent, tmp_path / "out2")
    (report,) = (tmp_path / "out2").rglob("prepare_report.json")
    assert json.loads(report.read_text())["rejected"] == {MISPLACED: [f"LibriSpeech/{odd}"]}


def test_a_folder_with_lists(tmp_path, capsys):
    root = write_folder(tmp_path / "My Corpus-2", subset_files("a", CHAPTERS))
    (root / "splits").mkdir()
    place = "LibriSpeech/a/19/198"
    for name, stems in {"train": ("0002", "0000"), "dev": ("0001",), "train.speakers": ()}.items():
        lines = "".join(f"{place}/19-198-{stem}.flac\n" for stem in stems)
        (root / "splits" / f"{name}.txt").write_text(lines)
    (root / "LibriSpeech/a/19/198/19-198-0001.flac").write_bytes(b"")
    cache = f"--cache-dir={tmp_path / 'cache'}"
    with pytest.raises(ValueError, match=r"dev\.txt: no usable utterance: 1 no audio samples \(19-198-0001\)"):
        run(capsys, root, tmp_path / "out", cache)
    lines = run(capsys, root, tmp_path / "out", cache, "--splits=splits/train.txt+a")
    assert lines[0].startswith("my_corpus_2/train: 2 utterances, 0.00 h, 1 speakers")
    assert "a: 5 utterances" in lines[1] and "1 no audio samples (19-198-0001)" in lines[1]
    report = json.loads((tmp_path / "out/my_corpus_2/a/1.0.0/prepare_report.json").read_text())
    assert report["rejected"] == {EmptyAudio.reason: ["19-198-0001"]}


def test_demo(tmp_path, capsys):
    cache = f"--cache-dir={tmp_path / 'cache'}"
    sizes = ["--demo.train-utterances=3", "--demo.dev-utterances=2", "--demo.test-utterances=1"]
    lines = run(capsys, "demo", tmp_path / "out", cache, *sizes)
    assert [line.split(" utt")[0] for line in lines[:3]] == ["demo/train: 3", "demo/dev: 2", "demo/test: 1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "out"), "SRC = .*nowhere.*: no such file or folder"),
        (("downloads", "file/out"), r"DST = .*file/out: cannot write there \(Not a directory\)"),
        (("downloads", "out", "--splits=test-other"), r"'test-other': no archive .*there are dev-clean\.tar\.gz, raw"),
        (("file", "out"), r"SRC = .*file: expected a folder, or an archive such as dev-clean\.tar\.gz"),
        (("empty", "out"), r"empty: no archive, no splits/\*\.txt.*it has nothing.*--splits=a\+b"),
        (("empty", "out", "--splits=train"), r"split 'train': there is no folder"),
        (("twice", "out", "--splits=a-b+splits/a_b.txt"), "would both be stored as 'a_b'"),
    ],
)
def test_mistakes_are_one_line(downloads, tmp_path, capsys, arguments, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "twice", [("a-b/1/1/1-1-1.flac", b""), ("splits/a_b.txt", b"")])
    source, destination, *rest = arguments
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        run(capsys, tmp_path / source, tmp_path / destination, *rest)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_program(downloads, tmp_path):
    def call(*arguments):
        command = [sys.executable, "-W", "error", "-m", "i3d_jax.cli.prepare", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    done = call(downloads / "dev-clean.tar.gz", tmp_path / "out")
    assert done.returncode == 0 and done.stdout.startswith("librispeech/dev_clean: 6 utterances"), done.stderr
    assert done.stderr.splitlines() == ["dev-clean.tar.gz 1/1 MiB"]  # nothing of TFDS's own
    failed = call(tmp_path / "nowhere", tmp_path / "out")
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and "prepare.py: error: SRC" in failed.stderr


def test_tfds_is_imported_when_it_is_needed():
    code = """
import sys, i3d_jax.runner, i3d_jax.cli.prepare
from i3d_jax.data.corpora import DataConfig, load_corpus
load_corpus(DataConfig(source="synthetic"), "train")
print({"tensorflow", "tensorflow_datasets", "array_record"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "set()\n", done.stderr


def test_an4(tmp_path, capsys):
    speech = os.environ.get("I3D_SPEECH_DIR")
    if not speech:
        pytest.skip("I3D_SPEECH_DIR is not set: no real speech to read")
    lines = run(capsys, f"{speech}/an4", tmp_path / "out", f"--cache-dir={tmp_path / 'cache'}")
    assert lines[-2] == "948 utterances, 0.71 h, 27 characters; rejected: none"
    for split in ("train", "dev", "test"):
        folder_corpus, prepared = (
            load_corpus(DataConfig(source=source, cache_dir=str(tmp_path / "cache")), f"splits/{split}.txt")
            for source in (f"{speech}/an4", f"tfds:{tmp_path}/out/an4")
        )
        assert prepared.describe() == folder_corpus.describe()
        assert [(u.id, u.text, u.num_samples) for u in prepared.utterances] == [
            (u.id, u.text, u.num_samples) for u in folder_corpus.utterances
        ]
        for i in range(0, len(prepared), 10):
            assert (prepared.load_audio(i) == folder_corpus.load_audio(i)).all()

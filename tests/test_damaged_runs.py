"""Runs on tone words whose folder is damaged, full or another's: what was trained is used, or one line says why."""

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from etils import epath

import i3d_jax
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.experiment import load_config, load_saved_config
from i3d_jax.folder_lock import FolderLock
from i3d_jax.runner import train
from i3d_jax.training.checkpoint import Checkpoints
from i3d_jax.training.sharding import ParallelConfig
from i3d_jax.training.warm_start import WarmStartConfig
from tests.damage import age, flip, largest
from tests.trainings import same_parameters

CONFIG = load_config(Path(__file__).with_name("tiny_config.py"))
CONFIG = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, epochs=2))
WIDER = dataclasses.replace(
    CONFIG, model=dataclasses.replace(CONFIG.model, encoder=dataclasses.replace(CONFIG.model.encoder, d_model=16))
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(CONFIG, epath.Path(workdir))
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"15", "16"}
    assert {p.name for p in (workdir / "best").iterdir()} == {"8", "16"}
    return workdir


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_a_damaged_checkpoint_and_model_cost_two_steps_and_no_bit(whole, run, capsys):
    flip(run / "model" / "params.npz")
    remedy = rf"{run}/model is damaged: params.npz has other bytes.*; delete {run}/model and run train.py as before"
    for use in (lambda: i3d_jax.load(run), lambda: train(CONFIG, epath.Path(run))):
        with pytest.raises(ValueError, match=remedy):
            use()
    shutil.rmtree(run / "model")
    flip(largest(run / "checkpoints" / "16"))
    capsys.readouterr()
    train(CONFIG, epath.Path(run))
    printed = capsys.readouterr().out
    assert f"set aside as {run}/damaged/checkpoints-16, step 15 is used\n" in printed
    assert "resumed from step 15\n" in printed
    assert same_parameters(run, whole)


def test_a_run_of_an_earlier_version_is_finished(whole, run, capsys):
    shutil.rmtree(run / "model")
    for folder in ("checkpoints/15", "checkpoints/16", "best/8", "best/16"):
        age(run / folder)
    train(CONFIG, epath.Path(run))
    assert "step 16 was saved by an earlier version, without digests" in capsys.readouterr().out
    assert same_parameters(run, whole)


def test_what_does_not_fit_is_named_before_the_data_is_read(whole, run, tmp_path, monkeypatch):
    monkeypatch.setattr("i3d_jax.training_data.load_corpus", None)
    shutil.rmtree(run / "model")
    (run / "config.json").unlink()
    with pytest.raises(
        ValueError, match=r"step 16 is of another model: params\.\S+ is \(.*\) there, \(.*\) here \(\d+"
    ):
        train(WIDER, epath.Path(run))
    texts = ["UP HILL", "LOW HILL UP", "SOME OTHER WORDS"]
    Tokenizer.train(texts, CONFIG.tokenizer).save(run / "tokenizer.model")
    with pytest.raises(ValueError, match=r"tokenizer.model is not the one .* put that one back, delete the file"):
        train(CONFIG, epath.Path(run))
    dense = dataclasses.replace(CONFIG, warm_start=WarmStartConfig(run=str(whole)))
    with pytest.raises(
        ValueError, match=r"warm start from tiny: .*\n  .* in the trained model, .* here(.*\n)+give model"
    ):
        train(dataclasses.replace(WIDER, warm_start=dense.warm_start), epath.Path(tmp_path / "wider"))


def test_other_settings_are_accepted_when_asked_and_other_devices_always(whole, run, capsys):
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "16")
    faster = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, learning_rate=0.02))
    with pytest.raises(ValueError, match=r"learning_rate is 0.01 there, 0.02 wanted; .* give --accept-changes"):
        train(faster, epath.Path(run))
    train(faster, epath.Path(run), accept_changes=True)
    printed = capsys.readouterr().out
    assert f"{run} goes on with other settings: optimizer.learning_rate is 0.01 there, 0.02 wanted\n" in printed
    assert "resumed from step 15\n" in printed
    assert load_saved_config(epath.Path(run / "config.json")) == faster
    keeping = dataclasses.replace(faster.training, keep_last=3, keep_every_steps=6)
    split = dataclasses.replace(faster, parallel=ParallelConfig(fsdp=2), training=keeping)
    train(split, epath.Path(run))  # finished, and not refused
    assert load_saved_config(epath.Path(run / "config.json")) == split


def test_a_dense_run_that_another_process_trains_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr("i3d_jax.training_data.load_corpus", None)
    shared = epath.Path(tmp_path / "dense")
    shared.mkdir()
    dense = Path(__file__).with_name("tiny_config.py")
    gated = dataclasses.replace(CONFIG, warm_start=WarmStartConfig(run=str(shared), config=str(dense)))
    with FolderLock(shared):
        with pytest.raises(ValueError, match=f"{shared} is being trained by process {os.getpid()} on"):
            train(gated, epath.Path(tmp_path / "gated"))
        with pytest.raises(ValueError, match=f"{shared} is being trained by"):
            train(CONFIG, shared)


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk with the options of the first call, and changes it with those of a second."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"NOT TESTED: a disk of its own cannot be mounted here ({done.stderr.strip()})")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


@pytest.mark.parametrize("left", [0, 65536])
def test_a_full_disk_stops_the_run_and_more_space_finishes_it(left, whole, small_disk, monkeypatch):
    disk = small_disk("size=20m")
    others = disk / "others"

    def save(checkpoints, state, real=Checkpoints.save):
        if int(state.step) == 6:
            checkpoints.wait()  # else it is step 3 that finds the disk full
            others.write_bytes(bytes(shutil.disk_usage(disk).free - left))
        real(checkpoints, state)

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(OSError, match=r"step 6 cannot be saved \(No space left on device\); training up to step 3 is"):
        train(CONFIG, epath.Path(disk / "run"))
    monkeypatch.undo()
    others.unlink()
    train(CONFIG, epath.Path(disk / "run"))
    assert same_parameters(disk / "run", whole)


def test_a_read_only_folder_stops_the_run_at_once(small_disk, monkeypatch):
    monkeypatch.setattr("i3d_jax.training_data.load_corpus", None)
    folder = small_disk("size=1m")
    (folder / "run").mkdir()
    small_disk("remount", "ro")
    with pytest.raises(
        OSError, match=rf"{folder}/run cannot be written \(Read-only file system\): make it writable or"
    ):
        train(CONFIG, epath.Path(folder / "run"))
    with pytest.raises(OSError, match="Read-only file system"):
        train(CONFIG, epath.Path(folder / "new"))

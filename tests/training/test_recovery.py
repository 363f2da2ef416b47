"""Damaged, unfinished and full: what is good stays usable, and one line says what is not."""

import asyncio
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax import manifest
from i3d_jax.training import recovery, saving
from i3d_jax.training.checkpoint import Checkpoints
from i3d_jax.training.step import init_state
from tests.damage import age, flip, largest

PARAMS = {"a": {"kernel": jnp.full((2, 3), 0.5)}, "b": jnp.arange(3.0)}


def state_at(step, params=PARAMS):
    return init_state(params, optax.adam(1e-3))._replace(step=jnp.int32(step))


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints of steps 3 and 6 and candidates of steps 2 and 6."""
    workdir = tmp_path_factory.mktemp("saved") / "run"
    with Checkpoints(workdir, 2) as checkpoints:
        checkpoints.check(PARAMS, "f" * 64)
        checkpoints.check_data("d" * 64, 10)
        for step in (3, 6):
            checkpoints.save(state_at(step))
        for step in (2, 6):
            checkpoints.save_candidate(step, {**PARAMS, "b": PARAMS["b"] + step}, 50.0)
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "run"))


def reopen(workdir):
    said = []
    with Checkpoints(workdir, 2, say=said.append) as checkpoints:
        return int(checkpoints.restore(state_at(0)).step), checkpoints.best_steps(), said


def test_what_is_whole_is_used_without_a_word(run):
    before = files_below(run)
    assert reopen(run) == (6, [2, 6], [])
    assert files_below(run) == before


@given(st.data())
def test_any_damage_of_any_file_is_found(saved, data):
    folder = saved / "checkpoints" / "6"
    path = folder / data.draw(st.sampled_from(files_below(folder)))
    whole = path.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        flip(path, position)
    else:
        path.write_bytes(whole[:position])
    try:
        with pytest.raises(manifest.Damaged):
            recovery.check_step(folder)
    finally:
        path.write_bytes(whole)
    assert recovery.check_step(folder) == {
        "tokenizer": "f" * 64,
        "data": {"digest": "d" * 64, "utterances": 10},
    }


def test_the_previous_one_is_used_and_the_damaged_step_can_be_saved_again(run):
    damaged = largest(run / "checkpoints" / "6")
    flip(damaged)
    step, best, said = reopen(run)
    assert (step, best) == (3, [2])
    name = damaged.relative_to(run / "checkpoints" / "6")
    assert said == [
        f"{run}/checkpoints: step 6 is damaged ({name} has other bytes than were written); set aside as "
        f"{run}/damaged/checkpoints-6, step 3 is used"
    ]
    with Checkpoints(run, 2) as checkpoints:
        checkpoints.save(state_at(4))
        checkpoints.save(state_at(6))
    assert reopen(run) == (6, [2], [])


@pytest.mark.parametrize(
    "name", ["manifest.json", "_CHECKPOINT_METADATA", "default/_METADATA", "default/manifest.ocdbt"]
)
def test_a_lost_file_is_named(run, name):
    (run / "checkpoints" / "6" / name).unlink()
    step, _, said = reopen(run)
    assert step == 3 and len(said) == 1 and f"step 6 is damaged ({name} is missing" in said[0]


def test_what_a_kill_left_unfinished_is_removed(run):
    left = [run / place / "9.orbax-checkpoint-tmp" for place in ("checkpoints", "best")]
    for folder in left:
        folder.mkdir()
        (folder / "part").write_text("half")
    reopen(run)
    assert not any(folder.exists() for folder in left)


def test_an_empty_folder_of_a_step_is_damaged(run):
    shutil.rmtree(run / "checkpoints" / "6")
    (run / "checkpoints" / "6").mkdir()
    step, _, said = reopen(run)
    assert step == 3 and "step 6 is damaged (_CHECKPOINT_METADATA is missing)" in said[0]


def test_without_a_good_one_nothing_is_moved_and_the_remedy_is_named(run):
    flip(largest(run / "checkpoints" / "3"))
    (run / "checkpoints" / "6" / "manifest.json").unlink()
    before = files_below(run)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"no undamaged checkpoint is left \(step 6: .*; step 3: .*\): delete .*best"
        ):
            Checkpoints(run, 2)
        assert files_below(run) == before
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match=r"holds no checkpoint, but .*best has those of steps \[2, 6\]"):
        Checkpoints(run, 2)
    shutil.rmtree(run / "best" / "2")  # one is left, and came after a checkpoint
    with pytest.raises(ValueError, match=r"holds no checkpoint, but .*best has those of steps \[6\]"):
        Checkpoints(run, 2)
    shutil.rmtree(run / "best")
    with Checkpoints(run, 2) as checkpoints:
        assert checkpoints.latest_step() is None


def test_a_first_save_that_was_killed_starts_over_and_says_so(tmp_path):
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(state_at(3))
    (tmp_path / "checkpoints" / "3" / "manifest.json").unlink()
    said = []
    with Checkpoints(tmp_path, 2, say=said.append) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(state_at(3))
    assert len(said) == 1 and "step 3 is the first and was not finished" in said[0]
    assert reopen(tmp_path)[0] == 3


def test_checkpoints_of_an_earlier_version_are_used_and_announced(run):
    for folder in ("checkpoints/3", "checkpoints/6", "best/2", "best/6"):
        age(run / folder)
    step, best, said = reopen(run)
    assert (step, best) == (6, [2, 6])
    assert len(said) == 2 and "step 6 was saved by an earlier version, without digests" in said[0]
    assert "steps [2, 6] were saved by an earlier version" in said[1]
    largest(run / "checkpoints" / "6" / "default").unlink()
    with pytest.raises(ValueError, match=r"step 6 cannot be read .* delete the folder 6 there"):
        reopen(run)


def test_damaged_candidates_are_left_out_of_the_average(run):
    (run / "best" / "6" / "metrics" / "metrics").write_text('{"sco')  # stops Orbax from opening the folder
    said = []
    with Checkpoints(run, 2, say=said.append) as checkpoints:
        assert checkpoints.best_steps() == [2]
        params, source = checkpoints.final(checkpoints.restore(state_at(0)))
        assert source == "average of steps [2]"
        np.testing.assert_array_equal(params["b"], np.arange(3.0) + 2)
        flip(largest(run / "best" / "2"))
        params, source = checkpoints.final(checkpoints.restore(state_at(0)))
    np.testing.assert_array_equal(params["b"], np.arange(3.0))
    assert source.startswith("parameters of step 6, the last, instead of an average: no checkpoint with a dev score")
    assert [line.partition("(")[0] for line in said] == [
        f"{run}/best: step 6 is damaged ",
        f"{run}/best: step 2 is damaged ",
    ]
    assert all("the final average is without it" in line for line in said)


@pytest.mark.parametrize(
    "params, message",
    [
        ({**PARAMS, "b": jnp.zeros(4)}, r"params.b is \(3,\) there, \(4,\) here \(1 arrays differ\)"),
        ({**PARAMS, "c": jnp.zeros(4)}, r"params.c is missing there, \(4,\) here"),
        ({"b": PARAMS["b"]}, r"params.a.kernel is \(2, 3\) there, missing here"),
    ],
)
def test_another_model_is_named_before_anything_is_read(run, params, message):
    with Checkpoints(run, 2) as checkpoints:
        with pytest.raises(ValueError, match=message):
            checkpoints.check(params, "f" * 64)
        with pytest.raises(ValueError, match=message.partition(r" \(1 arr")[0]):
            checkpoints.restore(state_at(0, params))


def test_other_training_data_are_named(run):
    with Checkpoints(run, 2) as checkpoints:
        checkpoints.check_data("d" * 64, 10)
        with pytest.raises(ValueError, match=r"step 6 was trained on other utterances: 10 there, 9 here"):
            checkpoints.check_data("e" * 64, 9)


def test_other_dev_data_are_named_where_they_rank(run, tmp_path):
    with Checkpoints(run, 2) as checkpoints:
        checkpoints.check_dev("d" * 64, 5, "sentences", "perplexity")  # of a run that noted none
    with Checkpoints(tmp_path / "new", 2) as checkpoints:
        checkpoints.check_dev("d" * 64, 5, "sentences", "perplexity")
        checkpoints.save(state_at(3))
    with Checkpoints(tmp_path / "new", 2) as checkpoints:
        checkpoints.check_dev("d" * 64, 5, "sentences", "perplexity")
        checkpoints.check_dev("e" * 64, 4, "sentences", "latest")
        with pytest.raises(
            ValueError, match=r"up to step 3 were ranked by their perplexity on other dev sentences: 5 "
        ):
            checkpoints.check_dev("e" * 64, 4, "sentences", "perplexity")


def test_another_tokenizer_is_named(run):
    with Checkpoints(run, 2) as checkpoints:
        checkpoints.check(PARAMS, "f" * 64)
        with pytest.raises(ValueError, match=r"tokenizer.model is not the one .* 0{12}\.\.\., expected f{12}"):
            checkpoints.check(PARAMS, "0" * 64)


FULL = """
import resource, signal, sys
from tests.training.test_recovery import Checkpoints, PARAMS, state_at
from i3d_jax.experiment import run_program
def main(_):
    with Checkpoints(sys.argv[1], 2) as checkpoints:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        (checkpoints.save(state_at(9)) if sys.argv[3] == "save" else checkpoints.save_candidate(9, PARAMS, 1.0))
run_program(main)
"""


def test_a_write_that_nobody_asks_any_more_is_not_told_again_others_are(caplog):
    def leave_alone(error):
        loop = asyncio.new_event_loop()
        future = loop.create_future()
        future.set_exception(error)
        del future
        loop.close()

    with saving._no_traceback_of_orbax():
        leave_alone(OSError(27, "File too large"))
        assert not caplog.records
        leave_alone(KeyError("another"))
        assert "KeyError: 'another'" in caplog.text
    leave_alone(OSError(27, "File too large"))
    assert "File too large" in caplog.text, "without a save it is told"


@pytest.mark.parametrize(
    "limit, kind", [(100, "save"), (200, "save"), (300, "save"), (1500, "save"), (200, "candidate")]
)
def test_a_save_that_fails_leaves_what_was_saved_and_one_line(run, limit, kind):
    before = files_below(run)
    process = subprocess.run(
        [sys.executable, "-c", FULL, str(run), str(limit), kind],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},  # it would meet the limit too
        capture_output=True,
    )
    folder = "checkpoints" if kind == "save" else "best"
    assert process.stderr.decode() == (
        f"-c: error: {run}/{folder}: step 9 cannot be saved (File too large); training up to step 6 is safe in "
        f"{run}/checkpoints: free space and give the same command again to resume\n"
    )
    assert process.returncode == 2
    assert [name for name in files_below(run) if not name.startswith("best/2")] == [
        name for name in before if not name.startswith("best/2")
    ]
    assert reopen(run)[0] == 6


def save_candidate(checkpoints):
    checkpoints.save_candidate(10, PARAMS, 1.0)


@pytest.mark.parametrize(
    "told", [Checkpoints.wait, Checkpoints.close, save_candidate, lambda checkpoints: checkpoints.restore(state_at(0))]
)
def test_no_manifest_no_checkpoint(told, run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saving, "write_manifest", full)
    checkpoints = Checkpoints(run, 2)
    checkpoints.save(state_at(9))
    with pytest.raises(OSError, match=r"step 9 cannot be saved \(No space left on device\); training up to step 6"):
        told(checkpoints)
    checkpoints.close()  # told once
    assert reopen(run)[0] == 6


@pytest.mark.parametrize(
    "other, error, message",
    [
        (OSError(errno.ENOSPC, "log.jsonl"), OSError, r"step 9 cannot be saved \(No space left on device\)"),
        (ValueError("diverged"), ValueError, "diverged"),
    ],
)
def test_a_full_disk_is_told_by_the_save_and_not_by_what_fails_next(other, error, message, run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saving, "write_manifest", full)
    with pytest.raises(error, match=message), Checkpoints(run, 2) as checkpoints:
        checkpoints.save(state_at(9))
        raise other
    assert not (run / "checkpoints" / "9").exists()


def test_what_is_kept_for_good_survives_a_recovery(tmp_path):
    with Checkpoints(tmp_path, 2, keep_every_steps=3) as checkpoints:
        for step in (3, 4, 5, 6):
            checkpoints.save(state_at(step))
    for step in (5, 6):
        flip(largest(tmp_path / "checkpoints" / str(step)))
    with Checkpoints(tmp_path, 2, keep_every_steps=3) as checkpoints:
        assert checkpoints.latest_step() == 3
        for step in (4, 5, 6, 7):
            checkpoints.save(state_at(step))
    assert recovery.steps_in(tmp_path / "checkpoints") == [3, 6, 7]

"""Real processes that train together on emulated devices: the same losses, and one of them may die."""

import re
import signal
import socket

import numpy as np
import pytest
from etils import epath

from i3d_jax import hosts
from i3d_jax.data.loader import Share
from i3d_jax.training.preemption import RESUMABLE
from tests import trainings
from tests.trainings import losses

# Steps of rounding noise stay small at this learning rate; see tests/training/test_step.py.
ARGUMENTS = ("--training.epochs=2", "--optimizer.learning-rate=2e-3")


def start(workdir, count, devices, *arguments, of_the_last=(), **variables):
    """So many processes with so many devices each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if count > 1:
        variables |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
    return [
        trainings.start(
            workdir,
            *ARGUMENTS,
            *arguments,
            *(of_the_last if index == count - 1 else ()),
            script="tests/one_of_several.py",
            devices=devices,
            JAX_PROCESS_ID=str(index),
            **variables,
        )
        for index in range(count)
    ]


def end(processes):
    return [process.communicate(timeout=400)[0] for process in processes], [p.returncode for p in processes]


def test_processes_die_or_are_ended_and_others_go_on_as_one_alone_would(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    texts, codes = end(start(alone, 1, 1))
    assert codes == [0], texts
    expected = losses(alone)
    assert sorted(expected) == list(range(1, 17))

    texts, codes = end(start(together, 2, 2, "--parallel.lost-after-seconds=10", SIGNAL="SIGKILL", SIGNAL_AFTER="6"))
    assert codes[1] == -signal.SIGKILL and codes[0] != 0, texts
    assert not (together / "model").exists()
    assert sorted(losses(together))[:6] == list(range(1, 7))

    texts, codes = end(start(together, 4, 1, "--parallel.fsdp=2", SIGNAL="SIGTERM", SIGNAL_AFTER="9"))
    assert codes == [RESUMABLE] * 4, texts  # asked of one, they end together, some steps later
    assert "resumed from step 6\n" in texts[0]
    saved = int(re.search(r"ended on request after step (\d+), which is saved", texts[0])[1])
    assert 9 <= saved < 16

    texts, codes = end(start(together, 2, 1))
    assert codes == [0] * 2, texts
    assert f"resumed from step {saved}\n" in texts[0]
    assert "final model: average of steps [8, 16]" in texts[0]
    assert not any("step" in text for text in texts[1:])  # only the first one speaks
    assert (together / "report.json").exists()
    found = losses(together)
    assert sorted(found) == sorted(expected)
    np.testing.assert_allclose([found[s] for s in expected], list(expected.values()), rtol=1e-4)
    with np.load(alone / "model/params.npz") as ours, np.load(together / "model/params.npz") as theirs:
        for name in ours.files:
            # Softmax is blind to the key bias: what Adam makes of its gradient is rounding noise.
            seen = slice(64, None) if name == "params/layers/mha/qkv/bias" else slice(None)
            np.testing.assert_allclose(
                theirs[name][..., seen], ours[name][..., seen], rtol=1e-3, atol=1e-3, err_msg=name
            )


def test_what_is_wrong_is_told_by_every_process(tmp_path):
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "tokenizer.model").write_bytes(b"")
    texts, codes = end(start(tmp_path, 2, 1))
    assert codes == [2, 2], texts
    for text in texts:
        assert f"error: {tmp_path}/config.json: " in text
        assert "Traceback" not in text


def test_processes_with_other_settings_are_refused(tmp_path):
    texts, codes = end(start(tmp_path, 2, 1, of_the_last=("--seed=1",)))
    assert codes == [2, 2], texts
    for text in texts:
        assert "error: the configuration differs between processes: [1] have another one than process 0" in text


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, r"JAX_NUM_PROCESSES='': expected a number, for the processes meet at 127.0.0.1:1; set .* or parallel"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID='x': expected a number"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2: expected a number from 0 to .* = 1"),
    ],
)
def test_missing_variables_are_named(variables, message, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        hosts.start("127.0.0.1:1")


def test_alone_nothing_is_waited_for(tmp_path):
    hosts.start()
    hosts.wait("here")
    hosts.check_same({"a": "b"})
    hosts.finish()
    assert hosts.is_first()
    assert hosts.first(lambda: epath.Path("not JSON")) == epath.Path("not JSON")
    with hosts.first_alone("x"), pytest.raises(ValueError, match="as it is"):
        hosts.first(lambda: int("as it is"))


@pytest.mark.parametrize("batch_size, parts", [(8, 4), (24, 8), (8, 1)])
def test_shares_cover_every_row_once(batch_size, parts):
    rows = [Share(parts, (part,)).rows(batch_size) for part in range(parts)]
    np.testing.assert_array_equal(np.sum(rows, axis=0), 1)
    assert {int(r.sum()) for r in rows} == {batch_size // parts}
    np.testing.assert_array_equal(Share(parts, tuple(range(parts))).rows(batch_size), True)

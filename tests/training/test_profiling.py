"""Traces of training steps."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from i3d_jax.training.profiling import TracedStep, parse_steps


def run(calls, first, last, steps, folder):
    """Steps ``first`` to ``last`` are made; what happens is noted in ``calls``."""

    def step(state, batch):
        calls.append(state + 1)
        return state + 1, jnp.ones(3).sum()

    step.seconds = 1.0
    with TracedStep(step, first - 1, parse_steps(steps), folder, calls.append) as traced:
        for number in range(first, last + 1):
            traced(number - 1, None)
    return traced


@pytest.fixture
def calls(monkeypatch):
    calls, clock = [], SimpleNamespace(now=0.0)
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: calls.append("start"))

    def stop():
        clock.now += 5.0  # the trace is written
        calls.append("stop")

    monkeypatch.setattr("jax.profiler.stop_trace", stop)
    monkeypatch.setattr("i3d_jax.training.profiling.time.monotonic", lambda: clock.now)
    return calls


@pytest.mark.parametrize(
    "first, last, steps, expected",
    [
        (1, 6, "3:4", [1, 2, "start", 3, 4, "stop", "trace of steps 3 to 4 in F", 5, 6]),
        (1, 3, "2:9", [1, "start", 2, 3, "stop", "trace of steps 2 to 3 in F"]),  # the training is shorter
        (1, 3, "3:3", [1, 2, "start", 3, "stop", "trace of steps 3 to 3 in F"]),  # the last step
        (4, 6, "3:5", ["start", 4, 5, "stop", "trace of steps 4 to 5 in F", 6]),  # resumed among them
        (6, 7, "2:3", [6, 7, "no trace: none of the steps 2 to 3 ran"]),  # resumed after them
        (1, 2, "", [1, 2]),
    ],
)
def test_the_steps_asked_for_are_traced_once(first, last, steps, expected, calls, tmp_path):
    traced = run(calls, first, last, steps, tmp_path)
    assert [call if isinstance(call, int) else call.replace(str(tmp_path), "F") for call in calls] == expected
    assert traced.seconds == 1.0 + 5.0 * ("stop" in expected)  # not time spent on training


def test_a_training_that_fails_keeps_its_trace(calls, tmp_path):
    def step(state, batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), TracedStep(step, 0, range(1, 3), tmp_path, calls.append) as traced:
        step.seconds = 0.0
        traced(0, None)
    assert calls == ["start", "stop", f"trace of no whole step in {tmp_path}"]


def test_a_trace_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").touch()
    said = []
    run(said, 1, 3, "1:2", tmp_path / "file" / "profile")
    assert said[0].startswith(f"no trace in {tmp_path}/file/profile: ") and said[1:] == [1, 2, 3]
    run(said, 1, 1, "1:1", tmp_path)  # another trace can be begun
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_a_trace_is_written(tmp_path):
    said = []
    run(said, 1, 2, "1:1", tmp_path)
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.parametrize("text", ["3", "4:3", "0:2", "a:b", "1:2:3"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=f"--profile-steps={text}: expected FIRST:LAST"):
        parse_steps(text)
    assert parse_steps("") is None

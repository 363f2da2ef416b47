"""Traces of training steps."""

import jax.numpy as jnp
import pytest

from i3d_jax.training.profiling import parse_steps, traced


def test_the_steps_asked_for_are_traced_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append("stop"))
    for (index,) in traced([(i,) for i in range(8)], parse_steps("3:4"), tmp_path):
        calls.append(index + 1)
    assert calls == [1, 2, "start", 3, 4, 5, "stop", 6, 7, 8]
    calls.clear()
    for (index,) in traced([(i,) for i in range(3)], parse_steps("2:9"), tmp_path):
        calls.append(index + 1)
    assert calls == [1, "start", 2, 3, "stop"]
    calls.clear()
    assert list(traced([(5,), (6,)], parse_steps("2:3"), tmp_path)) == [(5,), (6,)] and not calls  # passed already


def test_a_trace_is_written(tmp_path):
    for _ in traced([(0,)], parse_steps("1:1"), tmp_path):
        jnp.ones(3).sum().block_until_ready()
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.parametrize("text", ["3", "4:3", "0:2", "a:b", "1:2:3"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=f"--profile-steps={text}: expected FIRST:LAST"):
        parse_steps(text)
    assert parse_steps("") is None

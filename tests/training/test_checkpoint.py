"""Checkpoints: saved while training goes on, exact restore, retention, n-best selection and averaging."""

import asyncio
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint._src.serialization import serialization

from i3d_jax.training.checkpoint import Checkpoints
from i3d_jax.training.step import TrainState, init_state


def state_at(step, value=0.0):
    params = {"a": {"kernel": jnp.full((2, 3), value)}, "b": jnp.arange(3.0) + value}
    state = init_state(params, optax.adam(1e-3))
    return state._replace(step=jnp.int32(step))


def test_restores_what_was_saved(tmp_path):
    state = state_at(7, 0.1)
    with Checkpoints(tmp_path, 2) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(state_at(3))
        checkpoints.save(state)
    with Checkpoints(tmp_path, 2) as checkpoints:
        assert checkpoints.latest_step() == 7
        restored = checkpoints.restore(state_at(0))
    assert isinstance(restored, TrainState)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.fixture
def held(monkeypatch):
    """Nothing is written to disk until this event is set."""
    event = threading.Event()

    async def write(*args, real=serialization.async_serialize_from_host, **kwargs):
        await asyncio.to_thread(event.wait)
        await real(*args, **kwargs)

    monkeypatch.setattr(serialization, "async_serialize_from_host", write)
    yield event
    event.set()


@pytest.mark.parametrize("spec", [None, P(), P("data")])
def test_what_is_saved_stays_while_donated_steps_go_on(spec, tmp_path, held):
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    state = init_state({"kernel": jnp.arange(2.0**16)}, optax.adam(1e-3))._replace(step=jnp.int32(3))
    if spec is not None:
        state = jax.device_put(state, jax.tree.map(lambda x: NamedSharding(mesh, spec if x.ndim else P()), state))
    expected = jax.tree.map(np.array, state)
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(state)
        for _ in range(5):
            state = step(state)
        assert int(state.step) == 8
        assert not (tmp_path / "checkpoints" / "3").exists()
        held.set()
        checkpoints.wait()
        assert (tmp_path / "checkpoints" / "3" / "manifest.json").exists()
        restored = checkpoints.restore(state)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_the_next_save_waits_until_the_one_before_is_complete(tmp_path, held, monkeypatch):
    complete = []

    def save(manager, step, *args, real=ocp.CheckpointManager.save, **kwargs):
        complete.append((step, sorted(p.parent.name for p in tmp_path.glob("*/*/manifest.json"))))
        return real(manager, step, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(state_at(1))
        threading.Timer(0.2, held.set).start()
        checkpoints.save_candidate(2, state_at(2).params, 50.0)
        checkpoints.save(state_at(3))
    assert complete == [(1, []), (2, ["1"]), (3, ["1", "2"])]


@pytest.mark.parametrize("keep_last, keep_every_steps, kept", [(2, 0, "56"), (3, 0, "456"), (2, 2, "2456")])
def test_keeps_the_newest_and_every_so_many_steps(keep_last, keep_every_steps, kept, tmp_path):
    for steps in ((1, 2, 3), (4, 5, 6)):
        with Checkpoints(tmp_path, 2, keep_last, keep_every_steps) as checkpoints:
            for step in steps:
                checkpoints.save(state_at(step))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == list(kept)


def test_averages_the_best(tmp_path):
    with Checkpoints(tmp_path, 2) as checkpoints:
        with pytest.raises(FileNotFoundError, match="dev score"):
            checkpoints.average(state_at(0).params)
        for step, wer in ((1, 50.0), (2, 20.0), (3, 30.0), (4, 40.0)):
            checkpoints.save_candidate(step, state_at(step, float(step)).params, wer)
        assert checkpoints.best_steps() == [2, 3]
        average = checkpoints.average(state_at(0).params)
    np.testing.assert_allclose(average["b"], np.arange(3.0) + 2.5)


def test_candidates_of_steps_that_run_again_are_dropped(tmp_path):
    with Checkpoints(tmp_path, 3) as checkpoints:
        checkpoints.save(state_at(2))
        for step in (1, 2, 3):
            checkpoints.save_candidate(step, state_at(step).params, 10.0)
    with Checkpoints(tmp_path, 3) as checkpoints:
        assert checkpoints.best_steps() == [1, 2]
        checkpoints.save_candidate(3, state_at(3).params, 9.0)

"""Checkpoints: exact restore, n-best selection and averaging."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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


def test_keeps_the_newest(tmp_path):
    with Checkpoints(tmp_path, 2, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state_at(step))
    assert {p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()} == {"2", "3"}


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

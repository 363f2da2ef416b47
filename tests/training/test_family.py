"""A family in one program: each member follows the trajectory it has alone."""

import jax
import numpy as np
import pytest

from i3d_jax.audio.augment import AugmentConfig
from i3d_jax.audio.frontend import FrontendConfig
from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.encoder import EncoderConfig
from i3d_jax.model.gates import GateConfig
from i3d_jax.model.subsampling import SubsamplingConfig
from i3d_jax.training.family import Stacked
from i3d_jax.training.losses import LossConfig
from i3d_jax.training.optimizer import OptimizerConfig, make_optimizer
from i3d_jax.training.sharding import Parallel, ParallelConfig
from i3d_jax.training.step import Member, StepConfig, init_state, make_train_step
from tests.training.test_step import make_batch

MEMBERS = [(seed, weight) for weight in (0.5, 4.0) for seed in (3, 4)]
STACKED = Stacked(len(MEMBERS))


def arguments(seed, weight):
    return Member(np.uint32(seed), np.float32(weight), np.float32(1.0))


@pytest.fixture(scope="module")
def programs():
    """Starting parameters of each member, optimiser, the step of one, and that of all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flax.linen.relu", jax.nn.silu)  # no kinks, at which rounding would change gradients
        encoder = EncoderConfig(num_layers=2, d_model=32, num_heads=2, ffn_dim=64)
        model = ASRModel(ModelConfig(SubsamplingConfig(channels=4), encoder, GateConfig(predictor="local")), 80, 7)
        optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=5), 100)
        config = StepConfig(FrontendConfig(), AugmentConfig(time_warp=3), LossConfig())
        step = make_train_step(model, config, optimizer)
        init = jax.jit(model.init)
        params = [init(jax.random.key(seed)) for seed, _ in MEMBERS]
        parallel = Parallel.over_devices(ParallelConfig(), 8, jax.devices()[:1])
        state = STACKED.init_state(params, optimizer)
        members = STACKED.join([arguments(*member) for member in MEMBERS])
        together = STACKED.map(step, parallel).lower(state, make_batch(0), members).compile()
        one = init_state(params[0], optimizer)
        alone = jax.jit(step).lower(one, make_batch(0), arguments(*MEMBERS[0])).compile()
        return params, optimizer, alone, lambda state, batch: together(state, batch, members)


def test_every_member_follows_the_trajectory_it_has_alone(programs):
    params, optimizer, alone, together = programs
    state, losses = STACKED.init_state(params, optimizer), []
    for i in range(12):
        state, metrics = together(state, make_batch(i))
        losses.append(metrics.totals.loss)
    assert int(state.step) == 12
    assert len({float(loss) for loss in losses[-1]}) == len(MEMBERS)
    for index, member in enumerate(MEMBERS):
        own = init_state(params[index], optimizer)
        for i in range(12):
            own, metrics = alone(own, make_batch(i), arguments(*member))
            np.testing.assert_allclose(losses[i][index], metrics.totals.loss, rtol=1e-4)
        part = STACKED.part(state.params, index)
        for ours, theirs in ((part["head"], own.params["head"]), (part["predictor"], own.params["predictor"])):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), ours, theirs)


def test_a_member_that_is_not_finite_is_skipped_alone(programs):
    params, optimizer, _, together = programs
    broken = jax.tree.map(lambda x: x * np.nan, params[1])
    before = [params[0], broken, *params[2:]]
    state, metrics = together(STACKED.init_state(before, optimizer), make_batch(0))
    assert metrics.bad_steps.tolist() == state.bad_steps.tolist() == [0, 1, 0, 0]
    for index, theirs in enumerate(before):
        ours = STACKED.part(state.params, index)
        same = [
            np.array_equal(a, b, equal_nan=True) for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True)
        ]
        assert all(same) if index == 1 else not all(same)
        assert np.isfinite(jax.tree.leaves(ours)[0]).all() == (index != 1)


def test_of_one_nothing_is_stacked():
    tree = {"a": np.ones(3)}
    assert Stacked(1).join([tree]) is tree and Stacked(1).part(tree, 0) is tree and Stacked(1).split(tree) == [tree]
    np.testing.assert_array_equal(Stacked(2).split({"a": np.arange(2)})[1]["a"], 1)

"""The training step: skipping of bad updates, and the same trajectory on one device and on eight."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i3d_jax.audio.augment import AugmentConfig
from i3d_jax.audio.frontend import FrontendConfig
from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.encoder import EncoderConfig
from i3d_jax.model.gates import GateConfig
from i3d_jax.model.subsampling import SubsamplingConfig
from i3d_jax.training.losses import LossConfig
from i3d_jax.training.optimizer import OptimizerConfig, make_optimizer
from i3d_jax.training.sharding import DataParallel
from i3d_jax.training.step import StepConfig, init_state, make_train_step
from i3d_jax.types import Batch


def build(predictor="global", loss=LossConfig(utility_weight=2.0), learning_rate=1e-2):  # noqa: B008
    encoder = EncoderConfig(num_layers=2, d_model=16, num_heads=2, ffn_dim=32)
    config = ModelConfig(SubsamplingConfig(channels=4), encoder, GateConfig(predictor=predictor))
    model = ASRModel(config, 80, 7)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=learning_rate, warmup_steps=5), 100)
    step = make_train_step(model, StepConfig(FrontendConfig(), AugmentConfig(time_warp=3), loss, 0), optimizer)
    return jax.jit(step), init_state(jax.jit(model.init)(jax.random.key(0)), optimizer)


def make_batch(seed, rows=8, valid=7):
    generator = np.random.default_rng(seed)
    labels = generator.integers(2, 6, (rows, 3)).astype(np.int32)
    num_samples = generator.integers(5000, 8000, rows).astype(np.int32)
    waveform = (0.1 * generator.standard_normal((rows, 8000))).astype(np.float32)
    mask = np.arange(rows) < valid
    return Batch(
        waveform,
        np.where(mask, num_samples, 0).astype(np.int32),
        labels,
        np.where(mask, 3, 0).astype(np.int32),
        mask,
        generator.integers(0, 2**32, rows, dtype=np.uint32),
    )


# Rounding differs between one device and eight. Where it moves one value across the kink of a ReLU, a whole unit gets
# another gradient, and Adam makes a step of it: at the larger learning rate the smooth model is compared, and closely.
@pytest.mark.parametrize(
    ("activation", "learning_rate", "loss_bound", "params_bound"),
    [(jax.nn.silu, 1e-2, 1e-5, 1e-4), (jax.nn.relu, 2e-3, 1e-4, 1e-3)],
    ids=["smooth", "as it is"],
)
@pytest.mark.parametrize("predictor", ["local", "global"])
def test_one_and_eight_devices_follow_the_same_trajectory(
    predictor, activation, learning_rate, loss_bound, params_bound, monkeypatch
):
    monkeypatch.setattr("flax.linen.relu", activation)
    trajectories = []
    for count in (1, 8):
        step, state = build(predictor, learning_rate=learning_rate)
        parallel = DataParallel.over_devices(8, jax.devices()[:count])
        state = parallel.replicate(state)
        losses = []
        for i in range(20):
            state, metrics = step(state, parallel.put_batch(make_batch(i)))
            losses.append(float(metrics.totals.loss / metrics.totals.utterances))
        trajectories.append((losses, jax.tree.map(np.array, state.params)))
        assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == count
    (losses_1, params_1), (losses_8, params_8) = trajectories
    np.testing.assert_allclose(losses_1, losses_8, rtol=loss_bound)
    for params in (params_1, params_8):  # softmax ignores the key bias: its gradient is rounding noise, scaled by Adam
        params["layers"]["mha"]["qkv"]["bias"][:, 16:32] = 0
    close = partial(np.testing.assert_allclose, rtol=params_bound, atol=params_bound)
    jax.tree.map(close, params_1, params_8)
    assert losses_1[-1] < losses_1[0]


def test_devices_must_divide_the_batch():
    with pytest.raises(ValueError, match=r"batch_multiple=4 is not a multiple of the 8 devices: set it to 8"):
        DataParallel.over_devices(4)


def test_a_bad_step_is_skipped_and_counted():
    step, state = build()
    good, bad = make_batch(0), make_batch(1)
    bad.waveform[0, 100] = np.inf
    state, metrics = step(state, good)
    assert int(metrics.bad_steps) == 0
    before = jax.device_get(state)
    for count in (1, 2):
        state, metrics = step(state, bad)
        assert int(metrics.bad_steps) == count == int(state.bad_steps)
    jax.tree.map(np.testing.assert_array_equal, (before.params, before.opt_state), (state.params, state.opt_state))
    assert int(state.step) == 3
    state, metrics = step(state, good)
    assert int(state.bad_steps) == 0
    assert not jax.tree.all(jax.tree.map(np.array_equal, before.params, state.params))


def test_filler_rows_and_padding_change_nothing():
    step, state = build()
    batch = make_batch(0)
    poisoned = batch._replace(waveform=batch.waveform.copy())
    for row, length in enumerate(batch.num_samples):
        poisoned.waveform[row, length:] = np.nan
    a, b = step(state, batch)[0], step(state, poisoned)[0]
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_noise_depends_on_the_step_and_only_on_it():
    step, state = build()
    batch = make_batch(0)
    first = step(state, batch)[1]
    again = step(state, batch)[1]
    later = step(state._replace(step=jnp.int32(1)), batch)[1]
    np.testing.assert_array_equal(first.totals.loss, again.totals.loss)
    assert float(first.totals.loss) != float(later.totals.loss)


@pytest.mark.parametrize("predictor", ["local", "global"])
def test_the_utility_loss_closes_gates(predictor):
    step, state = build(predictor, LossConfig(utility_weight=500.0))
    start = None
    for i in range(30):
        state, metrics = step(state, make_batch(i))
        start = start or float(metrics.totals.executed_layers / metrics.totals.utterances)
    assert float(metrics.totals.executed_layers / metrics.totals.utterances) < 0.6 * start

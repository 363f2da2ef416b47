"""The training step: skipping of bad updates, and the same trajectory on one device and on eight."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i3d_jax.audio.augment import AugmentConfig
from i3d_jax.audio.frontend import FrontendConfig
from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.decoder import DecoderConfig
from i3d_jax.model.encoder import EncoderConfig
from i3d_jax.model.gates import GateConfig, LayerDropConfig
from i3d_jax.model.subsampling import SubsamplingConfig
from i3d_jax.training.checkpoint import Checkpoints
from i3d_jax.training.compiled import CompiledStep, compilations
from i3d_jax.training.losses import LossConfig
from i3d_jax.training.optimizer import OptimizerConfig, make_optimizer
from i3d_jax.training.sharding import Parallel, ParallelConfig, mesh_shape
from i3d_jax.training.step import Member, StepConfig, init_state, make_train_step
from i3d_jax.training.temperature import annealing
from i3d_jax.types import Batch

LOSS = LossConfig(utility_weight=2.0)


def build(
    predictor="global",
    loss=LOSS,
    width=16,
    accumulate=1,
    parallel=None,
    lr=1e-2,
    remat="none",
    tau=1.0,
    trainable="all",
    layers=2,
    decoder=0,
    **gates,
):
    encoder = EncoderConfig(num_layers=layers, d_model=width, num_heads=2, ffn_dim=2 * width)
    config = ModelConfig(
        SubsamplingConfig(channels=4),
        encoder,
        GateConfig(predictor=predictor, **gates),
        decoder=DecoderConfig(num_layers=decoder, num_heads=2, ffn_dim=2 * width),
    )
    model = ASRModel(config, 80, 7)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=lr, warmup_steps=5), 100, trainable)
    config = StepConfig(
        FrontendConfig(), AugmentConfig(time_warp=3), loss, accumulate, remat, annealing(config.gates, 100), trainable
    )
    state = init_state(jax.jit(model.init)(jax.random.key(0)), optimizer)
    member = Member(np.uint32(0), np.float32(loss.utility_weight), np.float32(tau))
    step = make_train_step(model, config, optimizer, gather=parallel and parallel.gather)
    step = jax.jit(step, out_shardings=(parallel.shardings(state), None) if parallel else None)
    return CompiledStep(step, member, 1, lambda line: None), parallel.place(state) if parallel else state


@cache
def _one_device(predictor, trainable, accumulate):
    return build(predictor, trainable=trainable, accumulate=accumulate)


def one_device(predictor, trainable="all", accumulate=1):
    """Compiled once for the tests that change nothing of it, or put it back."""
    return _one_device(predictor, trainable, accumulate)


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


def mesh(devices, **config):
    return Parallel.over_devices(ParallelConfig(**config), 8, jax.devices()[:devices])


SPLIT = {"fsdp": 2}
MESHES = [
    ("as it is", "global", 4, SPLIT, 1),
    ("as it is", "local", 8, {}, 1),
    ("as it is", "local", 2, SPLIT, 4),
    ("smooth", "local", 8, {"fsdp": -1, "data": 2}, 1),
]


@pytest.fixture(scope="module")
def trajectories():
    """Predictor -> losses and parameters of 20 steps on one device; others are compared with them."""
    made = {}

    def trajectory(predictor, activation, devices=1, config=None, accumulate=1):
        key = (predictor, activation, devices, str(config), accumulate)
        if key not in made:
            parallel = mesh(devices, **(config or {}), accumulate=accumulate)
            lr = 1e-2 if activation == "smooth" else 2e-3
            remat = "full" if accumulate > 1 else "none"
            step, state = build(predictor, width=64, accumulate=accumulate, parallel=parallel, lr=lr, remat=remat)
            losses = []
            for i in range(20):
                state, metrics = step(state, parallel.put_batch(make_batch(i)))
                losses.append(float(metrics.totals.loss / metrics.totals.utterances))
            made[key] = losses, state
        return made[key]

    return trajectory


# Rounding differs between meshes. Where it moves one value across the kink of a ReLU, a whole unit gets another
# gradient, and Adam makes a step of it: at the larger learning rate the smooth model is compared, and closely.
@pytest.mark.parametrize("activation, predictor, devices, config, accumulate", MESHES)
def test_any_mesh_follows_the_trajectory_of_one_device(
    trajectories, activation, predictor, devices, config, accumulate, monkeypatch
):
    bound = 1e-5 if activation == "smooth" else 1e-4
    if activation == "smooth":
        monkeypatch.setattr("flax.linen.relu", jax.nn.silu)
    losses, state = trajectories(predictor, activation, devices, config, accumulate)
    losses_1, state_1 = trajectories(predictor, activation)
    np.testing.assert_allclose(losses, losses_1, rtol=bound)
    ours, theirs = jax.tree.map(np.array, (state.params, state_1.params))
    for params in (ours, theirs):  # softmax ignores the key bias: its gradient is rounding noise, scaled by Adam
        params["layers"]["mha"]["qkv"]["bias"][:, 64:128] = 0
    jax.tree.map(partial(np.testing.assert_allclose, rtol=10 * bound, atol=10 * bound), ours, theirs)
    assert losses_1[-1] < losses_1[0]
    kernel = state.params["layers"]["ffn"]["hidden"]["kernel"]
    assert len(kernel.sharding.device_set) == devices
    split = mesh_shape(ParallelConfig(**config), devices)[1]
    assert kernel.addressable_shards[0].data.shape == (2, 64, 128 // split)
    assert state.opt_state[1].mu["layers"]["ffn"]["hidden"]["kernel"].sharding == kernel.sharding


def test_a_decoder_is_trained_and_split_like_the_rest():
    loss = LossConfig(utility_weight=2.0, interctc_layers=(1,), ctc_weight=0.3)
    states, totals = [], []
    for parallel in (mesh(1), mesh(4, **SPLIT, accumulate=2)):
        accumulate = 1 if parallel.gather is None else 2
        step, state = build("global", loss, 64, accumulate, parallel, lr=1e-3, decoder=2)
        for i in range(4):
            state, metrics = step(state, parallel.put_batch(make_batch(i)))
        states.append(state.params)
        totals.append(metrics.totals)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), *totals)
    kernel = states[1]["decoder"]["layers"]["ffn"]["hidden"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 64, 64)
    np.testing.assert_allclose(kernel, states[0]["decoder"]["layers"]["ffn"]["hidden"]["kernel"], atol=1e-3)
    assert totals[0].tokens == 7 * 4 and totals[0].attention > 0


def test_layers_are_gathered_one_by_one_and_gradients_scattered():
    parallel = mesh(4, fsdp=4)
    step, state = build("global", width=64, parallel=parallel)
    step(state, parallel.put_batch(make_batch(0)))
    (compiled,) = step.programs.values()
    per_device = compiled.memory_analysis().argument_size_in_bytes
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert per_device < 0.5 * whole
    program = compiled.as_text()
    assert "all-gather" in program
    # Two layers' whole kernels nowhere: neither gathered at once nor kept for the gradient. (Those of the smaller
    # biases and norms are not split.)
    for shape in ("2,64,192", "2,64,64", "2,64,128", "2,128,64"):
        assert f"f32[{shape}]" not in program, shape


@pytest.mark.parametrize(
    "config, devices, expected",
    [
        ({}, 8, (8, 1)),
        ({"fsdp": 4}, 8, (2, 4)),
        ({"data": 1, "fsdp": -1}, 8, (1, 8)),
        ({"data": 2, "fsdp": 2}, 4, (2, 2)),
    ],
)
def test_mesh_shape(config, devices, expected):
    assert mesh_shape(ParallelConfig(**config), devices) == expected


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"batch_multiple=4 is not a multiple of the 8 devices: set it to 8"):
        Parallel.over_devices(ParallelConfig(), 4)
    with pytest.raises(ValueError, match=r"not a multiple of the 8 devices x 2 parts: set it to 16"):
        Parallel.over_devices(ParallelConfig(accumulate=2), 8)
    with pytest.raises(ValueError, match=r"parallel.data=-1 and parallel.fsdp=3 do not make 8 devices"):
        mesh_shape(ParallelConfig(fsdp=3), 8)


def test_a_shape_is_compiled_once_and_none_beyond_the_plan():
    lines = []
    function = jax.jit(lambda state, batch, member: (state + member.seed, batch.num_samples.sum()))
    step = CompiledStep(function, Member(np.int32(2), np.float32(0), np.float32(1)), 2, lines.append)
    start, before = jnp.int32(1), compilations()
    for rows in (8, 8, 16, 8, 16):
        state, total = step(start, make_batch(0, rows))
        assert int(state) == 3 and int(total) == make_batch(0, rows).num_samples.sum()
    assert [line.split(" in ")[0] for line in lines] == [
        "compiled step 1 of 2 (8 x 8000 samples)",
        "compiled step 2 of 2 (16 x 8000 samples)",
    ]
    assert compilations() - before == 2 and step.seconds > 0
    with pytest.raises(RuntimeError, match="a batch of 24 x 8000 samples would be shape 3 of a plan of 2"):
        step(start, make_batch(0, 24))


def test_a_bad_step_is_skipped_and_counted():
    step, state = one_device("global")
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
    step, state = one_device("global")
    batch = make_batch(0)
    poisoned = batch._replace(waveform=batch.waveform.copy())
    for row, length in enumerate(batch.num_samples):
        poisoned.waveform[row, length:] = np.nan
    a, b = step(state, batch)[0], step(state, poisoned)[0]
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_noise_depends_on_the_step_and_only_on_it():
    step, state = one_device("global")
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


def test_layer_drop_reports_the_layers_it_drew():
    step, state = build("none", LossConfig(), layer_drop=LayerDropConfig(0.5))
    layers = set()
    for i in range(4):
        state, metrics = step(state, make_batch(i))
        layers.add(float(metrics.totals.executed_layers))
    assert len(layers) > 1 and all(layers_ == int(layers_) and 0 <= layers_ < 14 for layers_ in layers)
    step, state = build("none", LossConfig(), layer_drop=LayerDropConfig(1 - 1e-7))
    after, metrics = step(state, make_batch(0))
    assert float(metrics.totals.executed_layers) == 0 and np.isfinite(float(metrics.grad_norm))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(after.opt_state[1].mu["layers"]))
    assert np.any(after.opt_state[1].mu["head"]["projection"]["kernel"])


def test_an_annealed_temperature_is_that_of_the_step_in_one_program(monkeypatch):
    falling, state = build("global", temperature=2.0, final_temperature=0.5, tau=2.0)
    constant, _ = one_device("global")
    member = constant._member
    for step in (0, 33, 99, 120):  # of 100: 2 * (1/4)**t, and no further
        tau = 2.0 * 0.25 ** min(step / 99, 1.0)
        monkeypatch.setattr(constant, "_member", member._replace(temperature=np.float32(tau)))
        at = state._replace(step=jnp.int32(step))
        metrics, expected = (program(at, make_batch(step))[1] for program in (falling, constant))
        np.testing.assert_allclose(metrics.totals.executed_layers, expected.totals.executed_layers, rtol=1e-5)
        np.testing.assert_allclose(metrics.totals.loss, expected.totals.loss, rtol=1e-5)
    assert len(falling.programs) == 1
    monkeypatch.setattr(constant, "_member", member._replace(temperature=np.float32(2.0)))
    warm = constant(at, make_batch(step))[1]
    assert abs(metrics.totals.executed_layers - warm.totals.executed_layers) > 1e-3


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("predictor", ["local", "global"])
def test_training_the_predictor_alone_follows_its_gradient_and_leaves_the_rest(predictor, accumulate):
    """The predictor moves as in a training of everything whose other gradients are left out of the norm."""
    step, state = one_device(predictor, trainable="predictor", accumulate=accumulate)
    everything, whole = one_device(predictor)
    moments = state.opt_state[1]
    assert set(moments.mu) == set(moments.nu) == {"predictor"}
    before = jax.device_get(state.params)
    after, metrics = step(state, make_batch(0))
    all_after, all_metrics = everything(whole, make_batch(0))
    rest = ({name: params[name] for name in params if name != "predictor"} for params in (before, after.params))
    jax.tree.map(np.testing.assert_array_equal, *rest)
    assert not jax.tree.all(jax.tree.map(np.array_equal, before["predictor"], after.params["predictor"]))
    np.testing.assert_allclose(metrics.totals.loss, all_metrics.totals.loss, rtol=1e-5)
    first = 1 - OptimizerConfig().beta1  # of Adam's mean, after clipping by the norm
    clipped = [min(1.0, OptimizerConfig().clip_norm / float(of.grad_norm)) for of in (metrics, all_metrics)]
    ours, theirs = after.opt_state[1].mu["predictor"], all_after.opt_state[1].mu["predictor"]
    ours, theirs = (
        jax.tree.map(lambda x, share=share: np.asarray(x) / share / first, tree)
        for tree, share in zip((ours, theirs), clipped, strict=True)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-5), ours, theirs)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(ours)))
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-4)


def test_training_the_predictor_alone_resumes_bit_equal(tmp_path):
    step, state = one_device("local", trainable="predictor")
    saved, _ = step(state, make_batch(0))
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(saved)
    with Checkpoints(tmp_path, 2) as checkpoints:
        restored = checkpoints.restore(state)
    ours, theirs = step(restored, make_batch(1))[0], step(saved, make_batch(1))[0]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_bad_step_of_the_predictor_alone_is_skipped():
    step, state = one_device("global", trainable="predictor")
    bad = make_batch(1)
    bad.waveform[0, 100] = np.inf
    after, metrics = step(state, bad)
    assert int(metrics.bad_steps) == 1
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), (after.params, after.opt_state))


def test_training_the_predictor_alone_keeps_less_of_each_layer():
    """Neither weight gradients nor what only they need is kept: each layer adds less to the work space."""
    sizes = {}
    for trainable in ("all", "predictor"):
        for layers in (2, 12):
            make = one_device if layers == 2 else partial(build, layers=layers)
            step, state = make("local", trainable=trainable)
            step(state, make_batch(0))
            (program,) = step.programs.values()
            sizes[trainable, layers] = program.memory_analysis().temp_size_in_bytes
    growth = {trainable: sizes[trainable, 12] - sizes[trainable, 2] for trainable in ("all", "predictor")}
    assert growth["predictor"] < 0.8 * growth["all"], growth

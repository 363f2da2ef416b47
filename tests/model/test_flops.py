from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.decoder import Decoder, DecoderConfig
from i3d_jax.model.encoder import EncoderConfig
from i3d_jax.model.flops import branch_flops, count_flops, count_flops_by_part, decoder_flops
from i3d_jax.model.gates import GateConfig
from i3d_jax.model.layers import Context, CTCHead, FeedForward, GatePredictor, SelfAttention
from i3d_jax.model.subsampling import SubsamplingConfig, num_subsampled_frames

D, H, HEADS, T = 96, 384, 4, 200
MODEL = ModelConfig(
    subsampling=SubsamplingConfig(channels=24),
    encoder=EncoderConfig(num_layers=3, d_model=D, num_heads=HEADS, ffn_dim=H),
    gates=GateConfig(predictor="global"),
)


def xla_flops(function, *arrays):
    """FLOPs in XLA's own count of the compiled program."""
    return jax.jit(function).lower(*arrays).compile().cost_analysis()["flops"]


def module_flops(module, *inputs):
    params = module.init(jax.random.key(0), *inputs)
    return xla_flops(module.apply, params, *inputs)


@pytest.mark.parametrize(
    ("name", "module"),
    [("mha", SelfAttention(num_heads=HEADS, dropout=0.1, attention_dropout=0.1)), ("ffn", FeedForward(H, 0.1))],
)
@pytest.mark.parametrize("frames", [50, T])
def test_branches_agree_with_xla(name, module, frames):
    measured = module_flops(module, jnp.ones((1, frames, D)), Context(jnp.ones((1, frames), bool)))
    counted = branch_flops(MODEL, frames)[name]
    # XLA also counts element-wise work, above all about ten operations per attention weight and head.
    elementwise = 12 * HEADS * frames**2 * (name == "mha") + 20 * frames * (D + H)
    assert counted <= measured <= counted + elementwise


def test_branches_equal_xla_exactly_for_bare_matrix_products():
    def mha(x, qkv, out):
        q, k, v = jnp.split(x @ qkv, 3, axis=-1)
        return ((q @ k.T) @ v) @ out

    def ffn(x, a, b):
        return (x @ a) @ b

    x = jnp.ones((T, D))
    assert xla_flops(mha, x, jnp.ones((D, 3 * D)), jnp.ones((D, D))) == branch_flops(MODEL, T)["mha"]
    assert xla_flops(ffn, x, jnp.ones((D, H)), jnp.ones((H, D))) == branch_flops(MODEL, T)["ffn"]


@pytest.mark.parametrize("tokens", [20, 90])
def test_the_decoder_agrees_with_xla(tokens):
    config = replace(MODEL, decoder=DecoderConfig(num_layers=1, num_heads=HEADS, ffn_dim=H))
    decoder = Decoder(config.decoder, D, 50)
    params = decoder.init(jax.random.key(0))
    inputs = jnp.zeros((1, tokens), int), jnp.ones((1, T, D)), jnp.ones((1, T), bool)
    measured = xla_flops(decoder.apply, params, *inputs)
    (counted,) = decoder_flops(config, vocab_size=50, num_frames=4 * T + 3, tokens=tokens)
    elementwise = 12 * HEADS * tokens * (tokens + T) + 40 * tokens * (D + H) + 4 * T * D
    assert counted <= measured <= counted + elementwise
    assert not decoder_flops(MODEL, vocab_size=50, num_frames=4 * T + 3, tokens=tokens).any()
    both = decoder_flops(config, vocab_size=50, num_frames=np.array([4 * T + 3, 99]), tokens=np.array([tokens, 7]))
    assert both[0] == counted and both[1] < counted


def test_subsampling_equals_xla_exactly():
    frames, mels, channels = 83, 40, 24

    def subsample(x, a, b, linear):
        dims = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, a, (2, 2), "VALID", dimension_numbers=dims)
        x = jax.lax.conv_general_dilated(x, b, (2, 2), "VALID", dimension_numbers=dims)
        return x.reshape(x.shape[1], -1) @ linear

    shapes = [
        (1, frames, mels, 1),
        (3, 3, 1, channels),
        (3, 3, channels, channels),
        (channels * int(num_subsampled_frames(mels)), D),
    ]
    arrays = [jnp.ones(shape) for shape in shapes]
    assert subsample(*arrays).shape == (num_subsampled_frames(frames), D)
    parts = count_flops_by_part(MODEL, num_mels=mels, vocab_size=10, num_frames=frames, executed=None)
    assert parts.subsampling == xla_flops(subsample, *arrays)


@pytest.mark.parametrize(("predictor", "num_gates", "calls"), [("global", 6, 1), ("local", 2, 3)])
def test_gate_predictor_agrees_with_xla(predictor, num_gates, calls):
    config = ModelConfig(encoder=MODEL.encoder, gates=GateConfig(predictor=predictor, hidden_dim=32))
    module = GatePredictor(num_gates=num_gates, hidden_dim=32, initial_logit=2.0, normalize_input=False)
    measured = calls * module_flops(module, jnp.ones((1, 1, D)), jnp.ones((1, 1), bool))
    parts = count_flops_by_part(config, num_mels=80, vocab_size=10, num_frames=100, executed=None)
    assert parts.gate_predictor <= measured <= parts.gate_predictor + calls * 10 * (D + 32 + num_gates)


def test_ctc_head_agrees_with_xla():
    measured = module_flops(CTCHead(300), jnp.ones((1, int(num_subsampled_frames(400)), D)))
    parts = count_flops_by_part(MODEL, num_mels=80, vocab_size=300, num_frames=400, executed=None)
    assert parts.ctc_head <= measured <= 1.06 * parts.ctc_head


def test_paper_sized_encoder():
    """36 layers, D = 256, FFN 1024, 375 encoder frames (15 s): 26.4 GFLOP in branches, as measured peers spend."""
    config = ModelConfig(encoder=EncoderConfig(num_layers=36))
    parts = count_flops_by_part(config, num_mels=80, vocab_size=5000, num_frames=1503, executed=None)
    assert sum(parts.branches.values()) == pytest.approx(26.4e9, rel=0.01)
    assert parts.gate_predictor == 0
    # The 256-channel convolutions cost about as much as twelve layers.
    assert parts.subsampling == pytest.approx(12 / 36 * sum(parts.branches.values()), rel=0.15)


def test_executed_branches_are_counted_per_utterance():
    frames = np.array([400, 231, 90])
    executed = np.zeros((3, 3, 2), bool)
    executed[1] = True
    executed[2, 1, 0] = executed[2, :, 1] = True
    arguments = {"num_mels": 80, "vocab_size": 50, "num_frames": frames}
    parts = count_flops_by_part(MODEL, executed=executed, **arguments)
    total = count_flops(MODEL, executed=executed, **arguments)
    everything = count_flops(MODEL, executed=None, **arguments)
    one = branch_flops(MODEL, num_subsampled_frames(frames))
    np.testing.assert_array_equal(parts.branches["mha"], [0, 3, 1] * one["mha"])
    np.testing.assert_array_equal(parts.branches["ffn"], [0, 3, 3] * one["ffn"])
    np.testing.assert_array_equal(total, sum(parts.parts().values()))
    np.testing.assert_array_equal(
        everything - total, 3 * (one["mha"] + one["ffn"]) * [1, 0, 0] + [0, 0, 2] * one["mha"]
    )
    # One number of frames serves all rows, and rows do not depend on each other.
    same = count_flops(MODEL, num_mels=80, vocab_size=50, num_frames=231, executed=executed)
    assert same.shape == (3,) and same[1] == total[1]


def test_frames_are_those_of_the_model():
    model = ASRModel(MODEL, num_mels=80, vocab_size=10)
    frames = range(60)
    assert num_subsampled_frames(np.array(frames)).tolist() == [model.num_encoder_frames(n) for n in frames]


def test_too_short_audio_costs_nothing():
    parts = count_flops_by_part(MODEL, num_mels=80, vocab_size=50, num_frames=np.array([0, 1, 2]), executed=None)
    np.testing.assert_array_equal(parts.total - parts.gate_predictor, 0)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(2, 4, 2\).*\[B, 3, 2\].*mha, ffn"):
        count_flops(MODEL, num_mels=80, vocab_size=50, num_frames=100, executed=np.ones((2, 4, 2), bool))
    with pytest.raises(ValueError, match="2 rows but num_frames 3"):
        count_flops(MODEL, num_mels=80, vocab_size=50, num_frames=np.full(3, 99), executed=np.ones((2, 3, 2), bool))

"""Self-conditioned CTC: what intermediate predictions add, against the layers run one by one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from i3d_jax.experiment import ExperimentConfig
from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.encoder import Encoder, EncoderConfig, conditional
from i3d_jax.model.flops import count_flops_by_part
from i3d_jax.model.gates import Fixed, GateConfig, Open, SoftMean
from i3d_jax.model.subsampling import SubsamplingConfig
from i3d_jax.training.losses import LossConfig
from i3d_jax.training.warm_start import warm_start
from i3d_jax.validation import validate_config

LAYERS, TAPS, VOCABULARY = 3, (1, 2), 7
ENCODER = EncoderConfig(num_layers=LAYERS, d_model=8, num_heads=2, ffn_dim=12, dropout=0.0, attention_dropout=0.0)


def asr(taps=TAPS, **gates):
    config = ModelConfig(SubsamplingConfig(channels=3), ENCODER, GateConfig(**gates), self_conditioned_layers=taps)
    return ASRModel(config, 20, VOCABULARY)


def inputs(seed=0):
    x = np.random.default_rng(seed).normal(size=(2, 5, 8)).astype(np.float32)
    return jnp.asarray(x), np.arange(5)[None] < np.array([5, 3])[:, None]


def posteriors(head, x):
    """Softmax of norm and projection, by hand."""
    x = np.asarray(x, np.float64)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    normal = normal * np.asarray(head["norm"]["scale"]) + np.asarray(head["norm"]["bias"])
    logits = normal @ np.asarray(head["projection"]["kernel"]) + np.asarray(head["projection"]["bias"])
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("execute", [None, conditional])
def test_each_tap_adds_its_predictions_and_returns_the_states_before(execute):
    model = asr()
    params = model.init(jax.random.key(0))
    x, mask = inputs()
    pattern = np.array([[1, 0], [1, 1], [0, 1]], bool)
    how = {} if execute is None else {"execute": execute}
    output = jax.jit(lambda params: model.encode(params, x, mask, Fixed(pattern), **how))(params)
    one = Encoder(replace(ENCODER, num_layers=1), GateConfig())
    taps = []
    for n in range(LAYERS):
        own = {"layers": jax.tree.map(lambda leaf, n=n: leaf[n : n + 1], params["layers"])}
        x = one.apply(own, x, mask, Fixed(pattern[n : n + 1])).x
        if n + 1 in TAPS:
            taps.append(x)
            dense = params["conditioning"]["posteriors"]
            added = posteriors(params["head"], x) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
            x = x + jnp.asarray(added, jnp.float32)
    np.testing.assert_allclose(output.x, x, rtol=1e-4, atol=1e-5)
    for mine, expected in zip(output.taps, taps, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)


def test_gradients_against_differences_reach_head_map_and_predictor():
    model = asr(predictor="global")
    params = model.init(jax.random.key(0))
    x, mask = inputs()

    def loss(params):
        return jnp.mean(model.encode(params, x, mask, SoftMean()).x ** 2)

    own = {part: params[part] for part in ("head", "conditioning")}
    check_grads(jax.jit(lambda own: loss(params | own)), (own,), 1, ["rev"], atol=1e-2, rtol=1e-2, eps=3e-3)
    gradients = jax.jit(jax.grad(loss))(params)
    for part in (gradients["head"]["projection"], gradients["conditioning"], gradients["predictor"]["logits"]):
        assert all(np.any(leaf) for leaf in jax.tree.leaves(part))


def test_parameters_are_those_of_any_model_but_for_the_map():
    plain, own = (asr(taps).init(jax.random.key(0)) for taps in ((), TAPS))
    assert own.keys() - plain.keys() == {"conditioning"}
    jax.tree.map(np.testing.assert_array_equal, plain, {part: own[part] for part in plain})
    with pytest.raises(ValueError, match="conditioning/posteriors/kernel: not in the trained model"):
        warm_start(own, plain)


def test_flops_of_the_head_and_of_the_map_are_counted_at_each_tap():
    count = {
        taps: count_flops_by_part(asr(taps).config, num_mels=20, vocab_size=VOCABULARY, num_frames=103, executed=None)
        for taps in ((), TAPS)
    }
    frames = 25
    assert count[TAPS].self_conditioning == 2 * 2 * (2 * frames * 8 * VOCABULARY) and count[()].self_conditioning == 0
    assert count[TAPS].total - count[()].total == count[TAPS].self_conditioning


def test_layers_other_than_those_of_the_losses_are_refused():
    config = ExperimentConfig()
    config = replace(
        config, model=replace(config.model, self_conditioned_layers=(2,)), loss=LossConfig(interctc_layers=(1, 2))
    )
    with pytest.raises(ValueError, match=r"model\.self_conditioned_layers=\(2,\): expected the same as loss\.interctc"):
        validate_config(config)


def test_an_unconditioned_model_taps_what_is_asked_for():
    x, mask = inputs()
    model = asr(())
    assert len(model.encode(model.init(jax.random.key(0)), x, mask, Open(), (1,)).taps) == 1

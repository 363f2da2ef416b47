"""Warm start copies everything but the predictor and names what does not fit."""

import jax
import numpy as np
import pytest

from i3d_jax.model.decoder import Decoder, DecoderConfig
from i3d_jax.model.encoder import Encoder, EncoderConfig
from i3d_jax.model.gates import GateConfig
from i3d_jax.model.params import flatten, unflatten
from i3d_jax.training.warm_start import warm_start


def params(predictor="none", seed=0, **encoder):
    config = EncoderConfig(**{"num_layers": 2, "d_model": 8, "num_heads": 2, "ffn_dim": 16, **encoder})
    return Encoder(config, GateConfig(predictor=predictor)).init(jax.random.key(seed))


@pytest.mark.parametrize("predictor", ["none", "local", "global"])
def test_copies_all_but_the_predictor(predictor):
    dense, fresh = params(seed=1), params(predictor)
    started = flatten(warm_start(fresh, dense))
    assert started.keys() == flatten(fresh).keys()
    for name, leaf in started.items():
        source = flatten(fresh) if name.startswith("predictor/") else flatten(dense)
        np.testing.assert_array_equal(leaf, source[name])


def test_a_gated_model_continues_with_its_predictor():
    trained = params("global", seed=1)
    started = warm_start(params("global"), trained)
    np.testing.assert_array_equal(started["predictor"]["logits"]["bias"], trained["predictor"]["logits"]["bias"])


def test_every_mismatch_is_named():
    dense = params(num_layers=3)
    del dense["layers"]["ffn"]["hidden"]["bias"]
    dense["extra"] = np.zeros(3)
    with pytest.raises(ValueError) as error:
        warm_start(params("global"), dense)
    message = str(error.value)
    assert "layers/mha/qkv/kernel: (3, 8, 24) in the trained model, (2, 8, 24) here" in message
    assert "layers/ffn/hidden/bias: not in the trained model" in message
    assert "extra: only in the trained model" in message
    assert "predictor" not in message


def with_decoder(seed, layers=1):
    decoder = Decoder(DecoderConfig(layers, 2, 16), 8, 5).init(jax.random.key(seed))
    return {"decoder": decoder}


def test_a_decoder_is_taken_from_the_dense_model_or_starts_new():
    ctc, aed, fresh = params(seed=1), params(seed=1) | with_decoder(2), params("global") | with_decoder(3)
    for source, new, decoder in ((aed, False, aed), (aed, True, fresh), (ctc, True, fresh)):
        started = warm_start(fresh, source, new_decoder=new)
        assert jax.tree.all(jax.tree.map(np.array_equal, started["decoder"], decoder["decoder"]))
        assert jax.tree.all(jax.tree.map(np.array_equal, started["layers"], source["layers"]))
    with pytest.raises(ValueError, match=r"decoder/embedding: not in the trained model"):
        warm_start(fresh, ctc)
    with pytest.raises(ValueError, match=r"decoder/embedding: only in the trained model"):
        warm_start(params("global"), aed)
    other = params(seed=1) | with_decoder(2, layers=2)
    with pytest.raises(ValueError, match=r"decoder/layers/qkv/kernel: \(2, 8, 24\) in the trained model, \(1, 8, 24\)"):
        warm_start(fresh, other)
    assert warm_start(fresh, other, new_decoder=True).keys() == fresh.keys()


def test_flatten_round_trip():
    tree = params("local")
    assert jax.tree.all(jax.tree.map(np.array_equal, tree, unflatten(flatten(tree))))

"""Runs that start from a dense run: what is taken from it, what must agree, what stays as it is."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from i3d_jax.experiment import load_config
from i3d_jax.model.decoder import DecoderConfig
from i3d_jax.model.gates import GateConfig
from i3d_jax.run_folder import check_dense
from i3d_jax.runner import train
from i3d_jax.training.losses import LossConfig
from i3d_jax.training.warm_start import WarmStartConfig

CONFIG = Path(__file__).with_name("tiny_config.py")


def test_a_decoder_must_attend_as_the_dense_models(tmp_path):
    config = load_config(CONFIG)
    decoder = DecoderConfig(num_layers=1, num_heads=4)
    dense = dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))
    gated = dataclasses.replace(dense, model=dataclasses.replace(dense.model, decoder=DecoderConfig(1, 2)))
    with pytest.raises(ValueError, match=r"model.decoder.num_heads: 4 there, 2 here"):
        check_dense(dense, gated, epath.Path(tmp_path))
    check_dense(dense, dataclasses.replace(gated, warm_start=WarmStartConfig(new_decoder=True)), epath.Path(tmp_path))
    check_dense(config, gated, epath.Path(tmp_path))  # whose decoder is missing: the parameters say so


def test_global_normalisation_and_local_gates_or_none_from_a_dense_run(tmp_path):
    config = load_config(CONFIG)
    dense = dataclasses.replace(
        config,
        name="dense",
        frontend=dataclasses.replace(config.frontend, normalization="global", normalize_variance=True),
        model=dataclasses.replace(config.model, gates=GateConfig()),
        loss=LossConfig(),
        training=dataclasses.replace(config.training, epochs=1),
    )
    started = train(dense, tmp_path / "dense")
    gated = dataclasses.replace(
        dense,
        name="local",
        model=dataclasses.replace(dense.model, gates=GateConfig(predictor="local")),
        loss=LossConfig(utility_weight=1.0),
        training=dataclasses.replace(dense.training, trainable="predictor"),
        warm_start=WarmStartConfig(run=str(tmp_path / "dense")),
    )
    recognizer = train(gated, tmp_path / "local")
    for name, params in started.params.items():
        jax.tree.map(np.testing.assert_array_equal, recognizer.params[name], params)
    assert np.any(recognizer.params["predictor"]["logits"]["kernel"]), "it starts at zero"
    for ours, theirs in zip(recognizer.stats, started.stats, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (np.asarray(recognizer.stats.std) > 0).all()
    assert recognizer.tokenizer.encode("LOW HILL") == started.tokenizer.encode("LOW HILL")
    # The control without gates goes on from the same weights: with steps too small for float32 they stay.
    still = dataclasses.replace(gated.optimizer, learning_rate=1e-12, weight_decay=0.0)
    finetuned = dataclasses.replace(dense, name="finetuned", optimizer=still, warm_start=gated.warm_start)
    again = train(finetuned, tmp_path / "finetuned")
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-7), again.params, started.params))
    assert len((tmp_path / "finetuned" / "log.jsonl").read_text().splitlines()) > 2
    other = dataclasses.replace(gated, tokenizer=dataclasses.replace(gated.tokenizer, vocab_size=30))
    with pytest.raises(ValueError, match=r"tokenizer.vocab_size: 40 there, 30 here"):
        train(other, tmp_path / "other")

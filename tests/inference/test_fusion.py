"""Decoding with a neural language model through the recogniser: what it changes, and what is refused."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from i3d_jax.audio.frontend import FrontendConfig
from i3d_jax.data.tokenizer import Tokenizer, TokenizerConfig
from i3d_jax.inference.bundle import RecognizerConfig
from i3d_jax.inference.decoding_config import DecodingConfig
from i3d_jax.inference.language_model_bundle import LanguageModelBundle, LanguageModelInfo, save_language_model
from i3d_jax.inference.recognizer import Recognizer
from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.decoder import DecoderConfig
from i3d_jax.model.encoder import EncoderConfig
from i3d_jax.model.language_model import LanguageModel, LanguageModelConfig
from i3d_jax.model.subsampling import SubsamplingConfig
from i3d_jax.training.compiled import compilations


def tokenizer(*texts):
    return Tokenizer.train(list(texts), TokenizerConfig(kind="char"))


def language_model(folder, own):
    """One that knows no other letter than its favourites, saved."""
    model = LanguageModel(LanguageModelConfig(num_layers=1, width=8), own.vocab_size)
    params = jax.jit(model.init)(jax.random.key(0))
    favourites = np.isin([own.piece(i) for i in range(own.vocab_size)], ["L", "O"])
    params["ends"]["bias"] = np.where(favourites, 5.0, 0.0).astype(np.float32)
    save_language_model(LanguageModelBundle(LanguageModelInfo("lm", model.config), params, own), folder)
    return str(folder)


@pytest.fixture(scope="module")
def asr():
    own = tokenizer("LOW HILL", "NEAR OLD TREE")
    config = ModelConfig(
        SubsamplingConfig(channels=4),
        EncoderConfig(num_layers=1, d_model=16, num_heads=2, ffn_dim=32),
        decoder=DecoderConfig(1, 2, 32),
    )
    params = jax.jit(ASRModel(config, 80, own.vocab_size).init)(jax.random.key(0))
    bias = params["head"]["projection"]["bias"]
    params["head"]["projection"]["bias"] = bias.at[-1].set(-100.0)  # a trained model never says the end
    return Recognizer(RecognizerConfig(frontend=FrontendConfig(), model=config), params, own)


@pytest.mark.parametrize("decoder", ["prefix_beam", "attention", "joint"])
def test_a_language_model_has_a_say_in_every_beam_search(asr, tmp_path, decoder):
    lm = language_model(tmp_path / "lm", asr.tokenizer)
    samples = np.random.default_rng(0).standard_normal(12000).astype(np.float32) * 0.1
    attends = {} if decoder == "prefix_beam" else {"length_bonus": 4.0, "max_length_ratio": 0.5}

    def text(weight):
        config = DecodingConfig(decoder, beam=3, n_best=2, lm=lm, lm_weight=weight, word_score=1e-6, **attends)
        found = asr.transcribe(samples, sample_rate=16000, decoder=config)
        assert len(found.alternatives) == 2 and found.alternatives[0].text == found.text != ""
        return found.text

    alone = asr.transcribe(samples, sample_rate=16000, decoder=DecodingConfig(decoder, beam=3, **attends))
    assert text(0.0) == alone.text != text(3.0)
    assert set(alone.text) - set("LO "), "the model is to matter"
    assert not set(text(3.0)) - set("LO ")


def test_weights_are_not_another_compilation(asr, tmp_path):
    lm = language_model(tmp_path / "lm", asr.tokenizer)
    base = DecodingConfig("joint", beam=2, lm=lm, max_length_ratio=0.5)
    first = asr.with_decoder(base)
    batch = np.zeros((1, 8000), np.float32), np.array([8000], np.int32)
    scored = first.run(*batch, first.decision(), "masked")
    compilations()
    first.decoder(scored, first.params)
    weights = {"lm_weight": 0.9, "ctc_weight": 0.7, "length_bonus": 1.0, "word_score": 2.0}
    other = first.decoder.reweighted(replace(base, **weights))
    before = compilations()
    other(scored, first.params)
    assert compilations() == before
    first.decoder.reweighted(replace(base, beam=5))(scored, first.params)
    assert compilations() > before


def test_a_language_model_of_other_tokens_is_refused(asr, tmp_path):
    lm = language_model(tmp_path / "lm", tokenizer("SOME OTHER TEXT"))
    with pytest.raises(ValueError, match="of other tokens than the recogniser's: train it with --text.run=RUN"):
        asr.with_decoder(DecodingConfig("joint", lm=lm))
    asr.save(tmp_path / "recogniser")
    with pytest.raises(ValueError, match="recogniser"):
        asr.with_decoder(DecodingConfig("joint", lm=str(tmp_path / "recogniser")))
    with pytest.raises(ValueError, match="with the neural language model .* there is none"):
        DecodingConfig("prefix_beam", lm=lm, lexicon=__file__)

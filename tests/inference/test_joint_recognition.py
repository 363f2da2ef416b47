"""Joint decoding in every execution: the same transcripts as the search on the encoder's states; what is refused."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i3d_jax.audio.frontend import FrontendConfig
from i3d_jax.data.corpora import Corpus, Utterance
from i3d_jax.data.tokenizer import Tokenizer, TokenizerConfig
from i3d_jax.inference.bundle import RecognizerConfig
from i3d_jax.inference.decoding_config import GREEDY, DecodingConfig
from i3d_jax.inference.evaluation import real_time_factor
from i3d_jax.inference.execution import EXECUTIONS
from i3d_jax.inference.joint_decoding import joint_search
from i3d_jax.inference.recognizer import Recognizer, load
from i3d_jax.inference.scheduler import Work, recognize_batches
from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.decoder import DecoderConfig
from i3d_jax.model.encoder import EncoderConfig
from i3d_jax.model.gates import GateConfig, Threshold
from i3d_jax.model.subsampling import SubsamplingConfig

LENGTHS = np.array([8000, 5200, 3000, 0], np.int32)
SEARCH = DecodingConfig("joint", beam=3, ctc_weight=0.3, max_length_ratio=0.5)


@pytest.fixture(scope="module")
def plain():
    tokenizer = Tokenizer.train(["LOW HILL", "NEAR OLD TREE"], TokenizerConfig(kind="char"))
    encoder = EncoderConfig(num_layers=2, d_model=16, num_heads=2, ffn_dim=32)
    config = ModelConfig(
        SubsamplingConfig(channels=4), encoder, GateConfig(predictor="global"), decoder=DecoderConfig(1, 2, 32)
    )
    params = jax.jit(ASRModel(config, 80, tokenizer.vocab_size).init)(jax.random.key(0))
    logits = params["predictor"]["logits"]
    logits["kernel"] = jax.random.normal(jax.random.key(5), logits["kernel"].shape)
    logits["bias"] = jnp.zeros_like(logits["bias"])
    params["decoder"]["output"]["projection"]["kernel"] *= 4
    return Recognizer(RecognizerConfig(frontend=FrontendConfig(), model=config), params, tokenizer)


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    waveform = np.zeros((4, 8000), np.float32)
    for row, length in enumerate(LENGTHS):
        waveform[row, :length] = 0.1 * generator.standard_normal(length) * np.linspace(0, 1 + row, length)
    return waveform


@pytest.fixture(scope="module")
def joint(plain):
    return plain.with_decoder(SEARCH)


@pytest.fixture(scope="module")
def expected(plain, batch):
    """Tokens of the best hypothesis of each row, searched outside of the pipeline."""
    model, params = plain.model, plain.params

    @jax.jit
    def run(params):
        x, frames = model.embed(params, *plain.pipeline.features(batch, LENGTHS))
        x = model.encoder.apply(params, x, frames, Threshold(0.5)).x
        states, logits = model.normalise(params, x), model.project(params, x)
        return joint_search(SEARCH.joint, model.decoder, params["decoder"], states, logits, frames)

    found = run(params)
    return [found.tokens[row, 0, : int(found.num_tokens[row, 0])].tolist() for row in range(4)]


def rows(recognition):
    return [own[:count].tolist() for own, count in zip(recognition.tokens, recognition.num_tokens, strict=True)]


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_every_execution_finds_the_hypotheses_of_the_search(plain, joint, batch, expected, execution):
    decide = Threshold(0.5)
    assert len(set(map(tuple, expected))) == 4 and expected[3] == []
    if execution == "eager":
        for row in range(3):
            own = joint.recognize(batch[row : row + 1], LENGTHS[row : row + 1], decide, execution)
            assert rows(own) == [expected[row]]
        return
    found, greedy = (each.recognize(batch, LENGTHS, decide, execution) for each in (joint, plain))
    assert rows(found) == expected != rows(greedy)
    assert found.tokens.shape == greedy.tokens.shape
    for field in ("gates", "num_frames"):
        np.testing.assert_array_equal(getattr(found, field), getattr(greedy, field))
    np.testing.assert_allclose(found.gate_probabilities, greedy.gate_probabilities, rtol=1e-4, atol=1e-5)
    assert found.scores is None  # they are large, and stay on the device
    for row in range(4):  # the path is an alignment of the transcript
        assert [token for token, _ in itertools.groupby(found.path[row]) if token] == rows(found)[row]


def test_regrouped_rows_and_devices_find_the_same(joint, batch, expected, monkeypatch):
    monkeypatch.setattr(Recognizer, "regroups", lambda self, shape, execution: self.split is None)
    work = [Work(np.arange(4), batch, LENGTHS)]
    found = {}
    for indices, recognition in recognize_batches(joint, iter(work), Threshold(0.5), "compacted"):
        found |= dict(zip(indices.tolist(), rows(recognition), strict=False))
    assert [found[index] for index in range(4)] == expected
    split = joint.over_devices(jax.devices()[:2])
    assert rows(split.recognize(batch, LENGTHS, Threshold(0.5), "conditional")) == expected


def test_transcribe_and_a_saved_model_decode_alike(plain, joint, batch, tmp_path):
    samples = batch[0]
    plain.save(tmp_path / "model")
    loaded = load(tmp_path / "model").with_decoder(SEARCH)
    text = joint.transcribe(samples, sample_rate=16000).text
    assert (
        text == loaded.transcribe(samples, sample_rate=16000).text != plain.transcribe(samples, sample_rate=16000).text
    )
    assert joint.with_decoder(GREEDY).transcribe(samples, sample_rate=16000).text != text


def test_several_transcripts_and_times_of_their_words(plain, batch):
    several = dataclasses.replace(SEARCH, n_best=3)
    result = plain.transcribe(batch[0], sample_rate=16000, decoder=several, timestamps=True)
    assert len(result.alternatives) == 3 and result.alternatives[0].text == result.text
    scores = [one.score for one in result.alternatives]
    assert scores == sorted(scores, reverse=True)
    assert " ".join(word.word for word in result.words) == result.text != ""
    times = [edge for word in result.words for edge in word[1:3]]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= result.audio_seconds
    assert all(0 < word.confidence <= 1 for word in result.words)


@pytest.mark.parametrize("decoder", ["attention", "joint"])
def test_long_audio_is_merged_from_windows(plain, batch, decoder):
    result = plain.transcribe(
        np.tile(batch[0], 5),
        sample_rate=16000,
        decoder=DecodingConfig(decoder, beam=2, max_length_ratio=0.5),
        timestamps=True,
        window_seconds=1.0,
    )
    assert len(result.segments) > 2
    assert " ".join(word.word for word in result.words) == result.text != ""


def test_the_decoder_has_a_real_time_factor_of_its_own(plain, batch):
    audio = [batch[row, :length] for row, length in enumerate(LENGTHS[:3])]
    own = tuple(Utterance(str(row), "LOW HILL", len(heard), "a", heard) for row, heard in enumerate(audio))
    corpus = Corpus("three", own, 16000)
    found = real_time_factor(plain.with_decoder(SEARCH), corpus, Threshold(0.5), "conditional", 3)
    assert 0 < found.decoder < found.total


def test_a_model_without_a_decoder_is_refused(plain):
    config = dataclasses.replace(plain.config.model, decoder=DecoderConfig())
    params = {name: part for name, part in plain.params.items() if name != "decoder"}
    ctc = Recognizer(dataclasses.replace(plain.config, model=config), params, plain.tokenizer)
    with pytest.raises(ValueError, match="decoder 'joint' needs an attention decoder"):
        ctc.with_decoder(SEARCH)

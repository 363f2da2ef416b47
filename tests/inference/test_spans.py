import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax.audio.frontend import FrontendConfig, log_mel
from i3d_jax.data.tokenizer import Tokenizer, TokenizerConfig
from i3d_jax.inference.spans import joined, token_spans
from i3d_jax.inference.timestamps import frame_centre, word_times
from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.encoder import EncoderConfig

paths = st.lists(st.integers(0, 2), max_size=12)


@given(paths, st.integers(0, 100))
def test_spans_are_the_runs_of_a_path(path, first):
    posteriors = np.linspace(0.1, 0.9, len(path))
    spans = token_spans(np.array(path), np.log(posteriors), first)
    rebuilt = np.zeros(len(path), int)
    for token, start, end, confidence in zip(*spans, strict=True):
        assert token != 0 and not rebuilt[start - first : end - first].any()
        rebuilt[start - first : end - first] = token
        assert confidence == pytest.approx(posteriors[start - first : end - first].mean(), rel=1e-5)
        assert start == first or path[start - first - 1] != token  # no run is cut
    np.testing.assert_array_equal(rebuilt, path)
    assert (np.diff(spans.starts) > 0).all()


def test_without_probabilities_there_is_no_confidence():
    spans = token_spans(np.array([0, 3, 3, 0, 3]))
    assert spans.tokens.tolist() == [3, 3] and spans.ends.tolist() == [3, 5] and np.isnan(spans.confidences).all()
    both = joined([spans, spans.part(slice(1))])
    assert both.starts.tolist() == [1, 4, 1] and joined([]).tokens.tolist() == []


TEXTS = ["THE HOUSE IS NEW", "WE FOUND THE RED BOOK", "A HOUSE"]
TOKENIZERS = {kind: Tokenizer.train(TEXTS, TokenizerConfig(kind, 30)) for kind in ("unigram", "bpe", "char")}


@given(st.sampled_from(sorted(TOKENIZERS)), st.lists(st.integers(0, 100), max_size=15))
def test_words_are_those_of_the_text(kind, ids):
    tokenizer = TOKENIZERS[kind]
    ids = [i % tokenizer.vocab_size for i in ids]
    words = tokenizer.words(ids)
    assert [word for word, _ in words] == tokenizer.decode(ids).split()
    positions = [position for _, own in words for position in own]
    assert positions == sorted(set(positions)) and all(own for _, own in words)


@pytest.mark.parametrize("preset, seconds", [("kaldi", 0.0425), ("espnet", 0.030)])
def test_the_centre_of_a_frame_is_that_of_what_it_reads(preset, seconds):
    config = FrontendConfig(preset)
    assert frame_centre(config, 0) / 16000 == seconds
    assert frame_centre(config, 5) - frame_centre(config, 0) == 5 * 640
    # Samples at both ends of what frame 2 reads change it, those beyond do not.
    model = ASRModel(ModelConfig(encoder=EncoderConfig(num_layers=1, d_model=16, num_heads=2, ffn_dim=16)), 80, 9)
    params = model.init(jax.random.key(0))
    noise = np.random.default_rng(0).standard_normal((1, 8000)).astype(np.float32)

    @jax.jit
    def frame(waveform):
        return model.embed(params, *log_mel(config, waveform, jnp.array([8000])))[0][0, 2]

    changed = [noise.copy() for _ in range(4)]
    centre, reach = frame_centre(config, 2), 3 * 160 + 200
    for waveform, position in zip(changed, (-reach - 3, -reach + 20, reach - 20, reach + 3), strict=True):
        waveform[0, centre + position - 3 : centre + position + 3] += 100.0
    differs = [bool(np.abs(frame(waveform) - frame(noise)).max() > 1e-4) for waveform in changed]
    assert differs == [False, True, True, False]


def test_words_get_times_in_order_and_the_least_confidence():
    tokenizer = TOKENIZERS["char"]
    ids = tokenizer.encode("A HOUSE")
    path = np.zeros(30, np.int32)
    frames = np.array([2, 3, 10, 11, 13, 14, 16, 17][: len(ids)])
    path[frames] = ids
    log_probs = np.full(30, -0.1)
    log_probs[13] = np.log(0.25)
    spans = token_spans(path, log_probs)
    house = [frame for frame, id in zip(frames, ids, strict=True) if frame >= 10]
    first, second = word_times(tokenizer, spans, FrontendConfig(), 17 * 640)
    assert (first.word, second.word) == ("A", "HOUSE")
    assert first.begin == pytest.approx(0.04 * 2 + 0.0225) and first.confidence == pytest.approx(np.exp(-0.1))
    assert second.begin >= first.end and second.confidence == pytest.approx(0.25)
    assert second.end == pytest.approx(min(17 * 0.04, 0.04 * house[-1] + 0.0625))
    backwards = spans._replace(starts=spans.starts[::-1], ends=spans.ends[::-1])
    times = [edge for word in word_times(tokenizer, backwards, FrontendConfig(), 99999) for edge in word[1:3]]
    assert times == sorted(times)

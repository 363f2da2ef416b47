import dataclasses

import numpy as np
import pytest

from i3d_jax.analysis.covariates import (
    LENGTH,
    RATE,
    SNR,
    estimate_snr,
    explain_gates,
    noise_levels,
    utterance_covariates,
)
from i3d_jax.data.corpora import DataConfig, load_corpus
from tests.analysis.utterance_tables import make_table


def speech(snr, seed=0):
    """Two seconds of noise-like speech with pauses, and noise so many dB below the louder half."""
    rng = np.random.default_rng(seed)
    talking = np.repeat([1, 1, 0, 1, 0, 1, 1, 0], 4000)
    return talking * rng.standard_normal(32000) + 10 ** (-snr / 20) * rng.standard_normal(32000)


@pytest.mark.parametrize("snr", [0, 10, 20, 40])
def test_noise_level_of_speech_with_pauses(snr):
    assert estimate_snr(speech(snr), 16000) == pytest.approx(snr, abs=2)
    assert estimate_snr(0.01 * speech(snr), 16000) == pytest.approx(estimate_snr(speech(snr), 16000), abs=0.01)


def test_noise_levels_of_a_corpus():
    corpus = load_corpus(DataConfig(source="synthetic"), "test")
    levels = noise_levels(corpus)
    assert levels.shape == (len(corpus),) and np.isfinite(levels).all()
    assert levels[1] == estimate_snr(corpus.load_audio(1), corpus.sample_rate)
    with pytest.raises(ValueError, match="100 samples are too few"):
        estimate_snr(np.ones(100), 16000)


def test_covariates():
    table = make_table(20)
    found = utterance_covariates(table, np.arange(20))
    assert list(found) == [LENGTH, RATE, SNR]
    np.testing.assert_allclose(found[RATE] * found[LENGTH], table.words)


def test_gates_that_depend_on_length_are_explained_by_it():
    table = make_table(120)
    found = explain_gates(
        table, {LENGTH: table.audio_seconds, "luck": np.random.default_rng(9).random(120)}, samples=200
    )
    assert list(found) == ["executed layers", "expected layers", "expected MHA blocks", "expected FFN blocks"]
    for one in found.values():
        assert one.coefficients[LENGTH].interval[0] > 0.5 and one.r_squared > 0.6
        assert abs(one.coefficients["luck"].standardised) < 0.15
        assert one.clusters == 6, "speakers"


def test_static_decisions_are_told_and_probabilities_explained_all_the_same():
    table = make_table(60)
    static = dataclasses.replace(table, gates=np.ones_like(table.gates))
    found = explain_gates(static, {LENGTH: table.audio_seconds}, samples=20)
    assert found["executed layers"] == "executed layers is the same for all 60 utterances: there is nothing to explain"
    assert found["expected layers"].r_squared > 0.6


def test_an_utterance_too_short_for_a_noise_level_is_named_before_audio_is_read(monkeypatch):
    corpus = load_corpus(DataConfig(source="synthetic"), "dev")
    short = dataclasses.replace(corpus.utterances[1], id="short", num_samples=3999)
    corpus = dataclasses.replace(corpus, utterances=(corpus.utterances[0], short))
    monkeypatch.setattr(type(corpus), "load_audio", lambda *_: pytest.fail("read before the check"))
    with pytest.raises(ValueError, match=r"utterance short lasts 0\.25 s, too short .* leave out --audio"):
        noise_levels(corpus)

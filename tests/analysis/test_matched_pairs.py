import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from i3d_jax.analysis.matched_pairs import AddNoise, Gain, Silence, Speed, compare_pairs, matched_pairs
from i3d_jax.data.corpora import Corpus, Utterance
from i3d_jax.inference.recognizer import load
from i3d_jax.model.gates import Fixed
from tests.analysis.test_covariates import speech
from tests.analysis.utterance_tables import make_table

DEMO_MODEL = Path(__file__).parents[2] / "docs" / "demo_model"
RNG = np.random.default_rng


@pytest.fixture(scope="module")
def asr():
    return load(DEMO_MODEL)


@pytest.fixture(scope="module")
def corpus(asr):
    utterances = []
    for k in range(4):
        wave = (0.1 * speech(30, seed=k)[: 24000 + 2000 * k]).astype(np.float32)
        utterances.append(_utterance(f"{k % 2}-1-{k}", wave))
    return Corpus("bursts", tuple(utterances), 16000)


def _utterance(key, wave):
    return Utterance(key, "ANNA OPENED THE BOOK", len(wave), key.split("-")[0], wave)


def test_changes_are_what_they_say():
    wave = speech(20).astype(np.float32)
    for snr in (0.0, 20.0):
        noise = AddNoise(snr)(wave, 16000, RNG(0)) - wave
        assert 10 * np.log10(np.mean(wave**2) / np.mean(noise**2)) == pytest.approx(snr, abs=0.1)
    assert len(Speed(0.8)(wave, 16000, RNG(0))) == 40000
    longer = Silence(0.5)(wave, 16000, RNG(0))
    assert len(longer) == 40000 and (longer[:32000] == wave).all()
    assert longer[32000:].std() < 0.2 * wave.std()
    np.testing.assert_allclose(Gain(-6.0)(wave, 16000, RNG(0)), wave / 10**0.3, rtol=1e-5)
    names = [c.name for c in (AddNoise(10.0), Speed(0.9), Silence(1.0), Gain(-6.0))]
    assert names == ["noise, 10 dB SNR", "speed × 0.9", "+ 1 s of silence", "level -6 dB"]


def test_pairs_of_a_model(asr, corpus):
    changes = (Speed(1.0), Gain(-6.0), AddNoise(0.0))
    same, quieter, noisy = matched_pairs(asr, corpus, asr.decision(), changes=changes, samples=50, interactive=False)
    assert same.expected_layers.mean == same.wer.mean == same.flipped_gates == 0
    assert abs(quieter.expected_layers.mean) < 1e-4, "the front end subtracts the mean of an utterance"
    # Against recognising each utterance alone.
    differences = []
    for i in range(len(corpus)):
        wave = corpus.load_audio(i)
        changed = AddNoise(0.0)(wave, 16000, RNG([0, i]))
        a, b = (asr.transcribe(w, sample_rate=16000).gate_probabilities for w in (wave, changed))
        differences.append(b - a)
    np.testing.assert_allclose(noisy.gate_differences, np.mean(differences, axis=0), atol=1e-4)
    assert noisy.expected_layers.mean == pytest.approx(np.sum(noisy.gate_differences) / 2, abs=1e-4)
    assert noisy.utterances == 4 and noisy.expected_layers.interval[0] <= noisy.expected_layers.mean


def test_fixed_gates_do_not_move(asr, corpus):
    pattern = np.array(jax.random.bernoulli(jax.random.key(0), 0.6, (6, 2)))
    (one,) = matched_pairs(asr, corpus, Fixed(pattern), changes=(AddNoise(0.0),), samples=20, interactive=False)
    assert one.executed_layers == (0.0, (0.0, 0.0)) and one.flipped_gates == 0


def test_a_known_difference_is_found():
    table = make_table(80)
    rng = RNG(3)
    shifted = np.clip(table.probabilities + 0.05 + 0.02 * rng.standard_normal(table.probabilities.shape), 0, 1)
    changed = dataclasses.replace(table, probabilities=shifted, gates=shifted > 0.5)
    found = compare_pairs(table, changed, "shift", table.speakers)
    expected = (shifted - table.probabilities).sum(axis=(1, 2)).mean() / 2
    assert found.expected_layers.mean == pytest.approx(expected)
    assert found.expected_layers.interval[0] > 0 and found.wer == (0.0, (0.0, 0.0))
    assert found.flipped_gates == pytest.approx((changed.gates ^ table.gates).mean())


def test_bad_input(asr, corpus):
    with pytest.raises(ValueError, match="each with a name of its own"):
        matched_pairs(asr, corpus, asr.decision(), changes=(Gain(1.0), Gain(1.0)))
    with pytest.raises(ValueError, match="at least one"):
        matched_pairs(asr, corpus, asr.decision(), changes=())
    with pytest.raises(ValueError, match="at least two utterances"):
        matched_pairs(asr, corpus, asr.decision(), utterances=1)

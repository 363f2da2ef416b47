import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import kaldi_native_fbank as knf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from i3d_jax.audio.frontend import (
    FrontendConfig,
    GlobalStats,
    accumulate_stats,
    finish_stats,
    log_mel,
    normalize,
    num_frames,
)
from i3d_jax.audio.io import read_audio

PRESETS = ["kaldi", "espnet"]
features_of = jax.jit(log_mel, static_argnums=0)


def speechlike(num_samples, seed=0):
    """Coloured noise with a loud and a quiet half, a tone and an offset."""
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.normal(size=num_samples)) * 0.01
    x = x - np.convolve(x, np.ones(50) / 50, "same") + 0.05 * np.sin(0.3 * np.arange(num_samples)) + 0.02
    x[num_samples // 2 :] *= 0.05
    return np.clip(x, -1, 1).astype(np.float32)


def kaldi_reference(x, num_mels=80):
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = num_mels
    options.mel_opts.high_freq = 8000.0
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(16000, (x * 32768.0).tolist())
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


def slaney_filters(num_mels):
    """From the definition (as librosa's ``filters.mel`` gives them), frequency by frequency."""

    def hertz(mel):
        return 200.0 * mel / 3.0 if mel < 15 else 1000.0 * 6.4 ** ((mel - 15) / 27.0)

    top = 15 + 27 * np.log(8.0) / np.log(6.4)  # the mel of 8000 Hz
    points = [hertz(top * i / (num_mels + 1)) for i in range(num_mels + 2)]
    filters = np.zeros((257, num_mels))
    for m in range(num_mels):
        low, middle, high = points[m : m + 3]
        for k in range(257):
            f = k * 16000 / 512
            height = (f - low) / (middle - low) if f <= middle else (high - f) / (high - middle)
            filters[k, m] = max(0.0, height) * 2 / (high - low)
    return filters


def espnet_reference(x, num_mels=80):
    """Centred STFT of one utterance, with numpy's FFT in float64: the window sits in the middle of 512 samples."""
    padded = np.pad(x.astype(np.float64), 256, mode="reflect")
    window = np.zeros(512)
    window[56:456] = 0.5 * (1 - np.cos(2 * np.pi * np.arange(400) / 400))
    frames = np.stack([padded[i : i + 512] for i in range(0, len(padded) - 511, 160)])
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    return np.log(np.maximum(power @ slaney_filters(num_mels), 1e-10))


REFERENCES = {"kaldi": kaldi_reference, "espnet": espnet_reference}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("num_mels", [80, 23])
def test_equals_the_reference(preset, num_mels):
    x = speechlike(16000 + 123)
    features, mask = features_of(FrontendConfig(preset=preset, num_mels=num_mels), x[None], np.array([len(x)]))
    expected = REFERENCES[preset](x, num_mels)
    assert mask.all()
    assert features.shape[1:] == expected.shape
    np.testing.assert_allclose(features[0], expected, atol=2e-3)
    assert np.abs(features[0] - expected).mean() < 5e-5


@pytest.mark.parametrize("preset", PRESETS)
def test_silence_is_the_log_floor(preset):
    features, _ = features_of(FrontendConfig(preset=preset), np.zeros((1, 1600), np.float32), np.array([1600]))
    floor = np.finfo(np.float32).eps if preset == "kaldi" else 1e-10
    np.testing.assert_allclose(features, np.log(floor), rtol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_real_speech_equals_the_reference(preset):
    folder = os.environ.get("I3D_SPEECH_DIR")
    if not folder:
        pytest.skip("I3D_SPEECH_DIR is not set")
    path = min(Path(folder).glob("an4/an4/*/*/*.flac"))
    x = read_audio(path, 16000)
    features, _ = features_of(FrontendConfig(preset=preset), x[None], np.array([len(x)]))
    difference = np.abs(features[0] - REFERENCES[preset](x))
    assert difference.max() < 1e-2 and difference.mean() < 5e-5


@given(st.sampled_from(PRESETS), st.integers(0, 2000))
def test_num_frames_is_what_log_mel_returns(preset, num_samples):
    config = FrontendConfig(preset=preset, num_mels=8)
    shape = jax.eval_shape(partial(log_mel, config), jnp.zeros((1, num_samples)), jnp.array([num_samples]))[0].shape
    assert num_frames(config, num_samples) == shape[1]
    assert isinstance(num_frames(config, num_samples), int)
    np.testing.assert_array_equal(num_frames(config, np.array([num_samples])), [shape[1]])
    np.testing.assert_array_equal(num_frames(config, jnp.array([num_samples])), [shape[1]])


@pytest.mark.parametrize("preset", PRESETS)
def test_the_batch_changes_nothing_and_padding_is_zero(preset):
    config = FrontendConfig(preset=preset)
    lengths = [3999, 8000, 400, 100, 0]  # 8000: unpadded; the last ones too short for a frame
    rows = [speechlike(n, seed) if n else np.zeros(0, np.float32) for seed, n in enumerate(lengths)]
    waveform = np.full((len(rows), 8000), np.nan, np.float32)  # NaN beyond the utterances
    for padded, row in zip(waveform, rows, strict=True):
        padded[: len(row)] = row
    features, mask = features_of(config, waveform, np.array(lengths))
    assert np.isfinite(features).all()
    assert (np.asarray(features)[~np.asarray(mask)] == 0).all()
    for i, n in enumerate(lengths):
        frames = num_frames(config, n)
        assert mask[i].sum() == frames and mask[i, :frames].all()
        if frames:
            alone, _ = features_of(config, rows[i][None], np.array([n]))
            np.testing.assert_allclose(features[i, :frames], alone[0], atol=1e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_nan_in_padding_leaves_gradients_alone(preset):
    config = FrontendConfig(preset=preset, num_mels=10)

    def loss(waveform):
        features, mask = log_mel(config, waveform, np.array([900, 1000]))
        return (normalize(config, features, mask) ** 2).sum()

    x = np.stack([speechlike(1200, 1), speechlike(1200, 2)])
    poisoned = x.copy()
    poisoned[0, 900:] = np.nan
    poisoned[1, 1000:] = np.inf
    gradient = jax.jit(jax.grad(loss))
    clean, dirty = gradient(x), gradient(poisoned)
    np.testing.assert_array_equal(clean, dirty)
    assert (np.asarray(dirty)[0, 900:] == 0).all() and np.abs(dirty[0, :900]).max() > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_gradient(preset):
    config = FrontendConfig(preset=preset, num_mels=5)
    noise = np.random.default_rng(0).normal(size=(1, 700)).astype(np.float32)
    check_grads(lambda x: features_of(config, x, np.array([650]))[0] / 10, (noise,), 1, ["rev"], atol=2e-2, rtol=2e-2)


def random_features(lengths, mels=6, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.arange(max(lengths))[None, :] < np.array(lengths)[:, None]
    features = rng.normal(3.0, 2.0, (*mask.shape, mels)).astype(np.float32)
    return np.where(mask[:, :, None], features, np.nan), mask  # what padding holds must not matter


@pytest.mark.parametrize("variance", [False, True])
def test_utterance_normalization(variance):
    features, mask = random_features([30, 7, 0])
    y = normalize(FrontendConfig(normalize_variance=variance), features, mask)
    for i, n in enumerate([30, 7]):
        rows = features[i, :n].astype(np.float64)
        expected = (rows - rows.mean(axis=0)) / (rows.std(axis=0) if variance else 1)
        np.testing.assert_allclose(y[i, :n], expected, atol=1e-5)
    assert (np.asarray(y)[~mask] == 0).all()


def test_constant_features_stay_finite_forward_and_backward():
    mask = np.ones((1, 5), bool)
    config = FrontendConfig(normalize_variance=True)
    constant = jnp.full((1, 5, 3), -15.9)
    value, gradient = jax.value_and_grad(lambda x: jnp.abs(normalize(config, x, mask)).max())(constant)
    assert value < 1e-2 and np.isfinite(gradient).all()


@pytest.mark.parametrize("variance", [False, True])
def test_global_normalization_with_accumulated_statistics(variance):
    batches = [random_features([20, 11], seed=1), random_features([9, 0, 4], seed=2)]
    sums = None
    for features, mask in batches:
        sums = accumulate_stats(sums, features, mask)
    stats = finish_stats(sums)
    rows = np.concatenate([features[mask] for features, mask in batches]).astype(np.float64)
    np.testing.assert_allclose(stats.mean, rows.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(stats.std, rows.std(axis=0), rtol=1e-6)
    config = FrontendConfig(normalization="global", normalize_variance=variance)
    features, mask = batches[0]
    y = np.asarray(normalize(config, features, mask, stats))
    scale = stats.std if variance else 1
    np.testing.assert_allclose(y[mask], (features[mask] - stats.mean) / scale, rtol=1e-5, atol=1e-6)
    assert (y[~mask] == 0).all()


def test_no_normalization_only_cuts_the_padding():
    features, mask = random_features([5, 3])
    y = normalize(FrontendConfig(normalization="none"), features, mask)
    np.testing.assert_array_equal(y, np.where(mask[:, :, None], features, 0))


def test_errors():
    features, mask = random_features([5])
    config = FrontendConfig(normalization="global")
    with pytest.raises(ValueError, match="no statistics were given; compute them"):
        normalize(config, features, mask)
    with pytest.raises(ValueError, match=r"\(80,\) mel channels, the features have \(6,\)"):
        normalize(config, features, mask, GlobalStats(np.zeros(80), np.ones(80)))
    with pytest.raises(ValueError, match="at least one valid frame"):
        finish_stats(None)
    with pytest.raises(ValueError, match=r"frontend\.preset 'htk'"):
        FrontendConfig(preset="htk")
    with pytest.raises(ValueError, match=r"frontend\.normalization 'batch'"):
        FrontendConfig(normalization="batch")
    with pytest.raises(ValueError, match=r"frontend\.num_mels 0"):
        FrontendConfig(num_mels=0)

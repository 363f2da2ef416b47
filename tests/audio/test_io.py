import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax.audio.io import audio_info, change_speed, num_samples_after_speed, read_audio, resample


def tone(hertz, rate, seconds=0.5):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def peak_frequency(x, rate):
    spectrum = np.abs(np.fft.rfft(x * np.hanning(len(x)), 1 << 16))
    return np.argmax(spectrum) * rate / (1 << 16)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_reads_formats(tmp_path, name):
    path = tmp_path / name
    soundfile.write(path, tone(440, 16000), 16000)
    x = read_audio(path, 16000)
    assert x.dtype == np.float32 and x.ndim == 1 and np.abs(x).max() <= 1
    assert (len(x), 16000) == audio_info(path)
    assert peak_frequency(x, 16000) == pytest.approx(440, abs=2)


def test_samples_are_exact_and_channels_are_averaged(tmp_path):
    x = np.round(np.random.default_rng(0).uniform(-1, 1, (1000, 2)) * 32767).astype(np.int16)
    soundfile.write(tmp_path / "two.flac", x, 16000)
    np.testing.assert_allclose(read_audio(str(tmp_path / "two.flac"), 16000), x.mean(axis=1) / 32768, atol=1e-7)
    soundfile.write(tmp_path / "one.flac", x[:, 0], 16000)
    np.testing.assert_array_equal(read_audio(tmp_path / "one.flac", 16000), (x[:, 0] / 32768).astype(np.float32))


def test_resamples_to_the_wanted_rate(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1000, 44100), 44100)
    x = read_audio(tmp_path / "a.wav", 16000)
    assert audio_info(tmp_path / "a.wav") == (22050, 44100)
    assert len(x) == 8000
    np.testing.assert_allclose(x[500:-500], tone(1000, 16000)[500:-500], atol=1e-3)


def test_overshoots_are_clipped(tmp_path):
    soundfile.write(tmp_path / "a.wav", 1.3 * tone(100, 16000) / 0.5, 16000, subtype="FLOAT")
    assert np.abs(read_audio(tmp_path / "a.wav", 16000)).max() == 1.0


def test_errors_name_the_file_and_the_remedy(tmp_path):
    for function in (lambda path: read_audio(path, 16000), audio_info):
        with pytest.raises(FileNotFoundError, match=r"missing\.flac: no such audio file"):
            function(tmp_path / "missing.flac")
        (tmp_path / "text.flac").write_text("not audio")
        with pytest.raises(ValueError, match=r"text\.flac: not readable as audio"):
            function(tmp_path / "text.flac")
        with pytest.raises(ValueError, match="not readable as audio"):
            function(tmp_path)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16000)
    with pytest.raises(ValueError, match=r"empty\.wav: the audio file holds no samples"):
        read_audio(tmp_path / "empty.wav", 16000)
    with pytest.raises(ValueError, match=r"empty\.wav: the header states 0 samples"):
        audio_info(tmp_path / "empty.wav")
    for bad in (np.nan, np.inf):
        soundfile.write(tmp_path / "bad.wav", np.array([0.0, bad, 0.1]), 16000, subtype="FLOAT")
        with pytest.raises(ValueError, match=r"bad\.wav: .* NaN or infinite"):
            read_audio(tmp_path / "bad.wav", 16000)
    soundfile.write(tmp_path / "scale.wav", np.array([0.0, 20000.0]), 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"scale\.wav: float samples reach 20000"):
        read_audio(tmp_path / "scale.wav", 16000)


def test_a_truncated_file_is_never_read_as_garbage(tmp_path):
    path = tmp_path / "cut.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 16000), 16000)
    path.write_bytes(path.read_bytes()[:10000])
    try:
        assert len(read_audio(path, 16000)) < 16000
    except ValueError as error:
        assert "cut.flac" in str(error)


@pytest.mark.parametrize("factor, hertz", [(0.9, 450), (1.0, 500), (1.1, 550)])
def test_speed_changes_pitch_and_length(factor, hertz):
    x = tone(500, 16000)
    y = change_speed(x, factor)
    assert y.dtype == np.float32
    assert len(y) == pytest.approx(len(x) / factor, abs=1)
    assert peak_frequency(y, 16000) == pytest.approx(hertz, abs=2)


@given(st.integers(0, 3000), st.sampled_from([0.9, 1.0, 1.1]) | st.floats(0.5, 2))
def test_length_after_speed_is_exact(num_samples, factor):
    y = change_speed(np.ones(num_samples, np.float32), factor)
    assert len(y) == num_samples_after_speed(num_samples, factor)


@given(st.integers(0, 2000), st.sampled_from([8000, 11025, 16000, 22050, 44100]))
def test_resampled_length_is_the_rounded_ratio(num_samples, rate):
    y = resample(np.ones(num_samples, np.float32), rate, 16000)
    assert abs(len(y) - num_samples * 16000 / rate) <= 0.5


def test_bad_rates_and_factors():
    x = np.zeros(10, np.float32)
    for factor in (0.0, -1.0, 11.0, float("nan")):
        with pytest.raises(ValueError, match="speed factor"):
            change_speed(x, factor)
    with pytest.raises(ValueError, match="sample rates must be positive"):
        resample(x, 0, 16000)

import contextlib
import io
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax.audio.integrity import AudioError, DamagedAudio, EmptyAudio, NonFiniteAudio
from i3d_jax.audio.io import audio_info, change_speed, check_audio, num_samples_after_speed, read_audio, resample


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
    with pytest.raises(ValueError, match=r"empty\.wav: the audio file holds no samples"):
        audio_info(tmp_path / "empty.wav")
    for bad in (np.nan, np.inf):
        soundfile.write(tmp_path / "bad.wav", np.array([0.0, bad, 0.1]), 16000, subtype="FLOAT")
        with pytest.raises(ValueError, match=r"bad\.wav: .* NaN or infinite"):
            read_audio(tmp_path / "bad.wav", 16000)
    soundfile.write(tmp_path / "scale.wav", np.array([0.0, 20000.0]), 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"scale\.wav: float samples reach 20000"):
        read_audio(tmp_path / "scale.wav", 16000)


def encoded(format, subtype=None, samples=None, rate=16000):
    buffer = io.BytesIO()
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 48000) if samples is None else samples
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


CONTAINERS = [
    ("FLAC", None),
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("RF64", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", None),
]


@pytest.mark.parametrize(("format", "subtype"), CONTAINERS)
@pytest.mark.parametrize("cut", [1, 3000, 0.5])
def test_truncated_files_are_refused(tmp_path, format, subtype, cut):
    path, data = tmp_path / f"cut.{format.lower()}", encoded(format, subtype)
    path.write_bytes(data)
    assert check_audio(path) == (48000, 16000) and len(read_audio(path, 16000)) == 48000
    path.write_bytes(data[: int(len(data) * cut)] if cut == 0.5 else data[:-cut])
    for function in (check_audio, lambda path: read_audio(path, 16000)):
        with pytest.raises(DamagedAudio, match=rf"cut\.{format.lower()}: the audio file is truncated.*; copy it again"):
            function(path)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([0.0, np.nan, 0.1], "NaN or infinite samples"),
        ([0.0, -np.inf, 0.1], "NaN or infinite samples"),
        ([0.0, 20000.0], "samples far outside [-1, 1]"),
        ([], "no audio samples"),
    ],
)
def test_bad_samples_have_a_reason(tmp_path, samples, reason):
    (tmp_path / "a.wav").write_bytes(encoded("WAV", "FLOAT", np.array(samples)))
    with pytest.raises(AudioError) as caught:
        check_audio(tmp_path / "a.wav")
    assert caught.value.reason == reason


def test_bad_samples_are_found_in_every_block(tmp_path, monkeypatch):
    monkeypatch.setattr("i3d_jax.audio.io._BLOCK", 100)
    samples = np.random.default_rng(0).uniform(-1, 1, (1000, 3)).astype(np.float32)
    (tmp_path / "a.wav").write_bytes(encoded("WAV", "FLOAT", samples))
    assert check_audio(tmp_path / "a.wav") == (1000, 16000)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", 16000), samples.mean(axis=1), atol=1e-7)
    samples[999, 2] = np.nan
    (tmp_path / "a.wav").write_bytes(encoded("WAV", "FLOAT", samples))
    with pytest.raises(NonFiniteAudio):
        check_audio(tmp_path / "a.wav")


def test_files_are_read_by_content_not_by_name(tmp_path):
    for name, format in (("wav.flac", "WAV"), ("mp3.wav", "MP3"), ("flac.ogg", "FLAC")):
        (tmp_path / name).write_bytes(encoded(format))
        assert check_audio(tmp_path / name) == audio_info(tmp_path / name) == (48000, 16000)


@pytest.mark.parametrize("rate", [8000, 192000])
def test_other_rates_and_many_channels(tmp_path, rate):
    (tmp_path / "a.wav").write_bytes(encoded("WAV", samples=np.full((rate, 7), 0.25), rate=rate))
    assert check_audio(tmp_path / "a.wav") == (rate, rate)
    x = read_audio(tmp_path / "a.wav", 16000)
    assert x.shape == (16000,)
    np.testing.assert_allclose(x[200:-200], 0.25, atol=1e-3)


@pytest.mark.parametrize("length", [0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_streamed_wav_files_state_no_length_and_are_read(tmp_path, length):
    data = bytearray(encoded("WAV"))
    data[4:8] = data[40:44] = struct.pack("<I", length)
    (tmp_path / "streamed.wav").write_bytes(data)
    assert check_audio(tmp_path / "streamed.wav") == (48000, 16000)


def test_damaged_headers_are_refused(tmp_path):
    path = tmp_path / "a.wav"
    for rate in (1, 2**31 - 1):
        data = bytearray(encoded("WAV"))
        data[24:28] = struct.pack("<I", rate)
        path.write_bytes(data)
        for function in (check_audio, audio_info):
            with pytest.raises(AudioError, match=rf"the header states {rate} Hz, expected 1000 to 1000000"):
                function(path)
    data = bytearray(encoded("FLAC"))
    data[21] &= 0xF0  # the 36 bits of the length: 0 is unknown
    data[22:26] = bytes(4)
    path.write_bytes(data)
    for function in (check_audio, audio_info):
        with pytest.raises(AudioError, match="the header does not state the length; re-encode"):
            function(path)
    path.write_bytes(b"")
    with pytest.raises(EmptyAudio, match=r"a\.wav: the audio file is empty"):
        check_audio(path)


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.wav").write_bytes(encoded("WAV"))
    monkeypatch.setattr(type(epath.Path(tmp_path)), "read_bytes", refuse)
    with pytest.raises(PermissionError, match=r"a\.wav: no permission to read"):
        check_audio(tmp_path / "a.wav")


@given(st.binary(max_size=300), st.sampled_from([b"", b"RIFF\0\0\0\0WAVE", b"RF64\0\0\0\0WAVEds64", b"OggS", b"fLaC"]))
def test_random_bytes_are_refused_or_decoded(tail, head):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.wav"
        path.write_bytes(head + tail)
        with contextlib.suppress(AudioError):
            assert check_audio(path)[0] > 0


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

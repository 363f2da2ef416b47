import io
import tracemalloc

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax.audio.integrity import AudioError, DamagedAudio, EmptyAudio, truncation
from i3d_jax.audio.io import audio_info, read_audio
from i3d_jax.audio.stream import stream_audio


def noise(seconds, rate=16000, channels=1):
    return np.random.default_rng(0).uniform(-0.7, 0.7, (int(seconds * rate), channels)).astype(np.float32)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", None), ("WAV", "FLOAT"), ("FLAC", None), ("OGG", None), ("OGG", "OPUS"), ("MP3", None)],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_blocks_are_what_is_read_as_a_whole(tmp_path, format, subtype, channels):
    path = tmp_path / "a.audio"
    soundfile.write(path, noise(2.6, channels=channels), 16000, format=format, subtype=subtype)
    blocks = list(stream_audio(path, 16000, block_seconds=0.5))
    assert len(blocks) == 6 and all(block.dtype == np.float32 and 0 < len(block) <= 8000 for block in blocks)
    rounding = 5e-7 if format == "MP3" else 0.0  # its decoder rounds otherwise where a block ends
    np.testing.assert_allclose(np.concatenate(blocks), read_audio(path, 16000), atol=rounding, rtol=0)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 192000])
@pytest.mark.parametrize("block_seconds", [0.01, 0.37, 10.0])
def test_resampled_blocks_are_what_is_read_as_a_whole(tmp_path, rate, block_seconds):
    soundfile.write(tmp_path / "a.wav", noise(2.1, rate), rate)
    blocks = list(stream_audio(tmp_path / "a.wav", 16000, block_seconds))
    assert all(len(block) for block in blocks)
    # Both run the same filter over the same samples; float32 would allow another order of sums, 1e-6 of full scale.
    np.testing.assert_allclose(np.concatenate(blocks), read_audio(tmp_path / "a.wav", 16000), atol=1e-6, rtol=0)


@given(samples=st.integers(1, 3000), rate=st.sampled_from([8000, 11025, 44100]), block=st.integers(1, 4000))
def test_lengths_are_those_of_the_whole(tmp_path_factory, samples, rate, block):
    path = tmp_path_factory.getbasetemp() / "lengths.wav"
    soundfile.write(path, noise(1)[:samples], rate)
    streamed = np.concatenate(list(stream_audio(path, 16000, block / rate)) or [np.zeros(0)])
    np.testing.assert_allclose(streamed, read_audio(path, 16000), atol=1e-6, rtol=0)


def test_the_length_is_read_from_the_header(tmp_path):
    soundfile.write(tmp_path / "a.flac", noise(1.5, 44100, 2), 44100)
    assert audio_info(tmp_path / "a.flac") == (66150, 44100)
    with pytest.raises(FileNotFoundError, match=r"missing\.flac: no such audio file"):
        audio_info(tmp_path / "missing.flac")


@pytest.mark.parametrize("format", ["FLAC", "WAV", "RF64", "OGG", "MP3"])
@pytest.mark.parametrize("kept", [0, 20, 0.5, 0.99])
def test_a_cut_file_is_refused_as_by_reading_it_whole(tmp_path, format, kept):
    path, buffer = tmp_path / "cut.audio", io.BytesIO()
    soundfile.write(buffer, noise(5), 16000, format=format)
    data = buffer.getvalue()
    path.write_bytes(data[: int(kept * len(data)) if kept < 1 else kept])
    with pytest.raises(AudioError) as whole:
        read_audio(path, 16000)
    with pytest.raises(AudioError) as streamed:
        list(stream_audio(path, 16000, block_seconds=0.3))
    assert type(streamed.value) is type(whole.value)
    assert str(streamed.value).partition(": its header")[0] == str(whole.value).partition(": its header")[0]


def test_bad_files_are_refused_as_by_reading_them_whole(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.flac: no such audio file"):
        next(stream_audio(tmp_path / "missing.flac", 16000))
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(EmptyAudio, match=r"empty\.wav: the audio file is empty"):
        next(stream_audio(tmp_path / "empty.wav", 16000))
    (tmp_path / "text.flac").write_text("not audio")
    with pytest.raises(AudioError, match=r"text\.flac: not readable as audio"):
        next(stream_audio(tmp_path / "text.flac", 16000))
    samples = noise(2)
    samples[20000] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16000, subtype="FLOAT")
    blocks = stream_audio(tmp_path / "nan.wav", 16000, block_seconds=1)
    assert len(next(blocks)) == 16000
    with pytest.raises(AudioError, match=r"nan\.wav: .* NaN or infinite"):
        next(blocks)


def test_a_wav_file_is_known_to_be_cut_before_it_is_decoded(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(3), 16000)
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:-2])
    with pytest.raises(
        DamagedAudio, match="its header announces 96000 bytes of samples, 95998 are there; copy it again"
    ):
        next(stream_audio(tmp_path / "a.wav", 16000, block_seconds=1))


def test_the_last_page_of_an_ogg_file_is_found_however_far_back():
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(1), 16000, format="OGG")
    for beyond in (0, 1, (1 << 16) - 2, 200_000):
        data = io.BytesIO(buffer.getvalue() + bytes(beyond))
        data.seek(5)
        assert truncation(data) is None and data.tell() == 5


@pytest.mark.parametrize("rate", [16000, 44100])
def test_memory_does_not_grow_with_the_file(tmp_path, rate):
    def peak(seconds):
        soundfile.write(tmp_path / "a.flac", noise(seconds, rate), rate)
        tracemalloc.start()
        assert sum(map(len, stream_audio(tmp_path / "a.flac", 16000, block_seconds=1))) == 16000 * seconds
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)
    assert peak(60) < 1.2 * peak(6) < 3e6

"""Utterances as records: what is written into a prepared data set, and audio that is read from one when needed.

FLAC files are stored byte for byte. Audio of other lossless formats (WAV) becomes FLAC with the same samples; what FLAC
cannot hold without loss (floating-point or 32-bit WAV) and lossy formats (Ogg, MP3) stay as they are.
"""

import io
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import soundfile

from i3d_jax.audio import io as audio_io

# Sample format of a file -> that of a FLAC file with the same samples.
_FLAC_SUBTYPES = {"PCM_U8": "PCM_S8", "PCM_S8": "PCM_S8", "PCM_16": "PCM_16", "PCM_24": "PCM_24"}
_MOST_FLAC_CHANNELS = 8


class SpeechRecord(NamedTuple):
    """An utterance with its encoded audio; ``num_samples`` counts at ``sample_rate``, the file's own."""

    id: str
    text: str
    speaker: str
    chapter: str
    audio: bytes
    num_samples: int
    sample_rate: int


class RecordSource(Protocol):
    """Where records are read from; `str` of it names the data set and the split. Must be picklable and thread-safe."""

    def audio_bytes(self, index: int) -> bytes:
        """The encoded audio of a record.

        Raises:
          ValueError: the record cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class RecordAudio:
    """Audio of an utterance in a prepared data set, read when it is needed.

    Attributes:
      source: the records.
      index: which of them.
      id: of the utterance, for messages.
    """

    source: RecordSource
    index: int
    id: str

    def __str__(self) -> str:
        return f"{self.source}, utterance {self.id} (record {self.index})"

    def read(self, sample_rate: int) -> np.ndarray:
        """[S] float32 waveform at the given rate.

        Raises:
          ValueError: the record or its audio cannot be read; the message names data set, split and id.
        """
        try:
            data = self.source.audio_bytes(self.index)
        except ValueError as error:
            raise ValueError(f"{self}: {error}") from error
        return audio_io.decode_audio(data, str(self), sample_rate)


def split_id(utterance_id: str) -> tuple[str, str]:
    """(speaker, chapter) of a LibriSpeech id, ``<speaker>-<chapter>-<number>``; without both dashes no chapter."""
    parts = utterance_id.split("-")
    return parts[0], parts[1] if len(parts) > 2 else ""


def make_record(utterance_id: str, text: str, data: bytes, name: str) -> SpeechRecord:
    """Decodes the audio to see that it is whole, and takes the form that is stored.

    Args:
      utterance_id: id of the utterance.
      text: its transcript.
      data: the audio file.
      name: of that file, for errors.

    Raises:
      AudioError: the audio cannot be used, see `i3d_jax.audio.io.read_audio`.
    """
    samples, rate = audio_io.check_bytes(data, name)
    return SpeechRecord(utterance_id, text, *split_id(utterance_id), _stored_form(data), samples, rate)


def _stored_form(data: bytes) -> bytes:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        subtype = _FLAC_SUBTYPES.get(file.subtype)
        if file.format == "FLAC" or subtype is None or file.channels > _MOST_FLAC_CHANNELS:
            return data
        samples = file.read(dtype="int32")
        rate = file.samplerate
    buffer = io.BytesIO()
    try:
        soundfile.write(buffer, samples, rate, format="FLAC", subtype=subtype)
    except soundfile.LibsndfileError:  # a sampling rate that FLAC cannot state
        return data
    encoded = buffer.getvalue()
    same = np.array_equal(soundfile.read(io.BytesIO(encoded), dtype="int32")[0], samples)
    return encoded if same else data

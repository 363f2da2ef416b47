"""Long recordings with an STM transcript, as TED-LIUM comes, cut into utterances in LibriSpeech layout.

STM (NIST SCTK): one segment a line, ``<recording> <channel> <speaker> <begin> <end> [<labels>] <transcript>``, times in
seconds; lines beginning with ``;;`` are comments. Of a transcript nothing stays but words: marks in angle brackets,
braces or brackets and the numbers of pronunciations go, and what was cut off a word at its apostrophe is joined again,
as in Kaldi's recipe (egs/tedlium/s5_r2).
"""

import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import soundfile
from etils import epath

from i3d_jax import files
from i3d_jax.audio.integrity import AudioError
from i3d_jax.data.folder import TRANSCRIPT_SUFFIX

IGNORED = "segment ignored in scoring"
NO_WORDS = "segment without words"
BEYOND = "segment beyond its recording"
ELSEWHERE = "segment of another recording"
_IGNORE = "ignore_time_segment_in_scoring"
_CHANNELS = {"1": 0, "A": 0, "2": 1, "B": 1}
_LABELS = re.compile(r"^<[^>\s]*>\s*")
_MARKS = re.compile(r"<[^>]*>|\{[^}]*\}|\[[^\]]*\]|\(\d+\)")
_SUFFIX = re.compile(r" +(['\u2019](?:s|m|d|t|re|ve|ll)\b)", re.IGNORECASE)


class Segment(NamedTuple):
    """A line of an STM file; times in seconds, the channel from 0."""

    recording: str
    channel: int
    speaker: str
    begin: float
    end: float
    text: str

    @property
    def id(self) -> str:
        """``<speaker>-<begin>-<end>`` in hundredths of a second, as Kaldi names them, unique in a corpus of talks."""
        speaker = re.sub(r"[^\w.]+", "_", self.speaker)
        return f"{speaker}-{round(100 * self.begin):07d}-{round(100 * self.end):07d}"


@dataclass(frozen=True)
class Cut:
    """What became of a recording: utterances, their seconds, and reason -> ids of segments that were left out."""

    utterances: int
    seconds: float
    rejected: dict[str, list[str]]


def words_only(text: str) -> str:
    """A transcript without marks: ``it 's <sil> a(2) {NOISE} talk`` -> ``it's a talk``."""
    return _SUFFIX.sub(r"\1", " ".join(_MARKS.sub(" ", text).split()))


def read_stm(path: epath.Path) -> Iterator[Segment]:
    """The segments of a file, in its order, their texts as they stand.

    Raises:
      ValueError: a line that is none, or the file is not UTF-8; file and line are named.
    """
    for number, line in enumerate(files.read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith(";;"):
            continue
        fields = line.split(maxsplit=5)
        try:
            recording, channel, speaker, begin, end = fields[:5]
            segment = Segment(recording, _CHANNELS[channel], speaker, float(begin), float(end), "")
            if not 0 <= segment.begin < segment.end < float("inf"):
                raise ValueError
        except (ValueError, KeyError):
            raise ValueError(
                f"{path}, line {number}: {line[:80]!r} is no segment; expected <recording> <channel> <speaker> <begin> "
                "<end> <transcript> with 0 <= begin < end in seconds"
            ) from None
        yield segment._replace(text=_LABELS.sub("", fields[5]) if len(fields) > 5 else "")


def cut_recording(stm: epath.Path, audio: epath.Path, folder: epath.Path) -> Cut:
    """Write the utterances of a recording as FLAC with a transcript file; ``folder`` appears when it is complete.

    Args:
      stm: its transcript.
      audio: the recording; NIST SPHERE, WAV, FLAC or whatever else libsndfile reads.
      folder: to write.

    Raises:
      AudioError: the recording cannot be read.
      ValueError: the transcript is damaged, or two segments have the same speaker and times.
    """
    aside = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    rejected: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    seconds = 0.0
    try:
        with soundfile.SoundFile(str(audio)) as recording:
            rate = recording.samplerate
            for segment in read_stm(stm):
                text = words_only(segment.text)
                first, last = round(segment.begin * rate), min(round(segment.end * rate), recording.frames)
                here = segment.recording == stm.stem
                reason = _why_not(segment, text, last - first, recording.channels) if here else ELSEWHERE
                if reason:
                    rejected.setdefault(reason, []).append(segment.id)
                    continue
                if segment.id in texts:
                    raise ValueError(f"{stm}: two segments are called {segment.id}; give them different times")
                recording.seek(first)
                samples = recording.read(last - first, dtype="int16", always_2d=True)
                files.write_bytes(aside / f"{segment.id}.flac", _flac(samples[:, segment.channel], rate))
                texts[segment.id] = text
                seconds += (last - first) / rate
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{audio}: not readable as audio ({error.error_string}); copy it again") from error
    files.write_text(
        aside / f"{folder.name}{TRANSCRIPT_SUFFIX}", "".join(f"{name} {text}\n" for name, text in texts.items())
    )
    aside.rename(folder)
    return Cut(len(texts), seconds, rejected)


def _why_not(segment: Segment, text: str, samples: int, channels: int) -> str:
    if _IGNORE in segment.text or _IGNORE in segment.speaker:
        return IGNORED
    if samples <= 0 or segment.channel >= channels:
        return BEYOND
    return "" if text else NO_WORDS


def _flac(samples: np.ndarray, rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()

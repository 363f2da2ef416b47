"""What makes an audio file unusable, and whether a container holds all the bytes that it announces.

libsndfile adapts the header of a truncated WAV file, and takes a truncated Ogg file for a shorter one, without a word;
a truncated FLAC file has a good header and fails only when it is decoded.
"""

import io
import struct
from typing import BinaryIO

# Programs that write to a pipe do not know the length and state one of these, or more (ffmpeg, SoX, arecord).
_STREAMED = 0x7FFFF000
_BACK = 1 << 16  # bytes read at a time to find the last page of an Ogg file, which is hardly longer


class AudioError(ValueError):
    """An audio file that cannot be used; the message names it and the remedy.

    Attributes:
      reason: a few words under which such files are counted.
    """

    reason = "unreadable audio"


class DamagedAudio(AudioError):
    """The header is good, the data ends early or cannot be decoded."""

    reason = "truncated or damaged audio"


class EmptyAudio(AudioError):
    """No bytes, or a header without samples."""

    reason = "no audio samples"


class NonFiniteAudio(AudioError):
    """A float file with NaN or infinite samples."""

    reason = "NaN or infinite samples"


class UnscaledAudio(AudioError):
    """A float file on an integer scale."""

    reason = "samples far outside [-1, 1]"


def truncation(data: BinaryIO) -> str | None:
    """How a WAV or Ogg file falls short of what it announces; None if it is whole, another container, or streamed.

    Args:
      data: the whole file, of which headers and the end are read; where it stands is kept.
    """
    position = data.tell()
    size = data.seek(0, io.SEEK_END)
    head = _at(data, 0, 12)
    shortfall = None
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        shortfall = _wave_truncation(data, size)
    elif head[:4] == b"OggS":
        shortfall = _ogg_truncation(data, size)
    data.seek(position)
    return shortfall


def _at(data: BinaryIO, position: int, count: int) -> bytes:
    data.seek(position)
    return data.read(count)


def _wave_truncation(data: BinaryIO, size: int) -> str | None:
    position, stated64 = 12, None
    while position + 8 <= size:
        name, stated = struct.unpack("<4sI", _at(data, position, 8))
        position += 8
        if name == b"ds64" and position + 16 <= size:
            (stated64,) = struct.unpack("<Q", _at(data, position + 8, 8))
        if name == b"data":
            if stated64 is not None and stated == 0xFFFFFFFF:
                stated = stated64
            elif stated >= _STREAMED:
                return None
            there = size - position
            return f"its header announces {stated} bytes of samples, {there} are there" if stated > there else None
        position += stated + stated % 2
    return None


def _ogg_truncation(data: BinaryIO, size: int) -> str | None:
    page = _last_page(data, size)
    header = _at(data, page, 27)
    lacing = data.read(header[26]) if len(header) == 27 else b""
    if len(header) < 27 or len(lacing) < header[26] or page + 27 + len(lacing) + sum(lacing) > size:
        return "its last page is cut off"
    return None if header[5] & 4 else "its last page does not end the stream"


def _last_page(data: BinaryIO, size: int) -> int:
    """Position of the last capture pattern; the first one is at 0."""
    end = size
    while True:
        begin = max(0, end - _BACK)
        found = _at(data, begin, end - begin).rfind(b"OggS")
        if found >= 0:
            return begin + found
        end = begin + 3  # a pattern may lie across the border

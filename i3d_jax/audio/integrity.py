"""What makes an audio file unusable, and whether a container holds all the bytes that it announces.

libsndfile adapts the header of a truncated WAV file, and takes a truncated Ogg file for a shorter one, without a word;
a truncated FLAC file has a good header and fails only when it is decoded.
"""

import struct

# Programs that write to a pipe do not know the length and state one of these, or more (ffmpeg, SoX, arecord).
_STREAMED = 0x7FFFF000


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


def truncation(data: bytes) -> str | None:
    """How a WAV or Ogg file falls short of what it announces; None if it is whole, another container, or streamed.

    Args:
      data: the whole file.
    """
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        return _wave_truncation(data)
    return _ogg_truncation(data) if data[:4] == b"OggS" else None


def _wave_truncation(data: bytes) -> str | None:
    position, stated64 = 12, None
    while position + 8 <= len(data):
        name, stated = struct.unpack_from("<4sI", data, position)
        position += 8
        if name == b"ds64" and position + 16 <= len(data):
            (stated64,) = struct.unpack_from("<Q", data, position + 8)
        if name == b"data":
            if stated64 is not None and stated == 0xFFFFFFFF:
                stated = stated64
            elif stated >= _STREAMED:
                return None
            there = len(data) - position
            return f"its header announces {stated} bytes of samples, {there} are there" if stated > there else None
        position += stated + stated % 2
    return None


def _ogg_truncation(data: bytes) -> str | None:
    page = data.rfind(b"OggS")
    header = data[page : page + 27]
    lacing = data[page + 27 : page + 27 + header[26]] if len(header) == 27 else b""
    if len(header) < 27 or len(lacing) < header[26] or page + 27 + len(lacing) + sum(lacing) > len(data):
        return "its last page is cut off"
    return None if header[5] & 4 else "its last page does not end the stream"

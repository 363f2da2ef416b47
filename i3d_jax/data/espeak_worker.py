"""Speaks a list of sentences with eSpeak NG and writes the audio to standard output.

eSpeak NG is GPL-3-or-later. This script is the only code that loads it, runs in a process of its own, imports nothing
of the package, and does nothing but write audio and when its words begin; `i3d_jax.data.demo_corpus` starts it and
reads that.

Standard input: one JSON object, ``{"data": folder of espeak-ng-data, "jobs": [{"text", "voice", "variant", "rate",
"pitch", "seed"}, ...]}``. Standard output: the sampling rate as a little-endian uint32, then for each job, in order,
the number of samples as uint32 and the samples as int16, then the number of words as uint32 and the millisecond at
which each begins as uint32.

The library keeps state between utterances, so the audio is reproducible only for the same jobs in the same order in a
fresh process, with its random generator seeded before each of them.
"""

import ctypes
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

_SYNCHRONOUS = 2
_DO_NOT_EXIT = 0x8000
_UTF8 = 1
_RATE, _PITCH = 1, 3
_LIST_END, _WORD = 0, 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class _Event(ctypes.Structure):
    """``espeak_EVENT``."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


class Espeak:
    """eSpeak NG, initialised once; call it to synthesise.

    Args:
      library: path of the shared library.
      data: folder of espeak-ng-data; eSpeak cuts paths beyond about 160 characters, so it must be short.
    """

    def __init__(self, library: str, data: str):
        self._library = ctypes.CDLL(library)
        self._library.espeak_Synth.argtypes = [
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
            *(ctypes.POINTER(ctypes.c_uint), ctypes.c_void_p),
        ]
        self._variants = Path(data) / "voices" / "!v"
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 500, data.encode(), _DO_NOT_EXIT)
        if self.sample_rate <= 0:
            raise RuntimeError(f"eSpeak NG does not start with the data folder {data}")
        self._chunks: list[bytes] = []
        self._words: list[int] = []
        self._callback = _CALLBACK(self._receive)  # kept: the library holds only a bare pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        events = ctypes.cast(events, ctypes.POINTER(_Event))
        while events and events.contents.type != _LIST_END:
            if events.contents.type == _WORD:
                self._words.append(events.contents.audio_position)
            events = ctypes.cast(ctypes.addressof(events.contents) + ctypes.sizeof(_Event), ctypes.POINTER(_Event))
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, count * 2))
        return 0

    def __call__(
        self, text: str, voice: str, variant: str, rate: int, pitch: int, seed: int
    ) -> tuple[bytes, list[int]]:
        """The int16 samples of `text`, and when its words begin; raises ValueError for an unknown voice or variant."""
        if not (self._variants / variant).is_file():  # eSpeak would silently use the plain voice
            raise ValueError(f"eSpeak NG has no voice variant {variant!r}")
        if self._library.espeak_SetVoiceByName(f"{voice}+{variant}".encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice {voice!r}")
        self._library.espeak_SetParameter(_RATE, rate, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._chunks.clear()
        self._words.clear()
        encoded = text.encode() + b"\0"
        if self._library.espeak_Synth(encoded, len(encoded), 0, 1, 0, _UTF8, None, None) != 0:
            raise RuntimeError(f"eSpeak NG cannot speak {text!r}")
        return b"".join(self._chunks), list(self._words)


def main() -> None:
    """Runs the jobs of standard input."""
    import espeakng_loader

    request = json.load(sys.stdin)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the library prints must not fall into the audio
    espeak = Espeak(espeakng_loader.get_library_path(), request["data"])
    output.write(struct.pack("<I", espeak.sample_rate))
    for job in request["jobs"]:
        pcm, words = espeak(**job)
        output.write(struct.pack("<I", len(pcm) // 2) + pcm)
        output.write(struct.pack(f"<{1 + len(words)}I", len(words), *words))
    output.close()


if __name__ == "__main__":
    main()

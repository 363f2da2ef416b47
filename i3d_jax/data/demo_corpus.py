"""The demo corpus: synthetic English speech, made on the spot in a few seconds.

Sentences of a small grammar (about a hundred words) are spoken by twelve eSpeak NG voices at random rates and pitches,
resampled to 16 kHz, brought to one loudness, mixed with noise at 20 to 50 dB, and written as FLAC in LibriSpeech
layout. No sentence occurs twice, so none is shared between train, dev and test; the voices are.

eSpeak NG (GPL-3-or-later, installed by ``espeakng-loader``) is never loaded into this process: `espeak_worker` runs in
a process of its own and only writes audio, and when words begin. Synthesised speech is not covered by the engine's
licence.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import soundfile
from etils import epath

from i3d_jax.audio.io import resample
from i3d_jax.progress import progress

GENERATOR_VERSION = 1
"""Raise it whenever the code makes another corpus from the same config, grammar and voices."""

SAMPLE_RATE = 16000

# (language voice, variant) of each speaker. Variants are files under espeak-ng-data/voices/!v.
VOICES = (
    *(("en-us", variant) for variant in ("m1", "m2", "m3", "m4", "f1", "f2", "f3", "f4", "Andy")),
    *(("en-gb-x-rp", "m7"), ("en-gb-x-rp", "Annie"), ("en-gb-scotland", "m5")),
)

MIN_WORDS, MAX_WORDS = 3, 13

# Lower case: a rule. Upper case: a word.
GRAMMAR: dict[str, tuple[str, ...]] = {
    "sentence": (
        "statement",
        "statement",
        "statement time",
        "statement place",
        "statement place time",
        "statement AND statement",
        "PLEASE command",
        "command",
        "command place",
        "THERE ARE count things place",
        "THERE WAS ONE adjective object place",
        "THE location IS VERY adjective time",
        "pronoun WILL MEET person place AT number",
        "pronoun WILL WALK TO THE location time",
        "DO YOU HAVE count things",
        "DO YOU WANT noun_phrase",
        "MY NUMBER IS number number number number",
        "YOUR TRAIN WILL LEAVE AT number time",
    ),
    "statement": ("person past noun_phrase", "pronoun past noun_phrase", "person past count things"),
    "command": ("order noun_phrase", "order count things", "order noun_phrase TO person"),
    "person": ("ANNA", "PETER", "MARIA", "DAVID", "determiner DOCTOR", "determiner TEACHER", "determiner SISTER",
               "determiner BROTHER"),
    "pronoun": ("WE", "THEY", "I"),
    "noun_phrase": ("determiner object", "determiner adjective object"),
    "determiner": ("THE", "MY", "YOUR"),
    "past": ("OPENED", "PAINTED", "FOUND", "CARRIED", "BOUGHT", "WATCHED"),
    "order": ("BRING", "TAKE", "CLEAN", "SHOW", "REMEMBER"),
    "adjective": ("RED", "BLUE", "GREEN", "YELLOW", "SMALL", "LARGE", "OLD", "NEW", "BROKEN", "QUIET"),
    "object": ("BOOK", "LETTER", "WINDOW", "TABLE", "PICTURE", "BASKET", "CANDLE", "BOTTLE"),
    "things": ("HORSES", "APPLES", "PENCILS", "TICKETS", "FLOWERS"),
    "location": ("HOUSE", "GARDEN", "RIVER", "KITCHEN", "STATION", "BRIDGE", "MARKET", "MOUNTAIN"),
    "place": ("IN THE location", "NEAR THE location", "BEHIND THE location"),
    "time": ("TODAY", "TOMORROW", "ON MONDAY", "ON FRIDAY", "ON SUNDAY", "IN THE MORNING", "IN THE EVENING"),
    "number": ("ONE", *("count",) * 5),
    "count": ("TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "TEN", "ELEVEN", "TWELVE"),
}  # fmt: skip


@dataclass(frozen=True)
class DemoCorpusConfig:
    """Synthetic speech made with eSpeak NG."""

    train_utterances: int = 2000
    """Training utterances."""
    dev_utterances: int = 150
    """Development utterances."""
    test_utterances: int = 150
    """Test utterances."""
    seed: int = 0
    """Seed of sentences, voices, rates and noise: the corpus is a function of it."""


class Spoken(NamedTuple):
    """What eSpeak NG said.

    Attributes:
      pcm: [S] int16 samples.
      rate: of the samples, in Hz.
      word_begins: seconds at which words begin, as eSpeak NG counts them: it runs some together ("in the").
    """

    pcm: np.ndarray
    rate: int
    word_begins: np.ndarray


class _Take(NamedTuple):
    """One utterance to be spoken."""

    split: str
    id: str
    text: str
    job: dict[str, Any]


def ensure_demo_corpus(config: DemoCorpusConfig, cache_dir: epath.PathLike) -> epath.Path:
    """Returns the folder of the demo corpus, generating it first if it is missing.

    Args:
      config: sizes and seed. The same config gives bit-identical files.
      cache_dir: the folder ``demo-<hash>`` is made in it; the hash is that of config, grammar, voices and version.

    Returns:
      A folder with ``{train,dev,test}/<speaker>/<chapter>/``: 16 kHz FLAC files and their ``.trans.txt``. It is renamed
      into place when complete, so an interrupted run leaves no half corpus behind.

    Raises:
      ValueError: a count is not positive, or larger than the number of sentences that the grammar yields.
      ModuleNotFoundError: ``espeakng-loader`` is not installed.
      OSError: eSpeak NG failed; the message holds the last line that it printed.
    """
    key = json.dumps([GENERATOR_VERSION, VOICES, GRAMMAR, asdict(config)])
    cache = epath.Path(cache_dir).expanduser()
    target = cache / f"demo-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if target.exists():
        return target
    takes = _plan(config)
    partial = cache / f".{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        _generate(takes, config.seed, partial)
        with contextlib.suppress(OSError):  # someone else was faster; their corpus is the same one
            partial.rename(target)
    finally:
        if partial.exists():
            partial.rmtree()
    if not target.exists():
        raise OSError(f"cannot rename the finished demo corpus to {target}: check the permissions of {cache}")
    return target


def sentences(count: int, seed: int) -> list[str]:
    """Draws `count` different sentences of the grammar, upper case.

    Raises:
      ValueError: the grammar does not yield that many different sentences of MIN_WORDS to MAX_WORDS words.
    """
    rng = np.random.default_rng([seed, 1])
    drawn: dict[str, None] = {}
    for _ in range(100 * count + 1000):
        if len(drawn) == count:
            return list(drawn)
        text = _expand("sentence", rng)
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            drawn.setdefault(text)
    raise ValueError(f"the demo grammar gave only {len(drawn)} different sentences, {count} wanted: ask for fewer")


def _expand(symbol: str, rng: np.random.Generator) -> str:
    if symbol not in GRAMMAR:
        return symbol
    rule = GRAMMAR[symbol][rng.integers(len(GRAMMAR[symbol]))]
    return " ".join(_expand(part, rng) for part in rule.split())


def _plan(config: DemoCorpusConfig) -> list[_Take]:
    counts = {"train": config.train_utterances, "dev": config.dev_utterances, "test": config.test_utterances}
    for split, count in counts.items():
        if count < 1:
            raise ValueError(f"demo.{split}_utterances = {count}, expected at least 1")
    texts = iter(sentences(sum(counts.values()), config.seed))
    rng = np.random.default_rng([config.seed, 2])
    takes = []
    for chapter, (split, count) in enumerate(counts.items(), start=1):
        for index in range(count):
            speaker = int(rng.integers(len(VOICES)))
            voice, variant = VOICES[speaker]
            text = next(texts)
            job = {
                "text": text.lower(),  # eSpeak may spell out upper-case words
                "voice": voice,
                "variant": variant,
                "rate": int(rng.integers(120, 180)),
                "pitch": int(rng.integers(35, 66)),
                "seed": int(rng.integers(1, 2**31)),
            }
            takes.append(_Take(split, f"{speaker + 1}-{chapter}-{index:04d}", text, job))
    return takes


def _generate(takes: Sequence[_Take], seed: int, folder: epath.Path) -> None:
    rng = np.random.default_rng([seed, 3])
    transcripts: dict[epath.Path, list[str]] = {}
    with contextlib.closing(speak([take.job for take in takes])) as spoken:
        for take, (pcm, rate, _) in zip(progress(takes, "demo corpus"), spoken, strict=True):
            speaker, chapter, _ = take.id.split("-")
            place = folder / take.split / speaker / chapter
            if place not in transcripts:
                place.mkdir(parents=True)
                transcripts[place] = []
            transcripts[place].append(f"{take.id} {take.text}\n")
            buffer = io.BytesIO()
            soundfile.write(buffer, _finish(pcm, rate, rng), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            (place / f"{take.id}.flac").write_bytes(buffer.getvalue())
    for place, lines in transcripts.items():
        (place / f"{place.parent.name}-{place.name}.trans.txt").write_text("".join(lines))


def _finish(pcm: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """int16 speech at `rate` -> float32 at 16 kHz, with a level within 3 dB of -23 dBFS and noise 20 to 50 dB below."""
    speech = resample(pcm.astype(np.float32) / 32768, rate, SAMPLE_RATE)
    speech *= 10 ** (rng.uniform(-26, -20) / 20) / np.sqrt(np.mean(speech**2))
    decay = rng.uniform(0, 0.9)  # from white to dull noise
    noise = np.convolve(rng.standard_normal(speech.size), decay ** np.arange(24), mode="same")
    noise *= np.sqrt(np.mean(speech**2) / np.mean(noise**2)) * 10 ** (-rng.uniform(20, 50) / 20)
    mixed = speech + noise
    return np.asarray(mixed * min(1.0, 0.99 / np.abs(mixed).max()), np.float32)


def speak(jobs: Sequence[dict[str, Any]]) -> Generator[Spoken, None, None]:
    """Speaks jobs (see `espeak_worker`) in order, in one fresh subprocess.

    Raises:
      ModuleNotFoundError: ``espeakng-loader`` is not installed.
      OSError: eSpeak NG failed; the message holds the last line that it printed.
    """
    spec = importlib.util.find_spec("espeakng_loader")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the demo corpus is spoken by eSpeak NG: pip install espeakng-loader")
    worker = Path(__file__).with_name("espeak_worker.py")
    with tempfile.TemporaryDirectory(prefix="i3d-") as folder, tempfile.TemporaryFile() as errors:
        data = Path(folder) / "espeak-ng-data"  # a short path: eSpeak cuts long ones
        data.symlink_to(Path(spec.origin).parent / "espeak-ng-data", target_is_directory=True)
        process = subprocess.Popen(
            [sys.executable, "-P", os.fspath(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        assert process.stdin is not None and process.stdout is not None
        with process:
            try:
                with contextlib.suppress(BrokenPipeError):  # a worker that died is reported below
                    process.stdin.write(json.dumps({"data": os.fspath(data), "jobs": list(jobs)}).encode())
                    process.stdin.close()
                rate = _read_uint32(process.stdout)
                for _ in jobs:
                    pcm = np.frombuffer(_read_exactly(process.stdout, 2 * _read_uint32(process.stdout)), "<i2")
                    begins = _read_exactly(process.stdout, 4 * _read_uint32(process.stdout))
                    yield Spoken(pcm, rate, np.frombuffer(begins, "<u4") / 1000)
            except EOFError:
                process.wait()
                errors.seek(0)
                printed = errors.read().decode(errors="replace").strip().split("\n")[-1]
                raise OSError(f"eSpeak NG failed (exit code {process.returncode}): {printed}") from None
            finally:
                process.kill()


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _read_uint32(stream: IO[bytes]) -> int:
    return int(struct.unpack("<I", _read_exactly(stream, 4))[0])

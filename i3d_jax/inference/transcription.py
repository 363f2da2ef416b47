"""Files and samples to text: whole utterances, several of them in batches, and long recordings in windows."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import jax
import numpy as np

from i3d_jax.audio.frontend import num_frames
from i3d_jax.audio.io import audio_info, check_samples, read_audio, resample, resampled_length
from i3d_jax.audio.stream import stream_audio
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.inference.execution import Execution
from i3d_jax.inference.long_audio import Segment, StreamTranscription, mean_gates, transcribe_stream
from i3d_jax.inference.recognition import Recognition
from i3d_jax.inference.scheduler import Work, recognize_batches
from i3d_jax.inference.spans import token_spans
from i3d_jax.inference.timestamps import Word, word_times
from i3d_jax.inference.windows import WindowPlan
from i3d_jax.model.gates import Decision

if TYPE_CHECKING:
    from i3d_jax.inference.recognizer import Recognizer

Audio: TypeAlias = str | os.PathLike | np.ndarray

_HELD_SECONDS = 600.0  # of audio that wait for others of their length
_BATCH_SECONDS = {"cpu": 16.0}  # one long utterance keeps a CPU busy
_BATCH_SECONDS_ELSEWHERE = 480.0
_MOST_ROWS = 64


class Hypothesis(NamedTuple):
    """A text with the score by which the decoder ranks it.

    Of ``prefix_beam`` that is the natural log of its probability, summed over the alignments that were kept, plus what
    a language model adds to it; of ``attention`` and ``joint`` the weighted sum of docs/aed.md.
    """

    text: str
    score: float


@dataclass(frozen=True)
class Transcription:
    """One transcribed recording.

    Attributes:
      text: the words.
      gates: [N, M] bool, the blocks that were executed; of several segments the mean, float32.
      gate_probabilities: [N, M] float32, p(execute); of several segments the mean.
      gate_names: the M branches of a layer, in order.
      executed_layers: open gates / M, as the paper counts layers; of several segments the mean.
      gflops: analytic GFLOPs of this audio: executed blocks only, except under ``masked``, which computes all.
      audio_seconds: length of the audio.
      compute_seconds: wall time of front end, model and decoding (compilation included when the shape is new); of one
        of several recordings that were transcribed together its share, by length, of their time.
      segments: one for audio that was recognised as a whole, otherwise one for each window.
      words: with times and confidences; None unless they were asked for (``timestamps=True``).
      alternatives: the ``n_best`` texts, best first, of a decoder that looks for several. Empty for greedy decoding,
        and for audio of several windows.
    """

    text: str
    gates: np.ndarray
    gate_probabilities: np.ndarray
    gate_names: tuple[str, ...]
    executed_layers: float
    gflops: float
    audio_seconds: float
    compute_seconds: float
    segments: tuple[Segment, ...]
    words: tuple[Word, ...] | None = None
    alternatives: tuple[Hypothesis, ...] = ()


class Opened(NamedTuple):
    """Audio before it is recognised.

    Attributes:
      num_samples: at the model's rate.
      blocks: [n] float32 samples each; one block if it is no longer than a window.
    """

    num_samples: int
    blocks: Iterable[np.ndarray]


def padded_length(num_samples: int, quantum: int = 8000) -> int:
    """Static length for a waveform: few shapes, at most one eighth (or ``quantum``) of padding."""
    step = max(quantum, 2 ** (max(num_samples - 1, 1).bit_length() - 3))
    return -(-num_samples // step) * step


def padded(waveforms: Sequence[np.ndarray], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Utterances [S] as a batch of ``rows``: waveform [rows, S'], num_samples [rows], 0 for rows that fill it up."""
    batch = np.zeros((rows, padded_length(max(map(len, waveforms)))), np.float32)
    for row, waveform in enumerate(waveforms):
        batch[row, : len(waveform)] = waveform
    return batch, np.array([*map(len, waveforms), *[0] * (rows - len(waveforms))], np.int32)


def alone(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One utterance [S] as a padded batch: waveform [1, S'], num_samples [1]."""
    return padded([waveform], 1)


def checked_length(recognizer: "Recognizer", audio: Audio, sample_rate: int | None) -> int:
    """What `open_audio` refuses, but for damage behind the head of a file; returns samples at the model's rate.

    Raises:
      ValueError: see `Recognizer.transcribe`.
      FileNotFoundError: no such file.
    """
    rate, source = recognizer.config.sample_rate, "the samples"
    if isinstance(audio, str | os.PathLike):
        source = str(audio)
        if sample_rate is not None:
            raise ValueError(f"{audio}: a file states its own rate; sample_rate is for samples")
        length = resampled_length(*audio_info(audio), rate)
    else:
        if sample_rate is None:
            raise ValueError("samples need sample_rate=...")
        length = resampled_length(len(check_samples(audio, sample_rate)), sample_rate, rate)
    if recognizer.model.num_encoder_frames(int(num_frames(recognizer.config.frontend, length))) < 1:
        seconds = length / rate
        raise ValueError(f"{source}: {seconds:.3f} s of audio are too short to recognise; give at least 0.1 s")
    return length


def open_audio(recognizer: "Recognizer", audio: Audio, sample_rate: int | None, plan: WindowPlan) -> Opened:
    """Check audio, and read it if it is no longer than a window.

    Raises:
      ValueError: see `Recognizer.transcribe`.
      FileNotFoundError: no such file.
    """
    rate = recognizer.config.sample_rate
    length = checked_length(recognizer, audio, sample_rate)
    if isinstance(audio, str | os.PathLike):
        return Opened(length, stream_audio(audio, rate) if length > plan.length else [read_audio(audio, rate)])
    assert sample_rate is not None
    return Opened(length, [resample(np.asarray(audio, np.float32), sample_rate, rate)])


def transcribe_one(
    recognizer: "Recognizer",
    opened: Opened,
    plan: WindowPlan,
    decide: Decision,
    execution: Execution | None,
    show_progress: bool = False,
) -> Transcription:
    """Transcribe one recording, in windows if it is longer than one; ``execution`` None takes the fastest."""
    execution = execution or recognizer.best_execution(rows=1)
    if opened.num_samples > plan.length:
        result = transcribe_stream(
            recognizer,
            opened.blocks,
            plan,
            decide,
            execution,
            num_samples=opened.num_samples,
            show_progress=show_progress,
        )
        return _finished(recognizer, result)
    (waveform,) = opened.blocks
    begun = time.perf_counter()
    recognition = recognizer.recognize(*alone(waveform), decide, execution)
    recognizer.text(recognition)
    seconds = time.perf_counter() - begun
    (gflops,) = recognizer.gflops(recognition, execution)
    return _of_row(recognizer, recognition, 0, len(waveform), float(gflops), seconds)


def transcribe_many(
    recognizer: "Recognizer",
    recordings: Iterable[Opened],
    plan: WindowPlan,
    decide: Decision,
    execution: Execution | None,
    show_progress: bool = False,
) -> list[Transcription]:
    """Transcribe recordings in batches of like length; those longer than a window one by one. In their order.

    At most ten minutes of audio are held at a time.
    """
    done: dict[int, Transcription] = {}
    held: dict[int, np.ndarray] = {}
    limit = _HELD_SECONDS * recognizer.config.sample_rate
    for index, opened in enumerate(recordings):
        if opened.num_samples > plan.length or execution == "eager":
            done[index] = transcribe_one(recognizer, opened, plan, decide, execution, show_progress)
            continue
        (held[index],) = opened.blocks
        if sum(map(len, held.values())) > limit:
            done |= _transcribe_held(recognizer, held, decide, execution)
            held = {}
    done |= _transcribe_held(recognizer, held, decide, execution)
    return [done[index] for index in sorted(done)]


def batch_rows(seconds: float) -> int:
    """Rows of a batch of utterances of so many seconds."""
    budget = _BATCH_SECONDS.get(jax.default_backend(), _BATCH_SECONDS_ELSEWHERE)
    return max(1, min(_MOST_ROWS, int(budget / seconds)))


def _transcribe_held(
    recognizer: "Recognizer", held: dict[int, np.ndarray], decide: Decision, execution: Execution | None
) -> dict[int, Transcription]:
    by_length: dict[int, list[int]] = {}
    for index, waveform in held.items():
        by_length.setdefault(padded_length(len(waveform)), []).append(index)
    done: dict[int, Transcription] = {}
    for length, indices in by_length.items():
        rows = batch_rows(length / recognizer.config.sample_rate)
        chosen = execution or recognizer.best_execution(rows)
        begun = time.perf_counter()

        def work(indices: list[int] = indices, rows: int = rows) -> Iterator[Work]:
            for first in range(0, len(indices), rows):
                own = indices[first : first + rows]
                yield Work(np.array(own), *padded([held[index] for index in own], rows))

        found = list(recognize_batches(recognizer, work(), decide, chosen))
        pace = (time.perf_counter() - begun) / sum(len(held[index]) for index in indices)
        for own, recognition in found:
            gflops = recognizer.gflops(recognition, chosen)
            for row, index in enumerate(own.tolist()):
                samples = len(held[index])
                done[index] = _of_row(recognizer, recognition, row, samples, float(gflops[row]), pace * samples)
    return done


def _of_row(
    recognizer: "Recognizer", recognition: Recognition, row: int, samples: int, gflops: float, seconds: float
) -> Transcription:
    audio_seconds = samples / recognizer.config.sample_rate
    gates, probabilities = (np.asarray(x[row]) for x in (recognition.gates, recognition.gate_probabilities))
    segment = Segment(0.0, audio_seconds, gates, probabilities)
    words = None
    if recognizer.decoder.timestamps:
        assert recognition.path_log_probs is not None
        spans = token_spans(np.asarray(recognition.path[row]), np.asarray(recognition.path_log_probs[row]))
        words = word_times(recognizer.tokenizer, spans, recognizer.config.frontend, samples)
    text = recognizer.text(recognition, row)
    result = StreamTranscription(text, (segment,), gflops, audio_seconds, seconds, words)
    return _finished(recognizer, result, alternatives(recognizer.tokenizer, recognition, row))


def alternatives(tokenizer: Tokenizer, recognition: Recognition, row: int) -> tuple[Hypothesis, ...]:
    """The best texts of one row, best first; none of a decoder that looks for one only."""
    if recognition.n_best is None:
        return ()
    every = zip(*(np.asarray(each[row]) for each in recognition.n_best), strict=True)
    return tuple(
        Hypothesis(tokenizer.decode(tokens[:count].tolist()), float(score))
        for tokens, count, score in every
        if score > -np.inf
    )


def _finished(
    recognizer: "Recognizer", result: StreamTranscription, texts: tuple[Hypothesis, ...] = ()
) -> Transcription:
    gates, probabilities = mean_gates(result.segments)
    return Transcription(
        **result._asdict(),
        alternatives=texts,
        gates=gates,
        gate_probabilities=probabilities,
        gate_names=recognizer.gate_names,
        executed_layers=float(gates.sum() / len(recognizer.gate_names)),
    )

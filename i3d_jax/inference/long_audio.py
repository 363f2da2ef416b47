"""Recordings of any length, window by window: bounded memory, cost proportional to the length."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from i3d_jax.inference.execution import Execution
from i3d_jax.inference.spans import TokenSpans, joined
from i3d_jax.inference.timestamps import Word, word_times
from i3d_jax.inference.windows import FRAME, HeardWindow, WindowPlan, cut_windows, merge
from i3d_jax.model.gates import Decision
from i3d_jax.progress import ProgressMeter

if TYPE_CHECKING:
    from i3d_jax.inference.recognizer import Recognizer


class Segment(NamedTuple):
    """The part of a recording whose words come from one window.

    Attributes:
      start_seconds, end_seconds: of the part; those of a recording adjoin.
      gates: [N, M] of the window, bool for a decision that opens and closes.
      gate_probabilities: [N, M] float32, p(execute).
    """

    start_seconds: float
    end_seconds: float
    gates: np.ndarray
    gate_probabilities: np.ndarray


class StreamTranscription(NamedTuple):
    """A transcribed stream.

    Attributes:
      text: the words.
      segments: one for each window.
      gflops: analytic GFLOPs of all windows.
      audio_seconds: length of the audio.
      compute_seconds: wall time of front end, model, decoding and merging (compilation of the one shape included when
        it is new); reading is not counted.
      words: with times, if the recogniser's decoder gives timestamps.
    """

    text: str
    segments: tuple[Segment, ...]
    gflops: float
    audio_seconds: float
    compute_seconds: float
    words: tuple[Word, ...] | None = None


def mean_gates(segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
    """Gates and probabilities [N, M] of one segment, or the means of several: float32."""
    if len(segments) == 1:
        return segments[0].gates, segments[0].gate_probabilities
    gates, probabilities = zip(*(segment[2:] for segment in segments), strict=True)
    return np.stack(gates).mean(axis=0, dtype=np.float32), np.stack(probabilities).mean(axis=0, dtype=np.float32)


def one_window(samples: np.ndarray, plan: WindowPlan) -> tuple[np.ndarray, np.ndarray]:
    """A window [n] as the batch that all windows of the plan are: waveform [1, length], num_samples [1]."""
    waveform = np.zeros((1, plan.length), np.float32)
    waveform[0, : len(samples)] = samples
    return waveform, np.array([len(samples)], np.int32)


def transcribe_stream(
    recognizer: "Recognizer",
    blocks: Iterable[np.ndarray],
    plan: WindowPlan,
    decide: Decision,
    execution: Execution,
    *,
    num_samples: int | None = None,
    show_progress: bool = False,
) -> StreamTranscription:
    """Transcribe a stream of samples in overlapping windows.

    Each window is an utterance of its own: normalised by itself, with gates and positions of its own. All have one
    shape, so that one program is compiled. What grows with the length is the text, its times, and the segments' gates.

    Args:
      recognizer: the model.
      blocks: [n] float32 each, at the model's rate, of any lengths; together they are the recording.
      plan: of the windows.
      decide: gate decision.
      execution: of the model, at batch 1.
      num_samples: in the whole stream, if known, for the progress.
      show_progress: on stderr, with an estimated time of arrival if ``num_samples`` is known.

    Raises:
      ValueError: unknown execution, or what the blocks raise.
    """
    hearing = _Hearing(recognizer, plan, decide, execution)
    total = None if num_samples is None else plan.count(num_samples)
    spans: list[TokenSpans] = []
    bounds: list[int] = []
    with ProgressMeter(total, "transcribing", unit="windows") if show_progress else nullcontext() as meter:
        for done, piece in enumerate(merge(hearing.windows(blocks), plan.overlap_frames), start=1):
            if len(piece.tokens):
                spans.append(piece.spans)
            bounds.append(piece.end_frame)
            if meter:
                meter.update_to(done)
    rate = recognizer.config.sample_rate
    audio_seconds = hearing.num_samples / rate
    seconds = [0.0, *(frame * FRAME / rate for frame in bounds[:-1]), audio_seconds]
    gates = zip(hearing.gates, hearing.gate_probabilities, strict=True)
    segments = (Segment(*span, *of) for span, of in zip(zip(seconds, seconds[1:], strict=False), gates, strict=True))
    begun = time.perf_counter()
    whole = joined(spans)
    text = recognizer.tokenizer.decode(whole.tokens.tolist())
    words = None
    if recognizer.decoder.timestamps:
        words = word_times(recognizer.tokenizer, whole, recognizer.config.frontend, hearing.num_samples)
    compute_seconds = hearing.seconds + time.perf_counter() - begun
    return StreamTranscription(text, tuple(segments), hearing.gflops, audio_seconds, compute_seconds, words)


class _Hearing:
    """Recognises windows, and keeps what is not merged: gates, cost, time, length of what was heard."""

    def __init__(self, recognizer: "Recognizer", plan: WindowPlan, decide: Decision, execution: Execution):
        self._recognizer, self._plan, self._decide, self._execution = recognizer, plan, decide, execution
        self.gates: list[np.ndarray] = []
        self.gate_probabilities: list[np.ndarray] = []
        self.gflops = self.seconds = 0.0
        self.num_samples = 0

    def windows(self, blocks: Iterable[np.ndarray]) -> Iterator[HeardWindow]:
        """What is recognised in each window."""
        for window in cut_windows(blocks, self._plan):
            begun = time.perf_counter()
            batch = one_window(window.samples, self._plan)
            recognition = self._recognizer.recognize(*batch, self._decide, self._execution)
            frames = self._recognizer.model.num_encoder_frames(int(recognition.num_frames[0]))
            path, margin = (np.asarray(x[0, :frames]) for x in (recognition.path, recognition.blank_margin))
            self.gates.append(np.asarray(recognition.gates[0]))
            self.gate_probabilities.append(np.asarray(recognition.gate_probabilities[0]))
            self.gflops += float(self._recognizer.gflops(recognition, self._execution)[0])
            self.num_samples = window.first_frame * FRAME + len(window.samples)
            self.seconds += time.perf_counter() - begun
            posterior = None if (of := recognition.path_log_probs) is None else np.asarray(of[0, :frames])
            yield HeardWindow(window.first_frame, path, margin, posterior)

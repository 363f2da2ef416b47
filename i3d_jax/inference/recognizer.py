"""The Python door: a trained model that turns audio into text."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from etils import epath

from i3d_jax.audio.frontend import GlobalStats, num_frames
from i3d_jax.audio.io import audio_info, read_audio, resample, resampled_length
from i3d_jax.audio.stream import stream_audio
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.inference.bundle import Bundle, RecognizerConfig, load_bundle, save_bundle
from i3d_jax.inference.execution import Execution, Pipeline, Recognition
from i3d_jax.inference.long_audio import Segment, transcribe_stream
from i3d_jax.inference.windows import WindowPlan, default_overlap, plan_windows
from i3d_jax.model.asr import ASRModel
from i3d_jax.model.encoder import Params
from i3d_jax.model.flops import count_flops
from i3d_jax.model.gates import Decision, inference_decision
from i3d_jax.types import Array


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
      compute_seconds: wall time of front end, model and decoding (compilation included when the shape is new).
      segments: one for audio that was recognised as a whole, otherwise one for each window.
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


def padded_length(num_samples: int, quantum: int = 8000) -> int:
    """Static length for a waveform: few shapes, at most one eighth (or ``quantum``) of padding."""
    step = max(quantum, 2 ** (max(num_samples - 1, 1).bit_length() - 3))
    return -(-num_samples // step) * step


def alone(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One utterance [S] as a padded batch: waveform [1, S'], num_samples [1]."""
    padded = np.zeros((1, padded_length(len(waveform))), np.float32)
    padded[0, : len(waveform)] = waveform
    return padded, np.array([len(waveform)], np.int32)


class Recognizer:
    """A model with its parameters and tokenizer."""

    def __init__(
        self, config: RecognizerConfig, params: Params, tokenizer: Tokenizer, stats: GlobalStats | None = None
    ):
        """Bind; nothing is compiled yet."""
        self.config = config
        self.tokenizer = tokenizer
        self.stats = stats
        self.model = ASRModel(config.model, config.frontend.num_mels, tokenizer.vocab_size)
        self.pipeline = Pipeline(config.frontend, self.model, stats)
        self.split: Pipeline | None = None
        self.params = params

    def over_devices(self, devices: Sequence[jax.Device]) -> "Recognizer":
        """The same model, which splits batches among devices that skip independently.

        Batches whose rows the number of devices does not divide run on one of them.
        """
        other = Recognizer(self.config, self.params, self.tokenizer, self.stats)
        other.split = Pipeline(self.config.frontend, self.model, self.stats, devices)
        return other

    @property
    def params(self) -> Params:
        """Parameters of the model; setting others keeps what is compiled."""
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        self._params = params
        self._programs: dict[tuple[Execution, bool], Any] = {}

    @cached_property
    def gate_names(self) -> tuple[str, ...]:
        """Names of the M gates of a layer."""
        return self.model.encoder.gate_names

    def decision(self, threshold: float | None = None) -> Decision:
        """Threshold decision; None takes the configured beta.

        Raises:
          ValueError: threshold outside [0, 1].
        """
        if threshold is not None and not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold={threshold} is not a probability: give a number from 0 to 1")
        return inference_decision(self.config.model.gates, threshold)

    def recognize(
        self,
        waveform: Array,
        num_samples: Array,
        decide: Decision,
        execution: Execution,
        fetch: Callable[[Any], Any] = jax.device_get,
    ) -> Recognition:
        """Run a batch, waveform [B, S] and num_samples [B], to tokens and gates that ``fetch`` brings to the host."""
        split = self.split is not None and execution != "eager" and not len(waveform) % len(self.split.devices)
        program = self._programs.get((execution, split))
        if program is None:
            pipeline = self.split if split and self.split is not None else self.pipeline
            program = self._programs[execution, split] = pipeline.program(execution, self.params)
        recognition: Recognition = fetch(program(waveform, num_samples, decide))
        return recognition

    def text(self, recognition: Recognition, row: int = 0) -> str:
        """Words of one row."""
        return self.tokenizer.decode(recognition.tokens[row, : recognition.num_tokens[row]].tolist())

    def gflops(self, recognition: Recognition, execution: Execution) -> np.ndarray:
        """Analytic GFLOPs of each row: [B]. ``masked`` computes every block, the others those with an open gate."""
        return (
            np.asarray(
                count_flops(
                    self.config.model,
                    num_mels=self.config.frontend.num_mels,
                    vocab_size=self.tokenizer.vocab_size,
                    num_frames=np.asarray(recognition.num_frames),
                    executed=None if execution == "masked" else np.asarray(recognition.gates, bool),
                )
            )
            / 1e9
        )

    def transcribe(
        self,
        audio: str | epath.PathLike | np.ndarray,
        *,
        sample_rate: int | None = None,
        execution: Execution = "conditional",
        threshold: float | None = None,
        decide: Decision | None = None,
        window_seconds: float | None = None,
        overlap_seconds: float | None = None,
        show_progress: bool = False,
    ) -> Transcription:
        """Transcribe one file, or samples with their rate.

        Audio longer than a window is recognised in overlapping windows, whose words are merged; a file is then read
        block by block and never held as a whole. See docs/long_audio.md.

        Audio too short for one encoder frame is an error, as in ESPnet, not an empty text: nothing was heard. (In an
        evaluation every utterance counts, and such a one is scored as an empty text.)

        Args:
          audio: path of an audio file, or float samples [S] in [-1, 1].
          sample_rate: of the samples, in Hz; required with samples, not allowed with a path.
          execution: ``conditional`` and ``eager`` skip closed blocks, ``masked`` computes all of them.
          threshold: beta of Eqs. 10 and 11; None takes the model's own.
          decide: any other decision of ``model.gates``; excludes ``threshold``.
          window_seconds: length of the windows, 1 to 480; None takes the model's own (``config.window_seconds``).
          overlap_seconds: that neighbouring windows share, 0.4 to half a window; None takes a quarter of a window, 4 s
            at most.
          show_progress: of long audio, on stderr.

        Raises:
          ValueError: bad threshold, execution, window or overlap, damaged audio, samples without a rate or outside
            [-1, 1], or audio too short for one encoder frame.
          FileNotFoundError: no such file.
        """
        if decide is not None and threshold is not None:
            raise ValueError("give either threshold or decide, not both")
        decide = self.decision(threshold) if decide is None else decide
        window_seconds = self.config.window_seconds if window_seconds is None else window_seconds
        overlap_seconds = default_overlap(window_seconds) if overlap_seconds is None else overlap_seconds
        plan, rate = plan_windows(window_seconds, overlap_seconds, self.config.sample_rate), self.config.sample_rate
        in_windows = partial(self._transcribe_windows, plan, decide, execution, show_progress)
        source = "the samples"
        if isinstance(audio, str | os.PathLike):
            source = str(audio)
            if sample_rate is not None:
                raise ValueError(f"{source}: a file states its own rate; sample_rate is for samples")
            length = resampled_length(*audio_info(audio), rate)
            if length > plan.length:
                return in_windows(stream_audio(audio, rate), length)
            waveform = read_audio(audio, rate)
        else:
            waveform = self._samples(audio, sample_rate)
            if len(waveform) > plan.length:
                return in_windows([waveform], len(waveform))
        seconds = len(waveform) / rate
        if self.model.num_encoder_frames(int(num_frames(self.config.frontend, len(waveform)))) < 1:
            raise ValueError(f"{source}: {seconds:.3f} s of audio are too short to recognise; give at least 0.1 s")
        padded, num_samples = alone(waveform)
        start = time.perf_counter()
        recognition = self.recognize(padded, num_samples, decide, execution)
        text = self.text(recognition)
        compute_seconds = time.perf_counter() - start
        gates, probabilities = np.asarray(recognition.gates[0]), np.asarray(recognition.gate_probabilities[0])
        return Transcription(
            text=text,
            gates=gates,
            gate_probabilities=probabilities,
            gate_names=self.gate_names,
            executed_layers=float(gates.sum() / len(self.gate_names)),
            gflops=float(self.gflops(recognition, execution)[0]),
            audio_seconds=seconds,
            compute_seconds=compute_seconds,
            segments=(Segment(0.0, seconds, gates, probabilities),),
        )

    def _transcribe_windows(
        self,
        plan: WindowPlan,
        decide: Decision,
        execution: Execution,
        show_progress: bool,
        blocks: Iterable[np.ndarray],
        num_samples: int,
    ) -> Transcription:
        result = transcribe_stream(
            self, blocks, plan, decide, execution, num_samples=num_samples, show_progress=show_progress
        )
        gates = np.stack([segment.gates for segment in result.segments]).mean(axis=0, dtype=np.float32)
        return Transcription(
            **result._asdict(),
            gates=gates,
            gate_probabilities=np.stack([segment.gate_probabilities for segment in result.segments]).mean(axis=0),
            gate_names=self.gate_names,
            executed_layers=float(gates.sum() / len(self.gate_names)),
        )

    def _samples(self, audio: np.ndarray, sample_rate: int | None) -> np.ndarray:
        if sample_rate is None:
            raise ValueError("samples need sample_rate=...")
        if not 1000 <= sample_rate <= 1_000_000:
            raise ValueError(f"sample_rate={sample_rate}: expected a rate in Hz, from 1000 to 1000000")
        audio = np.asarray(audio)
        if audio.ndim != 1 or not np.issubdtype(audio.dtype, np.floating):
            raise ValueError(f"samples must be a float array [S] in [-1, 1], got {audio.dtype} {audio.shape}")
        if not np.isfinite(audio).all():
            raise ValueError("the samples hold NaN or infinite values; mend or cut them")
        if audio.size and np.abs(audio).max() > 8:
            raise ValueError(f"samples reach {np.abs(audio).max():g}, expected [-1, 1]; divide them by the full scale")
        return resample(audio.astype(np.float32), sample_rate, self.config.sample_rate)

    def save(self, path: str | epath.Path, dtype: str = "float32") -> None:
        """Write a bundle, whole or not at all; ``dtype="float16"`` halves it. An existing bundle is replaced.

        Raises:
          ValueError: the folder holds something else than a bundle.
        """
        save_bundle(Bundle(self.config, self.params, self.tokenizer, self.stats), path, dtype)


def load(path: str | epath.PathLike) -> Recognizer:
    """Load a run directory or a bundle.

    Raises:
      FileNotFoundError: no finished model there.
      ValueError: a file is damaged or missing, or the parameters do not fit the stated architecture.
    """
    bundle = load_bundle(path)
    return Recognizer(**bundle._replace(params=jax.device_put(bundle.params))._asdict())

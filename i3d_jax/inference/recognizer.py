"""The Python door: a trained model that turns audio into text."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from etils import epath

from i3d_jax.audio.frontend import GlobalStats, num_frames
from i3d_jax.audio.io import audio_info, check_samples, read_audio, resample, resampled_length
from i3d_jax.audio.stream import stream_audio
from i3d_jax.compilation_cache import keep_programs
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.inference.bundle import Bundle, RecognizerConfig, load_bundle, save_bundle
from i3d_jax.inference.execution import Execution, Pipeline, Recognition, best_execution
from i3d_jax.inference.long_audio import Segment, StreamTranscription, mean_gates, transcribe_stream
from i3d_jax.inference.windows import default_overlap, plan_windows
from i3d_jax.model.asr import ASRModel
from i3d_jax.model.encoder import Params
from i3d_jax.model.flops import budget_decision, count_flops, encoder_share
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

    def decision(self, threshold: float | None = None, budget: float | None = None) -> Decision:
        """The decision of a threshold, or of a compute budget.

        Args:
          threshold: beta of Eqs. 10 and 11; None takes the configured one, with a budget none at all.
          budget: share of the FLOPs of all gated blocks, from 0 to 1. With a global predictor a hard bound for each
            utterance: its most probable blocks that fit (of those above ``threshold``, if one is given). With local
            predictors, whose gates are not known beforehand, the threshold that keeps to it on average over the
            utterances of the calibration.

        Raises:
          ValueError: threshold or budget outside [0, 1]; a budget for a model without gates, for local predictors
            without a calibration, or together with their threshold.
        """
        for name, value in (("threshold", threshold), ("budget", budget)):
            if value is not None and not 0.0 <= value <= 1.0:
                what = "a probability" if name == "threshold" else "a share of the encoder's FLOPs"
                raise ValueError(f"{name}={value} is not {what}: give a number from 0 to 1")
        gates = self.config.model.gates
        if budget is None:
            return inference_decision(gates, threshold)
        if gates.predictor == "none":
            raise ValueError(f"budget={budget}: {self.config.name} has no gates, its encoder is always executed whole")
        if gates.predictor == "global":
            return budget_decision(self.config.model, budget, -1.0 if threshold is None else threshold)
        if threshold is not None:
            raise ValueError("give either threshold or budget: with local predictors a budget is a threshold")
        return inference_decision(gates, self.config.calibration.threshold(budget))

    def best_execution(self, rows: int) -> Execution:
        """The fastest execution of batches of so many rows: see docs/speed.md."""
        return best_execution(rows, self.config.model.gates.predictor)

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

    def regroups(self, shape: tuple[int, ...], execution: Execution) -> bool:
        """Whether batches [B, S] of this shape gain from being regrouped by gate pattern (`inference.scheduler`)."""
        if self.split is not None or execution != "compacted" or self.config.model.gates.predictor != "global":
            return False
        frames = self.model.num_encoder_frames(int(num_frames(self.config.frontend, shape[1])))
        return 1 < self.pipeline.rows_at_once(shape[0], frames) < shape[0]

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

    def encoder_share(self, recognition: Recognition) -> np.ndarray:
        """FLOPs of the open gates' blocks as a share of those of all gated blocks: [B]."""
        frames, gates = np.asarray(recognition.num_frames), np.asarray(recognition.gates)
        return encoder_share(self.config.model, frames, gates)

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
        if isinstance(audio, str | os.PathLike):
            source = str(audio)
            if sample_rate is not None:
                raise ValueError(f"{source}: a file states its own rate; sample_rate is for samples")
            length = resampled_length(*audio_info(audio), rate)
            blocks = stream_audio(audio, rate) if length > plan.length else [read_audio(audio, rate)]
        else:
            source = "the samples"
            if sample_rate is None:
                raise ValueError("samples need sample_rate=...")
            waveform = resample(check_samples(audio, sample_rate), sample_rate, rate)
            blocks, length = [waveform], len(waveform)
        if length > plan.length:
            result = transcribe_stream(
                self, blocks, plan, decide, execution, num_samples=length, show_progress=show_progress
            )
        else:
            (waveform,) = blocks
            result = self._transcribe_whole(waveform, source, decide, execution)
        gates, probabilities = mean_gates(result.segments)
        return Transcription(
            **result._asdict(),
            gates=gates,
            gate_probabilities=probabilities,
            gate_names=self.gate_names,
            executed_layers=float(gates.sum() / len(self.gate_names)),
        )

    def _transcribe_whole(
        self, waveform: np.ndarray, source: str, decide: Decision, execution: Execution
    ) -> StreamTranscription:
        seconds = len(waveform) / self.config.sample_rate
        if self.model.num_encoder_frames(int(num_frames(self.config.frontend, len(waveform)))) < 1:
            raise ValueError(f"{source}: {seconds:.3f} s of audio are too short to recognise; give at least 0.1 s")
        padded, num_samples = alone(waveform)
        start = time.perf_counter()
        recognition = self.recognize(padded, num_samples, decide, execution)
        text = self.text(recognition)
        compute_seconds = time.perf_counter() - start
        gates, probabilities = (np.asarray(x[0]) for x in (recognition.gates, recognition.gate_probabilities))
        gflops = float(self.gflops(recognition, execution)[0])
        segment = Segment(0.0, seconds, gates, probabilities)
        return StreamTranscription(text, (segment,), gflops, seconds, compute_seconds)

    def save(self, path: str | epath.Path, dtype: str = "float32") -> None:
        """Write a bundle, whole or not at all; ``dtype="float16"`` halves it. An existing bundle is replaced.

        Raises:
          ValueError: the folder holds something else than a bundle.
        """
        save_bundle(Bundle(self.config, self.params, self.tokenizer, self.stats), path, dtype)


def load(path: str | epath.PathLike) -> Recognizer:
    """Load a run directory or a bundle; from then on compiled programs are kept on disk (`keep_programs`).

    Raises:
      FileNotFoundError: no finished model there.
      ValueError: a file is damaged or missing, or the parameters do not fit the stated architecture.
    """
    keep_programs()
    bundle = load_bundle(path)
    return Recognizer(**bundle._replace(params=jax.device_put(bundle.params))._asdict())

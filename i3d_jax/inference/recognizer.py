"""The Python door: a trained model that turns audio into text."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, overload

import jax
import numpy as np
from etils import epath

from i3d_jax.allocator import keep_freed_memory_on_cpu
from i3d_jax.audio.frontend import GlobalStats, num_frames
from i3d_jax.compilation_cache import keep_programs
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.inference.bundle import Bundle, RecognizerConfig, load_bundle, save_bundle
from i3d_jax.inference.decoder import Decoder
from i3d_jax.inference.decoding_config import DecoderName, DecodingConfig, decoder_config
from i3d_jax.inference.execution import (
    EXECUTIONS,
    Execution,
    Pipeline,
    best_execution,
    unknown_execution,
)
from i3d_jax.inference.long_audio import one_window
from i3d_jax.inference.recognition import Recognition
from i3d_jax.inference.transcription import (
    Audio,
    Transcription,
    alone,
    checked_length,
    open_audio,
    transcribe_many,
    transcribe_one,
)
from i3d_jax.inference.windows import default_overlap, plan_windows
from i3d_jax.model.asr import ASRModel
from i3d_jax.model.encoder import Params
from i3d_jax.model.flops import budget_decision, count_flops, encoder_share
from i3d_jax.model.gates import Decision, inference_decision
from i3d_jax.types import Array

_MOST_DECODERS = 16  # that one model keeps, with their language models


class Recognizer:
    """A model with its parameters and tokenizer."""

    def __init__(
        self,
        config: RecognizerConfig,
        params: Params,
        tokenizer: Tokenizer,
        stats: GlobalStats | None = None,
        *,
        devices: Sequence[jax.Device] = (),
        decoder: Decoder | None = None,
    ):
        """Bind; nothing is compiled yet. See `over_devices` and `with_decoder`."""
        self.config = config
        self.tokenizer = tokenizer
        self.stats = stats
        self.decoder = decoder or Decoder(tokenizer)
        self.model = ASRModel(config.model, config.frontend.num_mels, tokenizer.vocab_size)
        pipeline = partial(Pipeline, config.frontend, self.model, stats, keep=self.decoder.keep)
        self.pipeline = pipeline()
        self.split = pipeline(devices=devices) if devices else None
        self.params = params

    def over_devices(self, devices: Sequence[jax.Device]) -> "Recognizer":
        """The same model, which splits batches among devices that skip independently.

        Batches whose rows the number of devices does not divide run on one of them.
        """
        return Recognizer(self.config, self.params, self.tokenizer, self.stats, devices=devices, decoder=self.decoder)

    def with_decoder(self, config: DecodingConfig | None, timestamps: bool | None = None) -> "Recognizer":
        """The same model with another decoder; None keeps the decoder. What was compiled for one is kept.

        Args:
          config: of the decoder.
          timestamps: whether its paths are to have probabilities, for times and confidences of words; None keeps
            that too.

        Raises:
          ModuleNotFoundError, FileNotFoundError, ValueError: see `Decoder`.
        """
        config = config or self.decoder.config
        timestamps = self.decoder.timestamps if timestamps is None else timestamps
        if (config, timestamps) == (self.decoder.config, self.decoder.timestamps):
            return self
        digests = config.digests  # another language model may lie there by now
        for known in self._family:
            own = known.decoder
            if (own.config, own.timestamps, own.digests) == (config, timestamps, digests):
                return known
        self._family.append(self._sibling(config, timestamps, digests))
        del self._family[:-_MOST_DECODERS]
        return self._family[-1]

    def _sibling(self, config: DecodingConfig, timestamps: bool, digests: dict[str, str]) -> "Recognizer":
        """Another recogniser of the family, which shares what is the same: programs, parameters, language model."""
        decoder = None
        for known in self._family:
            own = known.decoder
            if own.timestamps == timestamps and own.digests == digests and own.config.same_search(config):
                decoder = own.reweighted(config)
        decoder = decoder or Decoder(self.tokenizer, config, timestamps, self.model.decoder)
        devices = self.split.devices if self.split else ()
        other = Recognizer(self.config, self.params, self.tokenizer, self.stats, devices=devices, decoder=decoder)
        other._unstacked, other._family = self._unstacked, self._family
        for known in (self, *self._family):
            if known.decoder.keep == decoder.keep:
                other.pipeline, other.split, other._programs = known.pipeline, known.split, known._programs
        return other

    @property
    def params(self) -> Params:
        """Parameters of the model; setting others keeps what is compiled."""
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        self._params = params
        self._unstacked: Params | None = None
        self._programs: dict[tuple[Execution, bool], Any] = {}
        self._family: list[Recognizer] = [self]  # with other decoders

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
        return self.finish(self.run(waveform, num_samples, decide, execution), fetch)

    def finish(self, recognition: Recognition, fetch: Callable[[Any], Any] = jax.device_get) -> Recognition:
        """What `run` or the pipeline began, decoded and brought to the host by ``fetch``."""
        finished: Recognition = fetch(self.decoder(recognition, self.params))
        return finished

    def run(self, waveform: Array, num_samples: Array, decide: Decision, execution: Execution) -> Recognition:
        """The program of an execution: what `finish` decodes, on the devices."""
        split = self.split is not None and execution != "eager" and not len(waveform) % len(self.split.devices)
        program = self._programs.get((execution, split))
        if program is None:
            pipeline = self.split if split and self.split is not None else self.pipeline
            params = self.params
            if pipeline.unstacks(execution):  # once, for all executions that do
                params = self._unstacked = self._unstacked or self.model.encoder.unstack(params)
            program = self._programs[execution, split] = pipeline.program(execution, params)
        recognition: Recognition = program(waveform, num_samples, decide)
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

    @overload
    def transcribe(  # type: ignore[overload-overlap]  # a string is a sequence of strings
        self,
        audio: Audio,
        *,
        sample_rate: int | None = None,
        execution: Execution | None = None,
        threshold: float | None = None,
        budget: float | None = None,
        decide: Decision | None = None,
        window_seconds: float | None = None,
        overlap_seconds: float | None = None,
        decoder: DecoderName | DecodingConfig | None = None,
        beam: int | None = None,
        timestamps: bool | None = None,
        show_progress: bool = False,
    ) -> Transcription: ...

    @overload
    def transcribe(
        self,
        audio: Sequence[Audio],
        *,
        sample_rate: int | None = None,
        execution: Execution | None = None,
        threshold: float | None = None,
        budget: float | None = None,
        decide: Decision | None = None,
        window_seconds: float | None = None,
        overlap_seconds: float | None = None,
        decoder: DecoderName | DecodingConfig | None = None,
        beam: int | None = None,
        timestamps: bool | None = None,
        show_progress: bool = False,
    ) -> list[Transcription]: ...

    def transcribe(
        self,
        audio: Audio | Sequence[Audio],
        *,
        sample_rate: int | None = None,
        execution: Execution | None = None,
        threshold: float | None = None,
        budget: float | None = None,
        decide: Decision | None = None,
        window_seconds: float | None = None,
        overlap_seconds: float | None = None,
        decoder: DecoderName | DecodingConfig | None = None,
        beam: int | None = None,
        timestamps: bool | None = None,
        show_progress: bool = False,
    ) -> Transcription | list[Transcription]:
        """Transcribe one file, or samples with their rate; or a list of either, in batches.

        Audio longer than a window is recognised in overlapping windows, whose words are merged; a file is then read
        block by block and never held as a whole. See docs/long_audio.md.

        Audio too short for one encoder frame is an error, as in ESPnet, not an empty text: nothing was heard. (In an
        evaluation every utterance counts, and such a one is scored as an empty text.)

        Args:
          audio: path of an audio file, or float samples [S] in [-1, 1]; or a list of such.
          sample_rate: of the samples, in Hz; required with samples, not allowed with a path.
          execution: see `inference.execution`; None takes the fastest.
          threshold: beta of Eqs. 10 and 11; None takes the model's own.
          budget: share of the FLOPs of all gated blocks, 0 to 1, instead of a threshold; see `decision`.
          decide: any other decision of ``model.gates``; excludes ``threshold`` and ``budget``. One with float gates
            needs ``execution="masked"``.
          window_seconds: length of the windows, 1 to 480; None takes the model's own (``config.window_seconds``).
          overlap_seconds: that neighbouring windows share, 0.4 to half a window; None takes a quarter of a window, 4 s
            at most.
          decoder: its name, or all settings of one (`DecodingConfig`); None takes the recogniser's own, which is
            ``greedy`` unless it was made `with_decoder`.
          beam: of a decoder that is given by name, whose other options are then the defaults, or of the recogniser's
            own; None takes what that has.
          timestamps: give times and confidences of the words, ``words`` of the result; None does as the recogniser.
          show_progress: of long audio, on stderr.

        Raises:
          ValueError: bad threshold, budget, execution, decoder, beam, window or overlap, damaged audio, samples without
            a rate or outside [-1, 1], audio too short for one encoder frame; of a list nothing has been recognised then
            where the fault shows in the head of a file or in samples.
          TypeError: float gates in an execution other than ``masked``.
          FileNotFoundError: no such file.
        """
        if execution is not None and execution not in EXECUTIONS:
            raise unknown_execution(execution)
        if isinstance(audio, Iterator | bytes):
            raise ValueError(f"audio is of type {type(audio).__name__}: give a path, samples, or a list of these")
        if decide is not None and (threshold is not None or budget is not None):
            raise ValueError("give either threshold or budget, or decide")
        decide = self.decision(threshold, budget) if decide is None else decide
        window_seconds = self.config.window_seconds if window_seconds is None else window_seconds
        overlap_seconds = default_overlap(window_seconds) if overlap_seconds is None else overlap_seconds
        plan = plan_windows(window_seconds, overlap_seconds, self.config.sample_rate)
        decoding = self.with_decoder(decoder_config(decoder, beam, self.decoder.config), timestamps)
        if not isinstance(audio, Sequence) or isinstance(audio, str):
            opened = open_audio(self, audio, sample_rate, plan)
            return transcribe_one(decoding, opened, plan, decide, execution, show_progress)
        for each in audio:
            checked_length(self, each, sample_rate)
        every = (open_audio(self, each, sample_rate, plan) for each in audio)
        return transcribe_many(decoding, every, plan, decide, execution, show_progress)

    def warm_up(
        self,
        *seconds: float,
        execution: Execution | None = None,
        threshold: float | None = None,
        budget: float | None = None,
    ) -> float:
        """Compile what `transcribe` needs for single recordings of these lengths; returns its seconds.

        Anything longer than the model's window needs the program of its windows; so does a call without lengths.
        Programs found in the compilation cache are loaded from there. Give a budget if one will be given.
        """
        begun = time.perf_counter()
        decide = self.decision(threshold, budget)
        window = self.config.window_seconds
        plan = plan_windows(window, default_overlap(window), self.config.sample_rate)
        for length in seconds or (math.inf,):
            samples = round(min(length, 2 * window) * self.config.sample_rate)
            silence = np.zeros(min(max(samples, 1), plan.length), np.float32)
            batch = alone(silence) if samples <= plan.length else one_window(silence, plan)
            self.decoder.warm_up(self.run(*batch, decide, execution or self.best_execution(rows=1)), self.params)
        return time.perf_counter() - begun

    def save(self, path: str | epath.Path, dtype: str = "float32") -> None:
        """Write a bundle, whole or not at all; ``dtype="float16"`` halves it. An existing bundle is replaced.

        Raises:
          ValueError: the folder holds something else than a bundle, or the type is another one.
        """
        save_bundle(Bundle(self.config, self.params, self.tokenizer, self.stats), path, dtype)


def load(path: str | epath.PathLike) -> Recognizer:
    """Load a run directory or a bundle.

    From then on the process keeps compiled programs on disk (`keep_programs`) and, on a CPU, freed memory for what
    comes next (`keep_freed_memory_on_cpu`), without which its convolutions take half as long again.

    Raises:
      FileNotFoundError: no finished model there.
      ValueError: a file is damaged or missing, or the parameters do not fit the stated architecture.
    """
    keep_programs()
    keep_freed_memory_on_cpu()
    bundle = load_bundle(path)
    return Recognizer(**bundle._replace(params=jax.device_put(bundle.params))._asdict())

"""Evaluation of a recogniser on a corpus: error rates, executed layers, GFLOPs and real-time factor."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from i3d_jax.data.batching import BatchingConfig, BatchPlanner
from i3d_jax.data.corpora import Corpus
from i3d_jax.data.epoch_plan import PlannedBatch
from i3d_jax.data.loader import Share, iterate_eval
from i3d_jax.inference.execution import Execution
from i3d_jax.inference.pattern import Decisions, PerUtterance, decision_of
from i3d_jax.inference.recognition import Recognition
from i3d_jax.inference.recognizer import Recognizer
from i3d_jax.inference.report import ReportRow
from i3d_jax.inference.scheduler import Work, recognize_batches
from i3d_jax.inference.scoring import Score, score, write_jsonl, write_trn
from i3d_jax.inference.transcription import Hypothesis, alone, alternatives
from i3d_jax.progress import progress
from i3d_jax.types import Batch


@dataclass(frozen=True)
class EvaluationConfig:
    """Decoding and scoring."""

    bootstrap_samples: int = 1000
    """Resamplings of the utterances behind the WER interval."""
    seconds_per_batch: float = 120.0
    """Budget of padded audio of an evaluation batch, in seconds."""
    timed_utterances: int = 100
    """Utterances, evenly spread over the split, whose real-time factor is measured at batch 1; 0 measures none."""
    max_seconds: float = 180.0
    """A longer utterance is an error before anything is computed: memory grows with rows times the square of the
    length. 8 rows (``batching.batch_multiple``) of 180 s with 4 attention heads fit into 16 GB."""


@dataclass(frozen=True)
class Evaluation:
    """Results on a corpus, in its order.

    Attributes:
      ids: utterance ids, B of them.
      references: transcripts.
      hypotheses: recognised texts.
      score: WER, CER, intervals.
      gates: [B, N, M] bool (or float, for a float decision).
      gate_probabilities: [B, N, M].
      gflops: [B] GFLOPs that were spent on each utterance.
      encoder_share: [B] FLOPs of the open gates' blocks as a share of those of all gated blocks.
      audio_seconds: [B].
      alternatives: the best texts of each utterance with their scores, of a decoder that looks for several.
    """

    ids: list[str]
    references: list[str]
    hypotheses: list[str]
    score: Score
    gates: np.ndarray
    gate_probabilities: np.ndarray
    gflops: np.ndarray
    encoder_share: np.ndarray
    audio_seconds: np.ndarray
    alternatives: list[tuple[Hypothesis, ...]]

    @property
    def executed_layers(self) -> float:
        """Open gates / M, averaged over utterances."""
        return float(self.gates.sum(axis=(1, 2)).mean() / self.gates.shape[2])

    @property
    def gflops_per_second(self) -> float:
        """GFLOP per second of audio, over the whole corpus."""
        return float(self.gflops.sum() / self.audio_seconds.sum())

    def row(
        self, model: str, execution: Execution, decoder: str, split: str, factor: "RealTimeFactor | None"
    ) -> ReportRow:
        """A row of ``report.json``."""
        return ReportRow(
            model=model,
            execution=execution,
            decoder=decoder,
            split=split,
            wer=self.score.wer,
            cer=self.score.cer,
            executed_layers=self.executed_layers,
            gflops_per_second=self.gflops_per_second,
            real_time_factor=factor.total if factor else None,
            decoder_real_time_factor=factor.decoder if factor else None,
        )

    def write(self, folder: epath.PathLike, gate_names: tuple[str, ...]) -> None:
        """Write ``ref.trn``, ``hyp.trn`` and ``utterances.jsonl`` (texts, errors and gates of each utterance)."""
        folder = epath.Path(folder)
        write_trn(folder / "ref.trn", self.ids, self.references)
        write_trn(folder / "hyp.trn", self.ids, self.hypotheses)
        rows: list[dict[str, Any]] = [
            {
                "id": self.ids[i],
                "reference": self.references[i],
                "hypothesis": self.hypotheses[i],
                **({"alternatives": [one._asdict() for one in of]} if len(of := self.alternatives[i]) > 1 else {}),
                "errors": int(self.score.utterance_errors[i]),
                "words": int(self.score.utterance_words[i]),
                "audio_seconds": round(float(self.audio_seconds[i]), 3),
                "gflops": round(float(self.gflops[i]), 6),
                "executed_layers": float(self.gates[i].sum() / len(gate_names)),
                "gates": {name: self.gates[i, :, m].astype(int).tolist() for m, name in enumerate(gate_names)},
                "gate_probabilities": {
                    name: np.round(self.gate_probabilities[i, :, m].astype(float), 5).tolist()
                    for m, name in enumerate(gate_names)
                },
            }
            for i in range(len(self.ids))
        ]
        write_jsonl(folder / "utterances.jsonl", rows)


def check_lengths(corpus: Corpus, config: EvaluationConfig) -> None:
    """Raises ValueError if an utterance is longer than ``evaluation.max_seconds``; the message names the longest."""
    longest = max(corpus.utterances, key=lambda u: u.num_samples, default=None)
    if longest is not None and longest.num_samples > config.max_seconds * corpus.sample_rate:
        raise ValueError(
            f"{corpus.name}: utterance {longest.id} lasts {longest.num_samples / corpus.sample_rate:.0f} s, "
            f"evaluation.max_seconds is {config.max_seconds:g}: attention needs memory for the square of the length. "
            "Cut it into pieces, or raise evaluation.max_seconds (--max-seconds of eval.py)"
        )


def evaluation_planner(corpus: Corpus, config: EvaluationConfig, batching: BatchingConfig) -> BatchPlanner:
    """Batches by length, in a fixed order; few static shapes."""
    lengths = np.array([u.num_samples for u in corpus.utterances])
    plan = replace(batching, seconds_per_batch=config.seconds_per_batch, num_buckets=min(batching.num_buckets, 4))
    return BatchPlanner(lengths, np.ones_like(lengths), plan, shuffle=False, sample_rate=corpus.sample_rate)


def evaluate(
    recognizer: Recognizer,
    corpus: Corpus,
    decide: Decisions,
    execution: Execution,
    config: EvaluationConfig,
    batching: BatchingConfig,
    *,
    place: Callable[[Any], Any] = lambda batch: batch,
    fetch: Callable[[Any], Any] = jax.device_get,
    share: Share | None = None,
    interactive: bool | None = None,
) -> Evaluation:
    """Recognise and score a corpus.

    Args:
      recognizer: the model.
      corpus: what to recognise.
      decide: gate decision, or a pattern for each utterance.
      execution: ``eager`` runs one utterance at a time, the others in batches.
      config: of decoding and scoring.
      batching: threads and batch multiple of the loader.
      place: puts (waveform, num_samples) on devices.
      fetch: brings what was recognised back to the host.
      share: of several processes that evaluate together, whose audio is read; None reads all.
      interactive: progress bar or lines; None asks the terminal.

    Raises:
      ValueError: the corpus is empty, an utterance is longer than ``config.max_seconds``, or patterns are not those
        of its utterances.
    """
    _check(corpus, config)
    if isinstance(decide, PerUtterance) and len(decide.gates) != len(corpus):
        raise ValueError(f"{len(decide.gates)} gate patterns for the {len(corpus)} utterances of {corpus.name}")
    description = f"{corpus.name} {execution}"
    if execution == "eager":

        def one_by_one() -> Iterator[tuple[np.ndarray, Recognition]]:
            for index in progress(len(corpus), description, interactive=interactive):
                indices, (waveform, num_samples) = np.array([index]), alone(corpus.load_audio(index))
                own = decision_of(decide, indices, 1)
                yield indices, recognizer.recognize(waveform, num_samples, own, execution, fetch)

        return collect(recognizer, corpus, one_by_one(), execution, config)

    def work() -> Iterator[Work]:
        batches, total = evaluation_batches(recognizer, corpus, config, batching, share)
        for planned, batch in progress(batches, description, total=total, interactive=interactive):
            waveform, num_samples = place((np.asarray(batch.waveform), np.asarray(batch.num_samples)))
            yield Work(planned.indices, waveform, num_samples)

    results = recognize_batches(recognizer, work(), decide, execution, fetch=fetch)
    return collect(recognizer, corpus, results, execution, config)


def evaluation_batches(
    recognizer: Recognizer,
    corpus: Corpus,
    config: EvaluationConfig,
    batching: BatchingConfig,
    share: Share | None = None,
) -> tuple[Iterator[tuple[PlannedBatch, Batch]], int]:
    """The batches of an evaluation, as `iterate_eval` gives them, and how many they are.

    Raises:
      ValueError: as `evaluate`.
    """
    _check(corpus, config)
    rows = math.lcm(batching.batch_multiple, len(recognizer.split.devices) if recognizer.split else 1)
    planner = evaluation_planner(corpus, config, replace(batching, batch_multiple=rows))
    empty: list[list[int]] = [[]] * len(corpus)
    return iterate_eval(corpus, empty, planner, share=share), planner.steps_in_epoch(0)


def collect(
    recognizer: Recognizer,
    corpus: Corpus,
    results: Iterable[tuple[np.ndarray, Recognition]],
    execution: Execution,
    config: EvaluationConfig,
) -> Evaluation:
    """Scores what was recognised of a corpus.

    Args:
      recognizer: the model.
      corpus: every utterance of it comes once.
      results: (indices, recognition): row r of the recognition is utterance ``indices[r]``, rows beyond are fillers.
      execution: that made them.
      config: of scoring.
    """
    count = len(corpus)
    hypotheses = [""] * count
    several: list[tuple[Hypothesis, ...]] = [()] * count
    parts: dict[int, tuple[np.ndarray, np.ndarray, float, float]] = {}
    for indices, recognition in results:
        spent, share = recognizer.gflops(recognition, execution), recognizer.encoder_share(recognition)
        gates, probabilities = np.asarray(recognition.gates), np.asarray(recognition.gate_probabilities)
        for row, index in enumerate(indices):
            hypotheses[index] = recognizer.text(recognition, row)
            if recognizer.decoder.config.n_best > 1:
                several[index] = alternatives(recognizer.tokenizer, recognition, row)
            parts[int(index)] = (gates[row], probabilities[row], float(spent[row]), float(share[row]))
    references = [u.text for u in corpus.utterances]
    return Evaluation(
        ids=[u.id for u in corpus.utterances],
        references=references,
        hypotheses=hypotheses,
        score=score(references, hypotheses, bootstrap_samples=config.bootstrap_samples),
        gates=np.stack([parts[i][0] for i in range(count)]),
        gate_probabilities=np.stack([parts[i][1] for i in range(count)]),
        gflops=np.array([parts[i][2] for i in range(count)]),
        encoder_share=np.array([parts[i][3] for i in range(count)]),
        audio_seconds=np.array([u.num_samples for u in corpus.utterances]) / corpus.sample_rate,
        alternatives=several,
    )


def _check(corpus: Corpus, config: EvaluationConfig) -> None:
    if not len(corpus):
        raise ValueError(f"{corpus.name}: no utterances to evaluate")
    check_lengths(corpus, config)


class RealTimeFactor(NamedTuple):
    """Compute seconds / audio seconds at batch 1: front end, model and decoding, audio already in memory.

    Attributes:
      total: of all of it.
      decoder: the part from scores and encoder states to text; None where that is inside the program of the encoder.
    """

    total: float
    decoder: float | None


def real_time_factor(
    recognizer: Recognizer, corpus: Corpus, decide: Decisions, execution: Execution, utterances: int
) -> RealTimeFactor | None:
    """Measures it. Each utterance runs twice, and the second run counts: the first may compile.

    None when ``utterances`` is 0.
    """
    if utterances <= 0:
        return None
    chosen = np.unique(np.linspace(0, len(corpus) - 1, min(utterances, len(corpus))).round().astype(int))
    apart, compute, decoding, audio = recognizer.decoder.keep != "tokens", 0.0, 0.0, 0.0
    for index in chosen:
        waveform = corpus.load_audio(int(index))
        padded, num_samples = alone(waveform)
        own = decision_of(decide, np.array([index]), 1)
        recognizer.text(recognizer.recognize(padded, num_samples, own, execution))
        start = time.perf_counter()
        scored = recognizer.run(padded, num_samples, own, execution)
        if apart:
            jax.block_until_ready(scored)
        encoded = time.perf_counter()
        recognizer.text(recognizer.finish(scored))
        end = time.perf_counter()
        compute, decoding = compute + end - start, decoding + end - encoded
        audio += len(waveform) / corpus.sample_rate
    return RealTimeFactor(compute / audio, decoding / audio if apart else None)

"""What moves gates: the same utterance heard twice, once changed on purpose.

Utterances differ in everything at once. A pair differs in one thing only, so the difference of its gates is caused by
it: added noise, another speed, silence at the end, another level.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from i3d_jax.analysis.resampling import Interval, bootstrap, interval
from i3d_jax.analysis.utterances import UtteranceTable, from_evaluation
from i3d_jax.audio.io import change_speed
from i3d_jax.data.batching import BatchingConfig
from i3d_jax.data.corpora import Corpus
from i3d_jax.inference.evaluation import EvaluationConfig, evaluate
from i3d_jax.inference.execution import Execution
from i3d_jax.inference.recognizer import Recognizer
from i3d_jax.model.gates import Decision


class Change(Protocol):
    """A change of a recording."""

    @property
    def name(self) -> str:
        """In tables and figures."""
        ...

    def __call__(self, waveform: np.ndarray, sample_rate: int, rng: np.random.Generator, /) -> np.ndarray:
        """[S] float32 to the changed [S'] float32."""
        ...


class AddNoise(NamedTuple):
    """White Gaussian noise, so many dB below the recording's mean power."""

    snr_db: float

    @property
    def name(self) -> str:
        """In tables and figures."""
        return f"noise, {self.snr_db:g} dB SNR"

    def __call__(self, waveform: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Add it."""
        power = float(np.mean(np.square(waveform, dtype=np.float64)))
        noise = rng.standard_normal(len(waveform)) * np.sqrt(power * 10 ** (-self.snr_db / 10))
        return np.asarray(waveform + noise, np.float32)


class Speed(NamedTuple):
    """Another speed, as the augmentation changes it: tempo and pitch together. Above 1 is faster, so shorter."""

    factor: float

    @property
    def name(self) -> str:
        """In tables and figures."""
        return f"speed × {self.factor:g}"

    def __call__(self, waveform: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Resample."""
        return change_speed(waveform, self.factor)


class Silence(NamedTuple):
    """Silence at the end, as faint as the recording's quietest tenth: longer, with nothing more said."""

    seconds: float

    @property
    def name(self) -> str:
        """In tables and figures."""
        return f"+ {self.seconds:g} s of silence"

    def __call__(self, waveform: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Append it."""
        frames = waveform[: len(waveform) // 160 * 160].reshape(-1, 160)
        quiet = float(np.percentile(frames.std(axis=1), 10)) if len(frames) else 0.0
        tail = rng.standard_normal(round(self.seconds * sample_rate)) * quiet
        return np.concatenate([waveform, tail.astype(np.float32)])


class Gain(NamedTuple):
    """Another level. Front ends that subtract an utterance's mean should not notice."""

    db: float

    @property
    def name(self) -> str:
        """In tables and figures."""
        return f"level {self.db:+g} dB"

    def __call__(self, waveform: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Scale."""
        return np.asarray(waveform * 10 ** (self.db / 20), np.float32)


CHANGES: tuple[Change, ...] = (
    *(AddNoise(snr) for snr in (30.0, 20.0, 10.0, 0.0)),
    *(Speed(factor) for factor in (0.9, 1.1)),
    Silence(1.0),
    Gain(-6.0),
)
"""What is tried unless other changes are named."""


class Effect(NamedTuple):
    """The mean paired difference of a quantity, changed minus original, and its 95 % bootstrap interval."""

    mean: float
    interval: Interval | None


@dataclass(frozen=True)
class PairedEffects:
    """What one change did.

    Attributes:
      change: its name.
      executed_layers: executed layers.
      expected_layers: sum of p(execute) / M.
      wer: WER over all utterances, in points.
      flipped_gates: share of the N x M decisions that differ between the two.
      gate_differences: [N, M] mean difference of p(execute).
      utterances: pairs.
    """

    change: str
    executed_layers: Effect
    expected_layers: Effect
    wer: Effect
    flipped_gates: float
    gate_differences: np.ndarray
    utterances: int


def matched_pairs(
    recognizer: Recognizer,
    corpus: Corpus,
    decide: Decision,
    *,
    changes: Sequence[Change] = CHANGES,
    utterances: int = 100,
    execution: Execution = "compacted",
    seconds_per_batch: float = 120.0,
    samples: int = 1000,
    seed: int = 0,
    interactive: bool | None = None,
) -> list[PairedEffects]:
    """Recognises utterances as they are and with each change, and compares the gates of each pair.

    Args:
      recognizer: the model.
      corpus: where the utterances are from.
      decide: gate decision, such as ``recognizer.decision()``.
      changes: what is done to each of them, one at a time.
      utterances: at most so many, evenly spread over the corpus; all their audio is held in memory.
      execution: of the model.
      seconds_per_batch: padded audio of a batch.
      samples: resamplings behind each interval; over speakers where there are several.
      seed: of noise and resampling. The noise of an utterance is the same at every level.
      interactive: progress bar or lines; None asks the terminal.

    Raises:
      ValueError: no change, two of one name, or fewer than two utterances.
    """
    names = [change.name for change in changes]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"changes {names}: expected at least one, each with a name of its own")
    if min(len(corpus), utterances) < 2:
        raise ValueError(f"{corpus.name}: matched pairs need at least two utterances")
    chosen = np.unique(np.linspace(0, len(corpus) - 1, min(utterances, len(corpus))).round().astype(int))
    originals = [corpus.load_audio(int(i)) for i in chosen]
    heard, rate = [], corpus.sample_rate
    # One corpus for all: its few lengths of batches are compiled once.
    for change in (None, *changes):
        for index, waveform in zip(chosen, originals, strict=True):
            changed = waveform
            if change is not None:
                changed = change(waveform, rate, np.random.default_rng([seed, int(index)]))
            name = "" if change is None else change.name
            own = corpus.utterances[index]
            heard.append(replace(own, id=f"{own.id}|{name}", num_samples=len(changed), audio=changed))
    together = Corpus(f"{corpus.name} in pairs", tuple(heard), rate)
    config = EvaluationConfig(bootstrap_samples=0, seconds_per_batch=seconds_per_batch, max_seconds=float("inf"))
    batching = BatchingConfig(batch_multiple=8, num_buckets=2)
    result = evaluate(recognizer, together, decide, execution, config, batching, interactive=interactive)
    table = from_evaluation(result, recognizer.gate_names)
    count = len(chosen)
    speakers = np.array([corpus.utterances[i].speaker for i in chosen])
    clusters = speakers if len(set(speakers)) > 1 else None
    original = table.rows(np.arange(count))
    return [
        compare_pairs(original, table.rows(np.arange(c * count, (c + 1) * count)), name, clusters, samples, seed)
        for c, name in enumerate(names, start=1)
    ]


def compare_pairs(
    original: UtteranceTable,
    changed: UtteranceTable,
    name: str,
    clusters: np.ndarray | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> PairedEffects:
    """The effects of a change on the same utterances in the same order; ``clusters`` as in `bootstrap`."""
    executed = changed.executed_layers - original.executed_layers
    expected = changed.expected_layers - original.expected_layers
    errors, words = changed.errors - original.errors, original.words

    def statistic(i: np.ndarray) -> np.ndarray:
        wer = 100.0 * errors[i].sum() / max(words[i].sum(), 1)
        return np.array([executed[i].mean(), expected[i].mean(), wer])

    found = statistic(np.arange(len(original)))
    drawn = bootstrap(statistic, len(original), clusters=clusters, samples=samples, seed=seed)
    effects = [Effect(float(mean), interval(column)) for mean, column in zip(found, drawn.T, strict=True)]
    return PairedEffects(
        change=name,
        executed_layers=effects[0],
        expected_layers=effects[1],
        wer=effects[2],
        flipped_gates=float((changed.gates != original.gates).mean()),
        gate_differences=(changed.probabilities - original.probabilities).mean(axis=0),
        utterances=len(original),
    )

"""The batch plan: which utterances, at which speed, form which batch.

The plan is a pure function of (lengths, seed, epoch): every host computes the same one, and the position in the data is
a function of the step. Batches have few static shapes: buckets come from the histogram of lengths, over all speeds, by
dynamic programming that minimises the padded audio of an epoch, filler rows included.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from i3d_jax.audio.io import num_samples_after_speed

_MAX_EDGES = 256
_SAMPLED_EPOCHS = 4  # whose rows the buckets are made for, when utterances are joined


@dataclass(frozen=True)
class BatchingConfig:
    """Length-bucketed batches of few static shapes."""

    seconds_per_batch: float = 60.0
    """Budget of padded audio of a batch, in seconds."""
    num_buckets: int = 4
    """Static lengths; each costs one compilation of the training step."""
    batch_multiple: int = 8
    """Batch sizes are multiples of this; filler rows are masked out."""
    num_threads: int = 2
    """Threads that read audio ahead (of each worker process, if there are any)."""
    num_workers: int = 0
    """Processes that read training audio ahead; 0 reads in threads only, which is faster on few cores. The order of
    the data does not depend on it."""
    prefetch: int = 8
    """Batches read ahead."""
    device_prefetch: int = 1
    """Batches that are copied to the devices before their step is dispatched."""
    cache_gigabytes: float = 2.0
    """Decoded audio kept in memory, so that a small corpus is read from its files only once."""


class Bucket(NamedTuple):
    """A static shape: [batch_size, num_samples] waveforms, [batch_size, num_labels] labels."""

    num_samples: int
    num_labels: int
    batch_size: int


class PlannedBatch(NamedTuple):
    """One batch of the plan; its r <= bucket.batch_size rows come first, each with one utterance or several in a row.

    Attributes:
      bucket: static shape.
      indices: [n] int64 utterances of the corpus, n >= r.
      speeds: [n] float64 speed factors.
      rows: [n] int64 row of each utterance, ascending from 0.
      seeds: [r] uint32 augmentation seeds, a hash of (seed, epoch, first utterance of the row).
    """

    bucket: Bucket
    indices: np.ndarray
    speeds: np.ndarray
    rows: np.ndarray
    seeds: np.ndarray


class BatchPlanner:
    """Plans epochs of length-bucketed batches, each utterance exactly once an epoch.

    Args:
      num_samples: lengths of the utterances.
      num_labels: label counts of the utterances.
      config: budget, number of buckets, batch multiple.
      speeds: speed factors; one is drawn for each (seed, epoch, utterance).
      seed: of order, speeds and augmentation seeds.
      shuffle: False gives the same batches every epoch, by length: for evaluation.
      sample_rate: in Hz.
      concatenate_seconds: rows are made of utterances in random order, joined up to a length that is drawn for each
        row, evenly between 0 and this; 0 keeps every utterance apart.

    Attributes:
      buckets: static shapes, shortest first. A batch holds at most ``seconds_per_batch`` of padded audio, unless the
        smallest allowed batch (``batch_multiple`` rows) already holds more.

    Raises:
      ValueError: no utterances, lengths that are not positive or do not match, or a config value out of range.
    """

    def __init__(
        self,
        num_samples: np.ndarray,
        num_labels: np.ndarray,
        config: BatchingConfig,
        *,
        speeds: Sequence[float] = (1.0,),
        seed: int = 0,
        shuffle: bool = True,
        sample_rate: int = 16000,
        concatenate_seconds: float = 0.0,
    ):
        lengths: Any = np.asarray(num_samples, np.int64)
        labels = np.asarray(num_labels, np.int64)
        _check(lengths, labels, config, speeds)
        self.config = config
        self.sample_rate = sample_rate
        self._speeds = np.asarray(speeds, np.float64)
        self._seed = seed
        self._shuffle = shuffle
        self._lengths = np.stack([num_samples_after_speed(lengths, speed) for speed in speeds])  # [speeds, utterances]
        self._longest_row = int(concatenate_seconds * sample_rate)
        if self._longest_row:
            rows = [self._draw_rows(epoch).lengths for epoch in range(_SAMPLED_EPOCHS)]
            longest = max(self._longest_row, int(self._lengths.max()))
            self._edges = self._choose_edges(np.array([*np.concatenate(rows), longest]), _SAMPLED_EPOCHS)
            # As many labels as the densest utterances together, each once, cut where the row ends.
            shortest = self._lengths.min(0)
            densest = np.argsort(-labels / shortest)
            within, held = (np.cumsum([0, *x[densest]]) for x in (shortest, labels))
            most = [int(np.ceil(bound)) for bound in np.interp(self._edges, within, held)]
        else:
            self._edges = self._choose_edges(self._lengths, len(self._speeds))
            bucket_of = np.searchsorted(self._edges, self._lengths)  # [speeds, utterances]
            most = [int(labels[(bucket_of == k).any(0)].max(initial=0)) for k in range(len(self._edges))]
        self.buckets = tuple(
            Bucket(int(edge), max(1, count), self._batch_size(int(edge)))
            for edge, count in zip(self._edges, most, strict=True)
        )
        self._starts = [0]  # steps before each epoch, as far as asked for
        self._epochs: dict[int, list[PlannedBatch]] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_lock", "_epochs")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock(), _epochs={})

    def epoch(self, epoch: int) -> list[PlannedBatch]:
        """The batches of an epoch, in order."""
        key = epoch if self._shuffle else 0
        with self._lock:
            if key not in self._epochs:
                while len(self._epochs) >= 2:  # readers ahead of the step may be in the next epoch already
                    del self._epochs[min(self._epochs, key=lambda known: -abs(known - key))]
                self._epochs[key] = self._plan(key)
            return self._epochs[key]

    def steps_in_epoch(self, epoch: int) -> int:
        """Number of batches of an epoch; it varies a little with the speeds drawn."""
        return self.steps_before(epoch + 1) - self.steps_before(epoch)

    def steps_before(self, epoch: int) -> int:
        """Number of batches of all epochs before this one."""
        with self._lock:
            while len(self._starts) <= epoch:
                self._append_epoch()
            return self._starts[epoch]

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, position in it) of a step, counted from 0 over all epochs."""
        with self._lock:
            while self._starts[-1] <= step:
                self._append_epoch()
            epoch = int(np.searchsorted(self._starts, step, side="right")) - 1
            return epoch, step - self._starts[epoch]

    def padded_fraction(self, epoch: int = 0) -> float:
        """Share of an epoch's samples that is padding, filler rows included."""
        total = sum(b.bucket.num_samples * b.bucket.batch_size for b in self.epoch(epoch))
        return 1 - float(self._draw_rows(epoch if self._shuffle else 0).lengths.sum()) / total

    def _append_epoch(self) -> None:
        epoch = len(self._starts) - 1
        if epoch and not self._longest_row and (not self._shuffle or len(self._speeds) == 1):
            count = self._starts[1]
        else:
            lengths = self._draw_rows(epoch if self._shuffle else 0).lengths
            sizes = np.bincount(np.searchsorted(self._edges, lengths), minlength=len(self.buckets))
            count = sum(-(-int(n) // bucket.batch_size) for n, bucket in zip(sizes, self.buckets, strict=True))
        self._starts.append(self._starts[-1] + count)

    def _draw_rows(self, epoch: int) -> "_Rows":
        """Order, speeds and rows of an epoch, before it is cut into batches."""
        count = self._lengths.shape[1]
        drawn = (_hash(self._seed, epoch, 1, count) % np.uint64(len(self._speeds))).astype(np.int64)
        lengths = self._lengths[drawn, np.arange(count)]
        rng = np.random.default_rng(_hash(self._seed, epoch, 3, 1))
        order = rng.permutation(count) if self._shuffle else np.argsort(lengths, kind="stable")
        starts = np.arange(count)
        if self._longest_row:
            wanted = _hash(self._seed, epoch, 4, count) / 2.0**64 * self._longest_row
            starts = np.array(_greedy_starts(lengths[order].tolist(), wanted.tolist()))
        return _Rows(order, drawn, starts, np.add.reduceat(lengths[order], starts), rng)

    def _plan(self, epoch: int) -> list[PlannedBatch]:
        rows = self._draw_rows(epoch)
        seeds = (_hash(self._seed, epoch, 2, len(rows.order)) >> np.uint64(32)).astype(np.uint32)
        bucket_of = np.searchsorted(self._edges, rows.lengths)
        ends = np.append(rows.starts[1:], len(rows.order))
        batches = []
        for k, bucket in enumerate(self.buckets):
            members = np.flatnonzero(bucket_of == k)
            for first in range(0, len(members), bucket.batch_size):
                chosen = members[first : first + bucket.batch_size]
                utterances = np.concatenate([rows.order[rows.starts[r] : ends[r]] for r in chosen])
                row_of = np.repeat(np.arange(len(chosen)), ends[chosen] - rows.starts[chosen])
                speeds = self._speeds[rows.drawn[utterances]]
                batches.append(PlannedBatch(bucket, utterances, speeds, row_of, seeds[rows.order[rows.starts[chosen]]]))
        return [batches[i] for i in rows.rng.permutation(len(batches))] if self._shuffle else batches

    def _batch_size(self, num_samples: int) -> int:
        multiple = self.config.batch_multiple
        budget = self.config.seconds_per_batch * self.sample_rate
        return max(1, int(budget // (num_samples * multiple))) * multiple

    def _choose_edges(self, lengths: np.ndarray, epochs: int) -> np.ndarray:
        """Lengths of at most ``num_buckets`` buckets, with the least padded audio for the rows of so many epochs."""
        quantum = max(self.sample_rate // 10, 1)
        quantum *= -(-int(lengths.max()) // (quantum * _MAX_EDGES))
        edges, counts = np.unique(-(-lengths // quantum) * quantum, return_counts=True)
        sizes = np.array([self._batch_size(int(edge)) for edge in edges])
        below = np.concatenate([[0], np.cumsum(counts)]) / epochs  # expected rows below each edge
        # cost[i, j]: one bucket for the rows from edge i up to edge j, padded to edge j
        batches = np.ceil(np.maximum(below[None, 1:] - below[:-1, None], 0) / sizes)
        cost = np.where(np.tri(len(edges)).T > 0, batches * sizes * edges, np.inf)
        best = cost[0]
        choices: list[np.ndarray] = []
        candidates = [(float(best[-1]), 1)]
        for count in range(2, min(self.config.num_buckets, len(edges)) + 1):
            through = best[:-1, None] + cost[1:]  # the last bucket starts after edge i
            choices.append(through.argmin(0))
            best = through.min(0)
            candidates.append((float(best[-1]), count))
        _, count = min(candidates)
        chosen = [len(edges) - 1]
        for choice in reversed(choices[: count - 1]):
            chosen.append(int(choice[chosen[-1]]))
        return np.asarray(edges[chosen[::-1]])


class _Rows(NamedTuple):
    """The rows of an epoch: ``order[starts[r] : starts[r + 1]]`` are the utterances of row r.

    Attributes:
      order: [U] all utterances.
      drawn: [U] index of each utterance's speed, by utterance.
      starts: [R] where in `order` each row begins.
      lengths: [R] samples.
      rng: what the order was drawn from.
    """

    order: np.ndarray
    drawn: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    rng: np.random.Generator


def _greedy_starts(lengths: list[int], wanted: list[float]) -> list[int]:
    """Where rows begin, if one takes what comes next as long as it stays within the length wanted at its beginning."""
    starts: list[int] = []
    left = -1.0
    for position, length in enumerate(lengths):
        left -= length
        if left < 0:
            starts.append(position)
            left = wanted[position] - length
    return starts


def _check(lengths: np.ndarray, labels: np.ndarray, config: BatchingConfig, speeds: Sequence[float]) -> None:
    if lengths.ndim != 1 or lengths.shape != labels.shape:
        raise ValueError(f"num_samples {lengths.shape} and num_labels {labels.shape} must be [utterances] both")
    if not lengths.size:
        raise ValueError("no utterances to plan batches for")
    if lengths.min() < 1 or labels.min() < 0:
        raise ValueError(
            f"shortest utterance {lengths.min()} samples, {labels.min()} labels: expected positive lengths"
        )
    if not speeds:
        raise ValueError("augment.speeds is empty, expected at least one factor such as 1.0")
    for key in ("seconds_per_batch", "num_buckets", "batch_multiple"):
        if getattr(config, key) <= 0:
            raise ValueError(f"batching.{key} = {getattr(config, key)}, expected a positive number")


def _hash(seed: int, epoch: int, purpose: int, count: int) -> np.ndarray:
    """[count] uint64: SplitMix64 (Steele et al., 2014) of (seed, epoch, purpose, 0 ... count - 1)."""
    state = np.zeros(1, np.uint64)
    words = (np.array([word % 2**64], np.uint64) for word in (seed, epoch, purpose))
    for word in (*words, np.arange(count, dtype=np.uint64)):
        state = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state

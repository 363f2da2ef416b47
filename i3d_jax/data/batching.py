"""The batch plan: which utterances, at which speed, form which batch.

The plan is a pure function of (lengths, seed, epoch): every host computes the same one, and the position in the data is
a function of the step. Batches have few static shapes: buckets come from the histogram of lengths, over all speeds, by
dynamic programming that minimises the padded audio of an epoch, filler rows included.
"""

import itertools
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from i3d_jax.data.epoch_plan import Bucket, Draws, EpochPlan
from i3d_jax.data.lengths import LengthClasses, Lengths, by_bucket, integer, take

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
    """Batches that are copied to the devices, by a thread, before they are asked for; 0 copies them when they are."""
    cache_gigabytes: float = 2.0
    """Decoded audio kept in memory, so that a small corpus is read from its files only once."""
    seed: int = -1
    """Seed of the order, speeds and augmentation of the data; -1: the experiment's."""


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
      longest: samples of the longest row there may be, joined or at the slowest speed.

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
        samples, labels = np.asarray(num_samples), np.asarray(num_labels)
        _check(samples, labels, config, speeds)
        self.config = config
        self.sample_rate = sample_rate
        self._seed = seed
        self._shuffle = shuffle
        self._longest_row = int(concatenate_seconds * sample_rate)
        self._lengths = Lengths(samples, speeds)
        self._classes: LengthClasses | None = None
        self.longest = longest = max(self._longest_row, self._lengths.longest)
        if self._longest_row:
            rows = (self._draw_rows(Draws(seed, epoch)).lengths for epoch in range(_SAMPLED_EPOCHS))
            self._edges = self._choose_edges(itertools.chain(rows, [np.array([longest])]), longest, _SAMPLED_EPOCHS)
            most = self._most_labels_joined(labels)
        else:
            heard = (x for part in self._lengths.parts() for x in self._lengths.at_all_speeds(part))
            self._edges = self._choose_edges(heard, longest, len(speeds))
            self._classes = LengthClasses(self._lengths, self._edges)
            most = self._classes.most_labels(labels)
        self.buckets = tuple(
            Bucket(int(edge), max(1, count), self._batch_size(int(edge)))
            for edge, count in zip(self._edges, most, strict=True)
        )
        self._starts = [0]  # steps before each epoch, as far as asked for
        self._epochs: dict[int, EpochPlan] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_lock", "_epochs")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock(), _epochs={})

    def epoch(self, epoch: int) -> EpochPlan:
        """The batches of an epoch, in order."""
        key = epoch if self._shuffle else 0
        with self._lock:
            if key not in self._epochs:
                while len(self._epochs) >= 2:  # readers ahead of the step may be in the next epoch already
                    del self._epochs[min(self._epochs, key=lambda known: -abs(known - key))]
                self._epochs[key] = self._plan(self._draws(key))
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
        draws = self._draws(epoch)
        padded = self._num_batches(self._count_rows(draws)) * [b.batch_size * b.num_samples for b in self.buckets]
        heard = sum(int(self._lengths.heard(draws, part).sum()) for part in self._lengths.parts())
        return 1 - heard / int(padded.sum())

    def _append_epoch(self) -> None:
        epoch = len(self._starts) - 1
        if epoch and not self._longest_row and (not self._shuffle or len(self._lengths.speeds) == 1):
            count = self._starts[1]
        else:
            count = int(self._num_batches(self._count_rows(self._draws(epoch))).sum())
        self._starts.append(self._starts[-1] + count)

    def _draws(self, epoch: int) -> Draws:
        return Draws(self._seed, epoch if self._shuffle else 0)

    def _num_batches(self, sizes: np.ndarray) -> np.ndarray:
        """[buckets] batches that hold so many rows."""
        return -(-sizes // np.array([bucket.batch_size for bucket in self.buckets]))

    def _most_labels_joined(self, labels: np.ndarray) -> list[int]:
        """As many labels as the densest utterances together, each once, cut where the row ends."""
        shortest = np.concatenate([self._lengths.at_all_speeds(part).min(0) for part in self._lengths.parts()])
        densest = np.argsort(-(labels / shortest))[: int(self._edges[-1] // shortest.min()) + 1]
        within, held = (np.cumsum([0, *x[densest]]) for x in (shortest, labels))
        return [int(np.ceil(bound)) for bound in np.interp(self._edges, within, held)]

    def _count_rows(self, draws: Draws) -> np.ndarray:
        """[buckets] rows of an epoch; the order of single utterances need not be drawn for it."""
        if self._classes:
            return self._classes.sizes(draws)
        return np.bincount(self._bucket_of_rows(self._draw_rows(draws)), minlength=len(self.buckets))

    def _draw_order(self, draws: Draws) -> tuple[np.ndarray, np.random.Generator]:
        """[U] all utterances in the order drawn, or by length; and the generator, for what is drawn next."""
        count = len(self._lengths)
        rng = draws.generator()
        if self._shuffle:
            order = np.arange(count, dtype=integer(count))
            rng.shuffle(order)  # rng.permutation(count), in half the memory
            return order, rng
        return np.argsort(self._lengths.all_heard(draws), kind="stable").astype(integer(count)), rng

    def _draw_rows(self, draws: Draws) -> "_Rows":
        """Rows of joined utterances."""
        order, rng = self._draw_order(draws)
        heard = take(self._lengths.all_heard(draws), order)
        starts, left = [], -1.0
        for part in self._lengths.parts():
            wanted = draws.fractions(np.arange(part.start, part.stop)) * self._longest_row
            found, left = _greedy_starts(heard[part].tolist(), wanted.tolist(), left)
            starts.append(np.array(found, np.int64) + part.start)
        begins = np.concatenate(starts)
        return _Rows(order, begins, np.add.reduceat(heard, begins, dtype=np.int64), rng)

    def _plan(self, draws: Draws) -> EpochPlan:
        starts = None
        if self._classes:
            order, rng = self._draw_order(draws)
            bucket_of = bucket_of_row = take(self._classes.buckets(draws), order)
        else:
            order, begins, _, rng = rows = self._draw_rows(draws)
            bucket_of_row = self._bucket_of_rows(rows)
            counts = np.diff(begins, append=len(order))
            bucket_of = np.repeat(bucket_of_row, counts)
            ends = np.cumsum(by_bucket(counts, bucket_of_row, len(self.buckets)))
            starts = np.concatenate([[0], ends]).astype(integer(len(order)))
        sizes = np.array([np.count_nonzero(bucket_of_row == k) for k in range(len(self.buckets))])
        utterances = by_bucket(order, bucket_of, len(self.buckets))
        batches = np.arange(self._num_batches(sizes).sum())
        if self._shuffle:
            rng.shuffle(batches)
        return EpochPlan(draws, self._lengths.speeds, self.buckets, sizes, utterances, starts, batches)

    def _bucket_of_rows(self, rows: "_Rows") -> np.ndarray:
        return np.searchsorted(self._edges, rows.lengths).astype(np.uint8)

    def _batch_size(self, num_samples: int) -> int:
        multiple = self.config.batch_multiple
        budget = self.config.seconds_per_batch * self.sample_rate
        return max(1, int(budget // (num_samples * multiple))) * multiple

    def _choose_edges(self, lengths: Iterable[np.ndarray], longest: int, epochs: int) -> np.ndarray:
        """Lengths of at most ``num_buckets`` buckets, with the least padded audio for the rows of so many epochs."""
        quantum = _quantum(longest, self.sample_rate)
        histogram = np.zeros(-(-longest // quantum) + 1, np.int64)
        for part in lengths:
            histogram += np.bincount(-(-part // quantum), minlength=len(histogram))
        edges = np.flatnonzero(histogram) * quantum
        counts = histogram[edges // quantum]
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
      starts: [R] where in `order` each row begins.
      lengths: [R] samples.
      rng: what the order was drawn from.
    """

    order: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    rng: np.random.Generator


def _quantum(longest: int, sample_rate: int) -> int:
    """Samples of which the lengths of buckets are multiples: a tenth of a second, or as many as keep them few."""
    tenth = max(sample_rate // 10, 1)
    return tenth * -(-longest // (tenth * _MAX_EDGES))


def longest_bucket(longest: int, sample_rate: int) -> int:
    """Samples of the longest bucket of a plan whose longest row has so many."""
    quantum = _quantum(longest, sample_rate)
    return -(-longest // quantum) * quantum


def _greedy_starts(lengths: list[int], wanted: list[float], left: float) -> tuple[list[int], float]:
    """Where rows begin, if one takes what comes next as long as it stays within the length wanted at its beginning.

    ``left`` is what the row before may still take, and what the last one may.
    """
    starts: list[int] = []
    for position, length in enumerate(lengths):
        left -= length
        if left < 0:
            starts.append(position)
            left = wanted[position] - length
    return starts, left


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

"""The batches of one epoch, kept as flat arrays: a batch is made when it is asked for.

What is drawn for an utterance is a function of its position, so speeds and seeds are kept nowhere.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np


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


class Draws(NamedTuple):
    """What is drawn for an epoch."""

    seed: int
    epoch: int

    def speeds(self, utterances: np.ndarray, count: int) -> np.ndarray:
        """[n] int64 index of the speed of each utterance, one of `count`."""
        if count == 1:
            return np.zeros(len(utterances), np.int64)
        drawn = self._hash(1, utterances)
        return (drawn - drawn // np.uint64(count) * np.uint64(count)).astype(np.int64)  # %, which is far slower

    def seeds(self, utterances: np.ndarray) -> np.ndarray:
        """[n] uint32 augmentation seed of each utterance."""
        return (self._hash(2, utterances) >> np.uint64(32)).astype(np.uint32)

    def generator(self) -> np.random.Generator:
        """What the order of utterances is drawn from, then that of the batches."""
        return np.random.default_rng(self._hash(3, np.zeros(1, np.uint64)))

    def fractions(self, positions: np.ndarray) -> np.ndarray:
        """[n] float64 in [0, 1): of the longest row, what a row that begins at the position may hold."""
        return self._hash(4, positions) / 2.0**64

    def _hash(self, purpose: int, positions: np.ndarray) -> np.ndarray:
        """[n] uint64: SplitMix64 (Steele et al., 2014) of (seed, epoch, purpose, position)."""
        return _mix(_state(self.seed, self.epoch, purpose), positions.astype(np.uint64))


@functools.lru_cache(maxsize=32)
def _state(*words: int) -> np.ndarray:
    state = np.zeros(1, np.uint64)
    for word in words:
        state = _mix(state, np.array([word % 2**64], np.uint64))
    return state


def _mix(state: np.ndarray, word: np.ndarray) -> np.ndarray:
    state = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@dataclass(frozen=True, eq=False)
class EpochPlan(Sequence[PlannedBatch]):
    """The batches of an epoch, in order.

    Attributes:
      draws: of this epoch.
      speeds: [speeds] float64 factors.
      buckets: static shapes.
      sizes: [buckets] rows of each.
      utterances: [U] row by row, those of a bucket together.
      starts: [R + 1] where in `utterances` each row begins, and U; None if every row is one utterance.
      order: [N] the batches; counted bucket by bucket.
    """

    draws: Draws
    speeds: np.ndarray
    buckets: tuple[Bucket, ...]
    sizes: np.ndarray
    utterances: np.ndarray
    starts: np.ndarray | None
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, position: int) -> PlannedBatch: ...
    @overload
    def __getitem__(self, position: slice) -> list[PlannedBatch]: ...
    def __getitem__(self, position: int | slice) -> PlannedBatch | list[PlannedBatch]:
        chosen = range(len(self))[position]
        return self._batch(int(self.order[chosen])) if isinstance(chosen, int) else [self[i] for i in chosen]

    def _batch(self, number: int) -> PlannedBatch:
        first = 0  # row of the bucket
        for bucket, size in zip(self.buckets, self.sizes.tolist(), strict=True):
            batches = -(-size // bucket.batch_size)
            if number < batches:
                break
            number, first = number - batches, first + size
        start = first + number * bucket.batch_size
        end = min(start + bucket.batch_size, first + size)
        rows = np.arange(end - start)
        if self.starts is None:
            utterances = heads = self.utterances[start:end].astype(np.int64)
        else:
            starts = self.starts[start : end + 1]
            utterances = self.utterances[starts[0] : starts[-1]].astype(np.int64)
            rows, heads = np.repeat(rows, np.diff(starts)), utterances[starts[:-1] - starts[0]]
        speeds = self.speeds[self.draws.speeds(utterances, len(self.speeds))]
        return PlannedBatch(bucket, utterances, speeds, rows, self.draws.seeds(heads))

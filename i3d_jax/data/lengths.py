"""Lengths of the utterances of a corpus, at the speeds drawn for an epoch.

A corpus is gone through in parts: of a hundred million utterances, what is computed for each is never held for all in
eight bytes.
"""

import bisect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from i3d_jax.audio.io import num_samples_after_speed
from i3d_jax.data.epoch_plan import Draws

PART = 2**18
"""Utterances gone through at a time: few enough for the processor's cache."""


class Lengths:
    """Lengths of utterances.

    Args:
      num_samples: [U] lengths as recorded.
      speeds: speed factors; one is drawn for each (seed, epoch, utterance).

    Attributes:
      longest: samples of the longest utterance at the slowest speed.
    """

    def __init__(self, num_samples: np.ndarray, speeds: Sequence[float]):
        most = int(num_samples.max())
        self.longest = max(num_samples_after_speed(most, speed) for speed in speeds)
        self.speeds = np.asarray(speeds, np.float64)
        self.samples = num_samples.astype(integer(max(most, self.longest)))

    def __len__(self) -> int:
        return len(self.samples)

    def parts(self) -> Iterator[slice]:
        """Slices of at most `PART` utterances."""
        count = len(self)
        return (slice(start, min(start + PART, count)) for start in range(0, count, PART))

    def at_all_speeds(self, part: slice) -> np.ndarray:
        """[speeds, n] int64 samples of utterances."""
        samples: Any = self.samples[part].astype(np.int64)
        return np.stack([num_samples_after_speed(samples, speed) for speed in self.speeds.tolist()])

    def drawn(self, draws: Draws, part: slice) -> np.ndarray:
        """[n] int64 index of each utterance's speed."""
        return draws.speeds(np.arange(part.start, part.stop), len(self.speeds))

    def heard(self, draws: Draws, part: slice) -> np.ndarray:
        """[n] int64 samples of utterances at the speeds drawn."""
        return self.at_all_speeds(part)[self.drawn(draws, part), np.arange(part.stop - part.start)]

    def all_heard(self, draws: Draws) -> np.ndarray:
        """[U] samples of all utterances at the speeds drawn."""
        return np.concatenate([self.heard(draws, part).astype(self.samples.dtype) for part in self.parts()])


class LengthClasses:
    """The class of each utterance: those of one class are in the same bucket, at each speed.

    Args:
      lengths: of the utterances.
      edges: [buckets] longest length of each bucket, ascending; all utterances fit the last one.
    """

    def __init__(self, lengths: Lengths, edges: np.ndarray):
        self._lengths = lengths
        self._num_buckets = len(edges)
        recorded = range(int(lengths.samples.max()) + 1)
        beyond = set()  # shortest lengths that are beyond an edge
        for speed in lengths.speeds.tolist():
            heard = [bisect.bisect_right(recorded, edge, key=_after(speed)) for edge in edges.tolist()]
            beyond.update(heard)
        bounds = np.array(sorted(beyond - {len(recorded)}), lengths.samples.dtype)
        shortest = [0, *bounds.tolist()]  # of each class
        after = [[num_samples_after_speed(n, speed) for n in shortest] for speed in lengths.speeds.tolist()]
        self._bucket_of = np.searchsorted(edges, after).astype(np.uint8)  # [speeds, classes]
        self._class_of = np.empty(len(lengths), np.min_scalar_type(len(bounds)))
        for part in lengths.parts():
            self._class_of[part] = np.searchsorted(bounds, lengths.samples[part], side="right")

    def most_labels(self, num_labels: np.ndarray) -> list[int]:
        """Most labels of an utterance in each bucket, at any speed."""
        most = np.zeros(self._bucket_of.shape[1], np.int64)
        for part in self._lengths.parts():
            np.maximum.at(most, self._class_of[part], num_labels[part].astype(np.int64))
        return [int(most[(self._bucket_of == k).any(0)].max(initial=0)) for k in range(self._num_buckets)]

    def buckets(self, draws: Draws) -> np.ndarray:
        """[U] uint8 bucket of each utterance."""
        found = np.empty(len(self._lengths), np.uint8)
        for part in self._lengths.parts():
            found[part] = self._buckets(draws, part)
        return found

    def sizes(self, draws: Draws) -> np.ndarray:
        """[buckets] utterances in each."""
        sizes = np.zeros(self._num_buckets, np.int64)
        for part in self._lengths.parts():
            sizes += np.bincount(self._buckets(draws, part), minlength=len(sizes))
        return sizes

    def _buckets(self, draws: Draws, part: slice) -> np.ndarray:
        return self._bucket_of[self._lengths.drawn(draws, part), self._class_of[part]]


def integer(most: int) -> Any:
    """The dtype in which numbers up to `most` are kept."""
    return np.int32 if most < 2**31 else np.int64


def take(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """``values[order]``, which would make eight bytes of each index."""
    taken = np.empty_like(values)
    for start in range(0, len(order), PART):
        taken[start : start + PART] = values[order[start : start + PART]]
    return taken


def by_bucket(values: np.ndarray, bucket_of: np.ndarray, count: int) -> np.ndarray:
    """`values` with those of a bucket together, otherwise in their order."""
    together = np.empty_like(values)
    first = 0
    for k in range(count):
        chosen = values[bucket_of == k]
        together[first : first + len(chosen)] = chosen
        first += len(chosen)
    return together


def _after(speed: float) -> Any:
    return lambda num_samples: num_samples_after_speed(num_samples, speed)

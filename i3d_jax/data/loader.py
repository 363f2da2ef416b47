"""From planned batches to padded arrays, read ahead by threads or processes, whose number never changes the order."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from i3d_jax.audio.io import change_speed
from i3d_jax.data.batching import BatchingConfig, BatchPlanner
from i3d_jax.data.corpora import Corpus
from i3d_jax.data.epoch_plan import PlannedBatch
from i3d_jax.types import Batch

Labels = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Share:
    """What of each batch one of several processes reads: its rows are cut into equal parts, some of them its own."""

    parts: int
    """Devices of all processes."""
    own: tuple[int, ...]
    """Parts of this process."""

    def rows(self, batch_size: int) -> np.ndarray:
        """[batch_size] bool, True for rows of this process."""
        return np.isin(np.arange(batch_size) * self.parts // batch_size, self.own)


class Batches(Protocol):
    """Iterator over (step, planned batch, loaded batch) that can be closed before its end."""

    def __iter__(self) -> Iterator[tuple[int, PlannedBatch, Batch]]:
        """Itself."""
        ...

    def __next__(self) -> tuple[int, PlannedBatch, Batch]:
        """The next one."""
        ...

    def close(self) -> None:
        """End threads and processes."""
        ...


def load_batch(
    corpus: Corpus,
    labels: Labels,
    planned: PlannedBatch,
    *,
    load_audio: Callable[[int], np.ndarray] | None = None,
    share: Share | None = None,
) -> Batch:
    """Reads the utterances of a batch, changes their speed, joins those of a row, and pads the rows to the bucket.

    Args:
      corpus: where the utterances are.
      labels: token ids of each utterance of the corpus.
      planned: the batch.
      load_audio: index -> [S] float32; None takes ``corpus.load_audio``.
      share: whose audio is read; None reads all.

    Returns:
      Numpy arrays with the bucket's shape. Rows beyond the planned ones are fillers: invalid, no samples. Rows of other
      processes are planned, but hold no audio and no labels.

    Raises:
      FileNotFoundError: an audio file is missing.
      ValueError: an audio file is unreadable or longer than planned, or an utterance has more labels than planned;
        the message names the file or the utterance.
    """
    bucket = planned.bucket
    waveform = np.zeros((bucket.batch_size, bucket.num_samples), np.float32)
    num_samples = np.zeros(bucket.batch_size, np.int32)
    padded_labels = np.zeros((bucket.batch_size, bucket.num_labels), np.int32)
    num_labels = np.zeros(bucket.batch_size, np.int32)
    augment_seed = np.zeros(bucket.batch_size, np.uint32)
    ours = np.ones(bucket.batch_size, bool) if share is None else share.rows(bucket.batch_size)
    for row, index, speed in zip(*(x.tolist() for x in (planned.rows, planned.indices, planned.speeds)), strict=True):
        if not ours[row]:
            continue
        audio = (load_audio or corpus.load_audio)(index)
        if speed != 1:
            audio = change_speed(audio, speed)
        utterance, ids = corpus.utterances[index], labels[index]
        start, end = num_samples[row], num_samples[row] + audio.size
        first, last = num_labels[row], num_labels[row] + len(ids)
        if end > bucket.num_samples or last > bucket.num_labels:
            where = "" if isinstance(utterance.audio, np.ndarray) else f" ({utterance.audio})"
            raise ValueError(
                f"utterance {utterance.id}{where} has {audio.size} samples and {len(ids)} labels, the plan allows "
                f"{bucket.num_samples - start} and {bucket.num_labels - first}: the file changed after the corpus was "
                "read; run again"
            )
        waveform[row, start:end] = audio
        padded_labels[row, first:last] = ids
        num_samples[row], num_labels[row] = end, last
    augment_seed[: len(planned.seeds)] = planned.seeds
    valid = np.arange(bucket.batch_size) < len(planned.seeds)
    return Batch(waveform, num_samples, padded_labels, num_labels, valid, augment_seed)


def iterate_batches(
    corpus: Corpus,
    labels: Labels,
    planner: BatchPlanner,
    steps: range,
    *,
    config: BatchingConfig | None = None,
    share: Share | None = None,
    place: Callable[[Batch], Batch] | None = None,
) -> Batches:
    """Iterates over steps of the plan, from any on: a resumed run gets exactly the batches that it has not seen.

    Args:
      corpus: where the utterances are.
      labels: token ids of each utterance.
      planner: the plan of this corpus.
      steps: which, counted from 0 over all epochs.
      config: threads, worker processes, read-ahead, memory for decoded audio; None takes the planner's.
      share: of several processes that train together, whose audio is read; None reads all.
      place: puts a batch on the devices, ``config.device_prefetch`` batches ahead in a thread; None leaves it as it is.

    Yields:
      (step, planned batch, loaded batch).

    Raises:
      ValueError: see `load_batch`.
    """
    config = config or planner.config
    load = _LoadStep(
        corpus, labels, planner, share, _AudioMemory(corpus, config.cache_gigabytes / max(config.num_workers, 1))
    )
    return _read_ahead(steps, load, config, config.num_workers, place)


def iterate_eval(
    corpus: Corpus,
    labels: Labels,
    planner: BatchPlanner,
    *,
    config: BatchingConfig | None = None,
    share: Share | None = None,
) -> Iterator[tuple[PlannedBatch, Batch]]:
    """Iterates once over a corpus: epoch 0 of the plan.

    Yields:
      (planned batch, loaded batch): row r of the batch is utterance ``planned.indices[r]``.
    """

    def load(planned: PlannedBatch) -> tuple[PlannedBatch, Batch]:
        return planned, load_batch(corpus, labels, planned, share=share)

    return _read_ahead(planner.epoch(0), load, config or planner.config)


def _read_ahead(
    items: Sequence[Any],
    load: Callable[[Any], tuple[Any, ...]],
    config: BatchingConfig,
    workers: int = 0,
    place: Callable[[Batch], Batch] | None = None,
) -> Any:
    import grain  # here: it takes a second, which importing us need not pay

    threads = max(config.num_threads, 0)
    buffer = max(config.prefetch, threads) if threads else 0
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    dataset = grain.MapDataset.source(items).map(load).to_iter_dataset(reading)
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain reads an absl flag when it starts workers (google/grain#1355)
            flags.FLAGS.mark_as_parsed()
        ahead = max(1, config.prefetch // workers)
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_begin_worker)
    if place is not None:
        dataset = dataset.map(lambda loaded: (*loaded[:-1], place(loaded[-1])))
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=config.device_prefetch)
    return iter(dataset)


def _begin_worker(index: int, count: int) -> None:
    """A worker ends with its parent, and not before: signals to all processes of a job are for the parent to heed."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@dataclass(frozen=True)
class _LoadStep:
    """Step to batch; a class, for worker processes get it by pickling."""

    corpus: Corpus
    labels: Labels
    planner: BatchPlanner
    share: Share | None
    audio: "_AudioMemory"

    def __call__(self, step: int) -> tuple[int, PlannedBatch, Batch]:
        epoch, position = self.planner.locate(step)
        planned = self.planner.epoch(epoch)[position]
        return step, planned, load_batch(self.corpus, self.labels, planned, load_audio=self.audio, share=self.share)


class _AudioMemory:
    """Loads audio and keeps it, up to a size: the first that fits stays, for every epoch reads everything once."""

    def __init__(self, corpus: Corpus, gigabytes: float):
        self._corpus = corpus
        self._bytes_left = gigabytes * 1e9
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _AudioMemory, (self._corpus, self._bytes_left / 1e9)  # a process keeps its own

    def __call__(self, index: int) -> np.ndarray:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        audio = self._corpus.load_audio(index)
        with self._lock:
            if index not in self._kept and audio.nbytes <= self._bytes_left:
                self._kept[index] = audio
                self._bytes_left -= audio.nbytes
        return audio

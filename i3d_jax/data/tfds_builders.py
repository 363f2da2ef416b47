"""TensorFlow Datasets builders that work without TensorFlow and store encoded audio in ArrayRecord shards.

Each split is a configuration of its own, ``<data_dir>/<name>/<split>/<version>/``, written aside and renamed into place
when it is complete: splits are prepared, kept and redone one by one. TFDS reads one with
``tfds.builder_from_directory(folder).as_data_source(split)`` and several with ``tfds.builder_from_directories``.

TFDS's own writer shuffles through memory and, beyond 1 GB, through ``tf.io.gfile``. `SpeechBuilder` streams instead: it
writes the records in the order in which they come and never holds more than one of them.
"""

import contextlib
import json
import re
import types
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core import example_serializer

from i3d_jax import files
from i3d_jax.audio.integrity import AudioError
from i3d_jax.audio.io import read_bytes
from i3d_jax.data import folder
from i3d_jax.data.archives import archive_subset, read_archive
from i3d_jax.data.corpora import DUPLICATE
from i3d_jax.data.records import SpeechRecord, make_record
from i3d_jax.data.tfds_folders import REPORT
from i3d_jax.folder_lock import FolderLock
from i3d_jax.progress import ProgressMeter

VERSION = "1.0.0"

_SHARD_BYTES = 256 << 20


def split_name(wanted: str) -> str:
    """The name that a split is stored under: ``train-clean-100`` -> ``train_clean_100``, ``splits/dev.txt`` -> ``dev``.

    Raises:
      ValueError: nothing of the name is left.
    """
    name = re.sub(r"\W+", "_", wanted.removeprefix("splits/").removesuffix(".txt")).strip("_")
    if not name or name.lower() == "all":
        raise ValueError(f"split {wanted!r}: cannot be stored under the name {name!r}; rename the list or folder")
    return name


def dataset_name(text: str) -> str:
    """A TFDS data set name made of any text: lower case, digits and underscores, first a letter."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return name if name[:1].isalpha() else f"speech_{name}".rstrip("_")


class SpeechBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A split of encoded utterances; subclasses say where they come from.

    Args:
      name: of the data set.
      split: the split, as the user writes it.
      origin: what it is prepared from, for the report.
      data_dir: the data set's folder is made in it.
      keeps_order: whether the order of the records means something; else a reader may sort them.
    """

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, name: str, split: str, origin: str, data_dir: epath.PathLike, keeps_order: bool):
        self.name = name
        self.split = split_name(split)
        self.rejected: dict[str, list[str]] = {}
        self._origin, self._keeps_order = origin, keeps_order
        config = tfds.core.BuilderConfig(name=self.split, version=self.VERSION, description=f"The split {split}.")
        super().__init__(data_dir=data_dir, config=config, file_format="array_record")

    def prepare(self) -> dict[str, Any]:
        """Writes the split, unless it is there, and returns its report.

        Raises:
          ValueError: the source is damaged or not one utterance of it is usable; or another process prepares this
            split there. No split is left behind.
        """
        tfds.disable_progress_bar()
        place = epath.Path(self.data_dir).parent
        place.mkdir(parents=True, exist_ok=True)
        with FolderLock(place, "prepared", "DST"):
            # What killed processes left. A folder counts as a data set only under the name of a version.
            for leftover in place.glob("incomplete.*"):
                leftover.rmtree()
            self.download_and_prepare()
        path = epath.Path(self.data_dir) / REPORT
        if not path.exists():
            raise FileNotFoundError(f"{path}: not there, so the folder is not what this command makes; remove it")
        report: dict[str, Any] = json.loads(path.read_text())
        return report

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Speech with transcripts; audio is an encoded file (FLAC, or a lossy format as it was).",
            features=tfds.features.FeaturesDict(
                {
                    "audio": tfds.features.Text(doc="bytes of the audio file"),
                    "text": tfds.features.Text(),
                    "id": tfds.features.Text(),
                    "speaker_id": tfds.features.Text(),
                    "chapter_id": tfds.features.Text(doc="empty if there are no chapters"),
                    "num_samples": tfds.features.Scalar(np.int64, doc="per channel, at sample_rate"),
                    "sample_rate": tfds.features.Scalar(np.int64, doc="in Hz"),
                }
            ),
            disable_shuffling=self._keeps_order,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        return {self.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for record in self.records():
            yield (
                record.id,
                {
                    "audio": record.audio,
                    "text": record.text,
                    "id": record.id,
                    "speaker_id": record.speaker,
                    "chapter_id": record.chapter,
                    "num_samples": record.num_samples,
                    "sample_rate": record.sample_rate,
                },
            )

    def records(self) -> Iterator[SpeechRecord]:
        """The usable utterances; others are counted in ``rejected``."""
        raise NotImplementedError

    def _create_builder_config(self, builder_config: Any, version: Any) -> Any:
        return builder_config  # made in __init__; TFDS would warn that it does not know it

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        examples = self._split_generators(dl_manager)[self.split]
        summary = _Summary()
        lengths, size = self._write_shards(summary.count(examples))
        if not lengths:
            reasons = ", ".join(f"{len(ids)} {reason} ({folder.some(ids, 2)})" for reason, ids in self.rejected.items())
            raise ValueError(f"{self._origin}: no usable utterance: {reasons or 'it is empty'}")
        template = self._get_filename_template(split_name=self.split)
        for index in range(len(lengths)):
            shard = template.sharded_filepath(shard_index=index, num_shards=len(lengths))
            self._unnumbered(index).rename(shard)
        info = tfds.core.SplitInfo(name=self.split, shard_lengths=lengths, num_bytes=size, filename_template=template)
        self.info.set_splits(tfds.core.splits.SplitDict([info]))
        report = {
            "dataset": self.name,
            "split": self.split,
            "origin": self._origin,
            **summary.report(),
            "rejected": self.rejected,
        }
        files.write_text(self.data_path / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")

    def _write_shards(self, examples: Iterable[tuple[str, dict[str, Any]]]) -> tuple[list[int], int]:
        """Writes shards under passing names, for their number is not known yet; returns their lengths and all bytes."""
        features = self.info.features
        serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
        lengths: list[int] = []
        size, left = 0, 0
        writer = None
        for _, example in examples:
            record = serializer.serialize_example(features.encode_example(example))
            with self._disk_errors():
                if writer is None or left < len(record):
                    if writer is not None:
                        writer.close()
                    writer = ArrayRecordWriter(str(self._unnumbered(len(lengths))), "group_size:1")
                    lengths.append(0)
                    left = _SHARD_BYTES
                writer.write(record)
            lengths[-1] += 1
            size += len(record)
            left -= len(record)
        if writer is not None:
            with self._disk_errors():
                writer.close()
        return lengths, size

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # all that the writer ever raises
            raise OSError(f"{self.data_dir}: cannot write the shards ({error}); is the disk full?") from error

    def _unnumbered(self, index: int) -> epath.Path:
        return epath.Path(self.data_path) / f"{index}.shard"

    def _make_download_manager(self, *args: Any, **kwargs: Any) -> Any:
        return types.SimpleNamespace(downloaded_size=0)  # nothing is; TFDS's own would make folders and need a package

    def _log_download_bytes(self) -> None:
        pass  # it prints; the progress is ours

    def _log_download_done(self) -> None:
        pass


class ArchiveBuilder(SpeechBuilder):
    """A LibriSpeech subset, streamed from its archive.

    Args:
      archive: ``<subset>.tar.gz``; see `i3d_jax.data.archives`.
      data_dir: the folder ``librispeech`` is made in it.
    """

    def __init__(self, archive: epath.Path, data_dir: epath.PathLike):
        self._archive = archive
        subset = archive_subset(archive)
        if subset is None:
            raise ValueError(f"{archive}: expected an archive named after its subset, such as dev-clean.tar.gz")
        super().__init__(name="librispeech", split=subset, origin=str(archive), data_dir=data_dir, keeps_order=False)

    def records(self) -> Iterator[SpeechRecord]:
        """See `read_archive`."""
        total = _mebibytes(self._archive.stat().length)
        with ProgressMeter(total, self._archive.name, unit="MiB") as meter:

            def advance(position: int) -> None:
                if _mebibytes(position) > meter.done:
                    meter.update_to(_mebibytes(position))

            yield from read_archive(self._archive, self.rejected, advance)


def _mebibytes(size: int) -> int:
    return -(-size // (1 << 20))


class FolderBuilder(SpeechBuilder):
    """A split of a folder in LibriSpeech layout, in the order in which `i3d_jax.data.folder` reads it.

    Args:
      root: the folder.
      wanted: a sub-folder, or a list of audio files, ``splits/train.txt``.
      name: of the data set.
      data_dir: the data set's folder is made in it.
      cache_dir: see `read_folder`.
    """

    def __init__(
        self, root: epath.Path, wanted: str, *, name: str, data_dir: epath.PathLike, cache_dir: epath.PathLike
    ):
        self._root, self._wanted, self._cache_dir = root, wanted, cache_dir
        super().__init__(name=name, split=wanted, origin=str(root / wanted), data_dir=data_dir, keeps_order=True)

    def records(self) -> Iterator[SpeechRecord]:
        """See `read_folder` and `make_record`."""
        recordings, rejected = folder.read_folder(self._root, self._wanted, self._cache_dir, verify=False)
        self.rejected |= rejected
        seen: set[str] = set()
        with ProgressMeter(len(recordings), f"{self.name}/{self.split}", unit="utterances") as meter:
            for done, recording in enumerate(recordings, start=1):
                path = recording.path
                if path.stem in seen:
                    self.rejected.setdefault(DUPLICATE, []).append(path.stem)
                    continue
                try:
                    record = make_record(path.stem, recording.text, read_bytes(path), str(path))
                except AudioError as error:
                    self.rejected.setdefault(error.reason, []).append(path.stem)
                else:
                    seen.add(record.id)
                    yield record
                meter.update_to(done)


class _Summary:
    """What the report says about the stored utterances."""

    def __init__(self) -> None:
        self._utterances, self._seconds = 0, 0.0
        self._speakers: set[str] = set()
        self._characters: set[str] = set()
        self._rates: set[int] = set()

    def count(self, examples: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for key, example in examples:
            self._utterances += 1
            self._seconds += example["num_samples"] / example["sample_rate"]
            self._speakers.add(example["speaker_id"])
            self._characters |= set(example["text"])
            self._rates.add(example["sample_rate"])
            yield key, example

    def report(self) -> dict[str, Any]:
        return {
            "utterances": self._utterances,
            "hours": round(self._seconds / 3600, 4),
            "speakers": len(self._speakers),
            "characters": "".join(sorted(self._characters)),
            "sample_rates": sorted(self._rates),
        }

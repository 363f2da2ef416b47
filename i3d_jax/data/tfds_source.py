"""Reading prepared data sets (``data.source=tfds:...``) without TensorFlow.

Two kinds are read: what ``python -m i3d_jax.cli.prepare`` makes, and the ``librispeech/lazy_decode`` folder of TFDS
itself in ArrayRecord. The records of a split are gone through once; ids, transcripts and lengths are then cached until
the shards change. Audio is read when it is needed.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from i3d_jax import files
from i3d_jax.audio import io as audio_io
from i3d_jax.audio.integrity import AudioError
from i3d_jax.data.folder import transcript_problem
from i3d_jax.data.records import RecordAudio
from i3d_jax.data.tfds_folders import Prepared, find_prepared, locate_split
from i3d_jax.progress import progress

_BATCH = 128  # records read at once: megabytes, and enough to keep the reader's threads busy


class StoredUtterance(NamedTuple):
    """An utterance of a prepared data set; ``samples`` counts at ``rate``, that of the stored file."""

    id: str
    text: str
    speaker: str
    samples: int
    rate: int
    audio: RecordAudio


@dataclass(frozen=True, eq=False)
class TfdsRecords:
    """The records of a split; picklable.

    Attributes:
      name: data set and split, for messages.
      records: serialised examples with random access.
      features: what parses them.
      audio_key: the feature with the encoded audio.
    """

    name: str
    records: Any
    features: Any
    audio_key: str

    def __str__(self) -> str:
        return self.name

    def __len__(self) -> int:
        return len(self.records)

    def examples(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The parsed records at `indices`.

        Raises:
          ValueError: a shard is missing or damaged.
        """
        with _damage():
            return [self.features.deserialize_example_np(record) for record in self.records.__getitems__(indices)]

    def audio_bytes(self, index: int) -> bytes:
        """See `i3d_jax.data.records.RecordSource`."""
        with _damage():
            audio: bytes = self.features.deserialize_example_np(self.records[index])[self.audio_key]
        return audio


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, IndexError, ValueError) as error:  # what the reader of shards and the parser raise
        raise ValueError(f"damaged records ({error}); prepare the data set again") from error


def read_prepared(
    source: str, wanted: str, tfds_dir: str, cache_dir: epath.PathLike
) -> tuple[str, list[StoredUtterance], dict[str, list[str]]]:
    """Reads the index of a split.

    Args:
      source: what stands after ``tfds:``: a name in `tfds_dir` (``librispeech``, ``librispeech/lazy_decode``), or a
        folder, known by its leading ``/``, ``.``, ``~`` or ``gs://``.
      wanted: splits joined by ``+``, each with a TFDS slice if any: ``train-clean-100[:10%]+train_clean360``. Dashes
        and underscores are the same, and ``splits/train.txt`` is ``train``, as when the list was prepared.
      tfds_dir: see `i3d_jax.data.corpora.DataConfig`.
      cache_dir: the index is kept there until a shard's size or modification time changes.

    Returns:
      The name of the data set; utterances, sorted by speaker, chapter and id within each split, or in the order of the
      folder or list that was prepared; and reason -> ids of what cannot be used, including what was left out when the
      (whole) split was prepared.

    Raises:
      FileNotFoundError: no such data set or split; the message lists those there.
      ValueError: a data set that cannot be read without TensorFlow, a wrong slice, or damaged shards.
    """
    prepared = find_prepared(source, tfds_dir)
    rejected: dict[str, list[str]] = {}
    utterances: list[StoredUtterance] = []
    for part in wanted.split("+"):
        place, split, selector = locate_split(prepared, part)
        records = _open(place, f"{split}{selector}")
        rows = _index(records, place, split, selector, cache_dir)
        order = range(len(rows)) if place.keeps_order else sorted(range(len(rows)), key=lambda i: _sort_key(rows[i]))
        for index in order:
            row = rows[index]
            if row.samples is None or row.rate is None:
                rejected.setdefault(AudioError.reason, []).append(row.id)
            elif problem := transcript_problem(row.text):
                rejected.setdefault(problem, []).append(row.id)
            else:
                audio = RecordAudio(records, index, row.id)
                utterances.append(StoredUtterance(row.id, row.text, row.speaker, row.samples, row.rate, audio))
        if not selector:
            for reason, ids in place.rejected().items():
                rejected.setdefault(reason, []).extend(ids)
    return prepared[0].name, utterances, rejected


class _Row(NamedTuple):
    """Index entry of a record; without length if the audio has no readable header."""

    id: str
    text: str
    speaker: str
    chapter: str
    samples: int | None
    rate: int | None


def _sort_key(row: _Row) -> tuple[str, str, str]:
    return row.speaker, row.chapter, row.id


def _open(place: Prepared, split: str) -> TfdsRecords:
    import tensorflow_datasets as tfds  # here: only those who read such data wait for it

    name = f"{place.folder}, split {split}"
    try:
        if place.is_stock:
            # TFDS cannot make its Audio feature without TensorFlow; stored are the bytes of the FLAC file.
            from grain.sources import ArrayRecordDataSource

            integer = tfds.features.Scalar(np.int64)
            features = tfds.features.FeaturesDict(
                {key: tfds.features.Text() for key in ("speech", "text", "id")}
                | {"speaker_id": integer, "chapter_id": integer}
            )
            return TfdsRecords(name, ArrayRecordDataSource(place.splits[split].file_instructions), features, "speech")
        builder = tfds.builder_from_directory(place.folder)
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return TfdsRecords(name, builder.as_data_source(split, deserialize_method=raw), builder.info.features, "audio")
    except (ValueError, RuntimeError, AssertionError) as error:  # TFDS on a slice that it cannot parse or that is empty
        raise ValueError(f"{name}: {str(error).splitlines()[0]}") from error


def _index(records: TfdsRecords, place: Prepared, split: str, selector: str, cache_dir: epath.PathLike) -> list[_Row]:
    shards = []
    for path in place.splits[split].filepaths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: the shard is missing; copy the whole folder or prepare it again")
        stat = path.stat()
        shards.append([path.name, stat.length, int(stat.mtime)])
    key = hashlib.sha256(f"{place.folder.resolve()}\n{split}{selector}".encode()).hexdigest()[:16]
    cache = epath.Path(cache_dir).expanduser() / "tfds" / f"{key}.json"
    if cache.exists():
        try:
            known = json.loads(cache.read_text())
            if known["shards"] == shards:
                return [_Row(*row) for row in known["rows"]]
        except (ValueError, KeyError, TypeError):
            pass  # it only saves time
    rows = list(_read_rows(records))
    files.write_text(cache, json.dumps({"shards": shards, "rows": rows}, ensure_ascii=False))
    return rows


def _read_rows(records: TfdsRecords) -> Iterator[_Row]:
    total = len(records)
    steps: Any = range(0, total, _BATCH)
    for start in progress(steps, f"reading {records.name}") if total > 5000 else steps:
        try:
            examples = records.examples(range(start, min(start + _BATCH, total)))
        except ValueError as error:
            raise ValueError(f"{records}: {error}") from error
        for example in examples:
            fields = {key: _text(example[key]) for key in ("id", "text", "speaker_id", "chapter_id")}
            samples, rate = example.get("num_samples"), example.get("sample_rate")
            if samples is None or rate is None:  # stock
                try:
                    samples, rate = audio_io.header_info(io.BytesIO(example[records.audio_key]), fields["id"])
                except ValueError:
                    samples, rate = None, None
            text = " ".join(fields["text"].split())
            yield _Row(fields["id"], text, fields["speaker_id"], fields["chapter_id"], samples, rate)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)

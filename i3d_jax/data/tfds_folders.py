"""Finding prepared data sets and their splits on disk."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from i3d_jax.data.folder import some

REPORT = "prepare_report.json"
"""What `i3d_jax.cli.prepare` tells about a split, beside its shards."""

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_INFO = "dataset_info.json"
_PART = re.compile(r"(?P<split>[^\[\]]+)(?P<selector>\[[^\[\]]+\])?")
_OWN_FEATURES = {"audio", "text", "id", "speaker_id", "chapter_id", "num_samples", "sample_rate"}


@dataclass(frozen=True)
class Prepared:
    """A folder with shards: ``<data set>/<configuration>/<version>``.

    Attributes:
      folder: the folder.
      name: of the data set.
      splits: name -> `tfds.core.SplitInfo`; a ``SplitDict``, which takes slices too.
      keeps_order: whether the order of the records means something.
      is_stock: TFDS's own librispeech/lazy_decode, or else made by `i3d_jax.cli.prepare`.
      problem: why its records cannot be read; empty if they can.
    """

    folder: epath.Path
    name: str
    splits: Any
    keeps_order: bool
    is_stock: bool
    problem: str

    def rejected(self) -> dict[str, list[str]]:
        """Reason -> ids of what was left out when the folder was prepared.

        Raises:
          ValueError: the report is damaged.
        """
        report = self.folder / REPORT
        if not report.exists():
            return {}
        try:
            rejected = json.loads(report.read_text())["rejected"]
            return {str(reason): [str(name) for name in ids] for reason, ids in rejected.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{report}: damaged ({error}); delete it, or prepare the split again") from error


def default_tfds_dir() -> epath.Path:
    """Where TFDS keeps data sets: ``$TFDS_DATA_DIR``, or ``~/tensorflow_datasets``."""
    return epath.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find_prepared(source: str, tfds_dir: str) -> list[Prepared]:
    """The folders of one data set: several when its splits were prepared one by one.

    Args:
      source: a name in `tfds_dir`, with a configuration if wished, or a folder; see `i3d_jax.data.tfds_source`.
      tfds_dir: folder of the data sets; empty for `default_tfds_dir`.

    Raises:
      FileNotFoundError: no such folder, or no prepared data set in it.
      ValueError: several data sets are in it, or a damaged ``dataset_info.json``.
    """
    is_path = source.startswith(("/", ".", "~")) or "://" in source
    parent = epath.Path(tfds_dir).expanduser() if tfds_dir else default_tfds_dir()
    root = epath.Path(source).expanduser() if is_path else parent / source.replace(":", "/")
    folders = list(_version_folders(root, 3)) if root.is_dir() else []
    if not folders:
        if is_path:
            remedy = "prepare one with: python -m i3d_jax.cli.prepare SRC DST"
        else:
            there = sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
            remedy = (
                f"{parent} holds {some(there) or 'nothing'}. Set data.tfds_dir or $TFDS_DATA_DIR, or give a folder: "
                f"tfds:/path or tfds:./{source}"
            )
        raise FileNotFoundError(f"data.source = 'tfds:{source}': no prepared data set in {root}; {remedy}")
    prepared = [_read_info(place) for place in folders]
    names = sorted({p.name for p in prepared})
    if len(names) > 1:
        raise ValueError(
            f"data.source = 'tfds:{source}': {root} holds the data sets {', '.join(names)}; "
            f"choose one: tfds:{root / names[0]}"
        )
    return prepared


def locate_split(prepared: Sequence[Prepared], part: str) -> tuple[Prepared, str, str]:
    """Finds ``<split>`` or ``<split>[<slice>]``.

    Returns:
      The folder, the split's name there, and the slice in brackets or nothing.

    Raises:
      FileNotFoundError: no such split.
      ValueError: it is in several folders, or in one that cannot be read.
    """
    match = _PART.fullmatch(part.strip())
    if match is None:
        raise ValueError(f"split {part!r}: expected a name, or a name with a slice such as train-clean-100[:10%]")
    wanted = canonical_split(match["split"])
    found = [(p, split) for p in prepared for split in p.splits if canonical_split(split) == wanted]
    if not found:
        there = sorted({split for p in prepared for split in p.splits})
        raise FileNotFoundError(
            f"split {match['split']!r}: {_common(prepared)} holds {some(there, 12) or 'no split'}. "
            "Set data.train, data.dev and data.test to splits of it"
        )
    readable = [(p, split) for p, split in found if not p.problem]
    if not readable:
        place, _ = found[0]
        raise ValueError(f"{place.folder}: {place.problem}")
    if len(readable) > 1:
        places = " and ".join(str(p.folder) for p, _ in readable)
        raise ValueError(f"split {match['split']!r} is in {places}; choose one: tfds:{readable[0][0].folder}")
    return *readable[0], match["selector"] or ""


def canonical_split(split: str) -> str:
    """What the spellings of a split share: train-clean-100, train_clean_100, train_clean100; splits/dev.txt, dev."""
    return re.sub(r"[\W_]", "", split.removeprefix("splits/").removesuffix(".txt")).lower()


def _common(prepared: Sequence[Prepared]) -> epath.Path:
    first = prepared[0].folder
    return first if len(prepared) == 1 else first.parent.parent


def _version_folders(root: epath.Path, depth: int) -> Iterator[epath.Path]:
    """Folders of data sets below `root`, of each configuration the newest version.

    An unfinished one is not named after its version.
    """
    if (root / _INFO).exists():
        yield root
        return
    children = sorted(p for p in root.iterdir() if p.is_dir() and p.name != "downloads")
    versions = [p for p in children if _VERSION.fullmatch(p.name) and (p / _INFO).exists()]
    if versions:
        yield max(versions, key=lambda p: [int(number) for number in p.name.split(".")])
    elif depth:
        for child in children:
            if not child.name.startswith((".", "incomplete.")):
                yield from _version_folders(child, depth - 1)


def _read_info(place: epath.Path) -> Prepared:
    import tensorflow_datasets as tfds  # here: only those who read such data wait for it

    try:
        proto = tfds.core.dataset_info.read_proto_from_builder_dir(place)
        features = json.loads((place / "features.json").read_text())["featuresDict"]["features"]
    except Exception as error:  # TFDS has its own kinds of errors for it
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{place}: no readable {_INFO} and features.json ({first}); prepare it again") from error
    formats = [proto.file_format or "tfrecord", *proto.alternative_file_formats]
    template = tfds.core.ShardedFileTemplate(data_dir=place, dataset_name=proto.name, filetype_suffix="array_record")
    return Prepared(
        folder=place,
        name=proto.name,
        splits=tfds.core.splits.SplitDict.from_proto(proto.splits, template),
        keeps_order=proto.disable_shuffling,
        is_stock="speech" in features,
        problem=_problem(features, formats),
    )


def _problem(features: dict[str, Any], formats: Sequence[str]) -> str:
    prepare = "prepare the archives with: python -m i3d_jax.cli.prepare SRC DST"
    if "speech" in features:
        if not features["speech"].get("audio", {}).get("lazyDecode"):
            return (
                "holds decoded audio (the 'default' configuration of TFDS's librispeech), which cannot be read without "
                f"TensorFlow; use 'lazy_decode', or {prepare}"
            )
    elif not set(features) >= _OWN_FEATURES:
        return f"its features {some(sorted(features))} are not those of a speech data set; {prepare}"
    if "array_record" not in formats:
        return (
            f"stored as {', '.join(formats)}, which cannot be read without TensorFlow; {prepare}; or convert it with "
            "TensorFlow: python -m tensorflow_datasets.scripts.convert_format --out_file_format=array_record"
        )
    return ""

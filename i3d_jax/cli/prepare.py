"""Prepare speech for ``--data.source=tfds:...``: ``python -m i3d_jax.cli.prepare SRC DST [--splits=A+B]``.

Checks every recording by decoding it and stores it, FLAC as it is, in ArrayRecord shards that TensorFlow Datasets reads
without TensorFlow. LibriSpeech archives are streamed: nothing is unpacked. A split appears in DST when it is complete;
finished ones are kept, so an interrupted command is simply repeated. DST becomes a TFDS data directory with the folders
<data set>/<split>/<version>, each with a prepare_report.json beside its shards.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from etils import epath

from i3d_jax.data import folder
from i3d_jax.data.archives import MINI_SUBSETS, SUBSETS, find_archives
from i3d_jax.data.demo_corpus import DemoCorpusConfig, ensure_demo_corpus
from i3d_jax.data.folder import some
from i3d_jax.data.tfds_folders import canonical_split
from i3d_jax.experiment import parse_flags, run_program

if TYPE_CHECKING:
    from i3d_jax.data.tfds_builders import SpeechBuilder


@dataclass(frozen=True)
class PrepareFlags:
    """Flags of the prepare command."""

    source: Annotated[str, tyro.conf.Positional]
    """Folder with LibriSpeech archives, one archive (named after its subset: dev-clean.tar.gz), a folder in LibriSpeech
    layout, or ``demo``."""
    destination: Annotated[str, tyro.conf.Positional]
    """TFDS data directory to prepare into; may hold other data sets."""
    splits: str = ""
    """Splits joined by ``+``: subsets (``dev-clean``), sub-folders, or lists (``splits/train.txt``). Empty: every
    LibriSpeech archive there; or the lists of the folder (``splits/*.txt``), if any; or its sub-folders of
    usual names (train-clean-100, train, dev, test)."""
    cache_dir: str = "~/.cache/i3d_jax"
    """Folder of generated corpora and cached durations."""
    demo: DemoCorpusConfig = field(default_factory=DemoCorpusConfig)
    """The generated corpus (``SRC=demo``)."""


def main(argv: list[str]) -> None:
    """Prepare the splits that are not there yet, and report on each."""
    flags = parse_flags(argv, PrepareFlags, description=__doc__ or "")
    destination = epath.Path(flags.destination).expanduser()
    builders = _plan(flags, destination)
    _check_writable(destination)
    reports = [_prepare(builder) for builder in builders]
    total: dict[str, int] = {}
    for report in reports:
        for reason, ids in report["rejected"].items():
            total[reason] = total.get(reason, 0) + len(ids)
    hours, count = sum(r["hours"] for r in reports), sum(r["utterances"] for r in reports)
    characters = set("".join(r["characters"] for r in reports))
    rejected = ", ".join(f"{n} {reason}" for reason, n in total.items()) or "none"
    print(f"{count} utterances, {hours:.2f} h, {len(characters)} characters; rejected: {rejected}")
    place = destination / reports[0]["dataset"]
    print(f"use it with --data.source=tfds:{place if '://' in str(place) else place.absolute()}")


def _prepare(builder: "SpeechBuilder") -> dict[str, Any]:
    place = epath.Path(builder.data_dir)
    kept = place.exists()
    report = builder.prepare()
    reasons = ", ".join(f"{len(ids)} {reason} ({some(ids, 2)})" for reason, ids in report["rejected"].items())
    note = f" (kept, made from {report['origin']}; remove {place} to prepare it again)" if kept else ""
    print(
        f"{report['dataset']}/{report['split']}: {report['utterances']} utterances, {report['hours']:.2f} h, "
        f"{report['speakers']} speakers, {len(report['characters'])} characters; rejected: {reasons or 'none'}{note}",
        flush=True,
    )
    return report


def _plan(flags: PrepareFlags, destination: epath.Path) -> "list[SpeechBuilder]":
    """A builder for each split; nothing is written yet."""
    from i3d_jax.data.tfds_builders import ArchiveBuilder, FolderBuilder, dataset_name, split_name

    wanted = [part.strip() for part in flags.splits.split("+") if part.strip()]
    source = epath.Path(os.path.expandvars(flags.source)).expanduser()
    if flags.source == "demo":
        source = ensure_demo_corpus(flags.demo, flags.cache_dir)
    elif not source.exists():
        raise FileNotFoundError(f"SRC = {flags.source!r}: no such file or folder; give archives, a folder, or 'demo'")
    elif archives := _archives(source, wanted):
        return [ArchiveBuilder(archive, destination) for archive in archives]
    name = "demo" if flags.source == "demo" else dataset_name(source.resolve().name)
    stored: dict[str, str] = {}
    for part in wanted or _folder_splits(source):
        folder.locate(source, part)
        other = stored.setdefault(split_name(part), part)
        if other != part:
            raise ValueError(f"splits {other!r} and {part!r} would both be stored as {split_name(part)!r}; rename one")
    return [
        FolderBuilder(source, part, name=name, data_dir=destination, cache_dir=flags.cache_dir)
        for part in stored.values()
    ]


def _archives(source: epath.Path, wanted: Sequence[str]) -> list[epath.Path]:
    """The archives of the wanted subsets; nothing if `source` is a folder without LibriSpeech archives."""
    there = find_archives(source)
    if not source.is_dir() and not there:
        raise ValueError(f"SRC = {source}: expected a folder, or an archive such as dev-clean.tar.gz")
    known = there if not source.is_dir() else {s: p for s, p in there.items() if s in SUBSETS + MINI_SUBSETS}
    if not known or any(part.endswith(".txt") for part in wanted):
        return []
    if not wanted:
        return list(known.values())
    by_name = {canonical_split(subset): path for subset, path in there.items()}
    for part in wanted:
        if canonical_split(part) not in by_name:
            raise FileNotFoundError(
                f"split {part!r}: no archive {part}.tar.gz; there are {some(p.name for p in there.values())}. "
                "LibriSpeech is at https://www.openslr.org/12"
            )
    return [by_name[canonical_split(part)] for part in dict.fromkeys(wanted)]


def _folder_splits(source: epath.Path) -> list[str]:
    """The lists of a folder, without those of speakers (``train.speakers.txt``), or its sub-folders of usual names."""
    lists = sorted(p.name for p in (source / "splits").glob("*.txt") if "." not in p.stem)
    if lists:
        return [f"splits/{name}" for name in lists]
    names = (*SUBSETS, *MINI_SUBSETS, "train", "dev", "test")
    found = [name for name in names if (source / name).is_dir() or (source / "LibriSpeech" / name).is_dir()]
    if not found:
        there = some(sorted(f"{p.name}/" if p.is_dir() else p.name for p in source.iterdir()), 12)
        raise FileNotFoundError(
            f"{source}: no archive, no splits/*.txt, no sub-folder named like a split; it has {there or 'nothing'}. "
            "Name its sub-folders or lists: --splits=a+b"
        )
    return found


def _check_writable(destination: epath.Path) -> None:
    probe = destination / f".prepare.{os.getpid()}"
    try:
        destination.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"DST = {destination}: cannot write there ({error.strerror}); choose another folder"
        ) from error


if __name__ == "__main__":
    run_program(main)

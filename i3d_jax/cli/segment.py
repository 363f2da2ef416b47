"""Cut long recordings with STM transcripts, as TED-LIUM comes: ``python -m i3d_jax.cli.segment SRC DST``.

SRC holds a folder for each split, with the transcripts ``stm/*.stm`` and recordings of the same names in ``sph/``
(TEDLIUM_release2 as it is unpacked from OpenSLR's SLR19). DST becomes a folder in LibriSpeech layout, which
``--data.source`` reads. A recording appears there when it is complete; finished ones are kept, so an interrupted
command is simply repeated.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro
from etils import epath

from i3d_jax.data.folder import some
from i3d_jax.data.stm import cut_recording
from i3d_jax.experiment import parse_flags, run_program
from i3d_jax.progress import progress


@dataclass(frozen=True)
class SegmentFlags:
    """Flags of the segment command."""

    source: Annotated[str, tyro.conf.Positional]
    """Folder with a sub-folder for each split, which holds ``stm/`` and ``sph/``."""
    destination: Annotated[str, tyro.conf.Positional]
    """Folder to cut into."""
    splits: str = "train+dev+test"
    """Splits joined by ``+``."""


def main(argv: list[str]) -> None:
    """Cut the recordings that are not there yet, and report on each split."""
    flags = parse_flags(argv, SegmentFlags, description=__doc__ or "")
    source, destination = (epath.Path(path).expanduser() for path in (flags.source, flags.destination))
    work = {split: _pairs(source / split) for split in flags.splits.split("+")}
    for split, pairs in work.items():
        todo = [pair for pair in pairs if not (destination / split / pair[0].stem).exists()]
        utterances, seconds, rejected = 0, 0.0, dict[str, list[str]]()
        for stm, audio in progress(todo, f"cutting {split}"):
            cut = cut_recording(stm, audio, destination / split / stm.stem)
            utterances, seconds = utterances + cut.utterances, seconds + cut.seconds
            for reason, ids in cut.rejected.items():
                rejected.setdefault(reason, []).extend(ids)
        reasons = ", ".join(f"{len(ids)} {reason} ({some(ids, 2)})" for reason, ids in rejected.items())
        kept = f", {len(pairs) - len(todo)} recordings kept" if len(todo) < len(pairs) else ""
        print(
            f"{split}: {len(todo)} recordings, {utterances} utterances, {seconds / 3600:.2f} h; "
            f"rejected: {reasons or 'none'}{kept}"
        )
    print(f"use it with --data.source={destination}")


def _pairs(split: epath.Path) -> list[tuple[epath.Path, epath.Path]]:
    """The transcripts of a split with their recordings.

    Raises:
      FileNotFoundError: no such split, no transcripts, or recordings are missing; all of these are counted.
    """
    transcripts = sorted((split / "stm").glob("*.stm")) if (split / "stm").is_dir() else []
    if not transcripts:
        raise FileNotFoundError(f"{split / 'stm'}: no transcripts *.stm; expected <SRC>/<split>/stm and .../sph")
    recordings = {path.stem: path for path in sorted((split / "sph").glob("*"))}
    missing = [path.name for path in transcripts if path.stem not in recordings]
    if missing:
        raise FileNotFoundError(f"{split / 'sph'}: no recordings for {len(missing)} transcripts: {some(missing, 3)}")
    return [(path, recordings[path.stem]) for path in transcripts]


if __name__ == "__main__":
    run_program(main)

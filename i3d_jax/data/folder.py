"""Reading a folder in LibriSpeech layout: audio files, their transcripts, their lengths.

Audio (FLAC, WAV, Ogg) lies at any depth, and beside it ``*.trans.txt`` files with lines of ``<id> <TEXT>``; the id is
the file name without suffix.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from etils import epath

from i3d_jax import files
from i3d_jax.audio import io as audio_io
from i3d_jax.progress import progress

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg")
TRANSCRIPT_SUFFIX = ".trans.txt"

NO_TRANSCRIPT = "audio without transcript"
NO_AUDIO = "transcript without audio"
EMPTY_TRANSCRIPT = "empty transcript"
NOT_FOUND = "listed but not found"
UNREADABLE = "unreadable audio"


class Recording(NamedTuple):
    """An audio file with its transcript; ``samples`` counts at ``rate``, the file's own."""

    path: epath.Path
    text: str
    samples: int
    rate: int


def read_folder(
    root: epath.Path, wanted: str, cache_dir: epath.PathLike
) -> tuple[list[Recording], dict[str, list[str]]]:
    """Reads a split of a folder.

    Args:
      root: the folder.
      wanted: sub-folders and lists (``*.txt``) of audio paths relative to `root`, joined by ``+``. A sub-folder is also
        looked for under ``LibriSpeech/``, where the OpenSLR archives unpack it.
      cache_dir: lengths are read from the headers once and kept there until a file's size or modification time changes.

    Returns:
      Recordings, sorted by path, or in the order of the list; and reason -> ids of what cannot be used.

    Raises:
      FileNotFoundError: the split is missing, or holds no audio at all.
      ValueError: a transcript or list is not UTF-8.
    """
    rejected: dict[str, list[str]] = defaultdict(list)
    texts: dict[tuple[epath.Path, str], str] = {}
    paths: list[epath.Path] = []
    for part in wanted.split("+"):
        place = locate(root, part)
        is_list = part.endswith(".txt")
        found, transcripts = _read_list(root, place, rejected) if is_list else _walk(place)
        if not found:
            raise FileNotFoundError(f"{place}: no {', '.join(AUDIO_SUFFIXES)} file; unpack the audio there")
        heard = {(path.parent, path.stem) for path in found}
        for transcript in transcripts:
            for utterance_id, text in _read_transcript(transcript).items():
                texts[transcript.parent, utterance_id] = text
                if not is_list and (transcript.parent, utterance_id) not in heard:
                    rejected[NO_AUDIO].append(utterance_id)
        paths += found
    recordings = []
    lengths = _lengths(paths, _length_cache(root, wanted, cache_dir))
    for path in paths:
        key = (path.parent, path.stem)
        if key not in texts:
            rejected[NO_TRANSCRIPT].append(path.stem)
        elif not texts[key]:
            rejected[EMPTY_TRANSCRIPT].append(path.stem)
        elif (length := lengths[path]) is None:
            rejected[UNREADABLE].append(path.stem)
        else:
            recordings.append(Recording(path, texts[key], *length))
    return recordings, dict(rejected)


def locate(root: epath.Path, part: str) -> epath.Path:
    """The list file or sub-folder that a split names.

    Raises:
      FileNotFoundError: there is neither; the message lists what is there.
    """
    is_list = part.endswith(".txt")
    places = [root / part] if is_list else [root / part, root / "LibriSpeech" / part]
    for place in places:
        if place.is_file() if is_list else place.is_dir():
            return place
    found = sorted(f"{p.name}/" if p.is_dir() else p.name for p in root.iterdir())
    raise FileNotFoundError(
        f"split {part!r}: there is no {'list' if is_list else 'folder'} {' nor '.join(map(str, places))}; {root} holds "
        f"{some(found, 12) or 'nothing'}. Set data.train, data.dev and data.test to sub-folders or lists (*.txt) of it"
    )


def _walk(folder: epath.Path) -> tuple[list[epath.Path], list[epath.Path]]:
    """Audio files and transcripts below a folder, sorted; hidden files and folders are skipped."""
    audio, transcripts = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in AUDIO_SUFFIXES:
            audio.append(path)
        elif path.name.endswith(TRANSCRIPT_SUFFIX):
            transcripts.append(path)
        elif path.is_dir():
            below = _walk(path)
            audio += below[0]
            transcripts += below[1]
    return audio, transcripts


def _read_list(
    root: epath.Path, path: epath.Path, rejected: dict[str, list[str]]
) -> tuple[list[epath.Path], list[epath.Path]]:
    """Listed audio files, in the order of the list, and the transcripts in their folders."""
    audio = []
    names: dict[epath.Path, set[str]] = {}
    for line in _read_text(path).splitlines():
        if not line.strip():
            continue
        file = root / line.strip()
        if file.parent not in names:
            names[file.parent] = {p.name for p in file.parent.iterdir()} if file.parent.is_dir() else set()
        if file.name in names[file.parent]:
            audio.append(file)
        else:
            rejected[NOT_FOUND].append(file.stem)
    if not audio:
        missing = some(rejected[NOT_FOUND], 3)
        raise FileNotFoundError(
            f"{path}: none of the listed audio files exists under {root} ({missing or 'empty list'})"
        )
    transcripts = [f / n for f in names for n in sorted(names[f]) if n.endswith(TRANSCRIPT_SUFFIX) and n[0] != "."]
    return audio, transcripts


def _read_transcript(path: epath.Path) -> dict[str, str]:
    return parse_transcript(path.read_bytes(), path)


def parse_transcript(data: bytes, path: epath.PathLike) -> dict[str, str]:
    """Id -> text of a ``*.trans.txt`` file; ``path`` names it in the error.

    Raises:
      ValueError: not UTF-8.
    """
    entries = (line.split() for line in _decode_text(data, path).split("\n"))  # splitlines would also cut at U+2028
    return {words[0]: " ".join(words[1:]) for words in entries if words}


def _read_text(path: epath.Path) -> str:
    return _decode_text(path.read_bytes(), path)


def _decode_text(data: bytes, path: epath.PathLike) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text ({error.reason} at byte {error.start}); convert it") from None


def _length_cache(root: epath.Path, wanted: str, cache_dir: epath.PathLike) -> epath.Path:
    key = hashlib.sha256(f"{root.resolve()}\n{wanted}".encode()).hexdigest()[:16]
    return epath.Path(cache_dir).expanduser() / "durations" / f"{key}.json"


def _lengths(paths: Sequence[epath.Path], cache: epath.Path) -> dict[epath.Path, tuple[int, int] | None]:
    """(samples, rate) of each file from its header, or None if it is unreadable; cached by size and time."""
    known: dict[str, list[int]] = {}
    if cache.exists():
        try:
            known = json.loads(cache.read_text())
        except json.JSONDecodeError:
            known = {}  # it only saves time
    lengths: dict[epath.Path, tuple[int, int] | None] = {}
    entries: dict[str, list[int]] = {}
    unknown = []
    for path in paths:
        stat = path.stat()
        entry = known.get(os.fspath(path))
        if entry and entry[:2] == [stat.length, stat.mtime]:
            entries[os.fspath(path)] = entry
            lengths[path] = (entry[2], entry[3])
        else:
            unknown.append((path, stat))
    show = progress(unknown, "reading audio lengths") if len(unknown) > 5000 else unknown
    for path, stat in show:
        try:
            samples, rate = audio_io.audio_info(path)
        except ValueError:
            lengths[path] = None
        else:
            lengths[path] = (samples, rate)
            entries[os.fspath(path)] = [stat.length, int(stat.mtime), samples, rate]
    if entries != known:
        files.write_text(cache, json.dumps(entries))
    return lengths


def some(names: Iterable[str], count: int = 8) -> str:
    """The first names, for a message."""
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")

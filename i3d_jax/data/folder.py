"""Reading a folder in LibriSpeech layout: audio files, their transcripts, their lengths.

Audio (FLAC, WAV, Ogg, Opus, MP3) lies at any depth, and beside it ``*.trans.txt`` files with lines of ``<id> <TEXT>``;
the id is the file name without suffix. Hidden files and folders are skipped. Symbolic links are followed, out of the
source too; a link to a folder that was read already, or that holds one that was, is counted and not entered.

Every audio file and every line of a transcript ends as a recording or under a reason.
"""

import itertools
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from etils import epath

from i3d_jax import files
from i3d_jax.data.durations import measure_audio

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
OTHER_SUFFIXES = (".aac", ".aif", ".aiff", ".amr", ".au", ".m4a", ".mp4", ".sph", ".webm", ".wma")
TRANSCRIPT_SUFFIX = ".trans.txt"

NO_TRANSCRIPT = "audio without transcript"
NO_AUDIO = "transcript without audio"
EMPTY_TRANSCRIPT = "empty transcript"
RESERVED_CHARACTER = "transcript with U+2581, the tokenizer's blank"
REPEATED_LINE = "repeated transcript line"
NOT_FOUND = "listed but not found"
BAD_NAME = "file name with blanks or not in UTF-8"
OTHER_FORMAT = "audio format that is not read"
FOLDER_AGAIN = "link to a folder read already"


class Recording(NamedTuple):
    """An audio file with its transcript; ``samples`` counts at ``rate``, the file's own."""

    path: epath.Path
    text: str
    samples: int
    rate: int


class _Place(NamedTuple):
    """What a part of a split names; all lines of a folder's transcripts are wanted, of a list's only the listed."""

    audio: list[epath.Path]
    transcripts: list[epath.Path]
    whole: bool


def read_folder(
    root: epath.Path, wanted: str, cache_dir: epath.PathLike, verify: bool = True
) -> tuple[list[Recording], dict[str, list[str]]]:
    """Reads a split of a folder.

    Args:
      root: the folder.
      wanted: sub-folders and lists (``*.txt``) of audio paths relative to `root`, joined by ``+``. A sub-folder is also
        looked for under ``LibriSpeech/``, where the OpenSLR archives unpack it. Listed paths may be absolute.
      cache_dir: what is found out about a file is kept there until its size or modification time changes.
      verify: decode each file once, so that a damaged one is counted here; False reads the headers only, and a damaged
        file ends the run when its turn comes.

    Returns:
      Recordings, sorted by path, or in the order of the list; and reason -> ids of what cannot be used.

    Raises:
      FileNotFoundError: the split is missing, or holds no audio at all.
      ValueError: a transcript or list is not UTF-8, or a part of `wanted` is empty.
      OSError: a folder, transcript or list that cannot be read.
    """
    rejected: dict[str, list[str]] = defaultdict(list)
    places = [_read_place(root, part, wanted, rejected) for part in wanted.split("+")]
    paths = [path for place in places for path in place.audio]
    texts = _read_transcripts(places, {(path.parent, _key(path.stem)) for path in paths}, rejected)

    candidates: list[tuple[epath.Path, str]] = []
    for path in paths:
        text = texts.get((path.parent, _key(path.stem)))
        if not _is_usable_name(path.stem):
            rejected[BAD_NAME].append(path.stem)
        elif text is None:
            rejected[NO_TRANSCRIPT].append(path.stem)
        elif problem := transcript_problem(text):
            rejected[problem].append(path.stem)
        elif path.suffix.lower() in OTHER_SUFFIXES:
            rejected[OTHER_FORMAT].append(path.stem)
        else:
            candidates.append((path, text))
    measured = measure_audio([path for path, _ in candidates], f"{root.resolve()}\n{wanted}", cache_dir, verify)
    recordings = []
    for path, text in candidates:
        measure = measured[path]
        if measure.problem:
            rejected[measure.problem].append(path.stem)
        else:
            recordings.append(Recording(path, text, measure.samples, measure.rate))
    return recordings, dict(rejected)


def some(names: Iterable[str], count: int = 8) -> str:
    """The first names, for a message of one line that any terminal can print."""
    names = list(names)
    shown = (name if name.isprintable() else repr(name) for name in names[:count])
    return ", ".join(shown) + (", ..." if len(names) > count else "")


def _read_place(root: epath.Path, part: str, wanted: str, rejected: dict[str, list[str]]) -> _Place:
    if not part.strip():
        raise ValueError(f"split {wanted!r}: a part is empty; join sub-folders and lists by '+', or write '.' for all")
    is_list = part.endswith(".txt")
    location = locate(root, part)
    if is_list:
        audio, transcripts = _read_list(root, location, rejected)
    else:
        audio, transcripts = _walk(location, set(), rejected)
    if not audio:
        raise FileNotFoundError(f"{location}: no {', '.join(AUDIO_SUFFIXES)} file; unpack the audio there")
    return _Place(audio, transcripts, whole=not is_list)


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
    found = sorted(f"{p.name}/" if p.is_dir() else p.name for p in _entries(root))
    raise FileNotFoundError(
        f"split {part!r}: there is no {'list' if is_list else 'folder'} {' nor '.join(map(str, places))}; {root} holds "
        f"{some(found, 12) or 'nothing'}. Set data.train, data.dev and data.test to sub-folders or lists (*.txt) of it"
    )


def _walk(
    folder: epath.Path, seen: set[str], rejected: dict[str, list[str]]
) -> tuple[list[epath.Path], list[epath.Path]]:
    """Audio files and transcripts below a folder, sorted; `seen` holds the real paths of the folders entered."""
    seen.add(os.path.realpath(folder))  # epath's resolve() does not follow links
    audio, transcripts = [], []
    waiting = sorted(_entries(folder), reverse=True)
    while waiting:
        path = waiting.pop()
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in AUDIO_SUFFIXES + OTHER_SUFFIXES and not path.is_dir():
            audio.append(path)
        elif path.name.endswith(TRANSCRIPT_SUFFIX):
            transcripts.append(path)
        elif path.is_dir():
            target = os.path.realpath(path)
            if target in seen or (os.path.islink(path) and _holds_any(target, seen)):
                rejected[FOLDER_AGAIN].append(path.name)
                continue
            seen.add(target)
            waiting += sorted(_entries(path), reverse=True)
    return audio, transcripts


def _holds_any(folder: str, others: Iterable[str]) -> bool:
    return any(other.startswith(f"{folder.rstrip('/')}/") for other in others)


def _entries(folder: epath.Path) -> list[epath.Path]:
    try:
        return list(folder.iterdir())
    except PermissionError as error:
        raise PermissionError(f"{folder}: no permission to list the folder; change its permissions") from error


def _read_list(
    root: epath.Path, path: epath.Path, rejected: dict[str, list[str]]
) -> tuple[list[epath.Path], list[epath.Path]]:
    """Listed audio files, in the order of the list, and the transcripts in their folders."""
    audio = []
    names: dict[epath.Path, set[str]] = {}
    missing = []
    for line in _read_lines(path):
        name = line.strip(" \t")
        if not name:
            continue
        file = root / name
        if file.parent not in names:
            names[file.parent] = {p.name for p in _entries(file.parent)} if file.parent.is_dir() else set()
        if file.name in names[file.parent]:
            audio.append(file)
        else:
            missing.append(file.stem)
    if not audio:
        raise FileNotFoundError(
            f"{path}: none of the listed audio files exists under {root} ({some(missing, 3) or 'empty list'})"
        )
    if missing:
        rejected[NOT_FOUND] += missing
    transcripts = [f / n for f in names for n in sorted(names[f]) if n.endswith(TRANSCRIPT_SUFFIX) and n[0] != "."]
    return audio, transcripts


def _read_transcripts(
    places: list[_Place], heard: set[tuple[epath.Path, str]], rejected: dict[str, list[str]]
) -> dict[tuple[epath.Path, str], str]:
    """(folder, id) -> text: the first line of each id; every file is read once, however many parts name it."""
    whole = {transcript for place in places if place.whole for transcript in place.transcripts}
    texts: dict[tuple[epath.Path, str], str] = {}
    for transcript in dict.fromkeys(itertools.chain.from_iterable(place.transcripts for place in places)):
        for utterance_id, text in _entries_of(_read_lines(transcript)):
            key = (transcript.parent, _key(utterance_id))
            if key not in heard and transcript not in whole:
                continue
            if key in texts:
                rejected[REPEATED_LINE].append(utterance_id)
                continue
            texts[key] = text
            if key not in heard:
                rejected[NO_AUDIO].append(utterance_id)
    return texts


def parse_transcript(data: bytes, path: epath.PathLike) -> list[tuple[str, str]]:
    """(id, text) of each line of a ``*.trans.txt`` file; ``path`` names it in the error.

    Raises:
      ValueError: not UTF-8.
    """
    return list(_entries_of(_decode_lines(data, path)))


def transcript_problem(text: str) -> str | None:
    """The reason for which a transcript cannot be used; None if it can."""
    if not any(c.isprintable() and c != " " for c in text):
        return EMPTY_TRANSCRIPT
    return RESERVED_CHARACTER if "\u2581" in text else None


def _entries_of(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        words = line.split()
        if words:
            yield words[0], " ".join(words[1:])


def _read_lines(path: epath.Path) -> list[str]:
    """Lines of a UTF-8 text, a byte-order mark left out, whichever line ends it has."""
    if not files.is_regular_file(path):  # opening a pipe would wait for ever
        raise FileNotFoundError(f"{path}: a broken link or no file; mend or remove it")
    try:
        return _decode_lines(path.read_bytes(), path)
    except PermissionError as error:
        raise PermissionError(f"{path}: no permission to read; change its permissions") from error


def _decode_lines(data: bytes, path: epath.PathLike) -> list[str]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text ({error.reason} at byte {error.start}); convert it") from None
    if "\0" in text:
        raise ValueError(f"{path}: expected UTF-8 text, found a zero byte (UTF-16?); convert it")
    # Not splitlines, which would also cut at U+2028.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _key(name: str) -> str:
    """Names that look the same are the same: some systems store accents apart from their letters."""
    return unicodedata.normalize("NFC", name)


def _is_usable_name(name: str) -> bool:
    """Whether a transcript could hold the name as an id: one word of UTF-8."""
    return name.split() == [name] and not any("\ud800" <= c <= "\udfff" for c in name)

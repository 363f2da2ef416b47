"""LibriSpeech archives, streamed: utterances come straight from the tar, nothing is unpacked.

An archive is named after its subset, ``dev-clean.tar.gz``, and holds
``LibriSpeech/<subset>/<speaker>/<chapter>/{<id>.flac,<speaker>-<chapter>.trans.txt}``. Within a chapter the transcript
may come before or after the audio: only audio whose transcript has not come yet is kept in memory.
"""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from etils import epath

from i3d_jax.audio.integrity import AudioError
from i3d_jax.data import folder
from i3d_jax.data.corpora import DUPLICATE
from i3d_jax.data.folder import some
from i3d_jax.data.records import SpeechRecord, make_record

SUBSETS = (
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
)
"""The subsets of LibriSpeech, https://www.openslr.org/12."""
MINI_SUBSETS = ("dev-clean-2", "train-clean-5")
"""Those of Mini LibriSpeech, https://www.openslr.org/31."""
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".tar.bz2", ".tar.xz")

UNSAFE_NAME = "unsafe name in the archive"
LINK = "link in the archive"
DEVICE = "device in the archive"
MISPLACED = "not at LibriSpeech/<subset>/<speaker>/<chapter>/"
TOO_LARGE = "audio file of more than 256 MiB"

_LARGEST_FILE = 256 << 20
_LARGEST_MEMBER = 1 << 40
_MOST_WAITING_BYTES = 512 << 20
_DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)


def archive_subset(path: epath.Path) -> str | None:
    """The subset that an archive is named after; None if the name is not that of an archive."""
    name = path.name
    return next((name.removesuffix(s) for s in ARCHIVE_SUFFIXES if name.endswith(s) and name != s), None)


def find_archives(place: epath.Path) -> dict[str, epath.Path]:
    """Subset -> archive: `place` itself, or the archives in the folder `place`.

    Raises:
      ValueError: a subset is there twice, such as ``dev-clean.tar`` and ``dev-clean.tar.gz``.
    """
    found: dict[str, epath.Path] = {}
    for path in sorted(place.iterdir()) if place.is_dir() else [place]:
        subset = archive_subset(path)
        if subset and path.is_file() and not path.name.startswith("."):
            if subset in found:
                raise ValueError(f"{path}: {found[subset].name} is there too; keep one of them")
            found[subset] = path
    return found


def read_archive(
    path: epath.Path, rejected: dict[str, list[str]], advance: Callable[[int], None] = lambda position: None
) -> Iterator[SpeechRecord]:
    """Streams the usable utterances of an archive, in its order.

    Args:
      path: ``<subset>.tar.gz`` (or ``.tar``, ``.tgz``, ``.tar.bz2``, ``.tar.xz``).
      rejected: reason -> ids (or names in the archive) of what cannot be used; added to.
      advance: told how many bytes of the archive are read.

    Yields:
      Each utterance as soon as both its audio and its transcript are there.

    Raises:
      FileNotFoundError: no such archive.
      ValueError: the archive is truncated or corrupt, holds another subset, holds no audio, a transcript is not UTF-8,
        or audio and transcripts lie too far apart to be held in memory.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such archive")
    chapters = _Chapters(path, rejected)
    with path.open("rb") as raw:
        try:
            with tarfile.open(fileobj=_uncompressed(raw), mode="r|", bufsize=1 << 18) as tar:
                while (member := _next(tar)) is not None:
                    advance(raw.tell())
                    if reason := _hostile(member):
                        # Escaped: such a name may hold control characters for the terminal.
                        rejected.setdefault(reason, []).append(member.name.encode("unicode_escape").decode())
                    elif member.isfile() and (place := chapters.place(member.name)) is not None:
                        if member.size > _LARGEST_FILE:
                            rejected.setdefault(TOO_LARGE, []).append(member.name)
                            continue
                        file = tar.extractfile(member)
                        assert file is not None  # a regular file
                        yield from chapters.add(place, member.name, file.read())
                _check_end(tar)
            advance(raw.tell())
        except _DAMAGE as error:
            raise ValueError(f"{path}: truncated or corrupt archive ({error}); download it again") from error
    chapters.close()


def _uncompressed(raw: IO[bytes]) -> IO[bytes]:
    # Not tarfile's own decompression ('r|*'): that one checks neither the checksum nor the end of the compressed data.
    start = raw.read(6)
    raw.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if start.startswith(b"BZh"):
        return bz2.BZ2File(raw)
    return lzma.LZMAFile(raw) if start == b"\xfd7zXZ\x00" else raw


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    member = tar.next()
    if member is not None and not 0 <= member.size <= _LARGEST_MEMBER:  # tarfile would skip that many bytes of nothing
        raise tarfile.ReadError(f"a member of {member.size} bytes")
    tar.members.clear()  # type: ignore[attr-defined]  # else all headers would pile up
    return member


def _check_end(tar: tarfile.TarFile) -> None:
    """Reads on to the checksum of the compression; and tarfile takes a damaged header for the end of the archive."""
    stream: Any = tar.fileobj
    padding = 0
    while rest := stream.read(1 << 18):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("damaged header")
        padding += len(rest)
    if not padding:
        raise tarfile.ReadError("the end mark is missing")


def _hostile(member: tarfile.TarInfo) -> str | None:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return UNSAFE_NAME
    if member.issym() or member.islnk():
        return LINK
    return DEVICE if member.isdev() else None


class _Chapters:
    """Brings audio and transcripts together. A chapter is (speaker, chapter)."""

    def __init__(self, path: epath.Path, rejected: dict[str, list[str]]):
        self._path, self._rejected = path, rejected
        self._subset = archive_subset(path)
        self._texts: dict[tuple[str, str], dict[str, str]] = {}
        self._waiting: dict[tuple[str, str], dict[str, bytes]] = {}
        self._waiting_bytes = 0
        self._yielded: set[str] = set()
        self._heard = False

    def place(self, name: str) -> tuple[str, str] | None:
        """The chapter of a file; None if it is neither audio nor transcript of one."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        file = epath.Path(parts[-1] if parts else ".")
        is_speech = file.suffix.lower() in folder.AUDIO_SUFFIXES or file.name.endswith(folder.TRANSCRIPT_SUFFIX)
        if not is_speech or file.name.startswith("."):
            return None
        if len(parts) != 5 or parts[0] != "LibriSpeech":
            self._reject(MISPLACED, name)
            return None
        if parts[1] != self._subset:
            raise ValueError(
                f"{self._path}: holds {parts[1]!r}, expected {self._subset!r} by the name of the archive; rename it"
            )
        return parts[2], parts[3]

    def add(self, chapter: tuple[str, str], name: str, data: bytes) -> Iterator[SpeechRecord]:
        """Takes a file and yields what has become complete."""
        if name.endswith(folder.TRANSCRIPT_SUFFIX):
            texts = self._texts.setdefault(chapter, {})
            for utterance_id, text in folder.parse_transcript(data, f"{self._path}: {name}"):
                if utterance_id in texts:
                    self._reject(folder.REPEATED_LINE, utterance_id)
                else:
                    texts[utterance_id] = text
            waiting = self._waiting.pop(chapter, {})
            self._waiting_bytes -= sum(map(len, waiting.values()))
            for utterance_id, audio in waiting.items():
                yield from self._complete(chapter, utterance_id, audio)
            return
        self._heard = True
        utterance_id = epath.Path(name).stem
        if chapter in self._texts:
            yield from self._complete(chapter, utterance_id, data)
        elif utterance_id in self._waiting.setdefault(chapter, {}):
            self._reject(DUPLICATE, utterance_id)
        else:
            self._waiting[chapter][utterance_id] = data
            self._waiting_bytes += len(data)
            if self._waiting_bytes > _MOST_WAITING_BYTES:
                raise ValueError(
                    f"{self._path}: {self._waiting_bytes >> 20} MiB of audio came before its transcripts "
                    f"({some((f'{s}-{c}' for s, c in self._waiting), 3)}); unpack the archive and prepare the folder"
                )

    def _complete(self, chapter: tuple[str, str], utterance_id: str, audio: bytes) -> Iterator[SpeechRecord]:
        text = self._texts[chapter].pop(utterance_id, None)
        if utterance_id in self._yielded:
            self._reject(DUPLICATE, utterance_id)
        elif text is None:
            self._reject(folder.NO_TRANSCRIPT, utterance_id)
        elif problem := folder.transcript_problem(text):
            self._reject(problem, utterance_id)
        else:
            try:
                record = make_record(utterance_id, text, audio, f"{self._path}: {utterance_id}")
            except AudioError as error:
                self._reject(error.reason, utterance_id)
            else:
                self._yielded.add(utterance_id)
                yield record

    def close(self) -> None:
        """Counts what stayed alone."""
        if not self._heard:
            raise ValueError(
                f"{self._path}: no audio at LibriSpeech/{self._subset}/<speaker>/<chapter>/<id>.flac; "
                "expected an archive of https://www.openslr.org/12"
            )
        for waiting in self._waiting.values():
            for utterance_id in waiting:
                self._reject(folder.NO_TRANSCRIPT, utterance_id)
        for texts in self._texts.values():
            for utterance_id in texts:
                self._reject(folder.NO_AUDIO, utterance_id)

    def _reject(self, reason: str, name: str) -> None:
        self._rejected.setdefault(reason, []).append(name)

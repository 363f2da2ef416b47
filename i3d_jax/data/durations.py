"""Lengths of audio files, and what is wrong with them: found out once, kept until a file changes."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from etils import epath

from i3d_jax import files
from i3d_jax.audio import io as audio_io
from i3d_jax.audio.integrity import AudioError
from i3d_jax.progress import progress

UNREADABLE = AudioError.reason
NO_PERMISSION = "no permission to read"
NOT_A_FILE = "broken link or no file"

_ENTRY = [int, int, bool, int, int, str]
_SHOWN_FROM = 1000  # files; fewer are measured before anybody looks for a progress bar


class Measure(NamedTuple):
    """Samples per channel at ``rate`` Hz, the file's own; or the problem, under which the file is counted."""

    samples: int
    rate: int
    problem: str = ""


def measure_audio(
    paths: Sequence[epath.Path], key: str, cache_dir: epath.PathLike, verify: bool
) -> dict[epath.Path, Measure]:
    """Measures files, with a progress bar if there are many.

    Args:
      paths: audio files.
      key: names the set of files; its own cache is kept for each.
      cache_dir: folder of the caches; an interrupted measurement keeps what it has.
      verify: decode the files, on all cores; False reads the headers. What was verified serves both.

    Raises:
      OSError: the cache cannot be written.
    """
    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:16]
    cache = epath.Path(cache_dir).expanduser() / "measures" / f"{digest}.json"
    known = _read_cache(cache)
    entries: dict[str, list[Any]] = {}
    measured: dict[epath.Path, Measure] = {}
    unknown: list[tuple[epath.Path, list[int]]] = []
    for path in dict.fromkeys(paths):
        stamp = _stamp(path)
        entry = known.get(os.fspath(path))
        if isinstance(stamp, str):
            measured[path] = Measure(0, 0, stamp)
        elif entry is not None and entry[:2] == stamp and (entry[2] or not verify):
            entries[os.fspath(path)] = entry
            measured[path] = Measure(*entry[3:])
        else:
            unknown.append((path, stamp))
    try:
        for (path, stamp), (measure, lasting) in zip(unknown, _measure(unknown, verify), strict=True):
            measured[path] = measure
            if lasting:
                entries[os.fspath(path)] = [*stamp, verify, *measure]
    finally:
        if entries != known:
            try:
                files.write_text(cache, json.dumps(entries))
            except OSError as error:
                raise OSError(f"{cache}: cannot be written ({error}); set data.cache_dir to another folder") from error
    return measured


def _measure(unknown: Sequence[tuple[epath.Path, list[int]]], verify: bool) -> Iterator[tuple[Measure, bool]]:
    if not unknown:
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # libsndfile decodes without holding the interpreter's lock
        measures: Iterable[tuple[Measure, bool]] = pool.map(
            partial(_measure_one, verify), [path for path, _ in unknown]
        )
        if len(unknown) >= _SHOWN_FROM:
            description = "checking audio" if verify else "reading audio lengths"
            measures = progress(measures, description, total=len(unknown))
        yield from measures


def _measure_one(verify: bool, path: epath.Path) -> tuple[Measure, bool]:
    """The measure, and whether it holds until the file changes."""
    try:
        return Measure(*(audio_io.check_audio if verify else audio_io.audio_info)(path)), True
    except AudioError as error:
        return Measure(0, 0, error.reason), True
    except PermissionError:
        return Measure(0, 0, NO_PERMISSION), False
    except OSError:
        return Measure(0, 0, UNREADABLE), False


def _stamp(path: epath.Path) -> list[int] | str:
    """Size and modification time, or why there are none."""
    try:
        if not files.is_regular_file(path):
            return NOT_A_FILE
        stat = path.stat()
    except PermissionError:
        return NO_PERMISSION
    return [int(stat.length), int(stat.mtime)]


def _read_cache(cache: epath.Path) -> dict[str, list[Any]]:
    """Entries ``[size, time, verified, samples, rate, problem]``; those of another form are measured again."""
    if not cache.exists():
        return {}
    try:
        known = json.loads(cache.read_text())
    except ValueError:  # a cache only saves time
        return {}
    if not isinstance(known, dict):
        return {}
    return {path: e for path, e in known.items() if isinstance(e, list) and list(map(type, e)) == _ENTRY}

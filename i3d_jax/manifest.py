"""Digests of the files of a folder, written last: what was cut short or damaged later is recognised before use."""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from etils import epath

from i3d_jax import files

NAME = "manifest.json"


class Damaged(ValueError):
    """A folder is not as it was when its manifest was written; the message begins with the file."""


def write_manifest(folder: epath.PathLike, notes: Mapping[str, Any] | None = None) -> None:
    """Records size and SHA-256 of every file below ``folder`` in its ``manifest.json``, atomically.

    Args:
      folder: of which nothing is written any more.
      notes: JSON values to keep with the files.

    Raises:
      OSError: a file cannot be read or the manifest cannot be written.
    """
    folder = epath.Path(folder)
    listed = {name: _describe(folder / name) for name in _names(folder)}
    body = {"files": listed, "notes": dict(notes or {})}
    files.write_text(folder / NAME, _text(body))


def check_manifest(folder: epath.PathLike) -> dict[str, Any]:
    """Compares the files of ``folder`` with its manifest; files that it does not list are not looked at.

    Returns:
      The notes that were written with it.

    Raises:
      FileNotFoundError: there is no manifest.
      Damaged: a file is missing or differs, or the manifest itself does.
      OSError: a file cannot be opened.
    """
    folder = epath.Path(folder)
    body = _read(folder / NAME)
    for name, expected in body["files"].items():  # sizes first: they cost no reading
        if not (folder / name).exists():
            raise Damaged(f"{name} is missing")
        if (size := (folder / name).stat().length) != expected["size"]:
            raise Damaged(f"{name} has {size} bytes, {expected['size']} were written")
    for name, expected in body["files"].items():
        try:
            found = _describe(folder / name)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise Damaged(f"{name} cannot be read ({error.strerror})") from error
        if found != expected:
            raise Damaged(f"{name} has other bytes than were written")
    return body["notes"]


def bundle_folder(path: epath.PathLike) -> epath.Path:
    """The folder of a bundle, which is given itself or by its run: ``model/`` in it where there is one.

    Args:
      path: local (``~`` is expanded) or remote (``gs://``).
    """
    root = epath.Path(path).expanduser()
    inner = root / "model"
    return inner if inner.exists() else root


def contents_digest(path: epath.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal; of a bundle, or of the one in a run's ``model/``, that of its files' digests.

    A process reads a file again only after its size or time of modification changed.

    Raises:
      FileNotFoundError: there is no such file, or nothing in the folder.
      OSError: it cannot be read.
    """
    place = bundle_folder(path)
    if not place.is_dir():
        return _cached_digest(place)
    names = _names(place)
    if not names:
        raise FileNotFoundError(f"{place}: nothing there")
    lines = "".join(f"{name} {_cached_digest(place / name)}\n" for name in names)
    return hashlib.sha256(lines.encode(errors="backslashreplace")).hexdigest()


def _cached_digest(file: epath.Path) -> str:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    if "://" in os.fspath(file):
        stat = file.stat()
        return _digest(os.fspath(file), stat.length, stat.mtime)
    local = os.stat(file)
    return _digest(os.fspath(files.absolute(file)), local.st_size, local.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest(path: str, size: int, modified: int) -> str:
    return str(_describe(epath.Path(path))["sha256"])


def _names(folder: epath.Path, prefix: str = "") -> list[str]:
    names: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            names += _names(path, f"{prefix}{path.name}/")
        elif prefix + path.name != NAME:
            names.append(prefix + path.name)
    return names


def _describe(path: epath.Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


def _text(body: Mapping[str, Any]) -> str:
    # The digest of the rest makes damage of the manifest itself visible, in its notes too.
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, sort_keys=True, indent=1) + "\n"


def _read(path: epath.Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    data = path.read_bytes()
    try:
        stored = json.loads(data)
        body = {"files": stored["files"], "notes": stored["notes"]}
        whole = _text(body).encode() == data
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise Damaged(f"{NAME} has other bytes than were written")
    return body

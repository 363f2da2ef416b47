"""The report of an evaluation: ``report.json`` and the table that is printed."""

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

import jax
from etils import epath

import i3d_jax
from i3d_jax import files


class ReportRow(TypedDict):
    """One model, execution and split.

    ``wer`` and ``cer`` are percentages, ``executed_layers`` counts (executed branches / M) averaged over utterances,
    ``gflops_per_second`` is GFLOP per second of audio, ``real_time_factor`` compute seconds / audio seconds (None
    when it was not measured), ``decoder_real_time_factor`` the part of it that the decoder takes (None for greedy
    decoding too, which is inside the program of the encoder).
    """

    model: str
    execution: str
    decoder: str
    split: str
    wer: float
    cer: float
    executed_layers: float
    gflops_per_second: float
    real_time_factor: float | None
    decoder_real_time_factor: float | None


class Report(TypedDict):
    """Content of ``report.json``: rows, ``GateStats.to_dict()`` by ``model/split``, and how they were made."""

    rows: list[ReportRow]
    gates: dict[str, dict[str, Any]]
    meta: dict[str, Any]


_COLUMNS = {
    "model": ("model", "{}"),
    "execution": ("execution", "{}"),
    "decoder": ("decoder", "{}"),
    "split": ("split", "{}"),
    "wer": ("WER", "{:.2f}"),
    "cer": ("CER", "{:.2f}"),
    "executed_layers": ("executed layers", "{:.2f}"),
    "gflops_per_second": ("GFLOP per s", "{:.3f}"),
    "real_time_factor": ("RTF", "{:.4f}"),
    "decoder_real_time_factor": ("of the decoder", "{:.4f}"),
}
_TEXT_COLUMNS = ("model", "execution", "decoder", "split")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece", "jiwer")


def report_meta(*, seed: int, command: str | None = None) -> dict[str, Any]:
    """How and where a report was made: seed, commit, command, processors, versions.

    Args:
      seed: of the run.
      command: the command that makes the report; None takes the one of this process.

    Returns:
      JSON-able values; ``commit`` is None when the package does not run from a git checkout.
    """
    if command is None:
        command = shlex.join([*_program(Path(sys.argv[0])), *sys.argv[1:]])
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "seed": seed,
        "command": command,
        "commit": _commit(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.local_devices()],
        "versions": versions,
    }


def _program(script: Path) -> list[str]:
    if script.parts[-3:-1] == ("i3d_jax", "cli"):
        return ["python", "-m", f"i3d_jax.cli.{script.stem}"]
    return ["python", script.name] if script.suffix == ".py" else [script.name]


def write_report(path: epath.PathLike, report: Report) -> None:
    """Writes ``report.json``, atomically.

    Raises:
      ValueError: a row lacks a field, has one too many, or holds a number that is not finite.
    """
    for row in report["rows"]:
        _check_row(row)
    files.write_text(
        path, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False, default=files.json_default) + "\n"
    )


def format_table(rows: Sequence[ReportRow]) -> str:
    """The rows as aligned plain text, one line a row under a header.

    Raises:
      ValueError: as ``write_report``.
    """
    for row in rows:
        _check_row(row)
    header = [title for title, _ in _COLUMNS.values()]
    body = [
        ["-" if (value := dict(row)[key]) is None else form.format(value) for key, (_, form) in _COLUMNS.items()]
        for row in rows
    ]
    return align_columns(header, body, [key in _TEXT_COLUMNS for key in _COLUMNS])


def align_columns(header: Sequence[str], body: Sequence[Sequence[str]], left: Sequence[bool]) -> str:
    """Aligned plain text, two spaces between columns: header, a rule, one line a row.

    Args:
      header: titles, C of them.
      body: rows of C cells.
      left: C flags: a column of text stands at the left, one of numbers at the right.
    """
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]

    def align(line: Sequence[str]) -> str:
        cells = zip(line, widths, left, strict=True)
        return "  ".join(text.ljust(w) if at_left else text.rjust(w) for text, w, at_left in cells).rstrip()

    return "\n".join([align(header), "  ".join("-" * width for width in widths), *map(align, body)])


def _check_row(row: ReportRow) -> None:
    if set(row) != set(_COLUMNS):
        missing, extra = sorted(set(_COLUMNS) - set(row)), sorted(set(row) - set(_COLUMNS))
        raise ValueError(f"report row {dict(row)}: missing fields {missing}, unknown fields {extra}")
    for key, value in row.items():
        if key in _TEXT_COLUMNS or (key.endswith("real_time_factor") and value is None):
            continue
        if not math.isfinite(float(value)):  # type: ignore[arg-type]
            raise ValueError(f"report row {row['model']}/{row['split']}: {key} is {value}, expected a finite number")


def _commit() -> str | None:
    """Commit of the checkout that holds the package, ``-dirty`` appended when tracked files differ from it."""
    root = Path(next(iter(i3d_jax.__path__))).resolve().parent
    if not (root / ".git").exists():  # an installed package must not report somebody else's repository
        return None
    try:
        arguments = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None

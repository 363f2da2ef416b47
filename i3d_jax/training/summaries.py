"""What a training tells while it runs: a progress bar or log lines, a JSONL file, and TensorBoard."""

import contextlib
import json
import math
import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from etils import epath

from i3d_jax import files
from i3d_jax.progress import ProgressMeter
from i3d_jax.training.event_file import EventFile

_RESERVED = ("step", "kind", "time", "epoch")


class RunLogger:
    """Writes the logs of a run; used as a context manager.

    ``<workdir>/log.jsonl`` gets one object for each call: ``step``, ``kind`` (``train``, ``dev`` or ``text``),
    ``time`` (Unix seconds), ``epoch`` when given, and the values; numbers that are not finite are written as null.
    ``<workdir>/tensorboard`` gets the same as scalars ``<kind>/<name>`` and texts, and images and histograms. stderr
    shows a bar with an ETA on a terminal, else log lines at a limited rate.

    Args:
      workdir: run folder, made when missing.
      total_steps: steps of the whole training, those before ``start_step`` included.
      start_step: first step this process logs. What an interrupted process logged at or beyond it is dropped, so
        that the logs hold every step once; 0 starts them afresh.
      interactive: a bar (True) or log lines (False); None asks whether stderr is a terminal.
      seconds_between_lines: smallest distance of two log lines of training steps.
      name: leads what is shown of it, where several are trained at once.
      leader: the open logger whose bar counts the steps for this one too.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        total_steps: int,
        start_step: int = 0,
        interactive: bool | None = None,
        seconds_between_lines: float = 10.0,
        name: str = "",
        leader: "RunLogger | None" = None,
    ) -> None:
        self._title, self._leader = f"{name}: " if name else "", leader
        self._workdir = epath.Path(workdir)
        self._log = self._workdir / "log.jsonl"
        self._total_steps, self._start_step = total_steps, start_step
        self._interactive, self._seconds_between_lines = interactive, seconds_between_lines
        self._meter: ProgressMeter | None = None
        self._writer: EventFile | None = None

    def __enter__(self) -> "RunLogger":
        self._workdir.mkdir(parents=True, exist_ok=True)
        _drop_from(self._log, self._start_step)
        self._writer = EventFile(self._workdir / "tensorboard", self._start_step)
        if self._leader is not None:
            self._meter, _ = self._leader._open()
            return self
        self._meter = ProgressMeter(
            self._total_steps,
            "step",
            initial=self._start_step,
            interactive=self._interactive,
            unit="step",
            seconds_between_lines=self._seconds_between_lines,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        meter, writer = self._meter, self._writer
        self._meter = self._writer = None
        if meter is not None and self._leader is None:
            meter.close()
        if writer is not None:
            # On a full disk closing fails as well: what ended the training is the better message.
            with contextlib.suppress(*() if kind is None else (OSError,)):
                writer.close()

    def scalars(
        self,
        step: int,
        values: Mapping[str, Any],
        kind: Literal["train", "dev"] = "train",
        *,
        epoch: float | None = None,
    ) -> None:
        """Logs numbers of one step and moves the progress to it.

        Args:
          step: steps finished, or the index of the step: any count that only grows.
          values: name -> number (Python, numpy or a jax scalar, which is waited for).
          kind: ``dev`` lines are always shown, ``train`` lines at the limited rate.
          epoch: position in the data, in passes.

        Raises:
          ValueError: a name is one of the fields every line has.
        """
        meter, writer = self._open()
        clash = sorted(set(values) & set(_RESERVED))
        if clash:
            raise ValueError(f"{clash} cannot be logged as values: every line of {self._log} has them; rename them")
        numbers = {name: float(value) for name, value in values.items()}
        self._append(step, kind, epoch, numbers)
        for name, number in numbers.items():
            writer.scalar(f"{kind}/{name}", number, step)
        if epoch is not None:
            writer.scalar(f"{kind}/epoch", epoch, step)
        detail = " ".join(f"{name} {number:.4g}" for name, number in numbers.items())
        if epoch is not None:
            detail = f"epoch {epoch:.2f} {detail}"
        if kind == "train":
            if self._leader is None:
                meter.update_to(step, f"{self._title}{detail}")
        else:
            writer.flush()
            meter.write(f"{self._title}{kind} step {step}/{self._total_steps} {detail}")

    def advance(self, step: int) -> None:
        """Moves the progress to ``step`` without logging anything."""
        meter, _ = self._open()
        if self._leader is None:
            meter.update_to(step)

    def text(self, step: int, name: str, text: str) -> None:
        """Logs a sample of text, such as a reference with its hypothesis, to the JSONL file and TensorBoard."""
        # TensorBoard renders Markdown, where two blanks end a line.
        self._open()[1].text(name, text.replace("\n", "  \n"), step)
        self._append(step, "text", None, {"name": name, "text": text})

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Logs a picture [H, W, 3] uint8 to TensorBoard.

        Raises:
          ValueError: the array is no such picture.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"image {name}: expected uint8 pixels [H, W, 3], got {pixels.dtype} {pixels.shape}")
        self._open()[1].image(name, pixels, step)

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Logs how values [B] are distributed to TensorBoard."""
        self._open()[1].histogram(name, np.asarray(values), step)

    def message(self, text: str) -> None:
        """Prints a line for the reader, above the progress bar when there is one."""
        self._open()[0].write(text)

    def _open(self) -> tuple[ProgressMeter, EventFile]:
        if self._meter is None or self._writer is None:
            raise RuntimeError("RunLogger is closed; use it inside `with RunLogger(...) as logger:`")
        return self._meter, self._writer

    def _append(self, step: int, kind: str, epoch: float | None, values: Mapping[str, Any]) -> None:
        record: dict[str, Any] = {"step": int(step), "kind": kind, "time": round(time.time(), 3)}
        if epoch is not None:
            record["epoch"] = round(float(epoch), 4)
        for name, value in values.items():
            record[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        with files.naming(self._log), self._log.open("a") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


class SilentLogger(RunLogger):
    """Of a process that trains beside the one that writes: it takes everything and writes nothing."""

    def __enter__(self) -> "SilentLogger":
        return self

    def scalars(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def advance(self, step: int) -> None:
        """Nothing."""

    def text(self, step: int, name: str, text: str) -> None:
        """Nothing."""

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Nothing."""

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""


def _drop_from(log: epath.Path, start_step: int) -> None:
    """Rewrites the log without the lines at or beyond ``start_step`` and without a line cut off by a kill."""
    if not log.exists():
        return
    lines = log.read_bytes().decode(errors="replace").splitlines()  # the cut may be within a character
    kept = [line for line in lines if (step := _step_of(line)) is not None and step < start_step]
    if kept != lines:
        files.write_text(log, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None

"""Progress: a bar with an estimated time of arrival on a terminal, log lines at a limited rate elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar, overload

from tqdm import tqdm

T = TypeVar("T")

_quiet = False


def format_duration(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, second = divmod(max(round(seconds), 0), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class ProgressMeter:
    """Shows how far a piece of work is, on stderr.

    The rate behind the ETA is taken from the second report on: the first one holds one-off costs such as compilation.

    Args:
      total: units of work; None when unknown (no ETA then).
      description: what is being done.
      initial: units done before this process started.
      interactive: a bar (True) or log lines (False); None asks whether stderr is a terminal.
      unit: name of one unit.
      seconds_between_lines: smallest distance of two log lines; the last unit is always reported.
    """

    def __init__(
        self,
        total: int | None,
        description: str,
        *,
        initial: int = 0,
        interactive: bool | None = None,
        unit: str = "it",
        seconds_between_lines: float = 10.0,
    ) -> None:
        self.total, self.description, self.done = total, description, initial
        self.interactive = (sys.stderr.isatty() if interactive is None else interactive) and not _quiet
        self._unit, self._seconds_between_lines = unit, seconds_between_lines
        self._rate_start: tuple[float, int] | None = None
        self._last_line, self._line_done = time.monotonic(), initial
        self._bar: tqdm[Any] | None = None
        if self.interactive:
            self._bar = tqdm(
                total=total, initial=initial, desc=description, unit=unit, dynamic_ncols=True, file=sys.stderr
            )

    def __enter__(self) -> "ProgressMeter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update_to(self, done: int, detail: str = "") -> None:
        """Reports that ``done`` units are finished (counted from zero, ``initial`` included)."""
        now = time.monotonic()
        if self._rate_start is None:
            self._rate_start = (now, done)
        self.done = done
        if self._bar is not None:
            if detail:
                self._bar.set_postfix_str(detail, refresh=False)
            self._bar.update(done - self._bar.n)
        elif now - self._last_line >= self._seconds_between_lines or done == self.total:
            self._print_line(now, detail, None if done == self.total else self.eta())

    def write(self, text: str) -> None:
        """Prints a line of its own, above the bar when there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif not _quiet:
            print(text, file=sys.stderr, flush=True)

    def eta(self) -> float | None:
        """Seconds left at the mean rate so far; None before two reports or without a total."""
        if self.total is None or self._rate_start is None:
            return None
        start, done = self._rate_start
        if self.done <= done:
            return None
        return max(self.total - self.done, 0) * (time.monotonic() - start) / (self.done - done)

    def close(self) -> None:
        """Ends the bar, or reports what the limited rate kept back."""
        if self._bar is not None:
            self._bar.close()
        elif self.done != self._line_done:
            self._print_line(time.monotonic(), "", None)

    def _print_line(self, now: float, detail: str, eta: float | None) -> None:
        self._last_line, self._line_done = now, self.done
        if _quiet:
            return
        count = str(self.done) if self.total is None else f"{self.done}/{self.total}"
        parts = [
            self.description,
            count if self.description == self._unit else f"{count} {self._unit}",
            detail,
            "" if eta is None else f"eta {format_duration(eta)}",
        ]
        print(" ".join(part for part in parts if part), file=sys.stderr, flush=True)


@overload
def progress(iterable_or_total: int, description: str, *, interactive: bool | None = ...) -> Iterator[int]: ...


@overload
def progress(
    iterable_or_total: Iterable[T], description: str, *, total: int | None = ..., interactive: bool | None = ...
) -> Iterator[T]: ...


def progress(
    iterable_or_total: Iterable[Any] | int,
    description: str,
    *,
    total: int | None = None,
    interactive: bool | None = None,
) -> Iterator[Any]:
    """Iterates and shows the progress.

    Args:
      iterable_or_total: what to iterate over; a number n means ``range(n)``.
      description: what is being done.
      total: number of items of an iterable without ``len``.
      interactive: see ``ProgressMeter``.
    """
    items: Iterable[Any] = range(iterable_or_total) if isinstance(iterable_or_total, int) else iterable_or_total
    if total is None and isinstance(items, Sized):
        total = len(items)
    with ProgressMeter(total, description, interactive=interactive) as meter:
        for index, item in enumerate(items, start=1):
            yield item
            meter.update_to(index)


def set_quiet(quiet: bool) -> None:
    """Whether this process keeps silent, because another one says the same."""
    global _quiet
    _quiet = quiet


def log(text: str) -> None:
    """Tells the reader what happens."""
    if not _quiet:
        print(text, flush=True)

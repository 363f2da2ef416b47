"""Long recordings as overlapping windows: cut from a stream of samples, and their CTC paths merged into one.

A window starts on the grid of encoder frames, so that its frame j is frame ``first_frame + j`` of the recording. Where
two windows overlap, both heard the same speech, and `merge` changes over from one to the other:

* Tokens of both in the overlap are aligned by what they are and when they were emitted (spikes of the same word differ
  by a few frames between windows). A change-over between two aligned pairs can neither lose nor double a token,
  whatever frames the spikes are in.
* Among these it takes the middle of a stretch that both windows call blank, near the middle of the overlap: the frames
  at the edges of a window have heard least.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from i3d_jax.inference.spans import TokenSpans, token_spans

FRAME = 640
"""Samples from one encoder frame to the next: a hop of 160, subsampled by 4."""

MAX_WINDOW_SECONDS = 480.0
"""Longest window: attention over it, with 4 heads, fits into 16 GB."""

_TOLERANCE = 4  # frames by which spikes of one token may differ between two windows
_NEAR = 50  # frames on either side of a seam in which tokens are aligned
_ALONE = 0.75  # cost of a token that the other window does not have; another token in its place costs 1
_CLEAR = 2.0  # margin, in nats, from which a frame is clearly blank
_WIDE = 6  # frames to the nearest one that is not clearly blank, beyond which a pause is as good as any


class WindowPlan(NamedTuple):
    """Where windows lie.

    Attributes:
      length: samples of a window, a multiple of `FRAME`.
      step: samples from the start of one window to that of the next, a multiple of `FRAME`.
    """

    length: int
    step: int

    @property
    def overlap_frames(self) -> int:
        """Encoder frames that neighbours share."""
        return (self.length - self.step) // FRAME

    def count(self, num_samples: int) -> int:
        """Windows of a recording of so many samples."""
        return 1 + max(0, -(-(num_samples - self.length) // self.step))


class Window(NamedTuple):
    """A part of a recording.

    Attributes:
      first_frame: of the recording, at which it starts.
      samples: [n] float32; ``length`` of the plan, but for the last window, which may lack part of a frame.
    """

    first_frame: int
    samples: np.ndarray


class HeardWindow(NamedTuple):
    """What was recognised in a window.

    Attributes:
      first_frame: of the recording.
      path: [T] best token of each encoder frame, 0 being blank.
      blank_margin: [T] score of the blank minus the best other score, in nats.
      log_probs: [T] log posterior of that token, if confidences are asked for.
    """

    first_frame: int
    path: np.ndarray
    blank_margin: np.ndarray
    log_probs: np.ndarray | None = None


class Piece(NamedTuple):
    """What the merged result takes from one window.

    Attributes:
      start_frame, end_frame: of the recording; pieces adjoin.
      spans: its tokens, with frames of the recording.
    """

    start_frame: int
    end_frame: int
    spans: TokenSpans

    @property
    def tokens(self) -> np.ndarray:
        """[U] int32."""
        return self.spans.tokens


def default_overlap(window_seconds: float) -> float:
    """Seconds that neighbouring windows share unless told otherwise: a quarter of a window, 0.4 s to 4 s."""
    return max(0.4, min(4.0, window_seconds / 4))


def plan_windows(window_seconds: float, overlap_seconds: float, sample_rate: int) -> WindowPlan:
    """The plan nearest to what is asked for.

    Raises:
      ValueError: a window outside [1, 480] s, or an overlap outside [0.4 s, half a window].
    """
    if not 1.0 <= window_seconds <= MAX_WINDOW_SECONDS:
        raise ValueError(
            f"window_seconds={window_seconds}: expected 1 to {MAX_WINDOW_SECONDS:g}: attention needs memory for the "
            "square of a window"
        )
    if not 0.4 <= overlap_seconds <= window_seconds / 2:
        raise ValueError(
            f"overlap_seconds={overlap_seconds}: expected 0.4 to {window_seconds / 2:g}, half of window_seconds"
        )
    length, overlap = (round(seconds * sample_rate / FRAME) for seconds in (window_seconds, overlap_seconds))
    return WindowPlan(length * FRAME, (length - overlap) * FRAME)


def cut_windows(blocks: Iterable[np.ndarray], plan: WindowPlan) -> Iterator[Window]:
    """Cuts a stream of samples into overlapping windows.

    The last window ends with the recording: it is shifted back, so that it hears as much before as the others do, and
    has their shape. No more than a window and a step are held, beside the block that arrives.

    Args:
      blocks: [n] float32 each, of any lengths, which together are the recording.
      plan: of the windows.
    """
    held, origin, start = np.zeros(0, np.float32), 0, 0  # held are the samples from `origin` on
    for block in blocks:
        for offset in range(0, len(block), plan.step):
            held = np.concatenate([held, block[offset : offset + plan.step]])
            while origin + len(held) >= start + plan.length:
                yield Window(start // FRAME, held[start - origin : start - origin + plan.length])
                held, origin, start = held[start - origin :], start, start + plan.step
    end = origin + len(held)
    if start == 0 or end > start - plan.step + plan.length:
        start = max(0, -(-(end - plan.length) // FRAME) * FRAME)
        yield Window(start // FRAME, held[start - origin :])


def merge(windows: Iterable[HeardWindow], overlap_frames: int) -> Iterator[Piece]:
    """Merges what was recognised in overlapping windows, a piece as soon as the window after it is there.

    Args:
      windows: in order; each starts after the one before it and, but for the first, within it.
      overlap_frames: that neighbours share by the plan; the last two may share more.

    Yields:
      a piece for each window. The tokens of all of them are those of the recording: none is joined to the one before.
    """
    before: HeardWindow | None = None
    left, kept = 0, token_spans(np.zeros(0))
    for window in windows:
        runs = token_spans(window.path, window.log_probs, window.first_frame)
        if before is None:
            left = window.first_frame
        else:
            cut = _choose_cut(before, window, overlap_frames, left)
            taken, begin = _split(kept, runs, cut, window.first_frame, _end(before))
            yield Piece(left, cut, kept.part(slice(taken)))
            runs, left = runs.part(slice(begin, None)), cut
        before, kept = window, runs
    if before is not None:
        yield Piece(left, _end(before), kept)


def _end(window: HeardWindow) -> int:
    return window.first_frame + len(window.path)


def _choose_cut(before: HeardWindow, after: HeardWindow, overlap_frames: int, left: int) -> int:
    """The frame at which ``after`` takes over: in a wide pause, or else a narrow one, near the overlap's middle."""
    first, end = after.first_frame, _end(before)
    middle = (first + end) / 2
    lowest = max(left, first, round(middle - overlap_frames / 2))
    highest = max(lowest, min(end, round(middle + overlap_frames / 2)))
    frames = np.arange(lowest, highest + 1)
    seen = np.arange(first, end)
    margin = np.minimum(before.blank_margin[first - before.first_frame :][: len(seen)], after.blank_margin[: len(seen)])
    unclear = seen[margin < _CLEAR]
    wide = np.abs(frames[:, None] - unclear[None, :]).min(axis=1, initial=_WIDE) / _WIDE
    centred = 1 - ((frames - middle) / max(overlap_frames / 2, 1)) ** 2
    return int(frames[np.argmax(wide + centred)])


def _split(before: TokenSpans, after: TokenSpans, cut: int, first: int, end: int) -> tuple[int, int]:
    """How many runs to take of ``before``, and at which one of ``after`` to go on: aligned runs stay together.

    Both windows heard the frames [first, end); those near the cut are enough to align what is near it.
    """
    first, end = max(first, cut - _NEAR), min(end, cut + _NEAR)
    taken, begin = (int(np.searchsorted(runs.starts, first - _TOLERANCE)) for runs in (before, after))
    near_before, near_after = (
        runs.part(slice(skipped, int(np.searchsorted(runs.starts, end + _TOLERANCE))))
        for runs, skipped in ((before, taken), (after, begin))
    )
    latest = 0.0  # times of the alignment do not go back
    for a, b in _align(near_before, near_after, first, end):
        times = [float(runs.starts[i]) for runs, i in ((near_before, a), (near_after, b)) if i is not None]
        latest = max(latest, sum(times) / len(times))
        if latest < cut:
            taken += a is not None
            begin += b is not None
    return taken, begin


def _align(a: TokenSpans, b: TokenSpans, first: int, end: int) -> list[tuple[int | None, int | None]]:
    """Pairs of runs of the same token, or of different ones at the same time, and runs without a partner, in order.

    That a run has no partner counts in the frames [first, end): beyond them one may be there that is not looked at.
    """
    distance = np.abs(a.starts[:, None] - b.starts[None, :])
    pair = np.where(a.tokens[:, None] == b.tokens[None, :], 0.0, 1.0) + 0.01 * distance
    pair = np.where(distance <= _TOLERANCE, pair, np.inf)
    alone_a, alone_b = (np.where((runs.starts >= first) & (runs.starts < end), _ALONE, 0.0) for runs in (a, b))
    cost = np.full((len(alone_a) + 1, len(alone_b) + 1), np.inf)
    cost[:, 0], cost[0, :] = np.cumsum([0, *alone_a]), np.cumsum([0, *alone_b])
    for i, j in np.ndindex(pair.shape):
        cost[i + 1, j + 1] = min(cost[i, j] + pair[i, j], cost[i, j + 1] + alone_a[i], cost[i + 1, j] + alone_b[j])
    found: list[tuple[int | None, int | None]] = []
    i, j = pair.shape
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + pair[i - 1, j - 1]:
            i, j = i - 1, j - 1
            found.append((i, j))
            continue
        from_a = i > 0 and cost[i, j] == cost[i - 1, j] + alone_a[i - 1]
        from_b = j > 0 and cost[i, j] == cost[i, j - 1] + alone_b[j - 1]
        if from_a and from_b:  # the later one, so that runs without a partner are in the order of time
            from_a = bool(a.starts[i - 1] > b.starts[j - 1])
        if from_a:
            i -= 1
            found.append((i, None))
        else:
            j -= 1
            found.append((None, j))
    return found[::-1]

"""The tokens of a CTC path with the frames that they take."""

from typing import NamedTuple

import numpy as np

from i3d_jax.inference.decoding import BLANK


class TokenSpans(NamedTuple):
    """Tokens of a path, repeats merged: [U] each.

    Attributes:
      tokens: ids.
      starts, ends: frames [start, end) that hold the token.
      confidences: posterior of the token, averaged over these frames; NaN where it was not asked for.
    """

    tokens: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    confidences: np.ndarray

    def part(self, chosen: slice | np.ndarray) -> "TokenSpans":
        """Some of them."""
        return TokenSpans(*(each[chosen] for each in self))


def token_spans(path: np.ndarray, log_probs: np.ndarray | None = None, first_frame: int = 0) -> TokenSpans:
    """The tokens of a path.

    Args:
      path: [T] token of each frame, 0 being the blank.
      log_probs: [T] log posterior of that token; None gives no confidences.
      first_frame: number of the path's first frame.
    """
    path = np.asarray(path, np.int32)
    changes = np.flatnonzero(np.diff(path, prepend=-1)) if len(path) else np.zeros(0, int)
    ends = np.append(changes[1:], len(path))
    if log_probs is None:
        confidences = np.full(len(changes), np.nan)
    else:
        sums = np.append(0.0, np.cumsum(np.exp(np.asarray(log_probs, np.float64))))
        confidences = (sums[ends] - sums[changes]) / (ends - changes) if len(path) else np.zeros(0)
    every = TokenSpans(
        path[changes],
        (first_frame + changes).astype(np.int32),
        (first_frame + ends[: len(changes)]).astype(np.int32),
        confidences.astype(np.float32),
    )
    return every.part(every.tokens != BLANK)


def joined(parts: list[TokenSpans]) -> TokenSpans:
    """Spans one after the other."""
    return TokenSpans(*map(np.concatenate, zip(token_spans(np.zeros(0)), *parts, strict=True)))

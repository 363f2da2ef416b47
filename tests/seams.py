"""How well windows are joined: the words of long recordings whose text is known, with and without seams."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from i3d_jax.data.corpora import Corpus
from i3d_jax.inference.recognizer import Recognizer
from i3d_jax.inference.scoring import Score, score
from i3d_jax.inference.windows import FRAME, HeardWindow, WindowPlan, cut_windows, merge


class Joined(NamedTuple):
    """Utterances one after the other.

    Attributes:
      samples: [S] float32.
      text: of all of them.
      spans: samples [start, end) of each.
    """

    samples: np.ndarray
    text: str
    spans: list[tuple[int, int]]


class SeamQuality(NamedTuple):
    """Figures of one plan on one recording.

    Attributes:
      merged: score of the windows, merged.
      without_seams: score of the same utterances, each heard in a window with its middle in that of the window.
      seams: how many.
      merged_differs: tokens in which the merged text of an overlap differs from what a window with the overlap in its
        middle hears there, a seam.
      window_differs: the same of the two windows, each of which hears the whole overlap: the mean of both.
      tokens: that the window in the middle hears, a seam.
    """

    merged: Score
    without_seams: Score
    seams: int
    merged_differs: float
    window_differs: float
    tokens: float


def joined(corpus: Corpus, pause_seconds: float) -> Joined:
    """All utterances of a corpus, with pauses of faint noise between them."""
    noise = np.random.default_rng(0).standard_normal(int(pause_seconds * corpus.sample_rate))
    parts, spans, position = [], [], 0
    for index, utterance in enumerate(corpus.utterances):
        parts += [corpus.load_audio(index), (noise * 1e-3).astype(np.float32)]
        spans.append((position, position + utterance.num_samples))
        position += utterance.num_samples + len(noise)
    return Joined(np.concatenate(parts), " ".join(utterance.text for utterance in corpus.utterances), spans)


def seam_quality(asr: Recognizer, recording: Joined, plan: WindowPlan) -> SeamQuality:
    """Recognises the recording in windows, and what is around each seam once more in a window of its own."""
    samples, text, spans = recording

    def hear(first_frame: int) -> HeardWindow:
        return _hear(asr, samples, first_frame, plan)

    def hear_around(middle: float) -> HeardWindow:
        last = (len(samples) - plan.length) // FRAME
        return hear(min(max(round(middle - plan.length / FRAME / 2), 0), last))

    windows = [hear(window.first_frame) for window in cut_windows([samples], plan)]
    pieces = list(merge(windows, plan.overlap_frames))
    tokens = np.concatenate([piece.tokens for piece in pieces])
    frames = np.concatenate([piece.spans.starts for piece in pieces])
    differences = []
    for before, after in itertools.pairwise(windows):
        first, end = after.first_frame, before.first_frame + len(before.path)
        around = _tokens(hear_around((first + end) / 2), first, end)
        told = tokens[(frames >= first) & (frames < end)].tolist()
        alone = [_differences(_tokens(window, first, end), around) for window in (before, after)]
        differences.append((_differences(told, around), sum(alone) / 2, len(around)))
    # The middle of what an encoder frame reads lies a frame after its beginning.
    bounds = [(start / FRAME - 1, end / FRAME - 1) for start, end in spans]
    heard = [token for span in bounds for token in _tokens(hear_around(sum(span) / 2), *span)]
    return SeamQuality(
        score([text], [asr.tokenizer.decode(tokens)]),
        score([text], [asr.tokenizer.decode(heard)]),
        len(differences),
        *np.mean(differences, axis=0).tolist(),
    )


def _hear(asr: Recognizer, samples: np.ndarray, first_frame: int, plan: WindowPlan) -> HeardWindow:
    window = samples[first_frame * FRAME :][: plan.length]
    padded = np.zeros((1, plan.length), np.float32)
    padded[0, : len(window)] = window
    heard = asr.recognize(padded, np.array([len(window)], np.int32), asr.decision(), "conditional")
    frames = asr.model.num_encoder_frames(int(heard.num_frames[0]))
    return HeardWindow(first_frame, heard.path[0, :frames], heard.blank_margin[0, :frames])


def _tokens(window: HeardWindow, first: float, end: float) -> list[int]:
    """That begin in the frames [first, end) of the recording."""
    path = window.path
    begins = np.flatnonzero((path != 0) & (path != np.pad(path[:-1], (1, 0))))
    frames = begins + window.first_frame
    found: list[int] = path[begins[(frames >= first) & (frames < end)]].tolist()
    return found


def _differences(a: Sequence[int], b: Sequence[int]) -> int:
    """Insertions, deletions and substitutions between two sequences."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[:], i
        for j, y in enumerate(b, 1):
            row[j] = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
    return row[-1]

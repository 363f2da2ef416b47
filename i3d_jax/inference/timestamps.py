"""Times and confidences of words, from the CTC path of their tokens.

Encoder frame j reads seven feature frames, from 4 j on; it stands for the 40 ms around the middle of what it reads.
With windows of 25 ms that is at 40 j + 42.5 ms for the ``kaldi`` features, and at 40 j + 30 ms for those of ``espnet``,
which are centred. A CTC model says *when it is sure of* a token, not when the token begins: see docs/decoding.md for
the errors that were measured.
"""

from typing import NamedTuple

import numpy as np

from i3d_jax.audio.frontend import SAMPLE_RATE, FrontendConfig, feature_centre
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.inference.spans import TokenSpans
from i3d_jax.inference.windows import FRAME

_MIDDLE_FEATURE = 3  # of the seven that an encoder frame reads


class Word(NamedTuple):
    """One recognised word.

    Attributes:
      word: as in the text.
      begin, end: seconds of the recording. Words do not overlap, and are in order.
      confidence: 0 to 1, the least of its tokens' confidences, which are posteriors averaged over the aligned frames.
    """

    word: str
    begin: float
    end: float
    confidence: float


def frame_centre(frontend: FrontendConfig, frame: int) -> int:
    """The sample in the middle of what encoder frame ``frame`` reads."""
    return FRAME * frame + feature_centre(frontend, _MIDDLE_FEATURE)


def word_times(tokenizer: Tokenizer, spans: TokenSpans, frontend: FrontendConfig, num_samples: int) -> tuple[Word, ...]:
    """The words of tokens with times.

    Args:
      tokenizer: that made the tokens.
      spans: tokens, in order, with frames of the recording.
      frontend: of the features.
      num_samples: of the recording; no word ends after it.
    """
    words: list[Word] = []
    earliest = 0.0
    for word, positions in tokenizer.words(spans.tokens.tolist()):
        own = spans.part(np.array(positions))
        first, last = int(own.starts.min()), int(own.ends.max()) - 1
        edges = (frame_centre(frontend, first) - FRAME // 2, frame_centre(frontend, last) + FRAME // 2)
        begin, end = (max(earliest, min(edge, num_samples) / SAMPLE_RATE) for edge in edges)
        words.append(Word(word, begin, end, float(own.confidences.min())))
        earliest = end  # tokens of two windows may be a few frames out of order
    return tuple(words)

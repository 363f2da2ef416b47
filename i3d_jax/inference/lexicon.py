"""A lexicon: the only words that a decoder may give (`inference.ngram`).

Words are looked up by their characters, whatever pieces they are cut into: every segmentation of a word is allowed.
"""

import bisect
import os
from collections.abc import Sequence

import numpy as np
from etils import epath

from i3d_jax import files
from i3d_jax.data.tokenizer import SPACE, Tokenizer


class Lexicon:
    """Words, and the beginnings of words, that a tokenizer can spell.

    Attributes:
      pieces: of the tokenizer, by id.
      usable: [V] bool, the tokens that occur in a word however it is cut, and the blank.
    """

    def __init__(self, tokenizer: Tokenizer, path: str | os.PathLike[str]):
        """Read it.

        Args:
          tokenizer: of the recogniser.
          path: text file with a word a line. Further columns, such as the pronunciations of Kaldi's and flashlight's
            lexicons, are passed over, and so are Kaldi's entries that are no words: ``<...>`` and ``!SIL``.

        Raises:
          FileNotFoundError: no such file.
          ValueError: it is not UTF-8, holds no words, or one that the tokenizer cannot spell.
        """
        words = read_words(path)
        spelled = {c: c != SPACE and tokenizer.unk_id not in tokenizer.encode(c) for c in set("".join(words))}
        strange = [(line, word) for word, line in words.items() if not all(spelled[c] for c in word)]
        if strange:
            line, word = strange[0]
            wrong = " ".join(dict.fromkeys(c for c in word if not spelled[c]))
            more = f"; so are {len(strange) - 1} more" if len(strange) > 1 else ""
            raise ValueError(
                f"{path}, line {line}: {word!r} cannot be spelled in the tokenizer's pieces, which lack {wrong}{more}: "
                "leave such words out, or write them as the training transcripts do"
            )
        # In order, a beginning stands before the words that begin so: as quick as a tree, and smaller.
        self._sorted = sorted(words)
        self._words = frozenset(words)
        self.pieces = tokenizer.pieces
        text = SPACE + SPACE.join(self._sorted) + SPACE
        self.usable = np.array([piece in text for piece in self.pieces])
        self.usable[[tokenizer.unk_id, tokenizer.sos_eos_id]] = False
        self.usable[tokenizer.blank_id] = True

    def __contains__(self, word: str) -> bool:
        return word in self._words

    def follow(self, word: str, token: int) -> str | None:
        """The word begun after one more token, empty between words; None where no text of the lexicon goes on so."""
        piece = self.pieces[token] if self.usable[token] else None
        if piece is None or (piece.startswith(SPACE) and word and word not in self):
            return None
        after = begun(word, piece)
        return after if self._begins(after) else None

    def longest(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, from the first, are words to their end."""
        word, count = "", 0
        for number, token in enumerate(tokens, start=1):
            after = self.follow(word, token)
            if after is None:
                break
            if not after or after in self:
                count = number
            word = after
        return count

    def _begins(self, text: str) -> bool:
        place = bisect.bisect_left(self._sorted, text)
        return place < len(self._sorted) and self._sorted[place].startswith(text)


def begun(word: str, piece: str) -> str:
    """The word that is begun after one more piece: a mark of a space begins another one."""
    return piece.removeprefix(SPACE) if piece.startswith(SPACE) else word + piece


def read_words(path: str | os.PathLike[str]) -> dict[str, int]:
    """The different words of a lexicon file, with the line of each, from 1; see `Lexicon`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is not UTF-8, or holds no words.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such lexicon; make one with python -m i3d_jax.cli.ngram RUN OUT.arpa --lexicon=FILE"
        )
    words: dict[str, int] = {}
    lines = files.read_text(file).split("\n")
    for number, line in enumerate(lines, start=1):
        word = next(iter(line.split()), "")
        if word and word != "!SIL" and not (word.startswith("<") and word.endswith(">")):
            words.setdefault(word, number)
    if not words:
        raise ValueError(f"{file}: no words in {len(lines)} lines, expected one a line")
    return words

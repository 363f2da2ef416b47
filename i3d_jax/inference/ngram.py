"""Prefix beam search with an n-gram language model, by flashlight-text on the host.

It extends prefixes by tokens, without a lexicon: any word can be recognised, whatever its language model knows. Log
probabilities of the language model, weighted, are added to those of CTC: of pieces with every token, of words when the
next word or the end comes; a word that the model does not know has the probability of ``<unk>``.
"""

import importlib
import itertools
import math
import os
from types import ModuleType
from typing import Any

import jax
import numpy as np

from i3d_jax.data.ngram_training import UNKNOWN, read_unigrams
from i3d_jax.data.tokenizer import SPACE, Tokenizer
from i3d_jax.inference.decoding import BLANK
from i3d_jax.inference.prefix_beam import TOKENS_PER_FRAME, NBest
from i3d_jax.inference.recognition import CTCScores

_LN10 = math.log(10)  # KenLM counts in decades
_NO_THRESHOLD = 1e4  # prefixes are dropped by their rank alone


class LanguageModel:
    """An n-gram language model for a tokenizer.

    Attributes:
      is_of_words: whether it is one of words, not of pieces.
    """

    def __init__(self, tokenizer: Tokenizer, path: str | os.PathLike[str]):
        """Read it.

        Args:
          tokenizer: of the recogniser.
          path: ARPA file, of order 2 or more. It is one of pieces if a word begins with SentencePiece's mark of a
            space, or else of words.

        Raises:
          ModuleNotFoundError: flashlight-text is not installed.
          FileNotFoundError: no such language model.
          ValueError: it is no ARPA file, or its pieces are not those of the tokenizer.
        """
        kenlm, dictionary = _flashlight("decoder.kenlm"), _flashlight("dictionary")
        self.pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
        words = read_unigrams(path)
        self.is_of_words = not any(word.startswith(SPACE) for word in words)
        strange = sorted(set(words) - set(self.pieces))
        if strange and not self.is_of_words:
            raise ValueError(
                f"{path}: {len(strange)} of its {len(words)} pieces are not the tokenizer's, such as {strange[0]!r}: "
                "make the language model with python -m i3d_jax.cli.ngram from this run"
            )
        # The last entry of a model of words is an unknown word.
        self.entries = [*words, UNKNOWN] if self.is_of_words else self.pieces
        try:
            self.kenlm = kenlm.KenLM(os.fspath(path), dictionary.Dictionary(self.entries))
        except RuntimeError as error:
            raise ValueError(
                f"{path} is not a language model that KenLM reads: {str(error).splitlines()[-1]}"
            ) from None


class NGramSearch:
    """Prefix beam search with a language model."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        lm_weight: float,
        word_score: float = 0.0,
        beam: int = 10,
        n_best: int = 1,
        tokens_per_frame: int = TOKENS_PER_FRAME,
    ):
        """Bind.

        Args:
          model: the language model.
          lm_weight: of its natural log probabilities.
          word_score: added for each word; with a model of pieces, for each piece that begins one.
          beam: prefixes that are kept from frame to frame.
          n_best: token sequences that are given.
          tokens_per_frame: most probable tokens of a frame by which prefixes are extended, the blank included.
        """
        decoders = _flashlight("decoder")
        self._n_best = n_best
        plain = not model.is_of_words and not word_score  # without a detour through Python
        options = decoders.LexiconFreeDecoderOptions(
            beam_size=beam,
            beam_size_token=min(tokens_per_frame, len(model.pieces)),
            beam_threshold=_NO_THRESHOLD,
            lm_weight=lm_weight * _LN10 if plain else 1.0,
            sil_score=0.0,
            log_add=True,
            criterion_type=decoders.CriterionType.CTC,
        )
        # Kept: the decoder holds only what it is in C++.
        self._language = model.kenlm if plain else _weighted(decoders, model, lm_weight, word_score)
        # No token stands for silence: before the first frame there is a blank.
        self._decoder = decoders.LexiconFreeDecoder(options, self._language, BLANK, BLANK, [])

    def __call__(self, scores: CTCScores) -> NBest:
        """The best token sequences of each row; their scores hold those of the language model."""
        log_probs, mask = jax.device_get(scores)
        rows, frames, _ = log_probs.shape
        tokens = np.zeros((rows, self._n_best, frames), np.int32)
        num_tokens = np.zeros((rows, self._n_best), np.int32)
        found_scores = np.full((rows, self._n_best), -np.inf, np.float32)
        for row in range(rows):
            best = sorted(self._sequences(log_probs[row][mask[row]]).items(), key=lambda one: -one[1])
            for rank, (sequence, score) in enumerate(best[: self._n_best]):
                tokens[row, rank, : len(sequence)] = sequence
                num_tokens[row, rank], found_scores[row, rank] = len(sequence), score
        return NBest(tokens, num_tokens, found_scores)

    def _sequences(self, log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
        """Sequences of one row [T, V] with their scores; those that end in a blank and in a token are added up."""
        emissions = np.ascontiguousarray(log_probs, np.float32)
        found: dict[tuple[int, ...], float] = {}
        for result in self._decoder.decode(emissions.ctypes.data, *emissions.shape):
            path = [token for token, _ in itertools.groupby(result.tokens)]
            sequence = tuple(token for token in path if token != BLANK)
            found[sequence] = float(np.logaddexp(found.get(sequence, -np.inf), result.score))
        return found


def _weighted(decoders: ModuleType, model: LanguageModel, lm_weight: float, word_score: float) -> Any:
    """A language model of tokens for the decoder, with the weights of `NGramSearch`.

    A model of pieces is asked for every token, one of words when a word is complete.
    """
    language, pieces, scale = model.kenlm, model.pieces, lm_weight * _LN10
    index, unknown = {word: i for i, word in enumerate(model.entries)}, len(model.entries) - 1
    silent = {BLANK, Tokenizer.unk_id, len(pieces) - 1}  # the last one is <sos/eos>

    class Weighted(decoders.LM):  # type: ignore[name-defined, misc]
        """States are told apart by their tokens; each has the language model's state, and the word begun."""

        def __init__(self) -> None:
            super().__init__()
            self._known: dict[Any, tuple[Any, str]] = {}
            self._scores: dict[Any, float] = {}

        def start(self, start_with_nothing: bool) -> Any:
            self._known, self._scores = {}, {}
            state = decoders.LMState()
            self._known[state] = (language.start(start_with_nothing), "")
            return state

        def score(self, state: Any, token: int) -> tuple[Any, float]:
            after = state.child(token)
            if after not in self._known:
                extend = self._with_word if model.is_of_words else self._with_piece
                *known, self._scores[after] = extend(*self._known[state], token)
                self._known[after] = (known[0], known[1])
            return after, self._scores[after]

        def finish(self, state: Any) -> tuple[Any, float]:
            before, score = self._complete(*self._known[state])
            _, end = language.finish(before)
            return state, score + scale * end

        def _with_piece(self, before: Any, word: str, token: int) -> tuple[Any, str, float]:
            after, score = language.score(before, token)
            return after, "", scale * score + word_score * pieces[token].startswith(SPACE)

        def _with_word(self, before: Any, word: str, token: int) -> tuple[Any, str, float]:
            piece, score = "" if token in silent else pieces[token], 0.0
            if piece.startswith(SPACE):
                before, score = self._complete(before, word)
                word, piece = "", piece.removeprefix(SPACE)
            return before, word + piece, score

        def _complete(self, before: Any, word: str) -> tuple[Any, float]:
            if not word:
                return before, 0.0
            after, score = language.score(before, index.get(word, unknown))
            return after, scale * score + word_score

    return Weighted()


def _flashlight(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"flashlight.lib.text.{name}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "decoding with a language model needs flashlight-text, which has wheels for Python 3.11 and 3.12: "
            "pip install 'i3d-jax[lm]', or pip install flashlight-text"
        ) from error

"""Prefix beam search with an n-gram language model, a lexicon or both, by flashlight-text on the host.

It extends prefixes by tokens; without a lexicon any word can be recognised, whatever its language model knows. Log
probabilities of the language model, weighted, are added to those of CTC: of pieces with every token, of words when the
next word or the end comes; a word that the model does not know has the probability of ``<unk>``. A lexicon makes
prefixes that none of its texts begins with too improbable for the beam.
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
from i3d_jax.inference.lexicon import Lexicon, begun
from i3d_jax.inference.prefix_beam import TOKENS_PER_FRAME, NBest
from i3d_jax.inference.recognition import CTCScores

_LN10 = math.log(10)  # KenLM counts in decades
_NO_THRESHOLD = 1e4  # prefixes are dropped by their rank alone
# Of what the lexicon does not hold, far below the threshold. Finite: the decoder adds exponentials of differences.
_OUTSIDE = -1e9


class NGramModel:
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
        self.pieces = tokenizer.pieces
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
    """Prefix beam search with a language model or a lexicon."""

    def __init__(
        self,
        model: NGramModel | None,
        *,
        lexicon: Lexicon | None = None,
        lm_weight: float = 0.0,
        word_score: float = 0.0,
        beam: int = 10,
        n_best: int = 1,
        tokens_per_frame: int = TOKENS_PER_FRAME,
    ):
        """Bind.

        Args:
          model: the language model; None for a lexicon alone.
          lexicon: the only words that are given; None for any.
          lm_weight: of its natural log probabilities.
          word_score: added for each word; with a model of pieces, for each piece that begins one.
          beam: prefixes that are kept from frame to frame.
          n_best: token sequences that are given.
          tokens_per_frame: most probable tokens of a frame by which prefixes are extended, the blank included.
        """
        decoders = _flashlight("decoder")
        self._n_best = n_best
        self._lexicon = lexicon
        known = model or lexicon
        assert known, "neither a language model nor a lexicon"
        offered = int(lexicon.usable.sum()) if lexicon else len(known.pieces)
        # Without a detour through Python:
        direct = None if model is None or model.is_of_words or word_score or lexicon else model.kenlm
        options = decoders.LexiconFreeDecoderOptions(
            beam_size=beam,
            beam_size_token=min(tokens_per_frame, offered),
            beam_threshold=_NO_THRESHOLD,
            lm_weight=lm_weight * _LN10 if direct else 1.0,
            sil_score=0.0,
            log_add=True,
            criterion_type=decoders.CriterionType.CTC,
        )
        # Kept: the decoder holds only what it is in C++.
        self._language = direct or _weighted(decoders, model, lexicon, lm_weight, word_score)
        # No token stands for silence: before the first frame there is a blank.
        self._decoder = decoders.LexiconFreeDecoder(options, self._language, BLANK, BLANK, [])

    def __call__(self, scores: CTCScores) -> NBest:
        """The best token sequences of each row; their scores hold those of the language model.

        Where the beam holds no text of the lexicon to its end, the first one is what the best prefix has of words, from
        its first token on, with a score of -inf.
        """
        log_probs, mask = jax.device_get((scores.log_probs, scores.mask))
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
        if self._lexicon:  # tokens that no word has take no place among those of a frame
            log_probs = np.where(self._lexicon.usable, log_probs, _OUTSIDE)
        emissions = np.ascontiguousarray(log_probs, np.float32)
        found: dict[tuple[int, ...], float] = {}
        results = self._decoder.decode(emissions.ctypes.data, *emissions.shape)
        for result in results:
            if result.score > _OUTSIDE / 2:
                sequence = _sequence(result)
                found[sequence] = float(np.logaddexp(found.get(sequence, -np.inf), result.score))
        if self._lexicon and not found:
            best = _sequence(results[0])
            found[best[: self._lexicon.longest(best)]] = -np.inf
        return found


def _sequence(result: Any) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(result.tokens) if token != BLANK)


def _weighted(
    decoders: ModuleType, model: NGramModel | None, lexicon: Lexicon | None, lm_weight: float, word_score: float
) -> Any:
    """A language model of tokens for the decoder, with the weights of `NGramSearch`.

    A model of pieces is asked for every token, one of words when a word is complete.
    """
    known = model or lexicon
    assert known
    language: Any = model.kenlm if model else None
    pieces = known.pieces
    of_pieces, scale = model is not None and not model.is_of_words, lm_weight * _LN10
    entries = model.entries if model else []
    index, unknown = {word: i for i, word in enumerate(entries)}, len(entries) - 1
    silent = {BLANK, Tokenizer.unk_id, len(pieces) - 1}  # the last one is <sos/eos>
    spelled = ["" if token in silent else piece for token, piece in enumerate(pieces)]

    class Weighted(decoders.LM):  # type: ignore[name-defined, misc]
        """States are told apart by their tokens; each has the language model's state, and the word begun."""

        def __init__(self) -> None:
            super().__init__()
            self._known: dict[Any, tuple[Any, str]] = {}
            self._extended: dict[tuple[Any, int], tuple[Any, float]] = {}
            self._outside = decoders.LMState()  # of all prefixes that the lexicon does not hold

        def start(self, start_with_nothing: bool) -> Any:
            self._known, self._extended = {}, {}
            state = decoders.LMState()
            self._known[state] = (language.start(start_with_nothing) if language else None, "")
            return state

        def score(self, state: Any, token: int) -> tuple[Any, float]:
            if (state, token) not in self._extended:
                self._extended[state, token] = self._extend(state, token)
            return self._extended[state, token]

        def _extend(self, state: Any, token: int) -> tuple[Any, float]:
            if state is self._outside:
                return state, _OUTSIDE
            before, word = self._known[state]
            after_word = lexicon.follow(word, token) if lexicon else begun(word, spelled[token])
            if after_word is None:
                return self._outside, _OUTSIDE
            score = 0.0
            if of_pieces:
                before, score = self._with_piece(before, token)
            elif pieces[token].startswith(SPACE):
                before, score = self._complete(before, word)
            after = state.child(token)
            self._known[after] = (before, after_word)
            return after, score

        def finish(self, state: Any) -> tuple[Any, float]:
            if state is self._outside:
                return state, _OUTSIDE
            before, word = self._known[state]
            if lexicon and word and word not in lexicon:
                return state, _OUTSIDE
            before, score = (before, 0.0) if of_pieces else self._complete(before, word)
            return state, score + (scale * language.finish(before)[1] if language else 0.0)

        def _with_piece(self, before: Any, token: int) -> tuple[Any, float]:
            after, score = language.score(before, token)
            return after, scale * score + word_score * pieces[token].startswith(SPACE)

        def _complete(self, before: Any, word: str) -> tuple[Any, float]:
            if not word:
                return before, 0.0
            after, score = language.score(before, index.get(word, unknown)) if language else (before, 0.0)
            return after, scale * score + word_score

    return Weighted()


def _flashlight(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"flashlight.lib.text.{name}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "decoding with an n-gram language model or a lexicon needs flashlight-text, which has wheels for Python "
            "3.11 and 3.12 (a neural language model does not): "
            "pip install 'i3d-jax[lm]', or pip install flashlight-text"
        ) from error

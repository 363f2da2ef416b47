"""From encoder states to tokens by the decoder that is asked for.

===========  ============================================================================================
greedy       the best token of every frame, inside the compiled program of the execution
prefix_beam  prefix beam search over the CTC scores that the execution gives: a program of its own, or, with an n-gram
             language model or a lexicon, flashlight-text on the host
attention    beam search with the attention decoder over the encoder states: a program of its own (docs/aed.md)
joint        the same, rescored by CTC prefixes
===========  ============================================================================================

A neural language model is part of these programs (`inference.fusion`).
"""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.inference.alignment import align, path_log_probs
from i3d_jax.inference.decoding import BLANK
from i3d_jax.inference.decoding_config import GREEDY, DecodingConfig
from i3d_jax.inference.fusion import load_fusion
from i3d_jax.inference.joint_decoding import joint_search
from i3d_jax.inference.lexicon import Lexicon
from i3d_jax.inference.ngram import NGramModel, NGramSearch
from i3d_jax.inference.prefix_beam import NBest, prefix_beam_search
from i3d_jax.inference.recognition import CTCScores, Kept, Recognition
from i3d_jax.model.decoder import Decoder as AttentionDecoder
from i3d_jax.model.encoder import Params
from i3d_jax.types import Array

_LEAST_FRAMES, _LEAST_TOKENS = 32, 16


class Decoder:
    """Finishes what the program of an execution began.

    Attributes:
      config: how.
      timestamps: whether the path is to have probabilities, for times and confidences of words.
      digests: SHA-256 of what was read, language model and lexicon (`DecodingConfig.digests`).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: DecodingConfig = GREEDY,
        timestamps: bool = False,
        attention: AttentionDecoder | None = None,
    ):
        """Bind; nothing is compiled yet.

        Args:
          tokenizer: of the model.
          config: how.
          timestamps: whether the path is to have probabilities.
          attention: the model's attention decoder, if it has one.

        Raises:
          ModuleNotFoundError, FileNotFoundError, ValueError: with a language model or a lexicon, as `NGramModel`,
            `load_fusion`, `Lexicon` and `NGramSearch`.
          ValueError: the search needs an attention decoder, and there is none.
        """
        if config.joint and attention is None:
            raise ValueError(
                f"decoder {config.decoder!r} needs an attention decoder, and this model was trained with CTC alone"
            )
        self.config = config
        self.timestamps = timestamps
        self.digests = config.digests
        self._attention = attention
        self._fusion = load_fusion(config.lm, tokenizer) if config.neural else None
        self._model = NGramModel(tokenizer, config.lm) if config.lm and not self._fusion else None
        self._lexicon = Lexicon(tokenizer, config.lexicon) if config.lexicon else None
        self._ngram: NGramSearch | None = None
        self._weigh()

    def _weigh(self) -> None:
        weights: dict[str, Any] = {"lm_weight": self.config.lm_weight, "word_score": self.config.word_score}
        if self._fusion:
            self._fusion = self._fusion.weighted(**weights)
        if self._model or self._lexicon:
            self._ngram = NGramSearch(self._model, lexicon=self._lexicon, **weights, **self._sizes)

    def reweighted(self, config: DecodingConfig) -> "Decoder":
        """This decoder with the weights of another configuration, and with the language model that has been read."""
        other = copy.copy(self)
        other.config = config
        other._weigh()
        return other

    @property
    def _sizes(self) -> dict[str, Any]:
        config = self.config
        return {"beam": config.beam, "n_best": config.n_best, "tokens_per_frame": config.tokens_per_frame}

    @property
    def keep(self) -> Kept:
        """What the programs of the executions have to give."""
        if self.config.joint:
            return "states"
        return "scores" if self.timestamps or self.config.decoder == "prefix_beam" else "tokens"

    def __call__(self, recognition: Recognition, params: Params) -> Recognition:
        """The recognition with the tokens of this decoder, and with their path; without what it began with.

        Args:
          recognition: from the program of an execution.
          params: of the model.
        """
        scores = recognition.scores
        if scores is None:
            return recognition
        if self.config.decoder == "greedy":
            return recognition._replace(scores=None, path_log_probs=_path_log_probs(scores, recognition.path))
        frames = scores.mask.shape[1]
        scores = _padded(scores)
        n_best = self.search(scores, params)
        most = int(np.max(np.asarray(n_best.num_tokens)[:, 0], initial=0))
        best = _finished(scores, n_best, recognition.blank_margin, length=_token_length(most), frames=frames)
        return recognition._replace(scores=None, n_best=n_best, **best)

    def warm_up(self, recognition: Recognition, params: Params) -> None:
        """Compile what texts of any length need in a batch of the shape of this recognition, from `Recognizer.run`."""
        if recognition.scores is None or self.config.decoder == "greedy":
            jax.block_until_ready(self(recognition, params))
            return
        frames = recognition.scores.mask.shape[1]
        scores = _padded(recognition.scores)
        n_best = self.search(scores, params)
        for length in sorted({_token_length(count) for count in range(1, n_best.tokens.shape[2] + 1)}):
            jax.block_until_ready(_finished(scores, n_best, recognition.blank_margin, length=length, frames=frames))

    def search(self, scores: CTCScores, params: Params) -> NBest:
        """The best token sequences of each row, of a decoder that searches.

        Args:
          scores: of the CTC head, with encoder states for an attention decoder.
          params: of the model.
        """
        if self._ngram:
            return self._ngram(scores)
        if not self.config.joint:
            return prefix_beam_search(scores.log_probs, scores.mask, fusion=self._fusion, **self._sizes)
        # Weights are arguments: others are not another compilation.
        static = replace(self.config.joint, ctc_weight=0.5 * bool(self.config.joint.ctc_weight), length_bonus=0.0)
        weights = (np.float32(self.config.joint.ctc_weight), np.float32(self.config.length_bonus))
        found = _joint_search(
            static,
            self._attention,
            params["decoder"],
            scores.states,
            scores.log_probs,
            scores.mask,
            fusion=self._fusion,
            weights=weights,
        )
        return NBest(*(each[:, : self.config.n_best] for each in found))


def _token_length(count: int) -> int:
    """Static length for so many tokens: few of them, each is a compilation."""
    return max(_LEAST_TOKENS, 2 ** max(count - 1, 0).bit_length())


_joint_search = jax.jit(joint_search, static_argnums=(0, 1))


def _padded(scores: CTCScores) -> CTCScores:
    """Scores and states with few different numbers of frames, at most an eighth (or 31) more: each is a compilation."""
    frames = scores.mask.shape[1]
    step = max(_LEAST_FRAMES, 2 ** (max(frames - 1, 1).bit_length() - 3))
    more = -frames % step

    def pad(x: Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)))

    padded: CTCScores = jax.tree.map(pad, scores)
    return padded


@jax.jit
def _path_log_probs(scores: CTCScores, path: Array) -> jax.Array:
    return jnp.where(scores.mask, path_log_probs(scores.log_probs, path), 0.0)


@partial(jax.jit, static_argnames=("length", "frames"))
def _finished(scores: CTCScores, n_best: NBest, blank_margin: Array, *, length: int, frames: int) -> dict[str, Array]:
    """The fields of a `Recognition` that follow from the best sequences, of at most ``length`` tokens."""
    tokens, num_tokens = n_best.tokens[:, 0], n_best.num_tokens[:, 0]
    path, _ = align(scores.log_probs, scores.mask, tokens[:, :length], num_tokens)
    posteriors = _path_log_probs(scores, path)
    tokens = jnp.pad(tokens, ((0, 0), (0, max(frames - tokens.shape[1], 0))))[:, :frames]
    path = path[:, :frames]
    # Where a path holds a token the blank is not clear, though it may be more probable.
    margin = jnp.where(path == BLANK, blank_margin, jnp.minimum(blank_margin, 0.0))
    return {
        "tokens": tokens,
        "num_tokens": num_tokens,
        "path": path,
        "blank_margin": margin,
        "path_log_probs": posteriors[:, :frames],
    }

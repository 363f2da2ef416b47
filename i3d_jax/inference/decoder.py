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
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.inference.alignment import align, path_log_probs
from i3d_jax.inference.decoding import BLANK
from i3d_jax.inference.fusion import is_neural, load_fusion
from i3d_jax.inference.joint_decoding import JointDecodingConfig, joint_search
from i3d_jax.inference.lexicon import Lexicon
from i3d_jax.inference.ngram import LanguageModel, NGramSearch
from i3d_jax.inference.prefix_beam import TOKENS_PER_FRAME, NBest, prefix_beam_search
from i3d_jax.inference.recognition import CTCScores, Kept, Recognition
from i3d_jax.manifest import contents_digest
from i3d_jax.model.decoder import Decoder as AttentionDecoder
from i3d_jax.model.encoder import Params
from i3d_jax.types import Array

DecoderName = Literal["greedy", "prefix_beam", "attention", "joint"]
DECODERS: tuple[DecoderName, ...] = ("greedy", "prefix_beam", "attention", "joint")

MAX_BEAM = 1000
_LEAST_FRAMES, _LEAST_TOKENS = 32, 16
_NO_LM_WEIGHTS = (0.5, 0.0)  # the defaults: they say that nothing was asked for


@dataclass(frozen=True)
class DecodingConfig:
    """How encoder states become tokens."""

    decoder: DecoderName = "greedy"
    """``greedy``; ``prefix_beam``, which sums over alignments; ``attention`` and ``joint``: by an attention decoder."""
    beam: int = 10
    """Prefixes that are kept from frame to frame, or hypotheses from token to token."""
    n_best: int = 1
    """Texts that a beam search gives with their scores, at most ``beam``."""
    tokens_per_frame: int = TOKENS_PER_FRAME
    """Tokens of a frame by which a prefix may be extended, its most probable ones."""
    lm: str = ""
    """ARPA file of words or of the tokenizer's pieces, for ``prefix_beam``, or the folder of a neural language model,
    for any beam search; empty for none."""
    lm_weight: float = 0.5
    """Weight of the language model's natural log probabilities."""
    word_score: float = 0.0
    """Added for each word: language models prefer short texts."""
    ctc_weight: float = 0.3
    """Weight of the CTC prefix score in ``joint``."""
    length_bonus: float = 0.0
    """Added for each token of ``attention`` and ``joint``."""
    max_length_ratio: float = 1.0
    """Greatest number of tokens of ``attention`` and ``joint`` for each encoder frame (40 ms); memory grows with it."""
    lexicon: str = ""
    """Text file of the only words that ``prefix_beam`` may give, one a line; empty for any word."""

    def __post_init__(self) -> None:
        """Raises ValueError for values that no decoder has."""
        if self.decoder not in DECODERS:
            raise ValueError(f"decoder {self.decoder!r} is unknown: choose one of {', '.join(DECODERS)}")
        for name, value, most in (("beam", self.beam, MAX_BEAM), ("tokens_per_frame", self.tokens_per_frame, math.inf)):
            if not 1 <= value <= most:
                raise ValueError(
                    f"{name}={value}: expected at least 1" + (f", at most {most}" if most < math.inf else "")
                )
        if self.lm and self.decoder == "greedy":
            raise ValueError(f'lm={self.lm}: greedy decoding has no language model; take decoder="prefix_beam"')
        if self.lexicon and is_neural(self.lm):
            raise ValueError(f"lexicon={self.lexicon}: with the neural language model {self.lm} there is none")
        if self.lexicon and self.decoder != "prefix_beam":
            raise ValueError(f"lexicon={self.lexicon}: decoder {self.decoder!r} has none; take 'prefix_beam'")
        weights = (self.lm_weight, 0.0 if self.lexicon else self.word_score)
        if not self.lm and weights != _NO_LM_WEIGHTS:
            raise ValueError("lm_weight and word_score weigh a language model: give one, lm=...")
        if not 0 <= self.lm_weight < math.inf:
            raise ValueError(f"lm_weight={self.lm_weight}: expected a number from 0 on")
        if not math.isfinite(self.word_score):
            raise ValueError(f"word_score={self.word_score}: expected a finite number")
        if self.decoder == "greedy" and (self.beam, self.n_best, self.tokens_per_frame) != (10, 1, TOKENS_PER_FRAME):
            raise ValueError("greedy decoding has no beam, n_best or tokens_per_frame: take another decoder")
        for name, default in (("ctc_weight", 0.3), ("length_bonus", 0.0), ("max_length_ratio", 1.0)):
            if getattr(self, name) != default and not (
                self.decoder == "joint" or (self.decoder == "attention" and name != "ctc_weight")
            ):
                raise ValueError(f"{name}={getattr(self, name)}: decoder {self.decoder!r} has no such option")
        if self.joint and self.tokens_per_frame != TOKENS_PER_FRAME:
            raise ValueError(f"tokens_per_frame={self.tokens_per_frame}: decoder {self.decoder!r} has no such option")
        if self.joint and self.lm and not is_neural(self.lm):
            raise ValueError(
                f"lm={self.lm}: decoder {self.decoder!r} takes the folder of a neural language model; n-gram models "
                "are for 'prefix_beam'"
            )
        if not 1 <= self.n_best <= self.beam:
            raise ValueError(f"n_best={self.n_best}: expected 1 to {self.beam}, the beam")

    @property
    def joint(self) -> JointDecodingConfig | None:
        """The search of an attention decoder; None for decoders of CTC scores."""
        if self.decoder not in ("attention", "joint"):
            return None
        weight = self.ctc_weight if self.decoder == "joint" else 0.0
        return JointDecodingConfig(self.beam, weight, self.length_bonus, self.max_length_ratio)

    @property
    def label(self) -> str:
        """Short name for reports and folders."""
        if self.decoder == "greedy":
            return self.decoder
        short = {name: digest[:6] for name, digest in self.digests.items()}
        parts = [f"{self.decoder}{self.beam}"]
        parts += [f"tokens{self.tokens_per_frame}"] if self.tokens_per_frame != TOKENS_PER_FRAME else []
        if self.joint:
            parts += [f"{value:g}" for value in (self.joint.ctc_weight, self.length_bonus, self.max_length_ratio)]
        parts += [f"lm{short['lm']}-{self.lm_weight:g}"] if self.lm else []
        parts += [f"{self.word_score:g}"] if self.word_score else []
        return "-".join([*parts, *([f"lexicon{short['lexicon']}"] if self.lexicon else [])])

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the contents of the files that are read, by their field.

        Raises:
          FileNotFoundError: there is no such file.
        """
        return {name: contents_digest(path) for name in ("lm", "lexicon") if (path := getattr(self, name))}


GREEDY = DecodingConfig()


def decoder_config(decoder: DecoderName | DecodingConfig | None, beam: int | None = None) -> DecodingConfig | None:
    """The settings of a decoder that is given by its name, or not at all.

    Raises:
      ValueError: unknown decoder, bad beam, or a beam for what has none.
    """
    if beam is None:
        return DecodingConfig(decoder) if isinstance(decoder, str) else decoder
    if not isinstance(decoder, str) or decoder == "greedy":
        raise ValueError(f'beam={beam} needs decoder="prefix_beam": a DecodingConfig has its own, greedy has none')
    return DecodingConfig(decoder, beam)


class Decoder:
    """Finishes what the program of an execution began.

    Attributes:
      config: how.
      timestamps: whether the path is to have probabilities, for times and confidences of words.
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
          ModuleNotFoundError, FileNotFoundError, ValueError: with a language model or a lexicon, as `LanguageModel`,
            `load_fusion`, `Lexicon` and `NGramSearch`.
          ValueError: the search needs an attention decoder, and there is none.
        """
        if config.joint and attention is None:
            raise ValueError(
                f"decoder {config.decoder!r} needs an attention decoder, and this model was trained with CTC alone"
            )
        self.config = config
        self.timestamps = timestamps
        self._attention = attention
        self._fusion = load_fusion(config.lm, tokenizer) if is_neural(config.lm) else None
        self._model = LanguageModel(tokenizer, config.lm) if config.lm and not self._fusion else None
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
        scores, states = _padded(scores, recognition.states)
        n_best = self.search(scores, states, params)
        tokens, num_tokens = n_best.tokens[:, 0], n_best.num_tokens[:, 0]
        length = max(_LEAST_TOKENS, 2 ** max(int(np.max(num_tokens, initial=0)) - 1, 0).bit_length())
        path, posteriors = (each[:, :frames] for each in _aligned(scores, tokens[:, :length], num_tokens))
        return recognition._replace(
            tokens=jnp.pad(tokens, ((0, 0), (0, max(frames - tokens.shape[1], 0))))[:, :frames],
            num_tokens=num_tokens,
            path=path,
            blank_margin=_unclear_at_tokens(path, recognition.blank_margin),
            scores=None,
            states=None,
            path_log_probs=posteriors,
            n_best=n_best,
        )

    def search(self, scores: CTCScores, states: Array | None, params: Params) -> NBest:
        """The best token sequences of each row, of a decoder that searches.

        Args:
          scores: of the CTC head.
          states: [B, T, D] normalised encoder states, for an attention decoder.
          params: of the model.
        """
        if self._ngram:
            return self._ngram(scores)
        if not self.config.joint:
            return prefix_beam_search(*scores, fusion=self._fusion, **self._sizes)
        # Weights are arguments: others are not another compilation.
        static = replace(self.config.joint, ctc_weight=0.5 * bool(self.config.joint.ctc_weight), length_bonus=0.0)
        weights = (np.float32(self.config.joint.ctc_weight), np.float32(self.config.length_bonus))
        found = _joint_search(
            static, self._attention, params["decoder"], states, *scores, fusion=self._fusion, weights=weights
        )
        return NBest(*(each[:, : self.config.n_best] for each in found))


_joint_search = jax.jit(joint_search, static_argnums=(0, 1))


def _padded(scores: CTCScores, states: Array | None) -> tuple[CTCScores, Array | None]:
    """Scores and states with few different numbers of frames, at most an eighth (or 31) more: each is a compilation."""
    frames = scores.mask.shape[1]
    step = max(_LEAST_FRAMES, 2 ** (max(frames - 1, 1).bit_length() - 3))
    more = -frames % step

    def pad(x: Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)))

    return CTCScores(pad(scores.log_probs), pad(scores.mask)), None if states is None else pad(states)


@jax.jit
def _path_log_probs(scores: CTCScores, path: Array) -> jax.Array:
    return jnp.where(scores.mask, path_log_probs(scores.log_probs, path), 0.0)


@jax.jit
def _aligned(scores: CTCScores, tokens: Array, num_tokens: Array) -> tuple[jax.Array, jax.Array]:
    """The path [B, T] of tokens [B, U], and its log probabilities."""
    path, _ = align(*scores, tokens, num_tokens)
    return path, _path_log_probs(scores, path)


@jax.jit
def _unclear_at_tokens(path: Array, blank_margin: Array) -> jax.Array:
    """Where a path holds a token the blank is not clear, though it may be more probable."""
    return jnp.where(path == BLANK, blank_margin, jnp.minimum(blank_margin, 0.0))

"""Joint CTC/attention decoding: a beam search over the decoder's answers, rescored by CTC prefixes.

A transcript y scores

    (1 - w) log p_attention(y, end)  +  w log p_CTC(y)  +  bonus * (tokens of y, the end included)
                                     +  v log p_LM(y, end), with a language model

(Watanabe et al. 2017, "Hybrid CTC/attention architecture for end-to-end speech recognition", Eq. 44). The search is
ESPnet's ``BeamSearch``: in each step every hypothesis proposes its best tokens by the scores but for that of CTC, these
are scored by CTC, and the best extensions of all hypotheses stay; those that end are put aside. It is one compiled
program for a batch, whose rows do not influence each other. It differs from ESPnet's in four ways: the blank, which is
no token, is never proposed; nor is a token for which the frames would not suffice, so that every transcript has a CTC
path; at its greatest length a hypothesis is ended with the score of the end, not without; and an utterance is done,
besides by ESPnet's end detection, once no hypothesis can overtake the best that have ended.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax.inference.ctc_prefix_score import PrefixState, empty, extend, prepare, scores
from i3d_jax.inference.decoding import BLANK
from i3d_jax.inference.fusion import Fusion, chosen
from i3d_jax.model.decoder import Cache, Decoder
from i3d_jax.model.encoder import Params
from i3d_jax.types import Array

_DETECTED_AFTER = 3  # successive lengths whose ended hypotheses are all far behind the best (ESPnet's end_detect)


@dataclass(frozen=True)
class JointDecodingConfig:
    """Beam search with an attention decoder."""

    beam: int = 10
    """Hypotheses that stay in each step."""
    ctc_weight: float = 0.3
    """w: weight of the CTC score, at least 0 (the decoder alone) and below 1."""
    length_bonus: float = 0.0
    """Added for each token; ESPnet calls it penalty."""
    max_length_ratio: float = 1.0
    """Greatest number of tokens, for each encoder frame (40 ms): more than 0, at most 1. Memory grows with it."""
    pre_beam_ratio: float = 1.5
    """Tokens that a hypothesis proposes, as a multiple of the beam; at least 1."""
    end_margin: float = 10.0
    """End detection: an utterance is done when, for three lengths in a row, the best hypothesis that ended is so many
    nats behind the best of all. 0 leaves it out."""
    n_best: int = 1
    """Transcripts that are wanted, at most ``beam``: an utterance is done when no hypothesis can overtake the last of
    them any more."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        for name, holds, expected in (
            ("beam", self.beam >= 1, "at least 1"),
            ("ctc_weight", 0 <= self.ctc_weight < 1, "at least 0 and below 1; CTC alone needs no attention decoder"),
            ("length_bonus", math.isfinite(self.length_bonus), "a finite number"),
            ("max_length_ratio", 0 < self.max_length_ratio <= 1, "more than 0 and at most 1"),
            ("pre_beam_ratio", 1 <= self.pre_beam_ratio < math.inf, "a finite number, at least 1"),
            ("end_margin", 0 <= self.end_margin < math.inf, "a finite number, 0 or more"),
            ("n_best", 1 <= self.n_best <= self.beam, f"1 to {self.beam}, the beam"),
        ):
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)}: expected {expected}")


class Hypotheses(NamedTuple):
    """Transcripts of each utterance that ended, best first.

    Attributes:
      tokens: [B, K, L] int32, without start and end, 0 beyond ``num_tokens``.
      num_tokens: [B, K] int32.
      scores: [B, K] float32; -inf where fewer than K ended before the utterance was done.
    """

    tokens: jax.Array
    num_tokens: jax.Array
    scores: jax.Array


class _Search(NamedTuple):
    """``step`` tokens have been chosen; ``score`` [B, K] is -inf for no hypothesis; ``frames`` [B, K] are the fewest
    that its tokens take, with the blanks that separate equal ones; ``ended_at`` [B, L + 1] is the best score of those
    that ended with so many tokens; ``done`` [B].
    """

    step: jax.Array
    tokens: jax.Array
    last: jax.Array
    score: jax.Array
    frames: jax.Array
    prefix_score: jax.Array
    prefixes: PrefixState | None
    cache: Cache
    language: Any
    ended: Hypotheses
    ended_at: jax.Array
    done: jax.Array


def greatest_length(frames: int, config: JointDecodingConfig) -> np.ndarray:
    """Greatest numbers of tokens for 0 to ``frames`` encoder frames: [frames + 1] int32; at least 1, of no frames 0."""
    lengths = np.ceil(config.max_length_ratio * np.arange(frames + 1) - 1e-9)  # 0.3 * 10 is more than 3
    return np.maximum(lengths, np.arange(frames + 1) > 0).astype(np.int32)


def joint_search(
    config: JointDecodingConfig,
    decoder: Decoder,
    params: Params,
    states: jax.Array,
    ctc_logits: jax.Array,
    mask: jax.Array,
    fusion: Fusion | None = None,
    weights: tuple[Array, Array] | None = None,
) -> Hypotheses:
    """Search the best transcripts of a batch; to be jitted with the first two arguments static.

    Args:
      config: of the search.
      decoder: the attention decoder.
      params: of the decoder.
      states: [B, T, D], normalised encoder states.
      ctc_logits: [B, T, V], or log probabilities.
      mask: [B, T] bool, valid frames first; what others hold does not matter. A row without any is an empty transcript.
      fusion: a language model whose scores are added.
      weights: CTC weight and length bonus instead of those of ``config``, whose CTC weight then only says whether there
        is one.

    Returns:
      The best ``config.beam`` transcripts of each row, of those that ended before it was done: the first one is always
      there, ``config.n_best`` unless the end was detected before. L is `greatest_length` of T.
    """
    rows, frames, vocabulary = ctc_logits.shape
    beam, eos = config.beam, vocabulary - 1
    weight, length_bonus = (config.ctc_weight, config.length_bonus) if weights is None else weights
    limits = greatest_length(frames, config)
    longest = int(limits[-1])
    there = jnp.sum(mask, axis=1)
    limit = jnp.asarray(limits)[there]
    proposed = min(vocabulary, int(config.pre_beam_ratio * beam))
    log_p = prepare(ctc_logits, mask)
    minus = jnp.full((rows, beam), -jnp.inf)
    start = _Search(
        step=jnp.int32(0),
        tokens=jnp.zeros((rows, beam, longest), jnp.int32),
        last=jnp.full((rows, beam), eos, jnp.int32),
        score=minus.at[:, 0].set(0.0),
        frames=jnp.zeros((rows, beam), jnp.int32),
        prefix_score=jnp.zeros((rows, beam)),
        prefixes=empty(log_p, beam) if config.ctc_weight else None,
        cache=decoder.start(params, states, mask, beam, longest + 1),
        language=fusion.start((rows, beam)) if fusion else None,
        ended=Hypotheses(jnp.zeros((rows, beam, longest), jnp.int32), jnp.zeros((rows, beam), jnp.int32), minus),
        ended_at=jnp.full((rows, longest + 1), -jnp.inf),
        done=jnp.zeros(rows, bool),
    )
    token = jnp.arange(vocabulary)[None, None]

    def taken(search: _Search, tokens: jax.Array) -> jax.Array:
        """The fewest frames that hypotheses take with one more token: ``tokens`` [B, K, ...]."""
        last, frames = (x.reshape(rows, beam, *[1] * (tokens.ndim - 2)) for x in (search.last, search.frames))
        return frames + 1 + (tokens == last)  # the start, of the first token, is no token

    def propose(search: _Search) -> tuple[Cache, Any, jax.Array, jax.Array, jax.Array]:
        """Cache, state of the language model, tokens [B, K, P], scores of hypotheses with them, their CTC scores."""
        logits, cache = decoder.step(params, search.cache, search.last, search.step)
        fits = (search.step < limit)[:, None, None] & (taken(search, token) <= there[:, None, None])
        own, language = (1 - weight) * jax.nn.log_softmax(logits) + length_bonus, None
        if fusion:
            language, added = fusion.step(search.language, search.last)
            own += added
        own = jnp.where((token != BLANK) & ((token == eos) | fits), own, -jnp.inf)
        best, tokens = jax.lax.top_k(own, proposed)
        score = search.score[..., None] + best
        if search.prefixes is None:
            return cache, language, tokens, score, jnp.zeros_like(score)
        prefix_score = scores(log_p, search.prefixes, tokens, eos)
        score += weight * (prefix_score - search.prefix_score[..., None])
        return cache, language, tokens, score, prefix_score

    def step(search: _Search) -> _Search:
        cache, language, tokens, score, prefix_score = propose(search)
        chosen_score, best = jax.lax.top_k(score.reshape(rows, -1), beam)
        parents = best // proposed
        last, prefix_score, frames = (
            jnp.take_along_axis(x.reshape(rows, -1), best, 1) for x in (tokens, prefix_score, taken(search, tokens))
        )
        sequences = jnp.take_along_axis(search.tokens, parents[..., None], 1)
        ends = last == eos
        ended_score = jnp.where(ends, chosen_score, -jnp.inf)
        ended = _best(search.ended, Hypotheses(sequences, jnp.full_like(last, search.step), ended_score))
        ended_at = search.ended_at.at[:, search.step].set(jnp.max(ended_score, axis=1))
        sequences = sequences.at[:, :, search.step].set(last, mode="drop")
        running = jnp.where(ends, -jnp.inf, chosen_score)
        # No score rises but by the bonuses: what cannot overtake the last that is wanted now never will.
        bonus = length_bonus + (jnp.maximum(fusion.word_score, 0.0) if fusion else 0.0)
        hope = jnp.max(running, axis=1) + jnp.maximum(bonus, 0.0) * (limit - search.step)
        done = (
            search.done
            | (hope <= ended.scores[:, config.n_best - 1])
            | _detected(config, ended_at, ended.scores[:, 0], search.step)
        )
        # A row that is done must not change while others go on.
        running = jnp.where(done[:, None], -jnp.inf, running)
        own = jnp.take_along_axis(cache.own, parents[None, :, :, None, None], axis=2)
        prefixes = None if search.prefixes is None else extend(log_p, search.prefixes, parents, last)
        return _Search(
            search.step + 1,
            sequences,
            last,
            running,
            frames,
            prefix_score,
            prefixes,
            cache._replace(own=own),
            chosen(language, parents),
            ended,
            ended_at,
            done,
        )

    def goes_on(search: _Search) -> jax.Array:
        return (search.step <= longest) & ~jnp.all(search.done)

    ended = jax.lax.while_loop(goes_on, step, start).ended
    position = jnp.arange(longest)[None, None]
    return ended._replace(tokens=jnp.where(position < ended.num_tokens[..., None], ended.tokens, 0))


def _best(old: Hypotheses, new: Hypotheses) -> Hypotheses:
    """The K best of K and K hypotheses, best first; of equals the older one."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), old, new)
    best, order = jax.lax.top_k(both.scores, old.scores.shape[1])
    tokens = jnp.take_along_axis(both.tokens, order[..., None], 1)
    return Hypotheses(tokens, jnp.take_along_axis(both.num_tokens, order, 1), best)


def _detected(config: JointDecodingConfig, ended_at: jax.Array, best: jax.Array, step: jax.Array) -> jax.Array:
    """ESPnet's end detection after step ``step``: [B] bool. It looks at the lengths before the last two."""
    if not config.end_margin:
        return jnp.zeros(best.shape, bool)
    lengths = step - 2 - jnp.arange(_DETECTED_AFTER)
    scores = jnp.take(ended_at, jnp.maximum(lengths, 0), axis=1)
    behind = jnp.isfinite(scores) & (scores - best[:, None] < -config.end_margin)
    return (step >= 2 + _DETECTED_AFTER - 1) & jnp.all(behind, axis=1)

"""CTC prefix beam search (Hannun et al., arXiv 1408.2873), compiled, in batches, with a neural language model or none.

A prefix is a token sequence; its score sums over all alignments that were kept, those that end in the blank apart from
those that end in its last token. Each frame offers every prefix of the beam as it is, and extended by the most probable
tokens of the frame; the best of these are the next beam.

::

    stay     p_blank' = (p_blank + p_token) y(blank)        p_token' = p_token y(last)
    extend   p_token' = (p_blank + p_token) y(c)            p_blank y(c), where c is the last token already

Prefixes are ranked by the sum of both, plus what a language model says of their tokens. An extension may be a prefix
that is in the beam: it is then added to that one. Prefixes are told apart by two 32-bit
hashes; that any two of the n prefixes of an utterance collide has a probability of about n^2 / 2^65.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from i3d_jax.inference.decoding import BLANK, compact
from i3d_jax.inference.fusion import Fusion, chosen
from i3d_jax.types import Array

TOKENS_PER_FRAME = 40
"""Tokens of a frame by which prefixes are extended; see docs/decoding.md for what it costs."""


class NBest(NamedTuple):
    """The best token sequences of each row, best first; rows or vocabularies too small for N of them have empty ones.

    Attributes:
      tokens: [B, N, T] int32, padded with 0 on the right.
      num_tokens: [B, N] int32.
      scores: [B, N] float32, natural log of the probability, summed over the alignments that were kept: never above
        that over all alignments; with the scores of attention decoder and language model, where they rank too. -inf
        where there is no further sequence.
    """

    tokens: Array
    num_tokens: Array
    scores: Array


class _Beam(NamedTuple):
    """K prefixes of one row, in any order; those with a score of -inf are none.

    ``hashes`` [K, 2] are those of the prefix, ``parents`` [K, 2] those of the prefix without its last token, ``last``
    [K] is that token, or -1. ``blank`` and ``token`` [K] are log probabilities, ``language`` [K] is what a language
    model has added, and ``ahead`` [K, V] what it adds for each next token; without one [K, 0].
    """

    hashes: jax.Array
    parents: jax.Array
    last: jax.Array
    blank: jax.Array
    token: jax.Array
    language: jax.Array
    ahead: jax.Array

    @property
    def total(self) -> jax.Array:
        return jnp.logaddexp(self.blank, self.token)


@partial(jax.jit, static_argnames=("beam", "n_best", "tokens_per_frame"))
def prefix_beam_search(
    log_probs: jax.Array,
    mask: jax.Array,
    *,
    beam: int = 10,
    n_best: int = 1,
    tokens_per_frame: int = TOKENS_PER_FRAME,
    fusion: Fusion | None = None,
) -> NBest:
    """The most probable token sequences.

    Args:
      log_probs: [B, T, V] natural logs of probabilities; id 0 is the blank.
      mask: [B, T] bool, True = valid frame; others are passed over, whatever they hold.
      beam: K, prefixes that are kept from frame to frame. With as many as there are sequences of up to T tokens, and as
        many tokens per frame as there are, the result is exact.
      n_best: N sequences are returned, at most ``beam``.
      tokens_per_frame: prefixes are extended by so many tokens of a frame, its most probable ones. With V - 1 or more
        no token is left out. A token that ends a prefix of the beam is never left out there.
      fusion: a language model whose scores are added, that of the end included.
    """
    (rows, _, vocabulary), n_best = log_probs.shape, min(n_best, beam)
    # Scores of frames that do not count never reach a sum: they may be NaN.
    log_probs = jnp.swapaxes(jnp.where(mask[..., None], log_probs.astype(jnp.float32), 0.0), 0, 1)
    if fusion:  # to a language model the last id is the end, behind which nothing comes
        log_probs = log_probs.at[..., -1].set(-jnp.inf)
    blanks = log_probs[..., BLANK]
    offered, tokens = jax.lax.top_k(log_probs[..., BLANK + 1 :], min(tokens_per_frame, vocabulary - 1))
    state, ahead = None, jnp.zeros((rows, beam, 0))
    if fusion:
        begin = jnp.full((rows, beam), vocabulary - 1, jnp.int32)
        state, ahead = fusion.step(fusion.start((rows, beam)), begin)
    start = _Beam(
        hashes=jnp.zeros((rows, beam, 2), jnp.uint32),
        parents=jnp.zeros((rows, beam, 2), jnp.uint32),
        last=jnp.full((rows, beam), -1, jnp.int32),
        blank=jnp.broadcast_to(jnp.where(jnp.arange(beam) == 0, 0.0, -jnp.inf), (rows, beam)),
        token=jnp.full((rows, beam), -jnp.inf),
        language=jnp.zeros((rows, beam)),
        ahead=ahead,
    )

    def step(carry: tuple[_Beam, Any], frame: tuple[jax.Array, ...]) -> tuple[tuple[_Beam, Any], Any]:
        kept, sources, added = jax.vmap(partial(_step, beam=beam))(carry[0], frame)
        state = carry[1]
        if fusion:
            state = chosen(state, sources)
            kept, state = jax.lax.cond(
                jnp.any(added != BLANK), partial(_ask, fusion), lambda kept, state, _: (kept, state), kept, state, added
            )
        return (kept, state), (sources, added)

    frames = (log_probs, blanks, offered, tokens + BLANK + 1, jnp.swapaxes(mask, 0, 1))
    (end, _), (sources, added) = jax.lax.scan(step, (start, state), frames)
    total = end.total + end.language + (end.ahead[..., vocabulary - 1] if fusion else 0.0)
    scores, slots = jax.lax.top_k(total, n_best)

    def back(slots: jax.Array, frame: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        sources, added = (jnp.take_along_axis(each, slots, axis=1) for each in frame)
        return sources, added

    _, path = jax.lax.scan(back, slots, (sources, added), reverse=True)  # [T, B, N]: a token where it was added, or 0
    path = jnp.moveaxis(path, 0, 2)
    found, lengths = jax.vmap(compact)(path, path != BLANK)
    real = scores > -jnp.inf
    return NBest(jnp.where(real[..., None], found, BLANK), jnp.where(real, lengths, 0), scores)


def _ask(fusion: Fusion, beam: _Beam, state: Any, added: jax.Array) -> tuple[_Beam, Any]:
    """The beam and the state of the language model behind tokens [B, K] that were added, 0 where none was."""
    new = added != BLANK
    after, ahead = fusion.step(state, added)
    state = jax.tree.map(lambda a, b: jnp.where(new[None, :, :, None], a, b), after, state)
    return beam._replace(ahead=jnp.where(new[..., None], ahead, beam.ahead)), state


def _step(old: _Beam, frame: tuple[jax.Array, ...], *, beam: int) -> tuple[_Beam, jax.Array, jax.Array]:
    """One frame of one row: the new beam, whose language model knows nothing of the new tokens yet; the slots [K] that
    its prefixes come from, and tokens [K] added, 0 for none.
    """
    log_probs, blank, offered, tokens, valid = frame
    total = old.total
    alive = total > -jnp.inf
    # [i, j]: prefix j is prefix i with one more token.
    extends = (old.hashes[:, None, :] == old.parents[None, :, :]).all(axis=-1) & (old.last >= 0)[None, :]
    extends &= alive[:, None] & alive[None, :]

    of_last = jnp.where(old.last >= 0, log_probs[old.last], -jnp.inf)
    into_last = jnp.where(old.last[:, None] == old.last[None, :], old.blank[:, None], total[:, None])
    gained = jax.nn.logsumexp(jnp.where(extends, into_last, -jnp.inf), axis=0) + of_last
    stay_blank = total + blank
    stay_token = jnp.logaddexp(old.token + of_last, gained)

    from_prefix = jnp.where(old.last[:, None] == tokens[None, :], old.blank[:, None], total[:, None])
    known = (extends[:, :, None] & (old.last[:, None] == tokens[None, :])[None]).any(axis=1)
    extended = jnp.where(known, -jnp.inf, from_prefix + offered[None, :])  # [K, C]

    scores = jnp.concatenate([jnp.logaddexp(stay_blank, stay_token), extended.reshape(-1)])
    language = old.language
    if old.ahead.shape[1]:
        then = language[:, None] + jnp.take(old.ahead, tokens, axis=1)
        language = jnp.concatenate([language, then.reshape(-1)])
        _, best = jax.lax.top_k(scores + language, beam)
    else:
        _, best = jax.lax.top_k(scores, beam)
    is_new = best >= beam
    slot, choice = jnp.divmod(best - beam, tokens.shape[0])
    source = jnp.where(is_new, slot, best)
    token = jnp.where(is_new, tokens[choice], BLANK)
    new = _Beam(
        hashes=jnp.where(is_new[:, None], _hash(old.hashes[source], token), old.hashes[source]),
        parents=jnp.where(is_new[:, None], old.hashes[source], old.parents[source]),
        last=jnp.where(is_new, token, old.last[source]),
        blank=jnp.where(is_new, -jnp.inf, stay_blank[source]),
        token=jnp.where(is_new, scores[best], stay_token[source]),
        language=language[best] if old.ahead.shape[1] else language,
        ahead=old.ahead[source],
    )
    kept = jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, old)
    same = jnp.arange(beam, dtype=source.dtype)
    return kept, jnp.where(valid, source, same), jnp.where(valid, token, BLANK).astype(jnp.int32)


def _hash(prefix: jax.Array, token: jax.Array) -> jax.Array:
    """Hashes [K, 2] of prefixes with these hashes and one more token [K]: mixers of murmur3 and lowbias32."""
    token = token.astype(jnp.uint32)[:, None] + jnp.array([0x9E3779B9, 0x85EBCA6B], jnp.uint32)[None, :]
    mixed = prefix * jnp.array([0x01000193, 0x27D4EB2F], jnp.uint32)[None, :] ^ token
    for shift, factors in ((16, (0x85EBCA6B, 0x7FEB352D)), (13, (0xC2B2AE35, 0x846CA68B))):
        mixed = (mixed ^ (mixed >> shift)) * jnp.array(factors, jnp.uint32)[None, :]
    return mixed ^ (mixed >> 16)

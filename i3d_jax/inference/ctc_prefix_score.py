"""CTC scores of prefixes, for a search that extends hypotheses token by token.

The score of a prefix is the log-probability of all transcripts that begin with it (Watanabe et al. 2017, "Hybrid
CTC/attention architecture for end-to-end speech recognition", Algorithm 2; Graves 2008). For a hypothesis g and frame
t, with n and b for paths whose frame t is the last token or a blank,

::

    phi(t)     = r_n(t) + r_b(t) of g, without r_n if the next token c is the last one of g
    score(g c) = sum over t of phi(t - 1) p(c, t)
    r_n(t)     = (r_n(t - 1) + phi(t - 1)) p(c, t)           of g c
    r_b(t)     = (r_n(t - 1) + r_b(t - 1)) p(blank, t)
    score(g eos) = r_n + r_b of g at the last frame

in logs. The first sum needs no recursion, so any number of next tokens is scored at once, and the recursion is made for
those alone that are kept. Frames beyond an utterance are certain blanks, which change nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from i3d_jax.inference.decoding import BLANK

LOG_ZERO = -1e10
"""Stands for log 0: of infinities, differences would not be numbers."""


class PrefixState(NamedTuple):
    """Forward log-probabilities of K hypotheses of each utterance.

    Attributes:
      in_token: [B, K, T], r_n.
      in_blank: [B, K, T], r_b.
      last: [B, K] int32, the last token; -1 for the empty hypothesis.
    """

    in_token: jax.Array
    in_blank: jax.Array
    last: jax.Array


def prepare(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """CTC logits [B, T, V] with mask [B, T] to log-probabilities by token, [B, V, T] float32."""
    log_p = jax.nn.log_softmax(jnp.where(mask[..., None], logits, 0.0).astype(jnp.float32))
    certain_blank = jnp.where(jnp.arange(logits.shape[-1]) == BLANK, 0.0, LOG_ZERO)
    return jnp.swapaxes(jnp.where(mask[..., None], log_p, certain_blank[None, None]), 1, 2)


def empty(log_p: jax.Array, hypotheses: int) -> PrefixState:
    """The state of K empty hypotheses of each utterance, for log-probabilities [B, V, T]."""
    blanks = jnp.cumsum(log_p[:, BLANK], axis=-1)
    shape = (len(log_p), hypotheses, log_p.shape[-1])
    in_blank = jnp.broadcast_to(blanks[:, None], shape)
    return PrefixState(jnp.full(shape, LOG_ZERO), in_blank, jnp.full(shape[:2], -1, jnp.int32))


def _before(state: PrefixState, repeated: jax.Array) -> jax.Array:
    """phi(t - 1) for every t: [B, K, P, T], for next tokens of which [B, K, P] repeat the last one."""
    both = jnp.logaddexp(state.in_token, state.in_blank)
    phi = jnp.where(repeated[..., None], state.in_blank[:, :, None], both[:, :, None])
    first = jnp.where(state.last < 0, 0.0, LOG_ZERO)[:, :, None, None]  # before the first frame nothing has been said
    return jnp.concatenate([jnp.broadcast_to(first, (*repeated.shape, 1)), phi[..., :-1]], axis=-1)


def _rows(log_p: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probabilities of tokens [B, ...] over time: [B, ..., T]."""
    return jax.vmap(lambda own, ids: own[ids])(log_p, tokens)


def scores(log_p: jax.Array, state: PrefixState, tokens: jax.Array, eos: int) -> jax.Array:
    """Scores of the hypotheses, each extended by each of some tokens.

    Args:
      log_p: [B, V, T], from `prepare`.
      state: of K hypotheses.
      tokens: [B, K, P] next tokens.
      eos: id of the end, which makes a hypothesis a whole transcript; the blank, which extends none, scores log 0.

    Returns:
      [B, K, P] log-probabilities.
    """
    phi = _before(state, tokens == state.last[..., None])
    score = jax.nn.logsumexp(phi + _rows(log_p, tokens), axis=-1)
    whole = jnp.logaddexp(state.in_token[..., -1], state.in_blank[..., -1])[..., None]
    return jnp.where(tokens == eos, whole, jnp.where(tokens == BLANK, LOG_ZERO, score))


def extend(log_p: jax.Array, state: PrefixState, parents: jax.Array, tokens: jax.Array) -> PrefixState:
    """The state of K hypotheses, each one of those before and a token more.

    Args:
      log_p: [B, V, T], from `prepare`.
      state: of the hypotheses before.
      parents: [B, K], which of them.
      tokens: [B, K], their next token.
    """
    state = jax.tree.map(lambda leaf: jax.vmap(lambda own, ids: own[ids])(leaf, parents), state)
    phi = _before(state, (tokens == state.last)[..., None])[:, :, 0]
    over_time = tuple(jnp.moveaxis(x, -1, 0) for x in (phi, _rows(log_p, tokens), log_p[:, BLANK]))

    def frame(carry: tuple[jax.Array, jax.Array], of: tuple[jax.Array, ...]) -> tuple[tuple, tuple]:
        (in_token, in_blank), (before, token, blank) = carry, of
        now = (jnp.logaddexp(in_token, before) + token, jnp.logaddexp(in_token, in_blank) + blank[:, None])
        return now, now

    nothing = jnp.full(tokens.shape, LOG_ZERO)
    _, (in_token, in_blank) = jax.lax.scan(frame, (nothing, nothing), over_time)
    return PrefixState(jnp.moveaxis(in_token, 0, -1), jnp.moveaxis(in_blank, 0, -1), tokens)

"""CTC forced alignment: the most probable path of given tokens, by Viterbi, compiled, in batches.

The states of a row are its tokens with a blank before, between and after them. From one frame to the next a path stays,
goes to the next state, or leaves out a blank between two different tokens.
"""

import jax
import jax.numpy as jnp

from i3d_jax.inference.decoding import BLANK
from i3d_jax.types import Array


@jax.jit
def align(log_probs: Array, mask: Array, tokens: Array, num_tokens: Array) -> tuple[jax.Array, jax.Array]:
    """The most probable CTC path of each row's tokens.

    Args:
      log_probs: [B, T, V] natural logs of probabilities, or any scores; id 0 is the blank.
      mask: [B, T] bool, True = valid frame; a row's valid frames come first. Others are blank, whatever they hold.
      tokens: [B, U] int32 ids other than 0; what lies beyond ``num_tokens`` is ignored.
      num_tokens: [B].

    Returns:
      path: [B, T] int32: ``merge_repeats`` gives the tokens back. All blank for a row that cannot be aligned, because
        its frames are fewer than its tokens, and the blanks that separate equal ones, or have probabilities of 0.
      score: [B] float32, sum of the log probabilities along the path; -inf where there is none.
    """
    return jax.vmap(_align)(*map(jnp.asarray, (log_probs, mask, tokens, num_tokens)))


def path_log_probs(log_probs: Array, path: Array) -> jax.Array:
    """Log probabilities [B, T] of the tokens of a path [B, T] under ``log_probs`` [B, T, V]."""
    return jnp.take_along_axis(jnp.asarray(log_probs), jnp.asarray(path)[:, :, None], axis=2)[:, :, 0]


def _align(
    log_probs: jax.Array, mask: jax.Array, tokens: jax.Array, num_tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
    states = 2 * tokens.shape[0] + 1
    labels = jnp.full(states, BLANK, jnp.int32).at[1::2].set(tokens.astype(jnp.int32))
    index = jnp.arange(states)
    scores = jnp.where(mask[:, None], log_probs[:, labels].astype(jnp.float32), -jnp.inf)
    before = jnp.pad(labels[:-2], (2, 0), constant_values=BLANK) if states > 1 else labels
    skips = (index >= 2) & (labels != BLANK) & (labels != before)
    # A path begins in state 0 or 1: before the first frame it is in state 0, from where it may go to both.
    start = jnp.where(index == 0, 0.0, -jnp.inf)

    def shifted(best: jax.Array, by: int) -> jax.Array:
        return jnp.concatenate([jnp.full(by, -jnp.inf), best])[:states]

    def step(best: jax.Array, frame: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        score, valid = frame
        arrived = jnp.stack([best, shifted(best, 1), jnp.where(skips, shifted(best, 2), -jnp.inf)])
        came = jnp.where(valid, jnp.argmax(arrived, axis=0), 0).astype(jnp.int8)
        return jnp.where(valid, jnp.max(arrived, axis=0) + score, best), came

    best, came = jax.lax.scan(step, start, (scores, mask))
    last = 2 * num_tokens  # the blank after the last token
    token_end = jnp.where(num_tokens > 0, best[jnp.maximum(last - 1, 0)], -jnp.inf)
    score = jnp.maximum(best[last], token_end)
    state = jnp.where(token_end > best[last], last - 1, last)

    def back(state: jax.Array, frame: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        came, valid = frame
        return state - came[state], jnp.where(valid, labels[state], BLANK)

    _, path = jax.lax.scan(back, state, (came, mask), reverse=True)
    return jnp.where(score > -jnp.inf, path, BLANK), score

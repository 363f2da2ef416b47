"""Greedy CTC decoding."""

import jax
import jax.numpy as jnp

BLANK = 0


def frame_path(logits: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The best CTC path before repeats are merged, and how clearly it says blank.

    Args:
      logits: [B, T, V] CTC scores, normalised or not; id 0 is the blank.
      mask: [B, T] bool, True = valid frame; other frames are blank, with a margin of 0, whatever their logits hold.

    Returns:
      path: [B, T] int32, the best token of every frame.
      blank_margin: [B, T] float32, score of the blank minus the best other score, in nats: negative where the path
        holds a token.
    """
    path = jnp.where(mask, jnp.argmax(logits, axis=-1), BLANK).astype(jnp.int32)
    margin = logits[..., BLANK] - jnp.max(logits[..., BLANK + 1 :], axis=-1)
    return path, jnp.where(mask, margin, 0.0).astype(jnp.float32)


def greedy_decode(logits: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The best CTC path: argmax of every frame, repeats merged, blanks dropped.

    Args:
      logits: [B, T, V] CTC scores, normalised or not; id 0 is the blank.
      mask: [B, T] bool, True = valid frame; other frames count as blank whatever their logits hold.

    Returns:
      tokens: [B, T] int32, padded with 0 on the right.
      num_tokens: [B] int32.
    """
    return merge_repeats(frame_path(logits, mask)[0])


def merge_repeats(path: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tokens [B, T] and their numbers [B], as of `greedy_decode`, of a path [B, T]: repeats merged, blanks dropped."""
    previous = jnp.pad(path[:, :-1], ((0, 0), (1, 0)), constant_values=BLANK)
    return compact(path, (path != BLANK) & (path != previous))


def compact(path: jax.Array, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The frames [B, T] of a path that are kept, moved to the left and padded with 0, and their numbers [B]."""
    # Kept frames move to the position of their rank; the others are sent out of range, where a scatter drops them.
    position = jnp.where(keep, jnp.cumsum(keep, axis=1) - 1, path.shape[1])
    rows = jnp.arange(path.shape[0])[:, None]
    tokens = jnp.zeros_like(path).at[rows, position].set(path, mode="drop")
    return tokens, jnp.sum(keep, axis=1, dtype=jnp.int32)

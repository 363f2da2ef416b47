"""Greedy CTC decoding."""

import jax
import jax.numpy as jnp

BLANK = 0


def greedy_decode(logits: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The best CTC path: argmax of every frame, repeats merged, blanks dropped.

    Args:
      logits: [B, T, V] CTC scores, normalised or not; id 0 is the blank.
      mask: [B, T] bool, True = valid frame; other frames count as blank whatever their logits hold.

    Returns:
      tokens: [B, T] int32, padded with 0 on the right.
      num_tokens: [B] int32.
    """
    path = jnp.where(mask, jnp.argmax(logits, axis=-1), BLANK).astype(jnp.int32)
    previous = jnp.pad(path[:, :-1], ((0, 0), (1, 0)), constant_values=BLANK)
    keep = (path != BLANK) & (path != previous)
    # Kept frames move to the position of their rank; the others are sent out of range, where a scatter drops them.
    position = jnp.where(keep, jnp.cumsum(keep, axis=1) - 1, path.shape[1])
    rows = jnp.arange(path.shape[0])[:, None]
    tokens = jnp.zeros_like(path).at[rows, position].set(path, mode="drop")
    return tokens, jnp.sum(keep, axis=1, dtype=jnp.int32)

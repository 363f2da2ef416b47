"""Scaled dot-product attention whose weights [B, H, T, T] are never kept for the gradient.

::

    s = q k' / sqrt(d);  e = exp(s - max s);  z = sum of e;  o = (e v) / z          forward: o and log z are kept
    w = exp(s - log z);  ds = w * (do v' - sum of do * o)                           backward: w is computed again

Dividing the result instead of the weights saves a pass over them, and computing them again costs less than writing and
reading them. On a CPU the heads go one after the other: what one head touches stays in the cache, and its products
read queries, keys and values where they lie. Accelerators take all heads in one product; which of the two it is, is
decided when a program is lowered for its platform.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from i3d_jax.model.precision import Precision, product


class Kept(NamedTuple):
    """Dropout of attention weights.

    Attributes:
      mask: [B, H, T, T] bool, the weights that stay.
      scale: float32 scalar that makes up for the others.
    """

    mask: jax.Array
    scale: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attend(qkv: jax.Array, mask: jax.Array, kept: Kept | None, num_heads: int, precision: Precision) -> jax.Array:
    """Attention of every frame to the valid frames of its utterance.

    Args:
      qkv: [B, T, 3 D], queries, keys and values, each with its heads side by side.
      mask: [B, T] bool, frames that may be attended to; a row without any attends to all frames alike.
      kept: dropout, or None.
      num_heads: H, a divisor of D.
      precision: of the products.

    Returns:
      [B, T, D] in the type of ``qkv``.
    """
    return _forward(qkv, mask, kept, num_heads, precision)[0]


def _forward(qkv: jax.Array, mask: jax.Array, kept: Kept | None, num_heads: int, precision: Precision) -> Any:
    by_head, together = (partial(f, num_heads, precision) for f in (_forward_by_head, _forward_together))
    y, log_sums = jax.lax.platform_dependent(qkv, mask, kept, cpu=by_head, default=together)
    return y, (qkv, mask, kept, y, log_sums)


def _backward(num_heads: int, precision: Precision, saved: Any, dy: jax.Array) -> tuple[jax.Array, None, None]:
    by_head, together = (partial(f, num_heads, precision) for f in (_backward_by_head, _backward_together))
    return jax.lax.platform_dependent(*saved, dy, cpu=by_head, default=together), None, None


attend.defvjp(_forward, _backward)


def _scores(q: jax.Array, k: jax.Array, mask: jax.Array, precision: Precision) -> jax.Array:
    """[B, (H,) T, d] twice and mask [B, (1,) 1, T] to scores [B, (H,) T, T] float32."""
    heads = "h" * (q.ndim - 3)
    scores = product(f"b{heads}qd,b{heads}kd->b{heads}qk", q * (1 / math.sqrt(q.shape[-1])), k, precision)
    return jnp.where(mask, scores, jnp.finfo(jnp.float32).min)


def _attend(
    precision: Precision, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, kept: Kept | None
) -> tuple[jax.Array, jax.Array]:
    """Result [B, (H,) T, d] and log z [B, (H,) T], float32."""
    heads = "h" * (q.ndim - 3)
    scores = _scores(q, k, mask, precision)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if kept is not None:
        weights = jnp.where(kept.mask, weights, 0)
    y = product(f"b{heads}qk,b{heads}kd->b{heads}qd", weights.astype(q.dtype), v, precision)
    return y * ((1 if kept is None else kept.scale) / total), (largest + jnp.log(total))[..., 0]


def _gradient(
    precision: Precision,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    kept: Kept | None,
    y: jax.Array,
    log_sums: jax.Array,
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v [B, (H,) T, d], float32; y and dy have that shape too."""
    h = "h" * (q.ndim - 3)
    weights = jnp.exp(_scores(q, k, mask, precision) - log_sums[..., None])
    d_weights = product(f"b{h}qd,b{h}kd->b{h}qk", dy, v, precision)
    dropped = weights
    if kept is not None:
        d_weights = jnp.where(kept.mask, d_weights * kept.scale, 0)
        dropped = jnp.where(kept.mask, weights * kept.scale, 0)
    mean = jnp.sum(dy.astype(jnp.float32) * y.astype(jnp.float32), axis=-1, keepdims=True)
    d_scores = (weights * (d_weights - mean) * (1 / math.sqrt(q.shape[-1]))).astype(q.dtype)
    return (
        product(f"b{h}qk,b{h}kd->b{h}qd", d_scores, k, precision),
        product(f"b{h}qk,b{h}qd->b{h}kd", d_scores, q, precision),
        product(f"b{h}qk,b{h}qd->b{h}kd", dropped.astype(q.dtype), dy, precision),
    )


def _of_head(kept: Kept | None, head: int) -> Kept | None:
    return None if kept is None else Kept(kept.mask[:, head], kept.scale)


def _forward_by_head(
    num_heads: int, precision: Precision, qkv: jax.Array, mask: jax.Array, kept: Kept | None
) -> tuple[jax.Array, jax.Array]:
    parts = jnp.split(qkv, 3 * num_heads, axis=-1)
    done = []
    for head in range(num_heads):
        q, k, v = parts[head::num_heads]
        done.append(_attend(precision, q, k, v, mask[:, None], _of_head(kept, head)))
    return jnp.concatenate([y for y, _ in done], axis=-1).astype(qkv.dtype), jnp.stack([z for _, z in done], axis=1)


def _backward_by_head(
    num_heads: int,
    precision: Precision,
    qkv: jax.Array,
    mask: jax.Array,
    kept: Kept | None,
    y: jax.Array,
    log_sums: jax.Array,
    dy: jax.Array,
) -> jax.Array:
    parts = jnp.split(qkv, 3 * num_heads, axis=-1)
    ys, dys = (jnp.split(x, num_heads, axis=-1) for x in (y, dy))
    gradients = []
    for head in range(num_heads):
        q, k, v = parts[head::num_heads]
        own = _of_head(kept, head)
        gradients.append(_gradient(precision, q, k, v, mask[:, None], own, ys[head], log_sums[:, head], dys[head]))
    return jnp.concatenate([of[part] for part in range(3) for of in gradients], axis=-1).astype(qkv.dtype)


def _apart(x: jax.Array, num_heads: int) -> jax.Array:
    """[B, T, H d] to [B, H, T, d]."""
    return jnp.swapaxes(x.reshape(*x.shape[:2], num_heads, -1), 1, 2)


def _joined(x: jax.Array) -> jax.Array:
    """[B, H, T, d] to [B, T, H d]."""
    return jnp.swapaxes(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)


def _forward_together(
    num_heads: int, precision: Precision, qkv: jax.Array, mask: jax.Array, kept: Kept | None
) -> tuple[jax.Array, jax.Array]:
    q, k, v = (_apart(x, num_heads) for x in jnp.split(qkv, 3, axis=-1))
    y, log_sums = _attend(precision, q, k, v, mask[:, None, None], kept)
    return _joined(y).astype(qkv.dtype), log_sums


def _backward_together(
    num_heads: int,
    precision: Precision,
    qkv: jax.Array,
    mask: jax.Array,
    kept: Kept | None,
    y: jax.Array,
    log_sums: jax.Array,
    dy: jax.Array,
) -> jax.Array:
    q, k, v = (_apart(x, num_heads) for x in jnp.split(qkv, 3, axis=-1))
    y, dy = _apart(y, num_heads), _apart(dy, num_heads)
    gradients = _gradient(precision, q, k, v, mask[:, None, None], kept, y, log_sums, dy)
    return jnp.concatenate([_joined(x) for x in gradients], axis=-1).astype(qkv.dtype)

"""Scaled dot-product attention whose weights [B, H, T, T] are never kept for the gradient.

::

    s = q k' / sqrt(d);  e = exp(s - max s);  z = sum of e;  o = (e v) / z          forward: o and log z are kept
    w = exp(s - log z);  ds = w * (do v' - sum of do * o)                           backward: w is computed again

Dividing the result instead of the weights saves a pass over them, and computing them again costs less than writing and
reading them. All operands are [B, H, T, d], so that no product has to turn the weights round, as it does where values
stay [B, T, H, d]. Without a gradient, a CPU takes one head after the other: the weights of one stay in its cache.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from i3d_jax.model.precision import DENSE, Precision, product


class Kept(NamedTuple):
    """Dropout of an array.

    Attributes:
      mask: bool, of its shape: the elements that stay.
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
      kept: dropout of the weights [B, H, T, T], or None.
      num_heads: H, a divisor of D.
      precision: of the products.

    Returns:
      [B, T, D] in the type of ``qkv``.
    """

    def together(qkv: jax.Array, mask: jax.Array, kept: Kept | None) -> jax.Array:
        return _attend(qkv, mask, kept, num_heads, precision)[0]

    def head_by_head(qkv: jax.Array, mask: jax.Array, kept: Kept | None) -> jax.Array:
        parts = jnp.split(qkv, 3 * num_heads, axis=-1)
        heads = []
        for head in range(num_heads):
            own = None if kept is None else kept._replace(mask=kept.mask[:, head, None])
            heads.append(_attend(jnp.concatenate(parts[head::num_heads], axis=-1), mask, own, 1, precision)[0])
        return jnp.concatenate(heads, axis=-1)

    return jax.lax.platform_dependent(qkv, mask, kept, cpu=head_by_head, default=together)


def _forward(qkv: jax.Array, mask: jax.Array, kept: Kept | None, num_heads: int, precision: Precision) -> Any:
    y, log_sums = _attend(qkv, mask, kept, num_heads, precision)
    # Named as what dense layers return is: rematerialisation that keeps those keeps these, which are no larger.
    y, log_sums = checkpoint_name(y, DENSE), checkpoint_name(log_sums, DENSE)
    return y, (qkv, mask, kept, y, log_sums)


def _attend(
    qkv: jax.Array, mask: jax.Array, kept: Kept | None, num_heads: int, precision: Precision
) -> tuple[jax.Array, jax.Array]:
    """The result [B, T, D] and log z [B, H, T, 1]."""
    q, k, v = (_apart(x, num_heads) for x in jnp.split(qkv, 3, axis=-1))
    scores = _scores(q, k, mask, precision)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if kept is not None:
        weights = jnp.where(kept.mask, weights, 0)
    y = product("bhqk,bhkd->bhqd", weights.astype(qkv.dtype), v, precision)
    y = _joined(y * ((1 if kept is None else kept.scale) / total)).astype(qkv.dtype)
    return y, largest + jnp.log(total)


def _backward(num_heads: int, precision: Precision, saved: Any, dy: jax.Array) -> tuple[jax.Array, None, None]:
    qkv, mask, kept, y, log_sums = saved
    q, k, v = (_apart(x, num_heads) for x in jnp.split(qkv, 3, axis=-1))
    y, dy = _apart(y, num_heads), _apart(dy, num_heads)
    weights = jnp.exp(_scores(q, k, mask, precision) - log_sums)
    d_weights = product("bhqd,bhkd->bhqk", dy, v, precision)
    dropped = weights
    if kept is not None:
        d_weights = jnp.where(kept.mask, d_weights * kept.scale, 0)
        dropped = jnp.where(kept.mask, weights * kept.scale, 0)
    mean = jnp.sum(dy.astype(jnp.float32) * y.astype(jnp.float32), axis=-1, keepdims=True)
    d_scores = (weights * (d_weights - mean) * (1 / math.sqrt(q.shape[-1]))).astype(q.dtype)
    gradients = (
        product("bhqk,bhkd->bhqd", d_scores, k, precision),
        product("bhqk,bhqd->bhkd", d_scores, q, precision),
        product("bhqk,bhqd->bhkd", dropped.astype(q.dtype), dy, precision),
    )
    return jnp.concatenate([_joined(x) for x in gradients], axis=-1).astype(qkv.dtype), None, None


attend.defvjp(_forward, _backward)


def attend_over(
    q: jax.Array, kv: jax.Array, mask: jax.Array, kept: Kept | None, num_heads: int, precision: Precision
) -> jax.Array:
    """Attention of queries to other positions, or to some of their own, as decoders need it; weights are float32.

    Args:
      q: [B, Q, D] queries, heads side by side.
      kv: [B, S, 2 D] keys, then values.
      mask: [B or 1, Q or 1, S] bool, what may be attended to; a row without any attends to all alike.
      kept: dropout of the weights [B, H, Q, S], or None.
      num_heads: H.
      precision: of the products.

    Returns:
      [B, Q, D] in the type of ``q``.
    """
    heads, (keys, values) = _apart(q, num_heads), (_apart(x, num_heads) for x in jnp.split(kv, 2, axis=-1))
    scores = product("bhqd,bhsd->bhqs", heads * (1 / math.sqrt(heads.shape[-1])), keys, precision)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min), axis=-1)
    if kept is not None:
        weights = jnp.where(kept.mask, weights * kept.scale, 0)
    return _joined(product("bhqs,bhsd->bhqd", weights.astype(q.dtype), values, precision)).astype(q.dtype)


def _scores(q: jax.Array, k: jax.Array, mask: jax.Array, precision: Precision) -> jax.Array:
    """[B, H, T, d] twice and mask [B, T] to scores [B, H, T, T] float32."""
    scores = product("bhqd,bhkd->bhqk", q * (1 / math.sqrt(q.shape[-1])), k, precision)
    return jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)


def _apart(x: jax.Array, num_heads: int) -> jax.Array:
    """[B, T, H d] to [B, H, T, d]."""
    return jnp.swapaxes(x.reshape(*x.shape[:2], num_heads, -1), 1, 2)


def _joined(x: jax.Array) -> jax.Array:
    """[B, H, T, d] to [B, T, H d]."""
    return jnp.swapaxes(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)

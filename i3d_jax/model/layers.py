"""Flax modules: the branches of a Transformer layer, the gate predictor, the CTC head.

A *branch* is what a gate decides about: a residual-free function ``(x [B, T, D], context, dropout_keys [B])`` to
[B, T, D] with its layer norm inside. A layer is an ordered tuple of named branches; nothing here adds a residual.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from i3d_jax.model.attention import Kept, attend
from i3d_jax.model.precision import Dense, Precision


class Context(NamedTuple):
    """What a branch sees beside ``x``; every leaf has a leading batch axis, so that sub-batches can be taken.

    Attributes:
      mask: [B, T] bool, True for valid frames.
    """

    mask: jax.Array


class Branch(NamedTuple):
    """A named branch module."""

    name: str
    module: nn.Module


def _mean(x: jax.Array) -> jax.Array:
    """Mean of the last axis, [..., D] -> [..., 1]; on a CPU as a product, in which XLA is faster than in its sums."""
    ones = np.full((x.shape[-1], 1), 1 / x.shape[-1], np.float32)

    def product(x: jax.Array) -> jax.Array:
        return jnp.matmul(x.reshape(-1, x.shape[-1]), ones).reshape(*x.shape[:-1], 1)

    return jax.lax.platform_dependent(x, cpu=product, default=lambda x: jnp.mean(x, axis=-1, keepdims=True))


class LayerNorm(nn.Module):
    """ESPnet's layer norm (epsilon 1e-12), with the two-pass variance that such an epsilon needs, in float32.

    Parameters ``scale`` and ``bias`` [D]; the result has the type of ``precision``.
    """

    precision: Precision

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        centred = x - _mean(x)
        steep = jax.lax.rsqrt(_mean(jnp.square(centred)) + 1e-12)
        shape = (1,) * (x.ndim - 1) + (-1,)
        return (centred * steep * scale.reshape(shape) + bias.reshape(shape)).astype(self.precision)


def layer_norm(name: str, precision: Precision) -> LayerNorm:
    """`LayerNorm` by the name of its parameters."""
    return LayerNorm(precision, name=name)


def keep(rate: float, shape: tuple[int, ...], keys: jax.Array | None) -> Kept | None:
    """What dropout keeps of an array of shape [B, ..., K], from 8 random bits an element; None without dropout.

    ``keys`` is [B], one for each row, or None: what a row loses does not depend on the rows beside it, so neither on
    how batches are split.

    Counter-based random bits are a large share of a training step on CPU, and 32 bits an element are not needed: the
    rate is rounded to a multiple of 1/256 and the kept elements are scaled by that very rate.
    """
    dropped = min(round(rate * 256), 255)
    if keys is None or dropped == 0:
        return None
    words = -(-shape[-1] // 4)
    bits = jax.vmap(lambda key: jax.random.bits(key, (*shape[1:-1], words), jnp.uint32))(keys)
    octets = jax.lax.bitcast_convert_type(bits, jnp.uint8).reshape(*shape[:-1], words * 4)[..., : shape[-1]]
    return Kept(octets >= dropped, jnp.float32(256 / (256 - dropped)))


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Dropout of x [B, ..., D], see `keep`."""
    kept = keep(rate, x.shape, keys)
    return x if kept is None else jnp.where(kept.mask, x * kept.scale.astype(x.dtype), 0)


xavier = nn.initializers.xavier_uniform()
"""Initialiser of every kernel, as ESPnet's."""


def side_by_side(count: int) -> Callable[..., jax.Array]:
    """Initialiser of a kernel that is several, such as queries, keys and values, each drawn as a matrix of its own."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        keys = jax.random.split(key, count)
        return jnp.concatenate([xavier(k, (shape[0], shape[1] // count), dtype) for k in keys], axis=1)

    return init


def split_keys(keys: jax.Array | None, num: int) -> list[jax.Array | None]:
    """``num`` independent arrays of keys [B] from one, or ``num`` times None."""
    if keys is None:
        return [None] * num
    return list(jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, num))(keys), 1, 0))


class SelfAttention(nn.Module):
    """Pre-norm multi-head self-attention; queries, keys and values are one matrix."""

    num_heads: int
    dropout: float
    attention_dropout: float
    precision: Precision = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, context: Context, dropout_keys: jax.Array | None = None) -> jax.Array:
        """[B, T, D] -> [B, T, D]; frames outside ``context.mask`` are not attended to."""
        batch, frames, width = x.shape
        weights_keys, output_keys = split_keys(dropout_keys, 2)
        x = layer_norm("norm", self.precision)(x)
        qkv = Dense(3 * width, self.precision, side_by_side(3), name="qkv")(x)
        kept = keep(self.attention_dropout, (batch, self.num_heads, frames, frames), weights_keys)
        x = attend(qkv, context.mask, kept, self.num_heads, self.precision)
        return dropout(Dense(width, self.precision, xavier, name="output")(x), self.dropout, output_keys)


class FeedForward(nn.Module):
    """Pre-norm feed-forward block with ReLU."""

    hidden_dim: int
    dropout: float
    precision: Precision = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, context: Context, dropout_keys: jax.Array | None = None) -> jax.Array:
        """[B, T, D] -> [B, T, D], frame by frame."""
        hidden_keys, output_keys = split_keys(dropout_keys, 2)
        width = x.shape[-1]
        x = layer_norm("norm", self.precision)(x)
        x = nn.relu(Dense(self.hidden_dim, self.precision, xavier, name="hidden")(x))
        x = dropout(x, self.dropout, hidden_keys)
        return dropout(Dense(width, self.precision, xavier, name="output")(x), self.dropout, output_keys)


class GatePredictor(nn.Module):
    """MLP with one hidden layer on the time-average of a sequence (paper, Eqs. 9 and 12).

    The last kernel starts at zero and the bias of *execute* at ``initial_logit``: whatever the input, a new predictor
    opens every gate with the same probability, so a warm-started model starts as the dense one. All of it is float32.
    """

    num_gates: int
    hidden_dim: int
    initial_logit: float
    normalize_input: bool

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [B, T, D], mask [B, T] -> float32 logits [B, num_gates, 2], entry 1 being *execute*."""
        count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
        mean = jnp.sum(jnp.where(mask[..., None], x, 0).astype(jnp.float32), axis=1) / count
        if self.normalize_input:
            mean = nn.LayerNorm(use_bias=False, use_scale=False, use_fast_variance=False)(mean)
        hidden = nn.relu(nn.Dense(self.hidden_dim, name="hidden")(mean))

        def bias(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
            return jnp.tile(jnp.array([0.0, self.initial_logit], dtype), shape[0] // 2)

        logits = nn.Dense(2 * self.num_gates, kernel_init=nn.initializers.zeros, bias_init=bias, name="logits")(hidden)
        return logits.reshape(-1, self.num_gates, 2)


class CTCHead(nn.Module):
    """The encoder's final layer norm and the projection to the vocabulary."""

    vocab_size: int
    precision: Precision = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> float32 logits [B, T, V]."""
        x = layer_norm("norm", self.precision)(x)
        return Dense(self.vocab_size, self.precision, xavier, "float32", name="projection")(x)


class SelfConditioning(nn.Module):
    """What the predictions of an intermediate CTC head add to the states (arXiv 2104.02724, Eq. 8): W p + b."""

    d_model: int
    precision: Precision = "float32"

    @nn.compact
    def __call__(self, logits: jax.Array) -> jax.Array:
        """CTC logits [B, T, V] -> [B, T, D]."""
        posteriors = nn.softmax(logits.astype(jnp.float32)).astype(self.precision)
        return Dense(self.d_model, self.precision, xavier, name="posteriors")(posteriors)


def sinusoidal_positions(frames: int, width: int) -> np.ndarray:
    """Absolute sinusoidal position embedding (ESPnet's ``PositionalEncoding``): [T, D] float32."""
    angles = np.arange(frames)[:, None] * np.exp(np.arange(0, width, 2) * -(math.log(10000.0) / width))
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(frames, -1)[:, :width].astype(np.float32)

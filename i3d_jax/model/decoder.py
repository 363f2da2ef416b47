"""The attention decoder: a standard, ungated Transformer that reads the encoder's normalised states.

::

    x = embedding[tokens] * sqrt(D) + positions
    for each layer:   x += SelfAttention(x)   over the tokens so far
                      x += CrossAttention(x, states)
                      x += FFN(x)                                         each with its norm inside
    logits = output(norm(x))

as ESPnet's ``TransformerDecoder``. Parameters are stacked over layers and scanned. There are two passes over the same
parameters: `Decoder.apply` sees a whole transcript at once (training), `Decoder.step` one token of each hypothesis,
with the keys and values of those before it kept in a `Cache` of static shape.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from i3d_jax.model.attention import attend_over
from i3d_jax.model.encoder import KEPT, Params, Remat
from i3d_jax.model.gates import fold_in
from i3d_jax.model.layers import (
    Context,
    FeedForward,
    LayerNorm,
    dropout,
    keep,
    side_by_side,
    sinusoidal_positions,
    split_keys,
    xavier,
)
from i3d_jax.model.precision import Dense, Precision


@dataclass(frozen=True)
class DecoderConfig:
    """Pre-norm Transformer decoder, as wide as the encoder; never gated."""

    num_layers: int = 0
    """Layers; 0: none, a CTC model."""
    num_heads: int = 4
    """Heads of self- and cross-attention."""
    ffn_dim: int = 2048
    """Width of the feed-forward blocks."""
    dropout: float = 0.1
    """Dropout on block outputs and inside the feed-forward blocks."""
    attention_dropout: float = 0.1
    """Dropout on the weights of self- and cross-attention."""
    positional_dropout: float = 0.1
    """Dropout on the decoder input, after adding positions."""
    embedding_std: float = 1.0
    """Standard deviation of new token embeddings, before they are multiplied by sqrt(D): ESPnet's is 1. Then a token
    weighs sqrt(2 D) times as much as its position, and blocks have to grow as large; a small corpus wants less."""


class Cache(NamedTuple):
    """What a hypothesis has seen, so that a step computes one token only.

    Attributes:
      own: [layers, B, K, L, 2 D], keys and values of the tokens of K hypotheses of each utterance, L at most.
      states: [layers, B, T, 2 D], keys and values of the encoder states, the same for all hypotheses.
      mask: [B, T] bool, valid encoder frames.
    """

    own: jax.Array
    states: jax.Array
    mask: jax.Array


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward block, each pre-norm and with a residual.

    Attributes:
      config: static.
      d_model: width D.
      precision: of the products.
    """

    config: DecoderConfig
    d_model: int
    precision: Precision

    def setup(self) -> None:
        """Parameters ``own_norm``, ``qkv``, ``own_output``, ``cross_norm``, ``query``, ``kv``, ``cross_output``,
        ``ffn``.
        """
        width, precision = self.d_model, self.precision
        self.own_norm, self.cross_norm = LayerNorm(precision), LayerNorm(precision)
        self.qkv = Dense(3 * width, precision, side_by_side(3))
        self.query = Dense(width, precision, xavier)
        self.kv = Dense(2 * width, precision, side_by_side(2))
        self.own_output, self.cross_output = Dense(width, precision, xavier), Dense(width, precision, xavier)
        self.ffn = FeedForward(self.config.ffn_dim, self.config.dropout, precision)

    def states(self, states: jax.Array) -> jax.Array:
        """Keys and values [B, T, 2 D] of encoder states [B, T, D]."""
        return self.kv(states)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Queries [B, U, D], and keys with values [B, U, 2 D], of the layer's input [B, U, D]."""
        qkv = self.qkv(self.own_norm(x))
        return qkv[..., : self.d_model], qkv[..., self.d_model :]

    def rest(
        self,
        x: jax.Array,
        own: jax.Array,
        states: jax.Array,
        mask: jax.Array,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """What follows self-attention.

        Args:
          x: [B, U, D], the layer's input.
          own: [B, U, D], result of self-attention before its output map.
          states: [B, T, 2 D], see `states`.
          mask: [B, T], valid encoder frames.
          dropout_keys: [B]; None switches dropout off.

        Returns:
          [B, U, D], the layer's output.
        """
        config, heads = self.config, self.config.num_heads
        own_keys, weights_keys, cross_keys, ffn_keys = split_keys(dropout_keys, 4)
        x = x + dropout(self.own_output(own), config.dropout, own_keys)
        query = self.query(self.cross_norm(x))
        kept = keep(config.attention_dropout, (len(x), heads, x.shape[1], states.shape[1]), weights_keys)
        cross = attend_over(query, states, mask[:, None], kept, heads, self.precision)
        x = x + dropout(self.cross_output(cross), config.dropout, cross_keys)
        return x + self.ffn(x, Context(mask), ffn_keys)

    def __call__(
        self, x: jax.Array, states: jax.Array, mask: jax.Array, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """x [B, U, D] of a whole transcript and encoder states [B, T, D] with mask [B, T] to [B, U, D]."""
        weights_keys, rest_keys = split_keys(dropout_keys, 2)
        queries, own = self.project(x)
        length, heads = x.shape[1], self.config.num_heads
        kept = keep(self.config.attention_dropout, (len(x), heads, length, length), weights_keys)
        past = jnp.tril(jnp.ones((1, length, length), bool))
        attended = attend_over(queries, own, past, kept, heads, self.precision)
        return self.rest(x, attended, self.states(states), mask, rest_keys)


class Output(nn.Module):
    """The decoder's final norm and the projection to the vocabulary."""

    vocab_size: int
    precision: Precision

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> float32 logits [..., V]."""
        x = LayerNorm(self.precision, name="norm")(x)
        return Dense(self.vocab_size, self.precision, xavier, "float32", name="projection")(x)


@dataclass(frozen=True)
class Decoder:
    """The attention decoder; a value object, parameters are passed in.

    Token ids: the last one, V - 1, starts and ends every transcript.

    Attributes:
      config: of the decoder.
      d_model: width D, that of the encoder.
      vocab_size: V.
      precision: of the products.
    """

    config: DecoderConfig
    d_model: int
    vocab_size: int
    precision: Precision = "float32"

    @property
    def output(self) -> Output:
        """Final norm and projection."""
        return Output(self.vocab_size, self.precision)

    def init(self, key: jax.Array) -> Params:
        """``{"embedding" [V, D], "layers": stacked, "output"}``, float32; kernels as the encoder's."""
        embedding_key, layers_key, output_key = jax.random.split(key, 3)
        x = jnp.zeros((1, 2, self.d_model))
        mask = jnp.ones((1, 2), bool)
        keys = jax.random.split(layers_key, self.config.num_layers)
        layer = DecoderLayer(self.config, self.d_model, self.precision)
        embedding = jax.random.normal(embedding_key, (self.vocab_size, self.d_model))
        return {
            "embedding": self.config.embedding_std * embedding,
            "layers": jax.vmap(lambda k: layer.init(k, x, x, mask)["params"])(keys),
            "output": self.output.init(output_key, x)["params"],
        }

    def _layer(self, params: Params, *inputs: Any, method: str = "__call__") -> Any:
        return DecoderLayer(self.config, self.d_model, self.precision).apply({"params": params}, *inputs, method=method)

    def embed(self, params: Params, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """tokens [B, U] and position embeddings [B or 1, U or 1, D] to the decoder input [B, U, D] float32."""
        return params["embedding"][tokens] * math.sqrt(self.d_model) + positions

    def apply(
        self,
        params: Params,
        tokens: jax.Array,
        states: jax.Array,
        mask: jax.Array,
        *,
        dropout_keys: jax.Array | None = None,
        gather: Callable[[Any], Any] | None = None,
        remat: Remat = "none",
    ) -> jax.Array:
        """The next token after each token of whole transcripts, with the true ones before it (teacher forcing).

        Args:
          params: from `init`.
          tokens: [B, U + 1], the transcripts behind a leading id V - 1 (`after_start`).
          states: [B, T, D], normalised encoder states; what padded frames hold does not matter.
          mask: [B, T], valid encoder frames.
          dropout_keys: [B]; None switches dropout off.
          gather: makes parameters that are split over devices whole; called on those of one part at a time.
          remat: what of a layer is computed again for the gradient.

        Returns:
          float32 logits [B, U + 1, V].
        """
        input_keys, layer_keys = split_keys(dropout_keys, 2)
        outer = {name: params[name] for name in ("embedding", "output")}
        outer = gather(outer) if gather else outer
        states = jnp.where(mask[..., None], states, 0)
        positions = jnp.asarray(sinusoidal_positions(tokens.shape[1], self.d_model))[None]
        x = dropout(self.embed(outer, tokens, positions), self.config.positional_dropout, input_keys)

        def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, None]:
            index, own = layer
            own = gather(own) if gather else own
            keys = None if layer_keys is None else fold_in(layer_keys, index)
            return self._layer(own, x, states, mask, keys), None

        if gather or remat != "none":  # what was gathered is never kept for the gradient, but gathered again
            body = jax.checkpoint(body, prevent_cse=False, policy=KEPT[remat])
        layers = (jnp.arange(self.config.num_layers), params["layers"])
        x, _ = jax.lax.scan(body, x.astype(self.precision), layers)
        return self.output.apply({"params": outer["output"]}, x)  # type: ignore[return-value]

    def start(self, params: Params, states: jax.Array, mask: jax.Array, hypotheses: int, length: int) -> Cache:
        """An empty cache for so many hypotheses of each utterance, of at most ``length`` tokens with the leading one.

        Args:
          params: from `init`.
          states: [B, T, D], normalised encoder states.
          mask: [B, T], valid encoder frames.
          hypotheses: K.
          length: L.
        """
        states = jnp.where(mask[..., None], states, 0)

        def body(_: None, layer: Params) -> tuple[None, jax.Array]:
            return None, self._layer(layer, states, method="states")

        _, keys_values = jax.lax.scan(body, None, params["layers"])
        shape = (self.config.num_layers, len(states), hypotheses, length, 2 * self.d_model)
        return Cache(jnp.zeros(shape, self.precision), keys_values, mask)

    def step(
        self, params: Params, cache: Cache, tokens: jax.Array, position: jax.Array | int
    ) -> tuple[jax.Array, Cache]:
        """One token of each hypothesis.

        Args:
          params: from `init`.
          cache: holds the tokens before ``position``.
          tokens: [B, K], those at ``position``.
          position: 0 for the leading id V - 1; less than the length of the cache.

        Returns:
          float32 logits [B, K, V] of the next token, and the cache with these tokens.
        """
        batch, hypotheses, length = cache.own.shape[1:4]
        table = jnp.asarray(sinusoidal_positions(length, self.d_model))
        x = self.embed(params, tokens, jax.lax.dynamic_slice_in_dim(table, position, 1)[None])
        seen = (jnp.arange(length) <= position)[None, None]

        def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, jax.Array]:
            own_params, own, states = layer
            query, new = self._layer(own_params, x, method="project")
            own = jax.lax.dynamic_update_slice_in_dim(own, new[:, :, None].astype(own.dtype), position, axis=2)
            # Each hypothesis has keys of its own, and one query; the encoder's keys are the same for all K queries.
            attended = attend_over(
                query.reshape(-1, 1, self.d_model),
                own.reshape(batch * hypotheses, length, -1),
                seen,
                None,
                self.config.num_heads,
                self.precision,
            )
            x = self._layer(own_params, x, attended.reshape(x.shape), states, cache.mask, method="rest")
            return x, own

        x, own = jax.lax.scan(body, x.astype(self.precision), (params["layers"], cache.own, cache.states))
        return self.output.apply({"params": params["output"]}, x), cache._replace(own=own)  # type: ignore[return-value]


def after_start(labels: jax.Array, vocab_size: int) -> jax.Array:
    """Labels [B, U] behind a leading id V - 1: the decoder's input [B, U + 1] in training."""
    return jnp.pad(labels, ((0, 0), (1, 0)), constant_values=vocab_size - 1)


def before_end(labels: jax.Array, num_labels: jax.Array, vocab_size: int) -> tuple[jax.Array, jax.Array]:
    """What the decoder has to answer: labels [B, U] with the id V - 1 behind the last one.

    Returns:
      targets [B, U + 1] int32, and mask [B, U + 1] bool, True for labels and end.
    """
    position = jnp.arange(labels.shape[1] + 1)[None]
    targets = jnp.pad(labels, ((0, 0), (0, 1)))
    targets = jnp.where(position == num_labels[:, None], vocab_size - 1, targets)
    return targets, position <= num_labels[:, None]

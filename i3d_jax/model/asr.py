"""The recogniser: subsampling, positions, gated encoder, CTC head, and an attention decoder if there is one."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from i3d_jax.model.decoder import Decoder, DecoderConfig, after_start
from i3d_jax.model.encoder import Encoder, EncoderConfig, EncoderOutput, Execute, Params, Remat, masked
from i3d_jax.model.gates import Decision, GateConfig, fold_in
from i3d_jax.model.layers import CTCHead, LayerNorm, SelfConditioning, dropout, sinusoidal_positions, split_keys
from i3d_jax.model.precision import Precision
from i3d_jax.model.subsampling import Subsampling, SubsamplingConfig, num_subsampled_frames
from i3d_jax.types import ModelOutput


@dataclass(frozen=True)
class ModelConfig:
    """The recogniser: subsampling, gated encoder, CTC head, attention decoder."""

    subsampling: SubsamplingConfig = field(default_factory=SubsamplingConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    gates: GateConfig = field(default_factory=GateConfig)
    precision: Precision = "float32"
    """``bfloat16`` rounds activations, and the operands of matrix products, to 16 bits; parameters, sums, softmax, gate
    predictors, logits and losses stay float32."""
    self_conditioned_layers: tuple[int, ...] = ()
    """Layers (1 to N - 1, ascending) whose output is given what the CTC head predicts from it, in training and after
    (self-conditioned CTC); the same as ``loss.interctc_layers``."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


@dataclass(frozen=True)
class ASRModel:
    """Features to CTC logits; a value object, parameters are passed in.

    Attributes:
      config: of the model.
      num_mels: feature channels F.
      vocab_size: V, reserved ids included.
    """

    config: ModelConfig
    num_mels: int
    vocab_size: int

    @property
    def subsampling(self) -> Subsampling:
        """The convolutional subsampling module."""
        return Subsampling(self.config.subsampling, self.config.encoder.d_model, self.config.precision)

    @property
    def encoder(self) -> Encoder:
        """The gated encoder."""
        return Encoder(self.config.encoder, self.config.gates, self.config.precision)

    @property
    def conditioning(self) -> SelfConditioning:
        """What intermediate predictions add to the states."""
        return SelfConditioning(self.config.encoder.d_model, self.config.precision)

    @property
    def head(self) -> CTCHead:
        """Final norm and CTC projection."""
        return CTCHead(self.vocab_size, self.config.precision)

    @property
    def decoder(self) -> Decoder | None:
        """The attention decoder; None for a CTC model."""
        config = self.config.decoder
        if not config.num_layers:
            return None
        return Decoder(config, self.config.encoder.d_model, self.vocab_size, self.config.precision)

    def num_encoder_frames(self, num_frames: int) -> int:
        """Encoder frames of so many feature frames; 0 when they are too few."""
        return num_subsampled_frames(num_frames)

    def init(self, key: jax.Array) -> Params:
        """Parameters ``{"subsampling", "layers", ["predictor",] "head" [, "conditioning", "decoder"]}``; float32."""
        subsampling_key, encoder_key, head_key = jax.random.split(key, 3)
        features, mask = jnp.zeros((1, 16, self.num_mels)), jnp.ones((1, 16), bool)
        params = {
            "subsampling": self.subsampling.init(subsampling_key, features, mask)["params"],
            **self.encoder.init(encoder_key),
            "head": self.head.init(head_key, jnp.zeros((1, 1, self.config.encoder.d_model)))["params"],
        }
        if self.config.self_conditioned_layers:
            own_key, logits = jax.random.fold_in(head_key, 1), jnp.zeros((1, 1, self.vocab_size))
            params["conditioning"] = self.conditioning.init(own_key, logits)["params"]
        if self.decoder:  # a key of its own: the other parameters are those of the CTC model
            params["decoder"] = self.decoder.init(jax.random.fold_in(key, 1))
        return params

    def embed(
        self, params: Params, features: jax.Array, mask: jax.Array, dropout_keys: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Features [B, T, F] to the encoder input X^(0) [B, T', D] and its mask [B, T'].

        The subsampled frames are scaled by sqrt(D) before the positions are added, unless ``scale_input`` is off.
        """
        x, mask = self.subsampling.apply({"params": params["subsampling"]}, features, mask)  # type: ignore
        scale = math.sqrt(x.shape[-1]) if self.config.encoder.scale_input else 1.0
        x = x * scale + sinusoidal_positions(x.shape[1], x.shape[2])[None]
        x = dropout(x, self.config.encoder.positional_dropout, dropout_keys)
        return x.astype(self.config.precision), mask

    def project(self, params: Params, x: jax.Array) -> jax.Array:
        """Encoder states [B, T, D] to CTC logits [B, T, V]."""
        return self.head.apply({"params": params["head"]}, x)  # type: ignore[return-value]

    def condition(self, params: Params, x: jax.Array) -> jax.Array:
        """Encoder states [B, T, D] of a self-conditioned layer with what the CTC head predicts from them."""
        logits = self.project(params, x)
        added = self.conditioning.apply({"params": params["conditioning"]}, logits)
        return (x + jnp.asarray(added)).astype(x.dtype)

    def encode(
        self, params: Params, x: jax.Array, mask: jax.Array, decide: Decision, taps: tuple[int, ...] = (), **how: Any
    ) -> EncoderOutput:
        """Encoder input [B, T, D] with mask [B, T] to states, gates, and states at taps before they are conditioned.

        Args:
          params: from ``init``.
          x: from ``embed``.
          mask: valid encoder frames.
          decide: a decision of ``model.gates``.
          taps: of a self-conditioned model its own whatever they are.
          how: see ``Encoder.apply``.
        """
        own = self.config.self_conditioned_layers
        after_tap = partial(self.condition, params) if own else None
        return self.encoder.apply(params, x, mask, decide, taps=own or taps, after_tap=after_tap, **how)

    def normalise(self, params: Params, x: jax.Array) -> jax.Array:
        """Encoder states [B, T, D] through the final norm, which CTC head and decoder share: [B, T, D]."""
        return LayerNorm(self.config.precision).apply({"params": params["head"]["norm"]}, x)  # type: ignore[return-value]

    def apply(
        self,
        params: Params,
        features: jax.Array,
        mask: jax.Array,
        decide: Decision,
        *,
        execute: Execute = masked,
        gate_keys: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
        taps: tuple[int, ...] = (),
        labels: jax.Array | None = None,
        gather: Callable[[Any], Any] | None = None,
        remat: Remat = "none",
    ) -> ModelOutput:
        """Features [B, T, F] with mask [B, T] to logits, gates and gate probabilities.

        Args:
          params: from ``init``.
          features: normalised log-mel features.
          mask: valid feature frames.
          decide: a decision of ``model.gates``.
          execute: ``masked``, ``conditional`` or ``compacted``.
          gate_keys: [B], of random decisions.
          dropout_keys: [B]; None switches dropout off.
          taps: numbers of layers whose outputs go through the CTC head too (InterCTC, arXiv 2102.03216).
          labels: [B, U], for the decoder, which does not run without them.
          gather: makes parameters that are split over devices whole; called on those of one part at a time.
          remat: what is computed again for the gradient.
        """
        embed_keys, encoder_keys = split_keys(dropout_keys, 2)
        if gather:
            outside = params.keys() - {"layers", "predictor"}
            params = params | {part: gather(params[part]) for part in outside}
        embed = jax.checkpoint(self.embed) if remat == "full" else self.embed
        x, mask = embed(params, features, mask, embed_keys)
        encoded = self.encode(
            params,
            x,
            mask,
            decide,
            taps,
            execute=execute,
            gate_keys=gate_keys,
            dropout_keys=encoder_keys,
            gather=gather,
            remat=remat,
        )
        intermediate = tuple(self.project(params, tapped) for tapped in encoded.taps)
        logits = self.project(params, encoded.x)
        decoded = None
        if self.decoder and labels is not None:
            decoded = self.decoder.apply(
                params["decoder"],
                after_start(labels, self.vocab_size),
                self.normalise(params, encoded.x),
                mask,
                dropout_keys=None if dropout_keys is None else fold_in(dropout_keys, 2),
                gather=gather,
                remat=remat,
            )
        return ModelOutput(logits, mask, encoded.gates, encoded.probabilities, intermediate, decoded, encoded.x)

"""Types shared by every part of the package.

Axis legend, used in every docstring:

====  =======================================================
B     utterances of a batch (rows, filler rows included)
S     waveform samples
T     frames (feature frames, or encoder frames after subsampling)
F     mel channels
D     encoder width (d_model)
N     encoder layers
M     gated branches of a layer (2 for a Transformer: ``mha``, ``ffn``)
V     vocabulary, reserved ids included
U     labels of a transcript
====  =======================================================

Lengths are used at the interfaces and on disk, boolean masks (True = valid) inside the model.
"""

from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray


class Batch(NamedTuple):
    """One batch of utterances, padded to the static shape of its bucket.

    Attributes:
      waveform: [B, S] float32 in [-1, 1]; samples beyond ``num_samples`` are ignored whatever they hold.
      num_samples: [B] int32, valid samples of each row.
      labels: [B, U] int32 token ids, padded on the right with 0.
      num_labels: [B] int32.
      valid: [B] bool, False for filler rows (masked out of every loss and metric).
      augment_seed: [B] uint32, a hash of (seed, epoch, utterance): the key of the row's data augmentation.
    """

    waveform: Array
    num_samples: Array
    labels: Array
    num_labels: Array
    valid: Array
    augment_seed: Array

    def describe(self) -> str:
        """Its static shape, for people."""
        rows, samples = self.waveform.shape
        return f"{rows} x {samples} samples"


class SentenceBatch(NamedTuple):
    """One batch of sentences for a language model, padded to the static shape of its bucket.

    Attributes:
      tokens: [B, U] int32 token ids without begin and end, padded on the right with 0.
      num_tokens: [B] int32.
      valid: [B] bool, False for filler rows (masked out of every loss and metric).
    """

    tokens: Array
    num_tokens: Array
    valid: Array

    def describe(self) -> str:
        """Its static shape, for people."""
        rows, tokens = self.tokens.shape
        return f"{rows} x {tokens} tokens"


class ModelOutput(NamedTuple):
    """What a forward pass returns.

    Attributes:
      logits: [B, T, V] float32 CTC logits, not normalised.
      mask: [B, T] bool, True for valid encoder frames.
      gates: [B, N, M], the gates that were applied: boolean decisions, or floats in training.
      gate_probabilities: [B, N, M] float32, p(execute); ones for a model without a gate predictor.
      intermediate_logits: [B, T, V] each, of the layers that were asked for (InterCTC).
      decoder_logits: [B, U + 1, V] float32, of the attention decoder for given labels; None without either.
      states: [B, T, D], of the encoder before the final norm.
    """

    logits: jax.Array
    mask: jax.Array
    gates: jax.Array
    gate_probabilities: jax.Array
    intermediate_logits: tuple[jax.Array, ...] = ()
    decoder_logits: jax.Array | None = None
    states: jax.Array | None = None

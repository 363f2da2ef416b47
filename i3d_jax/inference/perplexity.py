"""How well a language model predicts sentences."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from i3d_jax.data.batching import BatchPlanner
from i3d_jax.data.sentences import Sentences
from i3d_jax.model.decoder import after_start, before_end
from i3d_jax.model.encoder import Params
from i3d_jax.model.language_model import LanguageModel
from i3d_jax.types import SentenceBatch


class Perplexity(NamedTuple):
    """Of a set of sentences, whose ends are predicted too and count as tokens and as words.

    Attributes:
      nats: negative log likelihood of everything.
      sentences: how many.
      tokens: without ends.
      words: without ends.
    """

    nats: float
    sentences: int
    tokens: int
    words: int

    @property
    def token(self) -> float:
        """Perplexity per token."""
        return exponential(self.nats / (self.tokens + self.sentences))

    @property
    def word(self) -> float:
        """Perplexity per word, with which models of other pieces can be compared."""
        return exponential(self.nats / (self.words + self.sentences))


def exponential(nats: float) -> float:
    """Perplexity of so many nats, at most e^700."""
    return math.exp(min(nats, 700.0))


def sentence_nats(
    model: LanguageModel, params: Params, batch: SentenceBatch, dropout_keys: jax.Array | None = None
) -> jax.Array:
    """[B] float32 negative log likelihood of each sentence with its end; 0 of filler rows.

    Args:
      model: the language model.
      params: its parameters.
      batch: sentences; what filler rows hold does not matter.
      dropout_keys: [B]; None switches dropout off.
    """
    tokens = jnp.asarray(batch.tokens)
    targets, counted = before_end(tokens, jnp.asarray(batch.num_tokens), model.vocab_size)
    logits = model.apply(params, after_start(tokens, model.vocab_size), dropout_keys=dropout_keys)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    # A padded target is the blank, whose loss is the largest there is: it is left out, not multiplied by 0.
    return jnp.sum(jnp.where(counted & jnp.asarray(batch.valid)[:, None], losses, 0.0), axis=1)


_nats = jax.jit(sentence_nats, static_argnums=0)


def perplexity(
    model: LanguageModel,
    params: Params,
    sentences: Sentences,
    planner: BatchPlanner,
    place: Callable[[Any], Any] = lambda batch: batch,
) -> Perplexity:
    """Perplexity of sentences.

    Args:
      model: the language model.
      params: where the batches are placed.
      sentences: which.
      planner: their plan, not shuffled.
      place: puts a batch on the devices.
    """
    total = 0.0
    for planned in planner.epoch(0):
        found = _nats(model, params, place(sentences.batch(planned)))
        total += float(np.sum(jax.device_get(found), dtype=np.float64))
    return Perplexity(total, len(sentences), int(sentences.tokens.counts.sum()), sentences.words)

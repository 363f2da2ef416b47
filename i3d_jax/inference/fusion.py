"""Shallow fusion with a neural language model of tokens: what it adds to the score of a hypothesis, token by token."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from i3d_jax.data.tokenizer import SPACE, Tokenizer
from i3d_jax.inference.language_model_bundle import load_language_model
from i3d_jax.model.encoder import Params
from i3d_jax.model.language_model import LanguageModel


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fusion:
    """A language model with its weights; other weights are not another compilation.

    Attributes:
      params: of the language model.
      weight: scalar, of its natural log probabilities.
      word_score: scalar, added for each piece that begins a word: language models prefer short texts.
      begins_word: [V] bool, tokens that begin with SentencePiece's mark of a space.
      model: the language model.
    """

    params: Params
    weight: jax.Array
    word_score: jax.Array
    begins_word: jax.Array
    model: LanguageModel = field(metadata={"static": True})

    def weighted(self, lm_weight: float, word_score: float) -> "Fusion":
        """The same language model with other weights."""
        return replace(self, weight=jnp.float32(lm_weight), word_score=jnp.float32(word_score))

    def start(self, rows: tuple[int, ...]) -> Any:
        """State before the first token of ``rows`` hypotheses; leaves are [layers, *rows, ...]."""
        return self.model.start(rows)

    def step(self, state: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        """State behind tokens [*rows] (the last id begins a text), and what each next token adds: [*rows, V] float32.

        The last id ends a text.
        """
        logits, state = self.model.step(self.params, state, tokens)
        words = self.begins_word.reshape((1,) * tokens.ndim + (-1,))
        return state, self.weight * jax.nn.log_softmax(logits) + self.word_score * words


def chosen(state: Any, parents: jax.Array) -> Any:
    """A state with leaves [layers, B, K, ...] of the hypotheses ``parents`` [B, K] of each utterance."""
    return jax.tree.map(lambda x: jnp.take_along_axis(x, parents[None, :, :, None], axis=2), state)


def load_fusion(path: str, tokenizer: Tokenizer) -> Fusion:
    """The neural language model of a run or bundle, with a weight of 1.

    Args:
      path: folder that `train.py` made of a ``configs/lm_*.py``, or the bundle in it.
      tokenizer: of the recogniser.

    Raises:
      FileNotFoundError: no finished language model there.
      ValueError: a file is damaged, or it is one of other tokens than the recogniser's.
    """
    found = load_language_model(path)
    if found.tokenizer.digest != tokenizer.digest:
        raise ValueError(
            f"{path} is a language model of other tokens than the recogniser's: train it with --text.run=RUN of this "
            "recogniser"
        )
    return Fusion(
        params=jax.device_put(found.params),
        weight=jnp.float32(1.0),
        word_score=jnp.float32(0.0),
        begins_word=jnp.array([piece.startswith(SPACE) for piece in tokenizer.pieces]),
        model=found.model,
    )

"""A recurrent language model of the tokenizer's pieces.

::

    x = dropout(embedding[tokens])
    for each layer:   x = dropout(LSTM(x))            (dropout: Zaremba et al., 2014)
    logits = x embedding^T + bias                     (tied weights: Press and Wolf, 2017)

Its state has one size, however long the sentence: a beam search of static shapes carries it along. Parameters are
stacked over layers. There are two passes over the same parameters: `LanguageModel.apply` sees whole sentences
(training), `LanguageModel.step` one token of each row.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from i3d_jax.model.encoder import Params
from i3d_jax.model.gates import fold_in
from i3d_jax.model.layers import dropout, split_keys

_NEVER = -1e30  # logit of the blank: its probability is 0, and the logarithm of that still finite
_BLANK = 0


@dataclass(frozen=True)
class LanguageModelConfig:
    """LSTM language model."""

    num_layers: int = 1
    """LSTM layers."""
    width: int = 256
    """Size of the embeddings, and of the hidden state of each layer."""
    dropout: float = 0.2
    """Dropout on the embeddings, and on what each layer gives."""


class State(NamedTuple):
    """What a row has seen.

    Attributes:
      cell: [num_layers, *rows, width] float32.
      hidden: [num_layers, *rows, width] float32.
    """

    cell: jax.Array
    hidden: jax.Array


class _Ends(nn.Module):
    """Embeddings, which are the weights of the output too.

    Parameters ``embedding`` [V, width], ``bias`` [V].
    """

    vocab_size: int
    width: int

    def setup(self) -> None:
        self.embedding = self.param(
            "embedding", nn.initializers.normal(self.width**-0.5), (self.vocab_size, self.width)
        )
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[...] ids -> [..., width]."""
        return self.embedding[tokens]

    def logits(self, x: jax.Array) -> jax.Array:
        """[..., width] -> [..., V]; the blank is no token of a sentence."""
        logits = x @ self.embedding.T
        return (logits + self.bias.reshape((1,) * (logits.ndim - 1) + (-1,))).at[..., _BLANK].set(_NEVER)


@dataclass(frozen=True)
class LanguageModel:
    """A language model, as pure functions of its parameters.

    Sentences begin and end with the id V - 1; the blank, id 0, is no token of a sentence and has the probability 0.
    Everything is float32.

    Attributes:
      config: its size.
      vocab_size: V, reserved ids included.
    """

    config: LanguageModelConfig
    vocab_size: int

    @property
    def _ends(self) -> _Ends:
        return _Ends(self.vocab_size, self.config.width)

    def init(self, key: jax.Array) -> Params:
        """Parameters ``{"ends", "layers"}``; those of the layers are stacked, [num_layers, ...]."""
        ends, layers = jax.random.split(key)
        cell, width = nn.OptimizedLSTMCell(self.config.width), jnp.zeros((1, self.config.width))

        def init_layer(key: jax.Array) -> Params:
            return cell.init(key, (width, width), width)["params"]

        return {
            "ends": self._ends.init(ends, jnp.zeros(1, jnp.int32))["params"],
            "layers": jax.vmap(init_layer)(jax.random.split(layers, self.config.num_layers)),
        }

    def apply(self, params: Params, tokens: jax.Array, *, dropout_keys: jax.Array | None = None) -> jax.Array:
        """The next token after each token of whole sentences, with the true ones before it.

        Args:
          params: from `init`.
          tokens: [B, U], sentences behind a leading id V - 1.
          dropout_keys: [B]; None switches dropout off.

        Returns:
          float32 logits [B, U, V].
        """
        rate, width = self.config.dropout, self.config.width
        input_keys, layer_keys = split_keys(dropout_keys, 2)
        ends = {"params": params["ends"]}
        x: jax.Array = dropout(self._ends.apply(ends, tokens), rate, input_keys)  # type: ignore[arg-type]
        zeros = jnp.zeros((len(tokens), width), jnp.float32)

        def layer(x: jax.Array, own: tuple) -> tuple[jax.Array, None]:
            index, cell = own
            _, hidden = jax.lax.scan(partial(_advance, cell), (zeros, zeros), jnp.swapaxes(x, 0, 1))
            keys = None if layer_keys is None else fold_in(layer_keys, index)
            return dropout(jnp.swapaxes(hidden, 0, 1), rate, keys), None

        x, _ = jax.lax.scan(layer, x, (jnp.arange(self.config.num_layers), params["layers"]))
        return self._ends.apply(ends, x, method="logits")  # type: ignore[return-value]

    def start(self, rows: tuple[int, ...]) -> State:
        """The state before the leading id V - 1, of so many rows along each axis."""
        zeros = jnp.zeros((self.config.num_layers, *rows, self.config.width), jnp.float32)
        return State(zeros, zeros)

    def step(self, params: Params, state: State, tokens: jax.Array) -> tuple[jax.Array, State]:
        """One token of each row.

        Args:
          params: from `init`.
          state: of the tokens before.
          tokens: [*rows] int32.

        Returns:
          float32 logits [*rows, V] of the next token, and the state with these tokens.
        """
        ends = {"params": params["ends"]}

        def layer(x: jax.Array, own: tuple) -> tuple[jax.Array, State]:
            cell, before = own
            after, hidden = _advance(cell, tuple(before), x)
            return hidden, State(*after)

        x: jax.Array = self._ends.apply(ends, tokens)  # type: ignore[assignment]
        x, state = jax.lax.scan(layer, x, (params["layers"], state))
        return self._ends.apply(ends, x, method="logits"), state  # type: ignore[return-value]


def _advance(
    params: Params, state: tuple[jax.Array, ...], x: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """One step of a layer: (cell, hidden) and input, [..., width] each, to the next ones and the output."""
    return nn.OptimizedLSTMCell(x.shape[-1]).apply({"params": params}, state, x)  # type: ignore[return-value]

"""A language model of a few tokens with random parameters, and what it says of whole sequences."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax.inference.fusion import Fusion
from i3d_jax.model.language_model import LanguageModel, LanguageModelConfig


@cache
def _params(model):
    params = jax.jit(model.init)(jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda x: 1.5 * jax.random.normal(next(keys), x.shape), params)


@partial(jax.jit, static_argnums=0)
def _answers(model, params, tokens):
    return jax.nn.log_softmax(model.apply(params, tokens))


def fusion(vocabulary, weight, word_score=0.0):
    """One that is sure of itself; odd tokens but the last begin words."""
    model = LanguageModel(LanguageModelConfig(num_layers=2, width=6), vocabulary)
    token = jnp.arange(vocabulary)
    begins_word = (token % 2 == 1) & (token < vocabulary - 1)
    return Fusion(_params(model), jnp.float32(weight), jnp.float32(word_score), begins_word, model)


def added(fusion, every):
    """What a fusion adds to each of these sequences, their ends included: from the pass over whole sentences."""
    eos = fusion.model.vocab_size - 1
    longest = max(map(len, every))
    inputs = np.full((len(every), longest + 1), eos)
    targets = np.full((len(every), longest + 1), eos)
    for row, sequence in enumerate(every):
        inputs[row, 1 : len(sequence) + 1] = sequence
        targets[row, : len(sequence)] = sequence
    answers = _answers(fusion.model, fusion.params, inputs)
    log_p = np.take_along_axis(np.asarray(answers, np.float64), targets[..., None], -1)[..., 0]
    valid = np.arange(longest + 1)[None] <= np.array([[len(sequence)] for sequence in every])
    words = np.array([sum(token % 2 for token in sequence) for sequence in every])
    return float(fusion.weight) * np.where(valid, log_p, 0).sum(axis=1) + float(fusion.word_score) * words

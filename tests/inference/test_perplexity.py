"""Perplexity of sentences, against models whose probabilities are known and against a sum by hand."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax.data.sentences import SentenceBatchingConfig, Sentences, Source
from i3d_jax.inference.perplexity import Perplexity, exponential, perplexity, sentence_nats
from i3d_jax.model.language_model import LanguageModel, LanguageModelConfig
from i3d_jax.types import SentenceBatch

VOCAB = 9
MODEL = LanguageModel(LanguageModelConfig(1, 8, 0.0), VOCAB)
BATCHING = SentenceBatchingConfig(24, 2, 2)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


def sentences(texts):
    """A letter is a token, from 2 on."""
    return Sentences(
        [Source("here", lambda: iter(texts))], lambda text: [ord(x) - ord("A") + 2 for x in text if x != " "]
    )


def measure(params, texts):
    found = sentences(texts)
    return perplexity(MODEL, params, found, found.planner(BATCHING, shuffle=False))


@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_a_model_that_ignores_what_it_reads_has_the_perplexity_of_its_output(params, bias):
    flat = jax.tree.map(np.zeros_like, params)
    flat["ends"]["bias"] = flat["ends"]["bias"].copy()
    flat["ends"]["bias"][2] = bias  # of A
    found = measure(flat, ["AB", "A"])
    # The blank is no token; two A, one B and two ends are predicted.
    total = math.log(math.exp(bias) + VOCAB - 2)
    assert found.nats == pytest.approx(5 * total - 2 * bias, rel=1e-5)
    assert (found.sentences, found.tokens, found.words) == (2, 3, 2)
    assert bias or found.token == pytest.approx(VOCAB - 1, rel=1e-5)


def test_it_is_the_sum_of_every_step_whatever_the_batches(params):
    texts = ["ABC", "A BB", "CAB ABC ABCDE", "D", "E EE"]
    step, nats = jax.jit(MODEL.step), 0.0
    for text in texts:
        state = MODEL.start(())
        ids = [VOCAB - 1, *(ord(x) - ord("A") + 2 for x in text if x != " "), VOCAB - 1]
        for before, after in zip(ids, ids[1:], strict=False):
            logits, state = step(params, state, np.int32(before))
            nats -= float(jax.nn.log_softmax(logits)[after])
    found = measure(params, texts)
    tokens, words = sum(len(x.replace(" ", "")) for x in texts), sum(len(x.split()) for x in texts)
    assert (found.sentences, found.tokens, found.words) == (5, tokens, words)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.token == pytest.approx(math.exp(nats / (tokens + 5)), rel=1e-5)
    assert found.word == pytest.approx(math.exp(nats / (words + 5)), rel=1e-5)
    assert measure(params, texts[::-1]).nats == pytest.approx(nats, rel=1e-5)


def test_padding_and_filler_rows_change_nothing(params):
    nats = jax.jit(sentence_nats, static_argnums=0)
    counts, valid = np.array([2, 3, 1], np.int32), np.array([True, True, False])
    tokens = np.array([[2, 3, 0], [4, 5, 6], [7, 0, 0]], np.int32)
    found = nats(MODEL, params, SentenceBatch(tokens, counts, valid))
    other = np.array([[2, 3, 7], [4, 5, 6], [2, 5, 5]], np.int32)
    np.testing.assert_array_equal(
        found, nats(MODEL, params, SentenceBatch(other, np.array([2, 3, 3], np.int32), valid))
    )
    assert found[2] == 0 and (found[:2] > 0).all()


@given(st.floats(0, 1e6), st.integers(1, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_tokens_and_words_are_counted_with_the_ends(nats, count, tokens, words):
    found = Perplexity(nats, count, tokens, words)
    assert math.log(found.token) * (tokens + count) == pytest.approx(min(nats, 700.0 * (tokens + count)), abs=1e-6)
    assert math.log(found.word) * (words + count) == pytest.approx(min(nats, 700.0 * (words + count)), abs=1e-6)


def test_a_model_that_knows_nothing_is_not_an_overflow():
    assert exponential(1e9) == math.exp(700)

"""The LSTM language model against a loop in numpy, its two passes against each other, gradients by differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from i3d_jax.model.language_model import LanguageModel, LanguageModelConfig

VOCAB = 7
MODEL = LanguageModel(LanguageModelConfig(num_layers=2, width=5, dropout=0.5), VOCAB)


@pytest.fixture(scope="module")
def params():
    """Every bias too is drawn: an initial one is zero, and nobody would miss it."""
    drawn = MODEL.init(jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(drawn))))
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), drawn)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(params, tokens):
    """Log probabilities [U, V] after each token of one sentence, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    embedding, found = params["ends"]["embedding"], []
    states = [(np.zeros(5), np.zeros(5)) for _ in range(2)]
    for token in tokens:
        x = embedding[token]
        for number, (cell, hidden) in enumerate(states):
            own = jax.tree.map(lambda w: w[number], params["layers"])  # noqa: B023
            i, f, g, o = (
                x @ own[f"i{gate}"]["kernel"] + hidden @ own[f"h{gate}"]["kernel"] + own[f"h{gate}"]["bias"]
                for gate in "ifgo"
            )
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            x = sigmoid(o) * np.tanh(cell)
            states[number] = (cell, x)
        logits = x @ embedding.T + params["ends"]["bias"]
        real = np.exp(logits[1:])
        found.append(np.log([1e-300, *(real / real.sum())]))
    return np.array(found)


def test_both_passes_equal_a_loop_in_numpy(params):
    tokens = np.random.default_rng(0).integers(1, VOCAB, (3, 6)).astype(np.int32)
    expected = np.stack([by_hand(params, row) for row in tokens])
    whole = jax.nn.log_softmax(jax.jit(MODEL.apply)(params, tokens))
    assert whole.dtype == jnp.float32 and whole.shape == (3, 6, VOCAB)
    np.testing.assert_allclose(whole[..., 1:], expected[..., 1:], atol=1e-5)
    state, step = MODEL.start((3,)), jax.jit(MODEL.step)
    for position in range(6):
        logits, state = step(params, state, tokens[:, position])
        np.testing.assert_allclose(jax.nn.log_softmax(logits)[:, 1:], expected[:, position, 1:], atol=1e-5)


def test_rows_of_a_state_have_any_axes_and_do_not_see_each_other(params):
    tokens = np.random.default_rng(1).integers(1, VOCAB, (2, 3, 4)).astype(np.int32)
    state = MODEL.start((2, 3))
    assert {(x.shape, x.dtype.name) for x in jax.tree.leaves(state)} == {((2, 2, 3, 5), "float32")}
    step = jax.jit(MODEL.step)
    for position in range(4):
        logits, state = step(params, state, tokens[..., position])
    assert logits.shape == (2, 3, VOCAB) and logits.dtype == jnp.float32
    flat = jax.jit(MODEL.apply)(params, tokens.reshape(6, 4))
    np.testing.assert_allclose(logits.reshape(6, VOCAB), flat[:, -1], atol=1e-6)


APPLY = jax.jit(MODEL.apply)


@settings(max_examples=25)
@given(st.lists(st.integers(0, VOCAB - 1), min_size=8, max_size=8), st.integers(0, 7))
def test_the_blank_is_impossible_and_the_future_unseen(params, tokens, kept):
    tokens = np.array([tokens], np.int32)
    log_probs = jax.nn.log_softmax(APPLY(params, tokens))
    probabilities = np.exp(log_probs)
    assert not probabilities[..., 0].any() and np.isfinite(log_probs).all()
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-6)
    tokens[0, kept + 1 :] = 3
    changed = jax.nn.softmax(APPLY(params, tokens))
    np.testing.assert_allclose(changed[0, : kept + 1], probabilities[0, : kept + 1], atol=1e-6)


def test_gradients_are_those_of_finite_differences_of_the_loop_in_numpy(params):
    tokens = np.array([[VOCAB - 1, 2, 5], [VOCAB - 1, 4, 4]], np.int32)
    targets = np.array([[2, 5, VOCAB - 1], [4, 4, 1]], np.int32)

    def loss(params):
        scores = jax.nn.log_softmax(MODEL.apply(params, tokens))
        return -jnp.mean(jnp.take_along_axis(scores, targets[..., None], -1))

    flat, rebuild = ravel_pytree(params)
    gradient, _ = ravel_pytree(jax.jit(jax.grad(loss))(params))
    flat, shapes = np.asarray(flat, np.float64), rebuild(flat)

    def by_hand_loss(values):
        leaves, start = [], 0
        for leaf in jax.tree.leaves(shapes):
            leaves.append(values[start : start + leaf.size].reshape(leaf.shape))
            start += leaf.size
        moved = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        rows = [by_hand(moved, row)[np.arange(3), wanted] for row, wanted in zip(tokens, targets, strict=True)]
        return -np.mean(rows)

    np.testing.assert_allclose(loss(params), by_hand_loss(flat), rtol=1e-5)
    for direction in np.random.default_rng(2).normal(size=(6, flat.size)):
        slope = (by_hand_loss(flat + 1e-5 * direction) - by_hand_loss(flat - 1e-5 * direction)) / 2e-5
        np.testing.assert_allclose(gradient @ direction, slope, rtol=1e-4, atol=1e-5)


def test_dropout_is_of_each_row_and_off_without_keys(params):
    tokens = np.full((4, 6), 3, np.int32)
    keys = jax.random.split(jax.random.key(0), 4)
    apply = jax.jit(MODEL.apply)
    plain, dropped = apply(params, tokens), apply(params, tokens, dropout_keys=keys)
    assert np.array_equal(plain[0], plain[1]) and not np.allclose(dropped[0], dropped[1])
    alone = apply(params, tokens[2:3], dropout_keys=keys[2:3])
    np.testing.assert_allclose(alone[0], dropped[2], atol=1e-6)

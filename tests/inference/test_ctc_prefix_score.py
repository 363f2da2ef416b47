"""CTC prefix scores against the sum over all alignments, and the law that a prefix ends or goes on."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax.inference.ctc_prefix_score import LOG_ZERO, empty, extend, prepare, scores

FRAMES, VOCABULARY, EOS = 5, 4, 3
ALL = jnp.arange(VOCABULARY)


def collapse(path):
    return tuple(token for token, _ in itertools.groupby(path) if token != 0)


@jax.jit
def follow(log_p, tokens):
    """Scores [U + 1, B, V] of every next token after 0 to U tokens [U] of a hypothesis."""
    every = jnp.broadcast_to(ALL, (len(log_p), 1, VOCABULARY))
    state, found = empty(log_p, 1), []
    for token in [*tokens, None]:
        found.append(scores(log_p, state, every, EOS)[:, 0])
        if token is not None:
            parents = jnp.zeros((len(log_p), 1), int)
            state = extend(log_p, state, parents, jnp.broadcast_to(token, (len(log_p), 1)))
    return jnp.stack(found)


def test_scores_are_sums_over_all_alignments():
    logits = 2 * jax.random.normal(jax.random.key(0), (3, FRAMES, VOCABULARY))
    lengths = (FRAMES, 3, 1)
    mask = jnp.arange(FRAMES)[None] < jnp.array(lengths)[:, None]
    log_p = prepare(jnp.where(mask[..., None], logits, jnp.nan), mask)
    paths = [
        [
            (collapse(path), sum(own[t, token] for t, token in enumerate(path)))
            for path in itertools.product(range(VOCABULARY), repeat=frames)
        ]
        for own, frames in zip(np.asarray(jax.nn.log_softmax(logits), np.float64), lengths, strict=True)
    ]
    for sequence in itertools.product((1, 2, 3), repeat=2):
        found = np.asarray(follow(log_p, jnp.array(sequence)))
        for count, row, token in itertools.product(range(3), range(3), range(VOCABULARY)):
            prefix = sequence[:count]
            if token == 0:
                chosen = []
            elif token == EOS:
                chosen = [score for transcript, score in paths[row] if transcript == prefix]
            else:
                longer = (*prefix, token)
                chosen = [score for transcript, score in paths[row] if transcript[: count + 1] == longer]
            expected = np.logaddexp.reduce(chosen) if chosen else LOG_ZERO
            if expected == LOG_ZERO:
                assert found[count, row, token] < 0.9 * LOG_ZERO
            else:
                np.testing.assert_allclose(found[count, row, token], expected, rtol=1e-4, atol=1e-4)


@given(st.lists(st.sampled_from([1, 2]), min_size=3, max_size=3), st.integers(0, 2**31), st.integers(1, 40))
def test_a_prefix_ends_or_goes_on(tokens, seed, frames):
    # The end takes the id of a token that never sounds: all that sounds is the prefix, or the prefix and one more.
    logits = 3 * jax.random.normal(jax.random.key(seed), (1, 40, VOCABULARY)).at[..., EOS].set(-jnp.inf)
    log_p = prepare(logits.at[..., EOS].set(-1e9), jnp.arange(40)[None] < frames)
    found = np.asarray(follow(log_p, jnp.array(tokens)), np.float64)[:, 0]
    known = 0.0
    for count, token in enumerate([*tokens, 1]):
        assert np.all(found[count] <= known + 1e-4)
        if known > LOG_ZERO / 2:
            np.testing.assert_allclose(np.logaddexp.reduce(found[count]), known, rtol=1e-4, atol=1e-3)
        known = found[count, token]

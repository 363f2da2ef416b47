import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i3d_jax.inference.alignment import align, path_log_probs
from i3d_jax.inference.decoding import greedy_decode
from tests.inference.ctc_oracle import best_path, collapse
from tests.inference.test_prefix_beam import lattice

FRAMES, LONGEST = 6, 4


def padded(tokens):
    row = np.full((1, LONGEST), 2, np.int32)  # padding that would change the result if it counted
    row[0, : len(tokens)] = tokens
    return row, np.array([len(tokens)])


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(0, FRAMES), st.lists(st.integers(1, 2), max_size=LONGEST))
def test_the_best_of_every_path(seed, valid, tokens):
    log_probs = lattice(seed, frames=FRAMES)
    log_probs[:, valid:] = np.nan
    mask = np.arange(FRAMES)[None] < valid
    (path,), (score,) = align(log_probs, mask, *padded(tokens))
    wanted, best = best_path(log_probs[0, :valid], tokens)
    assert score == pytest.approx(best, abs=1e-4)
    assert not np.any(path[valid:])
    if wanted is None:
        assert not np.any(path)
    else:
        assert tuple(path[:valid].tolist()) == wanted and collapse(wanted) == tuple(tokens)


def test_the_greedy_path_is_the_alignment_of_its_own_tokens():
    log_probs = lattice(1, frames=40, vocabulary=8, rows=6)
    mask = np.arange(40)[None] < np.array([40, 3, 20, 0, 39, 11])[:, None]
    tokens, num_tokens = greedy_decode(log_probs, mask)
    path, score = align(log_probs, mask, tokens, num_tokens)
    np.testing.assert_array_equal(path, np.where(mask, log_probs.argmax(-1), 0))
    np.testing.assert_allclose(score, np.where(mask, log_probs.max(-1), 0).sum(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.where(mask, path_log_probs(log_probs, path), 0).sum(1), score, rtol=1e-5, atol=1e-6)

import itertools

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from i3d_jax.inference.decoding import greedy_decode

SHAPE = (3, 12, 4)
decode = jax.jit(greedy_decode)


def oracle(logits, mask):
    """Greedy CTC decoding of one utterance by its definition."""
    path = [int(frame.argmax()) if valid else 0 for frame, valid in zip(logits, mask, strict=True)]
    return [token for token, _ in itertools.groupby(path) if token != 0]


@settings(deadline=None)
@given(
    path=hnp.arrays(np.int64, SHAPE[:2], elements=st.integers(0, SHAPE[2] - 1)),
    mask=hnp.arrays(np.bool_, SHAPE[:2]),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_the_definition(path, mask, seed):
    logits = np.random.default_rng(seed).uniform(-1, 0, SHAPE).astype(np.float32)
    np.put_along_axis(logits, path[..., None], 1.0, axis=-1)
    tokens, num_tokens = decode(logits, mask)
    assert tokens.dtype == num_tokens.dtype == np.int32 and tokens.shape == SHAPE[:2]
    for row in range(SHAPE[0]):
        expected = oracle(logits[row], mask[row])
        assert num_tokens[row] == len(expected)
        np.testing.assert_array_equal(tokens[row], expected + [0] * (SHAPE[1] - len(expected)))


def test_padding_changes_nothing_whatever_it_holds():
    logits = np.full((1, 9, 3), np.nan, np.float32)
    logits[0, :5] = np.eye(3)[[1, 1, 0, 1, 2]]
    tokens, num_tokens = decode(logits, np.arange(9)[None] < 5)
    assert tokens[0].tolist() == [1, 1, 2, 0, 0, 0, 0, 0, 0] and num_tokens.tolist() == [3]


def test_every_frame_a_token():
    tokens, num_tokens = decode(np.eye(3, dtype=np.float32)[[1, 2, 1, 2]][None], np.ones((1, 4), bool))
    assert tokens.tolist() == [[1, 2, 1, 2]] and num_tokens.tolist() == [4]

import pickle

import numpy as np
import pytest

from i3d_jax.data.token_sequences import TokenSequences


def test_they_are_the_sequences_given():
    given = [[5, 2], [], [7], [2**31 - 1, 0, 3]]
    kept = TokenSequences(iter(given))
    assert len(kept) == 4 and list(kept) == given == list(pickle.loads(pickle.dumps(kept)))
    assert kept[-1] == given[-1] and kept[1:3] == given[1:3] and type(kept[0][0]) is int
    assert kept.counts.tolist() == [2, 0, 1, 3]
    with pytest.raises(IndexError):
        kept[4]
    assert len(TokenSequences([])) == 0


def test_an_id_takes_four_bytes():
    kept = TokenSequences([[1000] * 20] * 100)
    assert sum(array.nbytes for array in vars(kept).values() if isinstance(array, np.ndarray)) == 100 * 80 + 101 * 8

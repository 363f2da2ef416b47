"""Gate patterns of the controls."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from i3d_jax.inference.controls import derangement, majority, permuted, random_places

gates = hnp.arrays(bool, st.tuples(st.integers(2, 7), st.integers(1, 5), st.integers(1, 2)))
seeds = st.integers(0, 2**32)


@given(gates)
def test_the_majority_is_more_than_half(gates):
    pattern = majority(gates)
    for n, m in np.ndindex(pattern.shape):
        votes = Counter(gates[:, n, m].tolist())
        assert pattern[n, m] == (votes[True] > votes[False])


@given(gates, seeds)
def test_every_utterance_gets_the_gates_of_another_one_and_all_are_used(gates, seed):
    order = derangement(len(gates), seed)
    assert sorted(order) == list(range(len(gates))) and not np.any(order == np.arange(len(gates)))
    np.testing.assert_array_equal(permuted(gates, seed), gates[order])
    np.testing.assert_array_equal(permuted(gates, seed), permuted(gates, seed))


def test_derangements_are_equally_likely():
    draws = Counter(tuple(derangement(4, seed).tolist()) for seed in range(1800))
    assert len(draws) == 9
    # Chi-square with 8 degrees of freedom: 26 is exceeded once in a thousand.
    assert sum((count - 200) ** 2 / 200 for count in draws.values()) < 26


def test_one_utterance_has_no_other():
    with pytest.raises(ValueError, match="1 utterances: .* at least 2"):
        derangement(1, 0)


@given(gates, seeds)
def test_random_places_keep_the_number_of_blocks_of_each_branch(gates, seed):
    drawn = random_places(gates, seed)
    np.testing.assert_array_equal(drawn.sum(axis=1), gates.sum(axis=1))
    np.testing.assert_array_equal(drawn, random_places(gates, seed))


def test_random_places_are_equally_likely_and_drawn_for_each_utterance_and_branch():
    gates = np.zeros((4000, 4, 2), bool)
    gates[:, 0], gates[:, 1, 1] = True, True
    drawn = random_places(gates, 0)
    np.testing.assert_allclose(drawn.mean(axis=0), np.array([[0.25, 0.5]] * 4), atol=0.03)
    # Independent branches: the joint share is the product.
    np.testing.assert_allclose((drawn[:, 0, 0] & drawn[:, 0, 1]).mean(), 0.125, atol=0.03)
    assert not np.array_equal(drawn, random_places(gates, 1))

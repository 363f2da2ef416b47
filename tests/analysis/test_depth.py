import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from i3d_jax.analysis.depth import _rho, depth_correlations, group_by_depth, rank_correlation
from tests.analysis.utterance_tables import make_table


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), min_size=3, max_size=30))
def test_resampled_correlations_are_scipys(pairs):
    x, y = np.array(pairs, float).T
    if np.ptp(x) and np.ptp(y):
        assert _rho(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    else:
        assert np.isnan(_rho(x, y))


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_any_growing_function_keeps_a_rank_correlation(seed):
    x, y = np.random.default_rng(seed).normal(size=(2, 20))
    plain = rank_correlation(x, y, samples=20)
    assert rank_correlation(np.exp(x), y**3, samples=20) == plain
    assert rank_correlation(-x, y, samples=20).rho == pytest.approx(-plain.rho)


def test_interval_covers_the_truth_as_often_as_it_says():
    # Of normal pairs with correlation r, Spearman's rho is 6/pi * asin(r/2).
    truth, covered = 6 / np.pi * np.arcsin(0.25), 0
    for seed in range(60):
        x, e = np.random.default_rng(seed).normal(size=(2, 80))
        low, high = rank_correlation(x, 0.5 * x + np.sqrt(0.75) * e, samples=200).interval
        covered += low <= truth <= high
    assert 50 <= covered <= 60


def test_constant_quantities_have_no_correlation():
    found = rank_correlation(np.ones(5), np.arange(5))
    assert (found.rho, found.interval, found.p_value, found.utterances) == (None, None, None, 5)
    with pytest.raises(ValueError, match=r"shapes \(5,\) and \(4,\)"):
        rank_correlation(np.ones(5), np.ones(4))


def test_known_relations_are_found():
    found = depth_correlations(make_table(200), samples=200)
    assert found["expected layers, length"].rho > 0.9 and found["mha blocks, length"].rho > 0.6
    assert found["executed layers, length"].interval[0] > 0.5
    low, high = found["executed layers, WER"].interval
    assert low < 0 < high
    unrelated = depth_correlations(make_table(200, length_effect=0.0), samples=200)["executed layers, length"]
    assert unrelated.interval[0] < 0 < unrelated.interval[1]


def test_groups_hold_every_utterance_once():
    table = make_table(50)
    groups = group_by_depth(table, table.executed_layers, samples=100)
    assert [g.executed for g in groups] == sorted(set(table.executed_layers))
    np.testing.assert_array_equal(
        np.sort(np.concatenate([g.audio_seconds for g in groups])), np.sort(table.audio_seconds)
    )
    for group in groups:
        own = table.executed_layers == group.executed
        assert group.wer == pytest.approx(100 * table.errors[own].sum() / table.words[own].sum())
        if own.sum() == 1:
            assert group.wer_interval is None
        else:
            assert group.wer_interval[0] <= group.wer <= group.wer_interval[1]


def test_one_speaker_is_resampled_by_utterance():
    table = make_table(30)
    alone = dataclasses.replace(table, speakers=np.array(["x"] * 30))
    assert depth_correlations(alone, samples=50)["executed layers, length"].interval is not None

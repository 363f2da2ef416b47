import numpy as np
import pytest

from i3d_jax.analysis.resampling import bootstrap, interval


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
    x = np.random.default_rng(0).normal(3, 2, 400)
    low, high = interval(bootstrap(lambda i: x[i].mean(keepdims=True), 400, samples=4000)[:, 0])
    half = 1.96 * x.std() / np.sqrt(400)
    assert low == pytest.approx(x.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(x.mean() + half, abs=0.1 * half)


def test_clusters_are_drawn_whole():
    labels = np.array(["a", "b", "a", "b", "c"])
    for row in bootstrap(lambda i: np.bincount(i, minlength=5), 5, clusters=labels, samples=50):
        assert row[0] == row[2] and row[1] == row[3]
        assert row[0] + row[1] + row[4] == 3, "as many clusters as there are"


def test_utterances_of_few_speakers_tell_less_than_independent_ones():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(10), 20)
    x = rng.normal(0, 1, 10)[labels] + 0.1 * rng.normal(0, 1, 200)
    width = {}
    for name, clusters in (("utterances", None), ("speakers", labels)):
        low, high = interval(bootstrap(lambda i: x[i].mean(keepdims=True), 200, clusters=clusters)[:, 0])
        width[name] = high - low
    # The variance of the mean is that of 10 draws, not of 200.
    assert width["speakers"] / width["utterances"] == pytest.approx(np.sqrt(20), rel=0.2)


def test_undefined_samples():
    assert interval(np.array([np.nan] * 3 + [1.0])) is None
    assert interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)


def test_bad_input():
    with pytest.raises(ValueError, match="0 bootstrap samples"):
        bootstrap(lambda i: i, 3, samples=0)
    with pytest.raises(ValueError, match="at least two clusters"):
        bootstrap(lambda i: i, 3, clusters=np.zeros(3))
    with pytest.raises(ValueError, match="at least two utterances"):
        bootstrap(lambda i: i, 1)
    with pytest.raises(ValueError, match=r"shape \(2,\) for 3 utterances"):
        bootstrap(lambda i: i, 3, clusters=np.zeros(2))

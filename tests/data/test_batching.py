import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i3d_jax.audio.io import num_samples_after_speed
from i3d_jax.data.batching import BatchingConfig, BatchPlanner

SPEEDS = (0.9, 1.0, 1.1)


@st.composite
def planners(draw):
    lengths = draw(st.lists(st.integers(1, 30 * 1000), min_size=1, max_size=80))
    config = BatchingConfig(
        seconds_per_batch=draw(st.sampled_from([5.0, 60.0, 300.0])),
        num_buckets=draw(st.integers(1, 6)),
        batch_multiple=draw(st.sampled_from([1, 2, 8])),
    )
    return BatchPlanner(
        np.array(lengths),
        np.array(lengths) // 200,
        config,
        speeds=draw(st.sampled_from([(1.0,), SPEEDS])),
        seed=draw(st.integers(0, 2**40)),
        shuffle=draw(st.booleans()),
        sample_rate=1000,
        concatenate_seconds=draw(st.sampled_from([0.0, 0.5, 20.0])),
    ), np.array(lengths)


@settings(deadline=None)
@given(planners(), st.integers(0, 5))
def test_laws_of_the_plan(made, epoch):
    planner, lengths = made
    batches = planner.epoch(epoch)
    config = planner.config
    # every utterance exactly once
    assert sorted(np.concatenate([b.indices for b in batches])) == list(range(len(lengths)))
    assert len(planner.buckets) <= config.num_buckets
    assert list(planner.buckets) == sorted(planner.buckets)
    for batch in batches:
        bucket = batch.bucket
        assert bucket in planner.buckets
        count = len(batch.seeds)
        assert 1 <= count <= bucket.batch_size and batch.seeds.dtype == np.uint32
        assert batch.indices.shape == batch.speeds.shape == batch.rows.shape
        assert sorted(set(batch.rows)) == list(range(count)) and (np.diff(batch.rows) >= 0).all()
        # it fits
        samples, labels = np.zeros(count, int), np.zeros(count, int)
        for index, speed, row in zip(batch.indices, batch.speeds, batch.rows, strict=True):
            samples[row] += num_samples_after_speed(int(lengths[index]), speed)
            labels[row] += lengths[index] // 200
        assert (samples <= bucket.num_samples).all() and (labels <= bucket.num_labels).all()
        # the budget
        assert bucket.num_labels >= 1 and bucket.batch_size % config.batch_multiple == 0
        padded = bucket.num_samples * bucket.batch_size
        assert padded <= config.seconds_per_batch * 1000 or bucket.batch_size == config.batch_multiple
    # at most one batch of a bucket is not full
    for bucket in planner.buckets:
        sizes = [len(b.seeds) for b in batches if b.bucket == bucket]
        assert sum(size < bucket.batch_size for size in sizes) <= 1
    # steps
    assert planner.steps_in_epoch(epoch) == len(batches)
    assert planner.steps_before(epoch + 1) - planner.steps_before(epoch) == len(batches)
    first = planner.steps_before(epoch)
    assert planner.locate(first) == (epoch, 0)
    assert planner.locate(first + len(batches) - 1) == (epoch, len(batches) - 1)
    assert 0 <= planner.padded_fraction(epoch) < 1


def same(one, other):
    return len(one) == len(other) and all(
        a.bucket == b.bucket and all(np.array_equal(x, y) for x, y in zip(a[1:], b[1:], strict=True))
        for a, b in zip(one, other, strict=True)
    )


def planner(count=200, *, shuffle=True, seed=3, speeds=SPEEDS, **config):
    lengths = np.random.default_rng(0).integers(8000, 100000, count)
    return BatchPlanner(
        lengths, lengths // 4000, BatchingConfig(**config), speeds=speeds, seed=seed, shuffle=shuffle
    ), lengths


def test_the_plan_is_pure():
    one, _ = planner()
    other, _ = planner()
    forwards = [one.epoch(e) for e in range(6)]
    backwards = {e: other.epoch(e) for e in reversed(range(6))}
    for e in range(6):
        assert same(forwards[e], backwards[e])
        assert same(forwards[e], one.epoch(e))
    assert not same(forwards[0], forwards[1])
    assert not same(forwards[0], planner(seed=4)[0].epoch(0))


def test_speeds_and_seeds_belong_to_the_utterance_and_epoch():
    made, _ = planner(count=3000)
    other, _ = planner(count=3000, seconds_per_batch=300.0, num_buckets=2)

    def drawn(plan, epoch):
        speeds, seeds = np.zeros(3000), np.zeros(3000, np.uint32)
        for batch in plan.epoch(epoch):
            speeds[batch.indices], seeds[batch.indices] = batch.speeds, batch.seeds
        return speeds, seeds

    speeds, seeds = drawn(made, 0)
    for one, two in zip((speeds, seeds), drawn(other, 0), strict=True):
        np.testing.assert_array_equal(one, two)  # whatever the batching
    later_speeds, later_seeds = drawn(made, 1)
    assert len(set(seeds) | set(later_seeds)) == 6000
    shares = [(speeds == s).mean() for s in SPEEDS]
    np.testing.assert_allclose(shares, 1 / 3, atol=0.03)
    assert (speeds == later_speeds).mean() == pytest.approx(1 / 3, abs=0.03)  # independent between epochs
    assert abs(np.corrcoef(speeds[:-1], speeds[1:])[0, 1]) < 0.05  # and between utterances
    assert np.corrcoef(seeds.astype(float), later_seeds.astype(float))[0, 1] < 0.05


def test_joined_utterances_have_new_neighbours_and_even_lengths():
    lengths = np.random.default_rng(0).integers(8000, 64000, 3000)
    config = BatchingConfig(seconds_per_batch=160.0)
    made = BatchPlanner(lengths, lengths // 4000, config, seed=1, concatenate_seconds=10.0)
    epochs = [made.epoch(e) for e in (0, 1)]
    neighbours = []
    for batches in epochs:
        pairs = [(b.indices[i], b.indices[i + 1]) for b in batches for i in np.flatnonzero(np.diff(b.rows) == 0)]
        assert len(pairs) > 1000
        neighbours.append(set(pairs))
    assert len(neighbours[0] & neighbours[1]) < 5
    seconds = np.concatenate([np.bincount(b.rows, lengths[b.indices]) for b in epochs[0]]) / 16000
    assert seconds.max() <= 10
    assert 0.1 < np.mean(seconds < 3) < 0.4 and 0.1 < np.mean(seconds > 7.5) < 0.3
    assert made.padded_fraction() < 0.3
    dense = np.append(lengths // 4000, 900)  # one utterance of very many labels widens the rows by its own, not by more
    made = BatchPlanner(np.append(lengths, 32000), dense, config, seed=1, concatenate_seconds=10.0)
    assert made.buckets[-1].num_labels <= 900 + 10 * 16000 / 4000


def test_evaluation_goes_by_length():
    made, lengths = planner(shuffle=False, speeds=(1.0,))
    order = np.concatenate([b.indices for b in made.epoch(0)])
    assert (np.diff(lengths[order]) >= 0).all()
    assert same(made.epoch(0), made.epoch(7))
    assert made.steps_before(7) == 7 * made.steps_in_epoch(0)


def test_batches_of_all_lengths_are_mixed():
    made, _ = planner(count=2000)
    lengths = [b.bucket.num_samples for b in made.epoch(0)]
    assert len(set(lengths[:20])) > 2


def brute_force(lengths, planner):
    """Least padded audio over all choices of edges."""
    from itertools import combinations

    edges = np.unique(-(-lengths // 100) * 100)
    best = np.inf
    for count in range(1, planner.config.num_buckets + 1):
        for inner in combinations(edges[:-1], count - 1):
            chosen = np.array([*inner, edges[-1]])
            counts = np.bincount(np.searchsorted(chosen, lengths), minlength=len(chosen))
            sizes = np.array([planner._batch_size(int(e)) for e in chosen])
            best = min(best, (np.ceil(counts / sizes) * sizes * chosen).sum())
    return best


@pytest.mark.parametrize("seed", range(3))
def test_buckets_are_optimal(seed):
    lengths = np.random.default_rng(seed).gamma(2, 500, 60).astype(int) + 100
    config = BatchingConfig(seconds_per_batch=10, num_buckets=3, batch_multiple=2)
    made = BatchPlanner(lengths, np.ones_like(lengths), config, sample_rate=1000)
    padded = sum(b.bucket.num_samples * b.bucket.batch_size for b in made.epoch(0))
    assert padded == brute_force(lengths, made)


def test_large_corpora_are_planned_quickly_enough_to_be_exact():
    lengths = np.random.default_rng(0).integers(20000, 16000 * 35, 30000)
    made = BatchPlanner(lengths, lengths // 3000, BatchingConfig(seconds_per_batch=400, num_buckets=10), speeds=SPEEDS)
    assert len(made.buckets) == 10
    assert made.padded_fraction() < 0.12
    epoch, position = made.locate(20000)
    assert made.steps_before(epoch) + position == 20000


def test_bad_input():
    ones = np.ones(3, int)
    with pytest.raises(ValueError, match="no utterances"):
        BatchPlanner(ones[:0], ones[:0], BatchingConfig())
    with pytest.raises(ValueError, match=r"num_samples \(3,\) and num_labels \(2,\)"):
        BatchPlanner(ones, ones[:2], BatchingConfig())
    with pytest.raises(ValueError, match="positive lengths"):
        BatchPlanner(0 * ones, ones, BatchingConfig())
    with pytest.raises(ValueError, match=r"augment\.speeds is empty"):
        BatchPlanner(ones, ones, BatchingConfig(), speeds=())
    for key in ("seconds_per_batch", "num_buckets", "batch_multiple"):
        with pytest.raises(ValueError, match=rf"batching\.{key} = 0"):
            BatchPlanner(ones, ones, dataclasses.replace(BatchingConfig(), **{key: 0}))

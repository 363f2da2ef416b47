import hashlib

import numpy as np
import pytest

from i3d_jax.data import lengths
from i3d_jax.data.batching import BatchingConfig, BatchPlanner
from i3d_jax.data.lengths import Lengths

SPEEDS = (0.9, 1.0, 1.1)


def make(speeds=(1.0,), shuffle=True, joined=0.0):
    rng = np.random.default_rng(5)
    samples = rng.integers(4000, 200000, 3000)
    labels = samples // 4000 + rng.integers(0, 9, 3000)
    return BatchPlanner(
        samples, labels, BatchingConfig(), speeds=speeds, seed=11, shuffle=shuffle, concatenate_seconds=joined
    )


def digest(made):
    facts = made.buckets, made.steps_before(4), made.locate(100), made.padded_fraction(3)
    found = hashlib.sha256(repr([tuple(map(tuple, facts[0])), *facts[1:]]).encode())
    for epoch in (3, 0, 1):
        for bucket, *arrays in made.epoch(epoch):
            found.update(repr(tuple(bucket)).encode())
            for array in arrays:
                found.update(str(array.dtype).encode() + array.tobytes())
    return found.hexdigest()[:16]


# Runs are resumed by them: a plan that changes makes every interrupted training see other data. They were made by the
# planner that drew all batches of an epoch at once.
@pytest.mark.parametrize(
    "speeds, shuffle, joined, expected",
    [
        ((1.0,), True, 0.0, "0de0ff403303a680"),
        ((1.0,), True, 20.0, "3d56ed3930f9d44c"),
        ((1.0,), False, 0.0, "d5c0acbf2514451c"),
        ((1.0,), False, 20.0, "6efd42b1f35e417f"),
        (SPEEDS, True, 0.0, "101b74f520743db2"),
        (SPEEDS, True, 20.0, "5a1a6548d6a65bce"),
        (SPEEDS, False, 0.0, "29c8106ba1526705"),
        (SPEEDS, False, 20.0, "5a6ac5d8fad32023"),
    ],
)
def test_plans_never_change(speeds, shuffle, joined, expected, monkeypatch):
    assert digest(make(speeds, shuffle, joined)) == expected
    monkeypatch.setattr(lengths, "PART", 997)  # however many utterances are gone through at a time
    assert digest(make(speeds, shuffle, joined)) == expected


def test_an_epoch_is_a_sequence():
    batches = make().epoch(0)
    count = len(batches)
    assert len(list(batches)) == count > 100
    np.testing.assert_array_equal(batches[-1].indices, batches[count - 1].indices)
    np.testing.assert_array_equal(batches[3:5][1].indices, batches[4].indices)
    with pytest.raises(IndexError):
        batches[count]


@pytest.mark.parametrize("joined", [0.0, 20.0])
def test_an_epoch_takes_few_bytes_of_each_utterance(joined):
    made = make(SPEEDS, joined=joined)
    plan = made.epoch(0)
    assert plan.utterances.nbytes == 4 * 3000 and plan.order.nbytes == 8 * len(plan)
    assert plan.starts is None if joined == 0 else plan.starts.nbytes == 4 * (plan.sizes.sum() + 1)


def test_lengths_beyond_32_bits_are_kept():
    long = Lengths(np.array([2**31 - 2, 2**31 - 1]), (0.9, 1.0))
    assert long.samples.dtype == np.int64 and long.longest == round((2**31 - 1) / 0.9)
    assert Lengths(np.array([2**31 - 1]), (1.0,)).samples.dtype == np.int32

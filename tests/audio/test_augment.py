import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax.audio.augment import AugmentConfig, spec_augment

OFF = AugmentConfig(time_warp=0, num_frequency_masks=0, num_time_masks=0)
augment = jax.jit(spec_augment, static_argnums=0)


def batch(lengths, frames=None, mels=20, fill=np.nan):
    mask = np.arange(frames or max(lengths))[None, :] < np.array(lengths)[:, None]
    features = np.random.default_rng(0).normal(size=(*mask.shape, mels)).astype(np.float32) + 5
    return np.where(mask[:, :, None], features, np.float32(fill)), mask


def seeds(count, start=0):
    return np.arange(start, start + count, dtype=np.uint32)


def run_lengths(closed):
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], closed.astype(int), [0]])))
    return edges[1::2] - edges[::2]


def test_switched_off_it_only_cuts_the_padding():
    features, mask = batch([30, 12])
    np.testing.assert_array_equal(augment(OFF, seeds(2), features, mask), np.where(mask[:, :, None], features, 0))


def test_a_row_depends_on_its_seed_and_valid_frames_only():
    config = AugmentConfig(frequency_mask_width=8, time_mask_ratio=0.2)
    features, mask = batch([60, 37, 60])
    together = np.asarray(augment(config, seeds(3), features, mask))
    longer, longer_mask = np.pad(features, ((0, 0), (0, 19), (0, 0))), np.pad(mask, ((0, 0), (0, 19)))
    padded = np.asarray(augment(config, seeds(3), longer, longer_mask))
    np.testing.assert_allclose(padded[:, :60], together, rtol=1e-6)
    assert (padded[:, 60:] == 0).all() and (together[1, 37:] == 0).all()
    alone = augment(config, seeds(1, 1), features[1:2, :37], mask[1:2, :37])
    np.testing.assert_allclose(alone[0], together[1, :37], rtol=1e-6)
    reseeded = np.asarray(augment(config, np.array([0, 1, 9], np.uint32), features, mask))
    np.testing.assert_array_equal(reseeded[:2], together[:2])
    assert (reseeded[2] != together[2]).any()


def test_masks_keep_their_widths_and_reach_every_position():
    count, length, mels = 600, 40, 20
    features, mask = batch([length] * count, frames=50, mels=mels, fill=0)
    one = AugmentConfig((1.0,), 0, 1, 6, 1, 0.25)
    closed = np.asarray(augment(one, seeds(count), features, mask)) == 0
    frequency, time = closed[:, :length].all(axis=1), closed[:, :length].all(axis=2)
    for axis, largest in ((frequency, 6), (time, 10)):
        widths = axis.sum(axis=1)
        assert set(widths) == set(range(largest + 1))  # 0 and the largest width included
        assert all(len(run_lengths(row)) <= 1 for row in axis)
        assert np.histogram(widths, bins=largest + 1)[0].min() > 0.5 * count / (largest + 1)
        assert axis.any(axis=0).all()
    many = AugmentConfig(time_warp=0, num_frequency_masks=2, frequency_mask_width=3, num_time_masks=5)
    closed = np.asarray(augment(many, seeds(count), features, mask)) == 0
    assert closed[:, :length].all(axis=1).sum(axis=1).max() <= 6
    assert closed[:, :length].all(axis=2).sum(axis=1).max() <= 5 * 2


def test_values_are_kept_or_zero_without_warp():
    config = AugmentConfig(time_warp=0, time_mask_ratio=0.3)
    features, mask = batch([50, 20])
    y = np.asarray(augment(config, seeds(2), features, mask))
    assert ((y == 0) | (y == features)).all()


def warp_reference(ramp, centre, target):
    """numpy.interp over the centres of frames: [0, centre] to [0, target], [centre, T] to [target, T]."""
    n = len(ramp)
    source = np.interp(np.arange(n) + 0.5, [0, target, n], [0, centre, n])
    return np.interp(source, np.arange(n) + 0.5, ramp)


def test_time_warp_is_one_of_the_piecewise_linear_maps():
    window, length, count = 3, 15, 60
    config = AugmentConfig((1.0,), window, 0, 0, 0, 0.0)
    ramp = np.random.default_rng(1).normal(size=length).astype(np.float32)
    features = np.zeros((count, 20, 2), np.float32)
    features[:, :length] = ramp[None, :, None]
    mask = np.broadcast_to(np.arange(20) < length, (count, 20))
    y = np.asarray(augment(config, seeds(count), features, mask))
    pairs = [(c, t) for c in range(window, length - window) for t in range(c - window + 1, c + window + 1)]
    candidates = np.stack([warp_reference(ramp, *pair) for pair in pairs])
    distance = np.abs(y[:, None, :length, 0] - candidates).max(axis=2)
    assert (distance.min(axis=1) < 1e-5).all()
    assert len(set(distance.argmin(axis=1))) > 20
    np.testing.assert_array_equal(y[..., 0], y[..., 1])
    assert (y[:, length:] == 0).all()


@given(st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_any_length_and_seed_is_finite_and_within_the_range(length, seed):
    config = AugmentConfig(frequency_mask_width=40, time_mask_ratio=1.0)  # wider than the channels, as long as all
    features, mask = batch([length], frames=30)
    y = np.asarray(augment(config, np.array([seed], np.uint32), features, mask))
    assert np.isfinite(y).all() and (y[:, length:] == 0).all()
    if length:
        assert y.min() >= min(0, features[0, :length].min()) - 1e-5
        assert y.max() <= max(0, features[0, :length].max()) + 1e-5


def test_gradients_are_finite_with_nan_in_padding():
    features, mask = batch([40, 6, 0])  # 6: too short to warp
    gradient = jax.grad(lambda x: augment(AugmentConfig(), seeds(3), x, mask).sum())(features)
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[~mask] == 0).all()
    assert np.asarray(gradient)[0].sum() > 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"speeds": ()}, r"augment\.speeds"),
        ({"speeds": (0.0,)}, r"augment\.speeds"),
        ({"time_warp": -1}, r"augment\.time_warp -1"),
        ({"num_time_masks": -2}, r"augment\.num_time_masks -2"),
        ({"time_mask_ratio": 5.0}, r"augment\.time_mask_ratio 5\.0: expected a share"),
    ],
)
def test_bad_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**change)

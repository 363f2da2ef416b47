"""Data augmentation on the device: SpecAugment (arXiv 1904.08779), in the order of ESPnet: warp, frequency, time.

Each row is a function of its own seed and its own valid frames only, so neither padding nor the other rows of a batch
change it. Speed perturbation happens on the host (``audio.io.change_speed``) and is drawn in the batch plan.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from i3d_jax.types import Array


@dataclass(frozen=True)
class AugmentConfig:
    """Speed perturbation and SpecAugment (training only)."""

    speeds: tuple[float, ...] = (1.0,)
    """Speed factors; one is drawn for each utterance and epoch, inside the batch plan."""
    time_warp: int = 5
    """Largest shift of the warp point, in frames; 0 switches time warping off."""
    num_frequency_masks: int = 2
    """Frequency masks an utterance."""
    frequency_mask_width: int = 27
    """Largest width of a frequency mask, in mel channels."""
    num_time_masks: int = 5
    """Time masks an utterance."""
    time_mask_ratio: float = 0.05
    """Largest width of a time mask, as a share of the utterance."""
    concatenate_seconds: float = 0.0
    """Join utterances in random order to rows of random length up to this; 0 keeps them apart. A small corpus wants
    it: attention otherwise learns its sentences by heart."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        if not self.speeds or not all(0.1 <= speed <= 10 for speed in self.speeds):
            raise ValueError(f"augment.speeds {self.speeds}: expected at least one factor, each 0.1 to 10")
        for name in (
            "concatenate_seconds",
            "time_warp",
            "num_frequency_masks",
            "frequency_mask_width",
            "num_time_masks",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.{name} {getattr(self, name)}: expected 0 or more")
        if not 0 <= self.time_mask_ratio <= 1:
            raise ValueError(f"augment.time_mask_ratio {self.time_mask_ratio}: expected a share, 0 to 1")


def spec_augment(config: AugmentConfig, seeds: Array, features: Array, mask: Array) -> jax.Array:
    """Time warp, frequency masks and time masks.

    Args:
      config: static.
      seeds: [B] uint32, one for each utterance and epoch (threefry keys are made of them).
      features: [B, T, F], mean-normalised: masks set 0, which is the mean.
      mask: [B, T] bool, valid frames first.

    Returns:
      [B, T, F]; padded frames are returned as 0.
    """
    return jax.vmap(lambda *row: _augment_row(config, *row))(
        jnp.asarray(seeds, jnp.uint32), jnp.asarray(features), jnp.asarray(mask)
    )


def _augment_row(config: AugmentConfig, seed: jax.Array, features: jax.Array, mask: jax.Array) -> jax.Array:
    """[T, F] with mask [T]."""
    warp_key, frequency_key, time_key = jax.random.split(jax.random.key(seed, impl="threefry2x32"), 3)
    frames, mels = features.shape
    length = mask.sum(dtype=jnp.int32)
    features = jnp.where(mask[:, None], features, 0.0)
    if config.time_warp:
        features = _time_warp(warp_key, features, length, config.time_warp)
    # No draw has the padded length in its shape: what a seed gives does not depend on the bucket.
    in_frequency_mask = _spans(
        frequency_key, config.num_frequency_masks, min(config.frequency_mask_width, mels), mels, mels
    )
    longest = jnp.floor(config.time_mask_ratio * length).astype(jnp.int32)
    in_time_mask = _spans(time_key, config.num_time_masks, longest, length, frames)
    keep = (mask & ~in_time_mask)[:, None] & ~in_frequency_mask[None, :]
    return jnp.where(keep, features, 0.0)


def _up_to(uniform: jax.Array, largest: jax.Array | int) -> jax.Array:
    """Uniform numbers in [0, 1) to uniform integers in [0, largest]."""
    return jnp.minimum(jnp.floor(uniform * (largest + 1)).astype(jnp.int32), largest)  # rounding may reach the top


def _spans(key: jax.Array, count: int, longest: jax.Array | int, length: jax.Array | int, size: int) -> jax.Array:
    """[size] bool: the union of ``count`` spans of 0 to ``longest`` positions, each inside [0, length)."""
    width_draw, start_draw = jax.random.uniform(key, (2, count, 1))
    width = _up_to(width_draw, longest)
    start = _up_to(start_draw, length - width)
    position = jnp.arange(size)[None, :]
    return ((position >= start) & (position < start + width)).any(axis=0)


def _time_warp(key: jax.Array, features: jax.Array, length: jax.Array, window: int) -> jax.Array:
    """Moves one random frame by up to ``window`` frames, stretching one side and squeezing the other linearly.

    As in ESPnet the frame lies at least ``window`` frames from both ends, and utterances too short for that stay as
    they are; interpolation is linear where ESPnet's default is bicubic.
    """
    centre_draw, shift_draw = jax.random.uniform(key, (2,))
    centre = window + _up_to(centre_draw, jnp.maximum(length - 2 * window - 1, 0))  # window .. length - window - 1
    target = centre - window + 1 + _up_to(shift_draw, 2 * window - 1)  # centre - window + 1 .. centre + window
    frame = jnp.arange(features.shape[0])
    position = frame + 0.5  # frame centres, as torch's interpolate(align_corners=False)
    side = jnp.where(position < target, position / target, (length - position) / jnp.maximum(length - target, 1))
    last = jnp.maximum(length - 1, 0)
    shift = jnp.clip((centre - target) * side, -frame, last - frame)  # from a frame to its source, inside the utterance
    before = frame + jnp.floor(shift).astype(jnp.int32)
    share = (shift - jnp.floor(shift))[:, None]
    warped = features[before] * (1 - share) + features[jnp.minimum(before + 1, last)] * share
    return jnp.where(length > 2 * window, warped, features)

"""Bootstrap intervals: utterances, or whole speakers, drawn with replacement."""

from collections.abc import Callable

import numpy as np

Interval = tuple[float, float]


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    size: int,
    *,
    clusters: np.ndarray | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """The statistic on resampled utterances.

    Args:
      statistic: indices [n] of utterances, some repeated, to a vector [k].
      size: utterances B.
      clusters: [B] labels, usually speakers; whole clusters are drawn then, because utterances of one speaker are not
        independent of each other. None draws utterances.
      samples: resamplings.
      seed: of the resampling.

    Returns:
      [samples, k].

    Raises:
      ValueError: no samples, fewer than two utterances or clusters, or labels that are not one an utterance.
    """
    if samples < 1:
        raise ValueError(f"{samples} bootstrap samples; expected at least 1")
    labels = np.arange(size) if clusters is None else np.asarray(clusters)
    if labels.shape != (size,):
        raise ValueError(f"cluster labels of shape {labels.shape} for {size} utterances; give one each")
    names, which = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        what = "utterances" if clusters is None else "clusters (speakers)"
        raise ValueError(f"a bootstrap needs at least two {what}, there is {len(names)}")
    members = [np.flatnonzero(which == c) for c in range(len(names))]
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(names), (samples, len(names)))
    return np.stack([np.asarray(statistic(np.concatenate([members[c] for c in draw]))) for draw in draws])


def interval(samples: np.ndarray) -> Interval | None:
    """95 % percentile interval of [samples]; None where the statistic was undefined in more than half of them."""
    defined = samples[np.isfinite(samples)]
    if 2 * len(defined) < len(samples):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)

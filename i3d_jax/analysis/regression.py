"""What gates depend on, all at once: least squares with standardised coefficients and intervals over speakers."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from i3d_jax.analysis.resampling import Interval, bootstrap, interval

_CONSTANT = 1e-9


@dataclass(frozen=True)
class Coefficient:
    """The effect of one quantity, the others held fixed.

    Attributes:
      standardised: change of the target, in its standard deviations, for one standard deviation of the quantity.
      interval: 95 % bootstrap interval of ``standardised``; None where most resamples left it undefined.
      slope: change of the target for one unit of the quantity.
    """

    standardised: float
    interval: Interval | None
    slope: float


@dataclass(frozen=True)
class Regression:
    """A least-squares fit.

    Attributes:
      target: name of what is explained.
      coefficients: name of a quantity -> its effect.
      r_squared: explained share of the target's variance, speakers included.
      r_squared_interval: its 95 % bootstrap interval.
      r_squared_groups: share that the speakers alone explain; 0 without them.
      utterances: B.
      clusters: speakers (or utterances) that the intervals are drawn over.
    """

    target: str
    coefficients: dict[str, Coefficient]
    r_squared: float
    r_squared_interval: Interval | None
    r_squared_groups: float
    utterances: int
    clusters: int


def regress(
    target: np.ndarray,
    quantities: Mapping[str, np.ndarray],
    *,
    name: str = "target",
    groups: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Regression:
    """Explains a target by several quantities, and by who speaks.

    With ``groups`` there is one dummy variable for each of them instead of one intercept. The dummies are taken out
    first, by subtracting each group's means from target and quantities, which gives the same coefficients (Frisch,
    Waugh and Lovell) and never a matrix as wide as the number of speakers.

    Args:
      target: [B], for instance executed layers.
      quantities: name -> [B].
      name: of the target.
      groups: [B] labels, usually speakers; None for one intercept.
      clusters: [B] labels that are drawn as a whole in the bootstrap; see `bootstrap`.
      samples: resamplings; standard deviations are taken anew in each.
      seed: of the resampling.

    Raises:
      ValueError: shapes do not fit, the target or a quantity is constant (within every group, where there are groups),
        quantities are linear combinations of each other, or there are not more utterances than unknowns.
    """
    y = np.asarray(target, np.float64)
    x = np.stack([np.asarray(column, np.float64) for column in quantities.values()], axis=1)
    if not len(quantities) or y.ndim != 1 or x.shape[:1] != y.shape:
        raise ValueError(f"target {y.shape} and quantities {x.shape} do not fit; give one number an utterance of each")
    labels = np.zeros(len(y), int) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    unknowns = x.shape[1] + len(np.unique(labels))
    if len(y) <= unknowns:
        raise ValueError(f"{len(y)} utterances cannot tell {unknowns} unknowns apart; give more utterances")
    if np.ptp(y) < _CONSTANT:
        raise ValueError(f"{name} is the same for all {len(y)} utterances: there is nothing to explain")
    if np.abs(_within(y[:, None], labels)).max() < _CONSTANT:
        raise ValueError(f"{name} is the same for all utterances of each group: the groups explain it whole")
    within = _within(x, labels)
    scale = np.sqrt((within**2).mean(axis=0))
    for column, spread in zip(quantities, scale, strict=True):
        if spread < _CONSTANT:
            raise ValueError(f"{column} is constant" + ("" if groups is None else " within every group"))
    if np.linalg.matrix_rank(within / scale, tol=1e-8 * np.sqrt(len(y))) < x.shape[1]:
        raise ValueError(f"{', '.join(quantities)} are linear combinations of each other; leave one out")

    def fit(i: np.ndarray) -> np.ndarray:
        return _fit(y[i], x[i], labels[i])

    found = fit(np.arange(len(y)))
    drawn = bootstrap(fit, len(y), clusters=clusters, samples=samples, seed=seed)
    k = x.shape[1]
    return Regression(
        target=name,
        coefficients={
            column: Coefficient(float(found[j]), interval(drawn[:, j]), float(found[k + j]))
            for j, column in enumerate(quantities)
        },
        r_squared=float(found[-2]),
        r_squared_interval=interval(drawn[:, -2]),
        r_squared_groups=float(found[-1]),
        utterances=len(y),
        clusters=len(y) if clusters is None else len(np.unique(clusters)),
    )


def _within(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[B, k] minus the mean of each row's group."""
    counts = np.bincount(labels)
    means = np.stack([np.bincount(labels, column) for column in values.T], axis=1) / np.maximum(counts, 1)[:, None]
    return np.asarray(values - means[labels])


def _fit(y: np.ndarray, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Standardised coefficients [k], slopes [k], R^2 and that of the groups alone; NaN where they are undefined."""
    k = x.shape[1]
    inner_x, inner_y = _within(x, labels), _within(y[:, None], labels)[:, 0]
    scale = np.sqrt((inner_x**2).mean(axis=0))
    total = float(((y - y.mean()) ** 2).sum())
    if total < _CONSTANT or scale.min() < _CONSTANT:
        return np.full(2 * k + 2, np.nan)
    slopes = np.linalg.lstsq(inner_x / scale, inner_y, rcond=None)[0] / scale
    left = float(((inner_y - inner_x @ slopes) ** 2).sum())
    standardised = slopes * x.std(axis=0) / y.std()
    return np.array([*standardised, *slopes, 1 - left / total, 1 - float((inner_y**2).sum()) / total])

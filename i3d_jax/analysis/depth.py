"""How deep utterances go: their length for each number of executed blocks (paper, Fig. 7), and their error rates."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from i3d_jax.analysis.resampling import Interval, bootstrap, interval
from i3d_jax.analysis.utterances import UtteranceTable

_SAME = 1e-9


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of two quantities.

    Attributes:
      rho: None where a quantity is the same for every utterance.
      interval: 95 % bootstrap interval; None where rho is None, or undefined in most resamples.
      p_value: of the test that there is none; it takes utterances for independent.
      utterances: B.
    """

    rho: float | None
    interval: Interval | None
    p_value: float | None
    utterances: int


def rank_correlation(
    x: np.ndarray, y: np.ndarray, *, clusters: np.ndarray | None = None, samples: int = 1000, seed: int = 0
) -> Correlation:
    """Spearman's rank correlation of x [B] and y [B], ties sharing their mean rank, with a bootstrap interval.

    Args:
      x: one quantity.
      y: the other.
      clusters: see `bootstrap`.
      samples: resamplings; ranks are taken anew in each.
      seed: of the resampling.

    Raises:
      ValueError: different shapes, or fewer than two utterances (or clusters).
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"quantities of shapes {x.shape} and {y.shape}; expected one number an utterance of each")
    if np.ptp(x) < _SAME or np.ptp(y) < _SAME:
        return Correlation(None, None, None, len(x))
    found = stats.spearmanr(x, y)
    drawn = bootstrap(lambda i: np.array([_rho(x[i], y[i])]), len(x), clusters=clusters, samples=samples, seed=seed)
    return Correlation(float(found.statistic), interval(drawn[:, 0]), float(found.pvalue), len(x))


def _rho(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of the ranks; NaN where a quantity is constant."""
    if np.ptp(x) < _SAME or np.ptp(y) < _SAME:
        return np.nan
    a, b = (r - r.mean() for r in (stats.rankdata(x), stats.rankdata(y)))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@dataclass(frozen=True)
class DepthGroup:
    """The utterances with one number of executed blocks, or of executed layers.

    Attributes:
      executed: that number.
      audio_seconds: their lengths [n], growing.
      wer: their errors / their words, percent.
      wer_interval: its 95 % bootstrap interval over them; None for a single one.
    """

    executed: float
    audio_seconds: np.ndarray
    wer: float
    wer_interval: Interval | None


def group_by_depth(
    table: UtteranceTable, executed: np.ndarray, *, samples: int = 1000, seed: int = 0
) -> list[DepthGroup]:
    """The utterances by what they executed ([B]), growing."""
    groups = []
    for value in np.unique(executed):
        own = np.flatnonzero(executed == value)
        errors, words = table.errors[own], table.words[own]

        def pooled(i: np.ndarray, errors: np.ndarray = errors, words: np.ndarray = words) -> np.ndarray:
            return np.array([100.0 * errors[i].sum() / max(words[i].sum(), 1)])

        drawn = bootstrap(pooled, len(own), samples=samples, seed=seed)[:, 0] if len(own) > 1 else None
        groups.append(
            DepthGroup(
                executed=float(value),
                audio_seconds=np.sort(table.audio_seconds[own]),
                wer=float(pooled(np.arange(len(own)))[0]),
                wer_interval=None if drawn is None else interval(drawn),
            )
        )
    return groups


def depth_correlations(table: UtteranceTable, *, samples: int = 1000, seed: int = 0) -> dict[str, Correlation]:
    """Rank correlations of depth with length and with error rate; intervals over speakers where there are several.

    Keys: ``<branch> blocks, length``; ``executed layers, length``; ``expected layers, length`` (sum of p(execute) / M);
    and the last two with ``WER``.
    """
    clusters = table.speakers if len(set(table.speakers)) > 1 else None
    depth = {"executed layers": table.executed_layers, "expected layers": table.expected_layers}
    blocks = {f"{name} blocks": counts for name, counts in table.executed_blocks.items()}
    pairs = [(f"{name}, length", x, table.audio_seconds) for name, x in (blocks | depth).items()]
    pairs += [(f"{name}, WER", x, table.wer) for name, x in depth.items()]
    return {name: rank_correlation(x, y, clusters=clusters, samples=samples, seed=seed) for name, x, y in pairs}

"""The trade-off of a gated model: its error rate over thresholds beta, one trained model at many depths.

The points of an automatic grid are taken from the gate probabilities themselves. Gates cluster: most thresholds of an
even grid would give the same gates twice, and none in between.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from etils import epath

from i3d_jax import files, schema
from i3d_jax.analysis.gate_stats import gate_statistics
from i3d_jax.inference.evaluation import Evaluation
from i3d_jax.inference.report import align_columns
from i3d_jax.inference.scoring import UtteranceErrors, paired_bootstrap

MAX_POINTS = 12
"""Points of an automatic grid, at most."""
_SAME = 1e-6  # probabilities closer than this are one: rounding differs between programs


@dataclass(frozen=True)
class SweepPoint:
    """A model at one threshold, or at one compute budget.

    Attributes:
      beta: a block is executed where p(execute) > beta; None where blocks were chosen to fit a budget.
      wer: percent.
      wer_interval: its 95 % bootstrap interval, None when none was asked for.
      executed_layers: executed branches / M, averaged over utterances.
      gflops_per_second: GFLOP per second of audio that skipping executions spend.
      distinct_patterns: different gate patterns among the utterances.
      substitutions: of words, like the next two.
      deletions: missing words.
      insertions: words without a reference.
      wer_difference: WER minus that of the baseline, in points; None without one.
      wer_difference_interval: its 95 % paired-bootstrap interval.
      budget: share of the FLOPs of all gated blocks that was allowed; None in a sweep over thresholds.
      encoder_share: share that was spent, averaged over utterances; None in files of earlier versions.
      largest_share: the largest of an utterance.
    """

    beta: float | None
    wer: float
    wer_interval: tuple[float, ...] | None
    executed_layers: float
    gflops_per_second: float
    distinct_patterns: int
    substitutions: int
    deletions: int
    insertions: int
    wer_difference: float | None = None
    wer_difference_interval: tuple[float, ...] | None = None
    budget: float | None = None
    encoder_share: float | None = None
    largest_share: float | None = None

    @property
    def setting(self) -> float:
        """What was swept: the budget, or the threshold."""
        setting = self.beta if self.budget is None else self.budget
        assert setting is not None
        return setting


def sweep_point(
    result: Evaluation,
    gate_names: tuple[str, ...],
    *,
    beta: float | None,
    budget: float | None = None,
    against: UtteranceErrors | None = None,
) -> SweepPoint:
    """The point of an evaluation; ``against`` holds errors of a baseline on the same utterances, in the same order."""
    score = result.score
    difference = None
    if against is not None:
        words, errors = score.utterance_words, score.utterance_errors
        difference = paired_bootstrap(errors, words, against.errors, against.words)
    return SweepPoint(
        beta=beta,
        wer=score.wer,
        wer_interval=None if math.isnan(score.wer_interval[0]) else score.wer_interval,
        executed_layers=result.executed_layers,
        gflops_per_second=result.gflops_per_second,
        distinct_patterns=gate_statistics(result.gates, result.gate_probabilities, gate_names).distinct_patterns,
        substitutions=score.substitutions,
        deletions=score.deletions,
        insertions=score.insertions,
        wer_difference=difference.difference if difference else None,
        wer_difference_interval=difference.interval if difference else None,
        budget=budget,
        encoder_share=float(result.encoder_share.mean()),
        largest_share=float(result.encoder_share.max()),
    )


@dataclass(frozen=True)
class Baseline:
    """What a sweep is compared with: one evaluation of another model, in the units of `SweepPoint`."""

    folder: str
    model: str
    wer: float
    executed_layers: float
    gflops_per_second: float


@dataclass(frozen=True)
class Sweep:
    """A model over thresholds.

    Attributes:
      model: its name.
      split: what it was evaluated on.
      beta: threshold of its configuration.
      num_layers: layers N, the depth with every gate open.
      points: by growing threshold or budget.
      baseline: None without one.
    """

    model: str
    split: str
    beta: float
    num_layers: int
    points: tuple[SweepPoint, ...]
    baseline: Baseline | None = None


def choose_thresholds(probabilities: np.ndarray, beta: float, max_points: int = MAX_POINTS) -> list[float]:
    """Thresholds that spread the executed depth evenly, each in a wide gap between observed probabilities.

    Args:
      probabilities: [B, N, M] p(execute) of a set of utterances. Those of a global predictor do not depend on the
        threshold; those of local ones do, and the depths reached are then near the even ones only.
      beta: threshold of the configuration, always among the result, as is 0 (every gate open).
      max_points: at most so many, 2 or more. There are fewer when the gates have fewer states.

    Returns:
      Growing thresholds.
    """
    values = np.sort(np.asarray(probabilities, np.float64).ravel())
    gaps = np.diff(values)  # a threshold in gaps[k - 1] closes the k lowest
    chosen = {0.0: 0, float(beta): int(np.searchsorted(values, beta, side="right"))}
    for low, high in pairwise(np.linspace(0, len(values), max_points - 1)):
        first, last = max(math.ceil(low), 1), min(math.ceil(high), len(values))
        if first >= last:
            continue
        closed = first + int(np.argmax(gaps[first - 1 : last - 1]))
        if gaps[closed - 1] > _SAME and closed not in chosen.values():
            chosen[_short_number(float(values[closed - 1]), float(values[closed]))] = closed
    return sorted(chosen)


def _short_number(low: float, high: float) -> float:
    """The number of fewest digits in the middle half of an interval."""
    middle, margin = (low + high) / 2, (high - low) / 4
    for digits in range(1, 9):
        if low + margin <= (number := round(middle, digits)) <= high - margin:
            return number
    return middle


def sweep_points(
    evaluate: Callable[[float], Evaluation],
    gate_names: tuple[str, ...],
    *,
    thresholds: Sequence[float],
    beta: float,
    local: bool,
    against: UtteranceErrors | None = None,
) -> Iterator[SweepPoint]:
    """Evaluate one threshold after the other; the order is not that of the thresholds.

    Args:
      evaluate: threshold -> evaluation by an execution that skips.
      gate_names: names of the M branches.
      thresholds: what to evaluate; empty means an automatic grid from the probabilities seen at 0 and ``beta``.
      beta: threshold of the configuration.
      local: whether probabilities depend on earlier gates, so that those at ``beta`` say more than those at 0.
      against: errors of a baseline on the same utterances, in the same order.
    """

    def point(threshold: float, result: Evaluation) -> SweepPoint:
        return sweep_point(result, gate_names, beta=threshold, against=against)

    done: set[float] = set()
    if not thresholds:
        first = {threshold: evaluate(threshold) for threshold in sorted({0.0, float(beta)})}
        for threshold, result in first.items():
            done.add(threshold)
            yield point(threshold, result)
        # With both, the grid covers the depths around beta as well as those near the full one.
        seen = list(first.values()) if local else [first[0.0]]
        thresholds = choose_thresholds(np.concatenate([result.gate_probabilities for result in seen]), beta)
    for threshold in sorted(set(map(float, thresholds)) - done):
        yield point(threshold, evaluate(threshold))


def read_baseline(folder: epath.PathLike) -> Baseline:
    """What the ``report.json`` of an evaluation folder says about it.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not a report of one evaluation.
    """
    path = epath.Path(folder) / "report.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no evaluation there; make it with eval.py")
    try:
        (row,) = json.loads(path.read_text())["rows"]
        numbers = {key: float(row[key]) for key in ("wer", "executed_layers", "gflops_per_second")}
        return Baseline(folder=str(folder), model=str(row["model"]), **numbers)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the report of one evaluation ({error!r}); make it with eval.py") from error


def write_sweep(path: epath.PathLike, sweep: Sweep, meta: dict[str, Any]) -> None:
    """Writes a sweep as JSON, its points under ``rows``, atomically."""
    data = schema.to_dict(sweep)
    data["rows"] = data.pop("points")
    files.write_text(path, json.dumps(data | {"meta": meta}, indent=2, allow_nan=False) + "\n")


def read_sweep(path: epath.PathLike) -> Sweep:
    """Reads what `write_sweep` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a sweep.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no sweep there; make it with eval.py RUN --split=... --sweep-threshold")
    try:
        data = json.loads(path.read_text())
        baseline = data["baseline"]
        return Sweep(
            model=str(data["model"]),
            split=str(data["split"]),
            beta=float(data["beta"]),
            num_layers=int(data["num_layers"]),
            points=tuple(schema.from_dict(SweepPoint, row) for row in data["rows"]),
            baseline=None if baseline is None else schema.from_dict(Baseline, baseline),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a sweep ({error!r}); make it again with eval.py --sweep-threshold") from error


def format_sweep(sweep: Sweep) -> str:
    """The points as aligned plain text; differences from the baseline when there is one."""

    def interval(bounds: tuple[float, ...] | None, sign: str = "") -> str:
        return "-" if bounds is None else f"{bounds[0]:{sign}.2f} to {bounds[1]:{sign}.2f}"

    budgets = any(point.budget is not None for point in sweep.points)
    header = [
        *(["budget", "spent", "at most"] if budgets else ["beta"]),
        "WER",
        "95 % interval",
        "executed layers",
        "GFLOP per s",
        "patterns",
        "S",
        "D",
        "I",
    ]
    body = [
        [
            f"{point.setting:g}",
            *([f"{point.encoder_share:.3f}", f"{point.largest_share:.3f}"] if budgets else []),
            f"{point.wer:.2f}",
            interval(point.wer_interval),
            f"{point.executed_layers:.2f}",
            f"{point.gflops_per_second:.3f}",
            str(point.distinct_patterns),
            *map(str, (point.substitutions, point.deletions, point.insertions)),
        ]
        for point in sweep.points
    ]
    if sweep.baseline is not None:
        header += [f"WER - {sweep.baseline.model}", "95 % interval"]
        for line, point in zip(body, sweep.points, strict=True):
            line += [f"{point.wer_difference:+.2f}", interval(point.wer_difference_interval, "+")]
    return align_columns(header, body, [False] * len(header))

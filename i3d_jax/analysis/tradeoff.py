"""Error rate against depth (paper, Figs. 2 to 4): curves of many models, wherever their points come from."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from etils import epath

from i3d_jax.analysis.sweep import Sweep, read_sweep


@dataclass(frozen=True)
class CurvePoint:
    """One model at one depth.

    Attributes:
      executed_layers: executed branches / M, averaged over utterances.
      wer: percent.
      wer_interval: its 95 % interval; None where it is not known.
      gflops_per_second: GFLOP per second of audio; None where it is not known.
    """

    executed_layers: float
    wer: float
    wer_interval: tuple[float, float] | None = None
    gflops_per_second: float | None = None


@dataclass(frozen=True)
class Curve:
    """A line of a figure.

    Attributes:
      label: in legends.
      points: by growing depth.
      num_layers: layers N with every gate open; None where it is not known.
      style: number of its look, the same in every figure; None takes its place in the figure.
    """

    label: str
    points: tuple[CurvePoint, ...]
    num_layers: int | None = None
    style: int | None = None


def make_curve(label: str, points: Iterable[CurvePoint], num_layers: int | None = None) -> Curve:
    """A curve, its points by growing depth.

    Raises:
      ValueError: no points.
    """
    ordered = tuple(sorted(points, key=lambda point: (point.executed_layers, point.wer)))
    if not ordered:
        raise ValueError(f"curve {label!r} has no points")
    return Curve(label, ordered, num_layers)


def curve_of_sweep(sweep: Sweep, label: str) -> Curve:
    """A sweep over thresholds or budgets."""
    points = []
    for one in sweep.points:
        bounds = None if one.wer_interval is None else (one.wer_interval[0], one.wer_interval[1])
        points.append(CurvePoint(one.executed_layers, one.wer, bounds, one.gflops_per_second))
    return make_curve(label, points, sweep.num_layers)


def read_curve(path: epath.PathLike, label: str = "") -> Curve:
    """Reads a curve: of ``eval.py --sweep-threshold`` or ``--sweep-budget``, of a pruning, or written by hand.

    An object with ``points`` (or ``rows``); a point has ``executed_layers`` and ``wer``, and may have ``wer_interval``
    (two numbers) and ``gflops_per_second``. ``label`` and ``num_layers`` may stand beside the points. Other keys are
    left alone.

    Args:
      path: JSON file.
      label: instead of the file's own; a file without one is called by its folder and name.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it holds no curve.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such curve")
    try:
        data = json.loads(path.read_text())
        if "beta" in data:
            return curve_of_sweep(read_sweep(path), label or str(data["model"]))
        points = [_read_point(point) for point in data["points" if "points" in data else "rows"]]
        layers = data.get("num_layers")
        label = label or str(data.get("label", f"{path.parent.name}/{path.stem}"))
        return make_curve(label, points, None if layers is None else int(layers))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is not a curve ({error!r}); expected {{"label": "...", "points": [{{"executed_layers": 20.5, '
            '"wer": 12.3}, ...]} or what eval.py --sweep-threshold writes'
        ) from error


def _read_point(point: dict[str, Any]) -> CurvePoint:
    layers, wer = float(point["executed_layers"]), float(point["wer"])
    flops = point.get("gflops_per_second")
    bounds = point.get("wer_interval")
    if not (math.isfinite(layers) and math.isfinite(wer)):
        raise ValueError(f"point {point}")
    return CurvePoint(
        layers,
        wer,
        None if bounds is None else (float(bounds[0]), float(bounds[1])),
        None if flops is None else float(flops),
    )


def relative(curve: Curve, wer: float, num_layers: int | None = None) -> Curve:
    """The same curve as shares: depth of ``num_layers`` (None takes the curve's own), WER of a reference's WER.

    So that models of different depth and data can stand in one figure.

    Raises:
      ValueError: the number of layers is not known, or the reference makes no errors.
    """
    layers = curve.num_layers if num_layers is None else num_layers
    if not layers or wer <= 0:
        raise ValueError(f"curve {curve.label!r}: relative to {layers} layers and a WER of {wer}; both must be above 0")
    points = tuple(
        replace(
            p,
            executed_layers=p.executed_layers / layers,
            wer=p.wer / wer,
            wer_interval=None if p.wer_interval is None else (p.wer_interval[0] / wer, p.wer_interval[1] / wer),
        )
        for p in curve.points
    )
    return Curve(curve.label, points, 1, curve.style)


def wer_at_depth(curve: Curve, executed_layers: float) -> float | None:
    """WER at a depth, between neighbouring points on a straight line; None outside the curve."""
    points: Sequence[CurvePoint] = curve.points
    for low, high in zip(points, points[1:], strict=False):
        if low.executed_layers <= executed_layers <= high.executed_layers:
            width = high.executed_layers - low.executed_layers
            share = 0.0 if width == 0 else (executed_layers - low.executed_layers) / width
            return low.wer + share * (high.wer - low.wer)
    if len(points) == 1 and points[0].executed_layers == executed_layers:
        return points[0].wer
    return None

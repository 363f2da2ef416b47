"""The curve of a pruned model, static encoders of every depth: as a table and a figure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from i3d_jax import files, schema
from i3d_jax.analysis.canvas import STYLES, logarithmic, new_figure, save, tidy
from i3d_jax.inference.pattern import Pattern
from i3d_jax.inference.pruning import Pruning
from i3d_jax.inference.report import align_columns

_STYLES = STYLES[:2]


@dataclass(frozen=True)
class CurvePoint:
    """A pruned model of one depth on a split.

    Attributes:
      executed_layers: executed blocks / M.
      removed: what was removed last; empty for the whole model.
      wer: percent.
      cer: percent.
      gflops_per_second: GFLOP per second of audio.
      wer_interval: 95 % bootstrap interval; None on the selection set, whose lowest error rates were picked.
      wer_difference: WER minus that of the whole model, in points.
      wer_difference_interval: its 95 % paired-bootstrap interval; None on the selection set.
    """

    executed_layers: float
    removed: str
    wer: float
    cer: float
    gflops_per_second: float
    wer_interval: tuple[float, ...] | None
    wer_difference: float
    wer_difference_interval: tuple[float, ...] | None


def selection_curve(pruning: Pruning) -> list[CurvePoint]:
    """The depths of a pruning on its selection set, the whole model first."""
    whole = pruning.steps[0].cost
    return [
        CurvePoint(
            executed_layers=pattern.executed_layers,
            removed="" if step.unit is None else pruning.unit_name(step.unit),
            wer=step.cost.wer,
            cer=step.cost.cer,
            gflops_per_second=step.cost.gflops_per_second,
            wer_interval=None,
            wer_difference=step.cost.wer - whole.wer,
            wer_difference_interval=None,
        )
        for step, pattern in zip(pruning.steps, pruning.patterns(), strict=True)
    ]


def write_curve(
    path: epath.PathLike, pruning: Pruning, split: str, points: Sequence[CurvePoint], meta: dict[str, Any]
) -> None:
    """Writes a curve as JSON that `analysis.tradeoff.read_curve` reads, its points under ``rows``, atomically."""
    about = {"label": pruning.label, "split": split, "num_layers": pruning.num_layers}
    data = about | {"rows": [schema.to_dict(point) for point in points], "meta": meta}
    files.write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def format_curve(points: Sequence[CurvePoint]) -> str:
    """The points as aligned plain text."""

    def interval(bounds: tuple[float, ...] | None, sign: str = "") -> str:
        return "-" if bounds is None else f"{bounds[0]:{sign}.2f} to {bounds[1]:{sign}.2f}"

    header = [
        "executed layers",
        "removed",
        "WER",
        "95 % interval",
        "CER",
        "GFLOP per s",
        "WER - whole",
        "95 % interval",
    ]
    body = [
        [
            f"{point.executed_layers:g}",
            point.removed or "-",
            f"{point.wer:.2f}",
            interval(point.wer_interval),
            f"{point.cer:.2f}",
            f"{point.gflops_per_second:.3f}",
            f"{point.wer_difference:+.2f}",
            interval(point.wer_difference_interval, "+"),
        ]
        for point in points
    ]
    return align_columns(header, body, [title == "removed" for title in header])


def plot_pruning(
    curves: Mapping[str, Sequence[CurvePoint]], patterns: Sequence[Pattern], path: epath.PathLike, title: str
) -> None:
    """Draws WER against executed layers, and which blocks each depth keeps.

    Args:
      curves: split -> its points, one split or two; bars are 95 % intervals where there are any.
      patterns: of all depths.
      path: PNG file, written atomically.
      title: heading.

    Raises:
      ValueError: no curve, or more than two.
    """
    if not 1 <= len(curves) <= len(_STYLES):
        raise ValueError(f"{len(curves)} curves: expected 1 to {len(_STYLES)} in one figure")
    figure, (left, right) = new_figure(8.2, 3.7, 2)
    for (split, points), (color, marker, line) in zip(curves.items(), _STYLES, strict=False):
        x, wer = (np.array([getattr(point, name) for point in points]) for name in ("executed_layers", "wer"))
        bounds = np.array([point.wer_interval or (point.wer, point.wer) for point in points])
        bars = np.abs(bounds.T - wer)
        left.errorbar(x, wer, yerr=bars, fmt="none", ecolor=color, elinewidth=0.8, capsize=2, alpha=0.55)
        left.plot(
            x, wer, color=color, linestyle=line, linewidth=1.2, marker=marker, markersize=4.5,
            markerfacecolor="white", label=split,
        )  # fmt: skip
    wers = [point.wer for points in curves.values() for point in points]
    if min(wers) > 0 and max(wers) > 5 * min(wers):  # on a linear axis the useful end would be a flat line
        logarithmic(left)
    tidy(left, "Executed layers", "WER (%)")
    left.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
    left.legend(fontsize=8, frameon=False)
    _draw_kept(right, patterns)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def _draw_kept(axis: Axes, patterns: Sequence[Pattern]) -> None:
    """A column for each depth, the deepest at the right; layers upwards, the blocks of a layer beside each other."""
    ordered = sorted(patterns, key=lambda pattern: pattern.executed_layers)
    names = ordered[0].gate_names
    blocks = np.stack([pattern.gates.reshape(-1) for pattern in ordered], axis=1)
    axis.imshow(blocks, cmap="Greys", vmin=0, vmax=1.3, aspect="auto", origin="lower", interpolation="nearest")
    layers = len(blocks) // len(names)
    step = -(-layers // 12)
    shown = np.arange(0, layers, step)
    axis.set_yticks(shown * len(names) + (len(names) - 1) / 2, [str(layer + 1) for layer in shown])
    columns = np.arange(0, len(ordered), -(-len(ordered) // 13))
    axis.set_xticks(columns, [f"{ordered[column].executed_layers:g}" for column in columns])
    axis.set_xlabel("Executed layers", fontsize=9)
    axis.set_ylabel(f"Layer ({' below '.join(names)})", fontsize=9)
    axis.set_title("kept blocks (dark)", fontsize=9)
    axis.tick_params(labelsize=8, length=0)

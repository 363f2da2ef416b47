"""The figure of error rate against depth (paper, Figs. 2 to 4)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from i3d_jax.analysis.canvas import STYLES, logarithmic, new_figure, tidy
from i3d_jax.analysis.tradeoff import Curve

_FILLS = ("full", "none")


def draw_tradeoff(
    curves: Sequence[Curve],
    title: str,
    *,
    background: Sequence[Curve] = (),
    xlabel: str = "Executed layers",
    ylabel: str = "WER (%)",
) -> Figure:
    """WER against executed layers, a line for each curve; a single point is a marker.

    Args:
      curves: up to 12, told apart by marker, line style, darkness and filling.
      title: heading.
      background: further curves, such as published ones, drawn in thin light grey.
      xlabel: of the depth.
      ylabel: of the error rate.

    Raises:
      ValueError: no curve, or more of them than there are styles.
    """
    most = 2 * len(STYLES)
    if not (curves or background) or max(len(curves), len(background)) > most:
        counts = f"{len(curves)} curves and {len(background)} in the background"
        raise ValueError(f"{counts}: expected 1 to {most} in one figure: name fewer runs")
    figure, (axis,) = new_figure(6.6, 3.9)
    draw_curves(axis, curves, background=background)
    tidy(axis, xlabel, ylabel, title)
    axis.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def draw_curves(axis: Axes, curves: Sequence[Curve], *, background: Sequence[Curve] = ()) -> None:
    """The lines of `draw_tradeoff` on an axis."""
    for place, curve in enumerate(background):
        number = place if curve.style is None else curve.style
        _, marker, line = STYLES[number % len(STYLES)]
        x, wer = _coordinates(curve)
        axis.plot(
            x, wer, color="0.62", linestyle=line, linewidth=0.9, marker=marker, markersize=3.5, label=curve.label,
            markerfacecolor="white", zorder=1.5,
        )  # fmt: skip
    for place, curve in enumerate(curves):
        number = place if curve.style is None else curve.style
        color, marker, line = STYLES[number % len(STYLES)]
        x, wer = _coordinates(curve)
        bounds = np.array([point.wer_interval or (point.wer, point.wer) for point in curve.points])
        bars = np.abs(bounds.T - wer)
        if bars.max() > 0:
            axis.errorbar(x, wer, yerr=bars, fmt="none", ecolor=color, elinewidth=0.8, capsize=2, alpha=0.55, zorder=2)
        axis.plot(
            x, wer, color=color, linestyle=line, linewidth=1.2, marker=marker, markersize=5, label=curve.label,
            fillstyle=_FILLS[number // len(STYLES) % len(_FILLS)], zorder=3,
        )  # fmt: skip
    lowest, highest = (extreme(p.wer for c in (*curves, *background) for p in c.points) for extreme in (min, max))
    if 0 < 4 * lowest < highest:  # closing gates ruins the text: on a linear axis the useful end would be a flat line
        logarithmic(axis, (1, 1.5, 2, 3, 5))


def _coordinates(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p.executed_layers for p in curve.points]), np.array([p.wer for p in curve.points])

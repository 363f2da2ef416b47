"""Figures of what moves gates: coefficients of regressions, and differences within matched pairs."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from i3d_jax.analysis.canvas import STYLES, new_figure, tidy
from i3d_jax.analysis.matched_pairs import Effect, PairedEffects
from i3d_jax.analysis.regression import Regression


def draw_regressions(regressions: Mapping[str, Regression], title: str) -> Figure:
    """Standardised coefficients with 95 % intervals, a marker for each target; R^2 stands in the legend.

    Raises:
      ValueError: no regression, more than there are markers, or regressions on different quantities.
    """
    if not 1 <= len(regressions) <= len(STYLES):
        raise ValueError(f"{len(regressions)} regressions: expected 1 to {len(STYLES)} in one figure")
    quantities = list(next(iter(regressions.values())).coefficients)
    if any(list(one.coefficients) != quantities for one in regressions.values()):
        raise ValueError("regressions on different quantities do not belong in one figure")
    figure, (axis,) = new_figure(6.2, 1.6 + 0.5 * len(quantities))
    offsets = np.linspace(-0.24, 0.24, len(regressions)) if len(regressions) > 1 else np.zeros(1)
    for (name, one), offset, (color, marker, _) in zip(regressions.items(), offsets, STYLES, strict=False):
        effects = [Effect(c.standardised, c.interval) for c in one.coefficients.values()]
        label = rf"{name} ($R^2$ = {one.r_squared:.2f}; speaker alone {one.r_squared_groups:.2f})"
        _draw_effects(axis, effects, np.arange(len(quantities)) + offset, color, marker, label)
    axis.axvline(0, color="0.35", linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
    axis.set_yticks(range(len(quantities)), quantities)
    axis.set_ylim(len(quantities) - 0.5, -0.5)
    tidy(axis, "Standardised coefficient, 95 % interval", title=title, grid="x")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", fontsize=7.5, frameon=False, ncols=1)
    return figure


def draw_pairs(effects: Sequence[PairedEffects], title: str) -> Figure:
    """Paired differences with 95 % intervals for each change: depth asked for, depth executed, and WER."""
    figure, axes = new_figure(8.4, 1.1 + 0.32 * len(effects), 3, sharey=True)
    panels = (
        ("expected_layers", "Sum of p(execute) / M (layers)"),
        ("executed_layers", "Executed layers"),
        ("wer", "WER (points)"),
    )
    places = np.arange(len(effects))
    for (field, label), axis, (color, marker, _) in zip(panels, axes, STYLES, strict=False):
        _draw_effects(axis, [getattr(one, field) for one in effects], places, color, marker, "")
        axis.axvline(0, color="0.35", linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
        tidy(axis, label, grid="x")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
        axis.margins(x=0.12)
    axes[0].set_yticks(places, [one.change for one in effects])
    axes[0].set_ylim(len(effects) - 0.5, -0.5)
    figure.suptitle(f"{title}: changed minus original, mean and 95 % interval", fontsize=9.5)
    return figure


def _draw_effects(axis: Axes, effects: Sequence[Effect], y: np.ndarray, color: str, marker: str, label: str) -> None:
    mean = np.array([effect.mean for effect in effects])
    bounds = np.array([effect.interval or (effect.mean, effect.mean) for effect in effects])
    axis.errorbar(
        mean, y, xerr=np.maximum(np.abs(bounds.T - mean), 0), linestyle="none", color=color, marker=marker,
        markersize=5, elinewidth=1.1, capsize=2.5, zorder=3, label=label,
    )  # fmt: skip

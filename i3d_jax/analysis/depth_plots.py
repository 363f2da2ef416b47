"""Figures of depth: speech length for each number of executed blocks (paper, Fig. 7), depth against error rate."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from i3d_jax.analysis.canvas import BRANCH_TITLES, STYLES, new_figure, tidy
from i3d_jax.analysis.depth import Correlation, depth_correlations, group_by_depth
from i3d_jax.analysis.utterances import UtteranceTable

_HATCHES = ("", "////", "....", "xxxx")


def draw_lengths(table: UtteranceTable, title: str, correlations: Mapping[str, Correlation] | None = None) -> Figure:
    """Box plots of the length of utterances for each number of executed blocks, a panel a branch (paper, Fig. 7).

    Boxes are quartiles, whiskers reach the last utterance within 1.5 interquartile ranges, circles lie beyond; the
    number of utterances stands above each box and Spearman's rho, with its 95 % interval, above each panel.

    Args:
      table: of one evaluation.
      title: heading, usually model and split.
      correlations: `depth_correlations` of the table, where they are at hand.
    """
    correlations = correlations or depth_correlations(table)
    branches = len(table.gate_names)
    figure, axes = new_figure(3.5 * branches + 0.3, 3.3, branches, sharey=True)
    top = float(table.audio_seconds.max())
    for m, (name, axis) in enumerate(zip(table.gate_names, axes, strict=True)):
        groups = group_by_depth(table, table.executed_blocks[name], samples=1)
        places = [group.executed for group in groups]
        boxes = axis.boxplot(
            [group.audio_seconds for group in groups], positions=places, widths=0.6, patch_artist=True,
            medianprops={"color": "black", "linewidth": 1.4}, flierprops={"markersize": 3, "markeredgecolor": "0.4"},
            manage_ticks=False,
        )  # fmt: skip
        for box in boxes["boxes"]:
            box.set(facecolor="0.88", edgecolor=STYLES[m % len(STYLES)][0], hatch=_HATCHES[m % len(_HATCHES)])
        for group in groups:
            axis.text(group.executed, 1.04 * top, f"{len(group.audio_seconds)}", ha="center", fontsize=7, color="0.3")
        heading = f"{BRANCH_TITLES.get(name, name)}\n{describe(correlations[f'{name} blocks, length'])}"
        tidy(axis, f"Executed {name.upper()} blocks (of {table.gates.shape[1]})", title=heading, grid="y")
        axis.set_xlim(min(places) - 0.8, max(places) + 0.8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=9))
    axes[0].set_ylim(0, 1.12 * top)
    axes[0].set_ylabel("Speech length (s)", fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_depth_and_wer(
    table: UtteranceTable, title: str, correlations: Mapping[str, Correlation] | None = None
) -> Figure:
    """Error rate of each utterance against its depth: the executed layers, and the sum of p(execute) / M.

    Dots are utterances. On the left the squares are errors / words of the utterances of one depth, with a 95 %
    bootstrap interval; on the right, of fifths of the utterances by depth. Arguments are those of `draw_lengths`.
    """
    correlations = correlations or depth_correlations(table)
    figure, axes = new_figure(7.3, 3.4, 2, sharey=True)
    rng = np.random.default_rng(0)
    executed, expected = table.executed_layers, table.expected_layers
    spread = 0.12 / len(table.gate_names)  # dots of one depth side by side, within half a step
    _draw_dots(axes[0], executed + rng.uniform(-spread, spread, len(table)), table.wer)
    _draw_groups(axes[0], [(g.executed, g.wer, g.wer_interval) for g in group_by_depth(table, executed)])
    _draw_dots(axes[1], expected, table.wer)
    fifths = np.array_split(np.argsort(expected, kind="stable"), min(5, len(table)))
    points = []
    for own in fifths:
        (group,) = group_by_depth(table.rows(own), np.zeros(len(own)))
        points.append((float(expected[own].mean()), group.wer, group.wer_interval))
    _draw_groups(axes[1], points)
    step = 1 / len(table.gate_names)
    axes[0].set_xlim(executed.min() - step, executed.max() + step)
    for axis, name, label in zip(
        axes, ("executed", "expected"), ("Executed layers", "Sum of p(execute) / M (layers)"), strict=True
    ):
        tidy(axis, label, title=describe(correlations[f"{name} layers, WER"]))
        axis.xaxis.set_major_locator(MaxNLocator(nbins=7))
    axes[0].set_ylabel("WER of the utterance (%)", fontsize=9)
    axes[1].legend(fontsize=8, frameon=True, edgecolor="none", framealpha=0.85, loc="upper right")
    figure.suptitle(title, fontsize=10)
    return figure


def describe(correlation: Correlation) -> str:
    """A rank correlation in a few words, for headings."""
    if correlation.rho is None:
        return f"the same for all {correlation.utterances} utterances"
    bounds = correlation.interval
    shown = "" if bounds is None else f" [{bounds[0]:+.2f}, {bounds[1]:+.2f}]"
    return rf"Spearman $\rho$ = {correlation.rho:+.2f}{shown}"


def _draw_dots(axis: Axes, x: np.ndarray, wer: np.ndarray) -> None:
    axis.scatter(x, wer, s=11, facecolor="none", edgecolor="0.55", linewidth=0.7, zorder=2, label="utterance")


def _draw_groups(axis: Axes, points: list[tuple[float, float, tuple[float, float] | None]]) -> None:
    x, wer = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    bounds = np.array([p[2] or (p[1], p[1]) for p in points])
    color, _, _ = STYLES[0]
    axis.errorbar(
        x, wer, yerr=np.maximum(np.abs(bounds.T - wer), 0), color=color, marker="s", markersize=5, linewidth=1.2,
        capsize=2.5, zorder=3, label="errors / words, 95 %",
    )  # fmt: skip

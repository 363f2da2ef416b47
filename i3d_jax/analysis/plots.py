"""Figures of gates (paper, Figs. 5 and 6) and of sweeps over thresholds and budgets."""

from collections.abc import Mapping

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from i3d_jax.analysis.canvas import BRANCH_TITLES, STYLES, logarithmic, new_figure, pixels, save, tidy
from i3d_jax.analysis.gate_stats import GateStats
from i3d_jax.analysis.sweep import Baseline, Sweep


def draw_gate_probabilities(stats: GateStats, title: str, *, threshold: float = 0.5) -> Figure:
    """The mean and standard deviation of p(execute) per layer, one panel for each branch (paper, Fig. 5).

    Filled markers are gates whose mean lies above the threshold.

    Args:
      stats: statistics of the gates on a set of utterances.
      title: heading, usually model and split.
      threshold: beta, drawn as a dashed line.
    """
    layers, branches = stats.probability_mean.shape
    figure, axes = new_figure(3.5 * branches + 0.3, 3.1, branches, sharey=True)
    x = np.arange(1, layers + 1)
    for m, (name, axis) in enumerate(zip(stats.gate_names, axes, strict=True)):
        mean, std = stats.probability_mean[:, m], stats.probability_std[:, m]
        is_open = mean > threshold
        axis.axhline(threshold, color="0.35", linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
        axis.errorbar(
            x, mean, yerr=std, color="#1b4f8a", linewidth=1.1, ecolor="0.45", elinewidth=1.1, capsize=2.2, zorder=2
        )
        axis.scatter(x[is_open], mean[is_open], s=20, color="#1b4f8a", zorder=3)
        axis.scatter(x[~is_open], mean[~is_open], s=20, facecolor="white", edgecolor="#1b4f8a", linewidth=1.1, zorder=3)
        blocks = stats.executed_blocks[name]
        tidy(axis, "Layer", title=f"{BRANCH_TITLES.get(name, name)}: {blocks:.1f} of {layers} executed", grid="y")
        axis.set_xlim(0.3, layers + 0.7)
        axis.set_ylim(-0.04, 1.04)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
    axes[0].set_ylabel("p(execute), mean ± std", fontsize=9)
    axes[-1].annotate(
        rf"$\beta$ = {threshold:g}",
        xy=(1.0, threshold),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color="0.25",
        annotation_clip=False,
    )
    figure.suptitle(title, fontsize=10)
    return figure


def plot_gate_probabilities(stats: GateStats, path: epath.PathLike, title: str, *, threshold: float = 0.5) -> None:
    """Writes `draw_gate_probabilities` as PNG, atomically."""
    save(draw_gate_probabilities(stats, title, threshold=threshold), path)


def draw_sweeps(sweeps: Mapping[str, Sweep], title: str) -> Figure:
    """WER against executed layers and against GFLOP per second of audio, a line for each model.

    Bars are 95 % intervals; the filled marker is the configured threshold; baselines are stars on a dashed line. With
    a single sweep its thresholds are written beside the points.

    Args:
      sweeps: label -> sweep, all of one split.
      title: heading, usually model and split.

    Raises:
      ValueError: no sweep, more of them than there are line styles, or sweeps of different splits.
    """
    if not 1 <= len(sweeps) <= len(STYLES):
        raise ValueError(f"{len(sweeps)} sweeps: expected 1 to {len(STYLES)} in one figure")
    splits = sorted({sweep.split for sweep in sweeps.values()})
    if len(splits) > 1:
        raise ValueError(f"sweeps of different splits ({', '.join(splits)}) do not belong in one figure")
    figure, axes = new_figure(8.2, 3.7, 2, sharey=True)
    for axis, value, label in zip(
        axes, ("executed_layers", "gflops_per_second"), ("Executed layers", "GFLOP per second of audio"), strict=True
    ):
        for (name, sweep), style in zip(sweeps.items(), STYLES, strict=False):
            _draw_sweep(axis, sweep, value, name, style)
        axis.plot([], [], linestyle="none", color="0.3", marker="o", markersize=7, label=r"filled: configured $\beta$")
        # One evaluation may be the baseline of several sweeps.
        for baseline in dict.fromkeys(sweep.baseline for sweep in sweeps.values() if sweep.baseline is not None):
            _draw_baseline(axis, baseline, value)
        tidy(axis, label)
        axis.margins(x=0.07)
    if len(sweeps) == 1:
        _write_thresholds(axes[0], next(iter(sweeps.values())))
    _scale_error_rates(axes[0], list(sweeps.values()))
    axes[0].set_ylabel("WER (%), 95 % interval", fontsize=9)
    axes[1].legend(fontsize=8, frameon=False, loc="upper right")
    figure.suptitle(title, fontsize=10)
    return figure


def plot_sweeps(sweeps: Mapping[str, Sweep], path: epath.PathLike, title: str) -> None:
    """Writes `draw_sweeps` as PNG, atomically; its errors are raised before."""
    save(draw_sweeps(sweeps, title), path)


def _draw_sweep(axis: Axes, sweep: Sweep, value: str, name: str, style: tuple) -> None:
    color, marker, line = style
    x = np.array([getattr(point, value) for point in sweep.points])
    wer = np.array([point.wer for point in sweep.points])
    bounds = np.array([point.wer_interval or (point.wer, point.wer) for point in sweep.points])
    bars = np.abs(bounds.T - wer)
    axis.errorbar(x, wer, yerr=bars, fmt="none", ecolor=color, elinewidth=0.8, capsize=2, alpha=0.55, zorder=2)
    axis.plot(
        x, wer, color=color, linestyle=line, linewidth=1.2, marker=marker, markersize=4.5, markerfacecolor="white",
        label=name, zorder=3,
    )  # fmt: skip
    own = np.array([point.beta == sweep.beta for point in sweep.points])
    axis.plot(x[own], wer[own], linestyle="none", color=color, marker=marker, markersize=7, zorder=4)


def _draw_baseline(axis: Axes, baseline: Baseline, value: str) -> None:
    x = getattr(baseline, value)
    axis.axhline(baseline.wer, color="0.35", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axis.plot(
        [x], [baseline.wer], linestyle="none", marker="*", markersize=10, color="0.1", zorder=5,
        label=f"{baseline.model} (WER {baseline.wer:.2f})",
    )  # fmt: skip


def _write_thresholds(axis: Axes, sweep: Sweep) -> None:
    labelled: list[float] = []
    for point in sorted(sweep.points, key=lambda point: point.beta != sweep.beta):  # the model's own is never left out
        if any(abs(point.executed_layers - x) < 0.06 * sweep.num_layers for x in labelled):
            continue  # its label would lie on another one; the table has it
        labelled.append(point.executed_layers)
        low = min(point.wer_interval or (point.wer,))
        # Below the interval: beside the marker it would lie on the line.
        axis.annotate(
            f"{point.setting:g}", (point.executed_layers, low), xytext=(0, -3), textcoords="offset points",
            fontsize=6.5, color="0.3", ha="center", va="top",
        )  # fmt: skip


def _scale_error_rates(axis: Axes, sweeps: list[Sweep]) -> None:
    """Logarithmic where closing gates ruins the text: on a linear axis the useful end would be a flat line."""
    wers = [point.wer for sweep in sweeps for point in sweep.points]
    if min(wers) > 0 and max(wers) > 5 * min(wers):
        logarithmic(axis)


def draw_gate_heat_map(stats: GateStats, title: str) -> np.ndarray:
    """The mean and the standard deviation of p(execute), layers by branches, as a picture.

    Args:
      stats: statistics of the gates on a set of utterances.
      title: heading.

    Returns:
      [H, W, 3] uint8 pixels.
    """
    layers, branches = stats.probability_mean.shape
    figure = Figure(figsize=(max(0.42 * layers + 1.8, 4.2), 0.42 * 2 * branches + 1.7), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = (("mean", stats.probability_mean, 1.0), ("std", stats.probability_std, 0.5))
    for axis, (name, values, highest) in zip(figure.subplots(2, 1, sharex=True), panels, strict=True):
        picture = axis.imshow(values.T, cmap="Greys", vmin=0.0, vmax=highest, aspect="auto")
        for n, m in np.ndindex(layers, branches):
            color = "white" if values[n, m] > 0.6 * highest else "black"
            axis.text(n, m, f"{values[n, m]:.2f}".lstrip("0"), ha="center", va="center", fontsize=7, color=color)
        axis.set_yticks(range(branches), stats.gate_names, fontsize=8)
        axis.set_ylabel(name, fontsize=8)
        axis.tick_params(labelsize=8, length=0)
        figure.colorbar(picture, ax=axis, pad=0.01).ax.tick_params(labelsize=7)
    axis.set_xticks(range(layers), [str(n) for n in range(1, layers + 1)], fontsize=8)
    axis.set_xlabel("Layer", fontsize=8)
    figure.suptitle(title, fontsize=9)
    return pixels(figure)

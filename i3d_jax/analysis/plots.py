"""Figures. They are drawn on canvases of their own: no pyplot, no global state, no display."""

import io

import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from i3d_jax import files
from i3d_jax.analysis.gate_stats import GateStats

_TITLES = {"mha": "Self-attention (MHA)", "ffn": "Feed-forward (FFN)"}


def plot_gate_probabilities(stats: GateStats, path: epath.PathLike, title: str, *, threshold: float = 0.5) -> None:
    """Draws the mean and standard deviation of p(execute) per layer, one panel for each branch (paper, Fig. 5).

    Filled markers are gates whose mean lies above the threshold.

    Args:
      stats: statistics of the gates on a set of utterances.
      path: PNG file, written atomically.
      title: heading, usually model and split.
      threshold: beta, drawn as a dashed line.
    """
    layers, branches = stats.probability_mean.shape
    figure = Figure(figsize=(3.5 * branches + 0.3, 3.1), dpi=200, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, branches, sharey=True, squeeze=False)[0]
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
        axis.set_title(f"{_TITLES.get(name, name)}: {blocks:.1f} of {layers} executed", fontsize=9)
        axis.set_xlabel("Layer", fontsize=9)
        axis.set_xlim(0.3, layers + 0.7)
        axis.set_ylim(-0.04, 1.04)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
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
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    files.write_bytes(path, buffer.getvalue())

"""What all figures share: one look, canvases without pyplot, global state or display, and pictures in PNG."""

import io
from typing import Literal

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from i3d_jax import files

BRANCH_TITLES = {"mha": "Self-attention (MHA)", "ffn": "Feed-forward (FFN)"}

STYLES = (
    ("#1b4f8a", "o", "-"),
    ("#c2571a", "s", (0, (5, 2))),
    ("#4d8b57", "^", (0, (1, 1.2))),
    ("#7a3e9d", "D", (0, (5, 1.5, 1, 1.5))),
    ("#111111", "v", (0, (8, 2))),
    ("#8a8a8a", "P", (0, (2, 2))),
)
"""Colour, marker and line style of each series: apart in greyscale too, by marker, line style and darkness."""


def new_figure(width: float, height: float, columns: int = 1, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches with panels in one row."""
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, sharey=sharey, squeeze=False)[0])


def tidy(axis: Axes, xlabel: str, ylabel: str = "", title: str = "", grid: Literal["both", "x", "y"] = "both") -> None:
    """Labels, sizes of type, a light grid and no box: the same in every figure."""
    axis.set_xlabel(xlabel, fontsize=9)
    axis.set_ylabel(ylabel, fontsize=9)
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(axis=grid, color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def logarithmic(axis: Axes, steps: tuple[float, ...] = (1, 2, 3, 5)) -> None:
    """A logarithmic y axis with plain numbers at these multiples of powers of ten."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=steps))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def png(figure: Figure, dpi: int | None = None) -> bytes:
    """The figure as a PNG file; ``dpi`` None takes the figure's own."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi="figure" if dpi is None else dpi)
    return buffer.getvalue()


def save(figure: Figure, path: epath.PathLike) -> None:
    """Writes the figure as PNG, atomically."""
    files.write_bytes(path, png(figure))


def pixels(figure: Figure) -> np.ndarray:
    """The figure as [H, W, 3] uint8."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]

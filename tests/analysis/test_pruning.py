"""Curve of a pruned model."""

import json

import numpy as np
import pytest

from i3d_jax.analysis.pruning import format_curve, plot_pruning, selection_curve, write_curve
from i3d_jax.analysis.tradeoff import read_curve
from i3d_jax.inference.pruning import Cost, Pruning, Removal


@pytest.fixture
def pruning():
    costs = [Cost(10 * n, n, 10.0 * n, 1.0 * n, 0.1 * n) for n in (1, 2, 9)]
    steps = [Removal(None, costs[0], {}), Removal(1, costs[1], {0: costs[2], 1: costs[1]}), Removal(0, costs[2], {})]
    return Pruning("m", "layer", "dev", "", 2, ("mha", "ffn"), tuple(steps))


def test_the_selection_curve_has_no_intervals(pruning):
    points = selection_curve(pruning)
    assert [(p.executed_layers, p.removed, p.wer, p.wer_difference) for p in points] == [
        (2, "", 10, 0), (1, "layer 2", 20, 10), (0, "layer 1", 90, 80)
    ]  # fmt: skip
    assert all(point.wer_interval is point.wer_difference_interval is None for point in points)
    table = format_curve(points).splitlines()
    assert table[3].split() == ["1", "layer", "2", "20.00", "-", "2.00", "0.200", "+10.00", "-"]


def test_it_is_written_and_drawn_with_another_split(pruning, tmp_path):
    points = selection_curve(pruning)
    write_curve(tmp_path / "curve.json", pruning, "dev", points, {"seed": 1})
    data = json.loads((tmp_path / "curve.json").read_text())
    assert data["split"] == "dev" and data["meta"] == {"seed": 1}
    assert [row["wer"] for row in data["rows"]] == [10, 20, 90]
    curve = read_curve(tmp_path / "curve.json")
    assert curve.label == "m, pruned layer by layer" and curve.num_layers == 2
    assert [(point.executed_layers, point.wer) for point in curve.points] == [(0, 90), (1, 20), (2, 10)]
    plot_pruning({"dev": points, "test": points}, pruning.patterns(), tmp_path / "curve.png", "title")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="3 curves: expected 1 to 2"):
        plot_pruning(dict.fromkeys("abc", points), pruning.patterns(), tmp_path / "none.png", "title")
    assert np.array_equal(pruning.patterns()[1].gates, [[1, 1], [0, 0]])

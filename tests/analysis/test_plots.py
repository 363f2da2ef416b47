import dataclasses

import numpy as np
import pytest
from PIL import Image

from i3d_jax.analysis.gate_stats import gate_statistics
from i3d_jax.analysis.plots import draw_gate_heat_map, plot_gate_probabilities, plot_sweeps
from i3d_jax.analysis.sweep import Baseline, Sweep, SweepPoint


@pytest.mark.parametrize(("layers", "names"), [(36, ("mha", "ffn")), (6, ("mha", "ffn")), (1, ("only",))])
def test_picture(tmp_path, layers, names):
    probabilities = np.random.default_rng(0).random((7, layers, len(names)))
    path = tmp_path / "figures" / "gates.png"
    plot_gate_probabilities(gate_statistics(probabilities > 0.5, probabilities, names), path, "demo, test")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width >= 600 and picture.height >= 500
        pixels = np.asarray(picture.convert("L"))
    assert pixels.min() < 60 and (pixels > 240).mean() > 0.6, "dark ink on a white page"
    assert [p.name for p in path.parent.iterdir()] == ["gates.png"]


def sweep(model, factor, baseline=None):
    points = tuple(
        SweepPoint(beta, factor * wer, (0.8 * factor * wer, 1.2 * factor * wer), layers, layers / 9, 3, 1, 1, 1)
        for beta, wer, layers in ((0.0, 5.0, 6.0), (0.5, 6.0, 4.0), (0.9, 60.0, 1.0))
    )
    return Sweep(model, "dev", 0.5, 6, points, baseline)


@pytest.mark.parametrize("count", [1, 6])
def test_sweeps_picture(tmp_path, count):
    baseline = Baseline("dense/eval/dev-masked", "dense", 5.5, 6.0, 0.7)
    path = tmp_path / "sweep.png"
    plot_sweeps({f"run {i}": sweep(f"run {i}", 1 + i / 5, baseline) for i in range(count)}, path, "dev")
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 1000
        pixels = np.asarray(picture.convert("L"))
    assert pixels.min() < 60 and (pixels > 240).mean() > 0.8


def test_sweeps_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="0 sweeps: expected 1 to 6"):
        plot_sweeps({}, tmp_path / "a.png", "x")
    other = dataclasses.replace(sweep("b", 1), split="test")
    with pytest.raises(ValueError, match=r"different splits \(dev, test\)"):
        plot_sweeps({"a": sweep("a", 1), "b": other}, tmp_path / "a.png", "x")


def test_no_error_at_all_is_drawn_on_a_linear_axis(tmp_path):
    plot_sweeps({"a": sweep("a", 0)}, tmp_path / "a.png", "x")
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize("layers", [1, 36])
def test_heat_map_is_darker_where_gates_are_open(layers):
    def darkness(p):
        probabilities = np.full((3, layers, 2), p)
        pixels = draw_gate_heat_map(gate_statistics(probabilities > 0.5, probabilities, ("mha", "ffn")), "dev")
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        return 255 - pixels.mean()

    assert darkness(0.9) > darkness(0.1) + 20

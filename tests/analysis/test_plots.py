import numpy as np
import pytest
from PIL import Image

from i3d_jax.analysis.gate_stats import gate_statistics
from i3d_jax.analysis.plots import plot_gate_probabilities


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

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from i3d_jax.analysis import canvas
from i3d_jax.analysis.covariates import LENGTH, RATE, explain_gates
from i3d_jax.analysis.depth_plots import draw_depth_and_wer, draw_lengths
from i3d_jax.analysis.drivers_plots import draw_pairs, draw_regressions
from i3d_jax.analysis.matched_pairs import compare_pairs
from i3d_jax.analysis.paper_figures import paper_curves
from i3d_jax.analysis.tradeoff import CurvePoint, make_curve
from i3d_jax.analysis.tradeoff_plots import draw_tradeoff
from tests.analysis.utterance_tables import make_table


def check(figure):
    """Dark ink on a white page, and no two texts of an axis on top of each other."""
    with Image.open(io.BytesIO(canvas.png(figure, dpi=70))) as picture:
        gray = np.asarray(picture.convert("L"))
    assert gray.min() < 60 and (gray > 240).mean() > 0.6
    renderer = figure.canvas.get_renderer()
    boxes = []
    for axis in figure.axes:
        texts = [axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts]
        boxes += [t.get_window_extent(renderer).shrunk(0.98, 0.98) for t in texts if t.get_text()]
    for i, a in enumerate(boxes):
        assert not any(a.overlaps(b) for b in boxes[:i])


@pytest.mark.parametrize("static", [False, True])
def test_depth(static):
    table = make_table(60, layers=8)
    if static:
        table = dataclasses.replace(table, gates=np.ones_like(table.gates))
    lengths = draw_lengths(table, "model, test")
    check(lengths)
    heading = lengths.axes[0].get_title()
    assert ("the same for all 60 utterances" in heading) == static
    check(draw_depth_and_wer(table, "model, test"))


def test_drivers():
    table = make_table(60)
    quantities = {LENGTH: table.audio_seconds, RATE: table.words / table.audio_seconds}
    found = explain_gates(table, quantities, samples=20)
    check(draw_regressions(found, "model, test"))
    effects = [compare_pairs(table, make_table(60, seed=s), f"change {s}", samples=20) for s in range(3)]
    figure = draw_pairs(effects, "model, test")
    check(figure)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["change 0", "change 1", "change 2"]
    one = found["executed layers"]
    with pytest.raises(ValueError, match="different quantities"):
        draw_regressions({"a": one, "b": dataclasses.replace(one, coefficients={})}, "x")
    with pytest.raises(ValueError, match="0 regressions"):
        draw_regressions({}, "x")


def test_tradeoff():
    ours = [make_curve("ours", [CurvePoint(3.0, 10.0, (9.0, 11.0)), CurvePoint(6.0, 8.0)], 6)]
    check(draw_tradeoff(ours, "WER against depth", background=paper_curves("fig2-clean")))
    wide = draw_tradeoff([make_curve("a", [CurvePoint(1.0, 90.0), CurvePoint(6.0, 8.0)])], "x")
    assert wide.axes[0].get_yscale() == "log"
    with pytest.raises(ValueError, match="0 curves"):
        draw_tradeoff([], "x")
    with pytest.raises(ValueError, match="13 curves"):
        draw_tradeoff(13 * ours, "x")


def test_every_series_differs_in_greyscale():
    curves = [make_curve(f"c{k}", [CurvePoint(1.0, 9.0 + k), CurvePoint(2.0, 8.0 + k)]) for k in range(12)]
    lines = [line for line in draw_tradeoff(curves, "x").axes[0].lines if line.get_label().startswith("c")]
    looks = {(line.get_marker(), str(line.get_linestyle()), line.get_fillstyle()) for line in lines}
    assert len(lines) == len(looks) == 12

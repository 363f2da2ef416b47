import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax.analysis.paper_figures import OPEN_GATES, TITLES, paper_curves, paper_reference
from i3d_jax.analysis.sweep import Sweep, SweepPoint, write_sweep
from i3d_jax.analysis.tradeoff import CurvePoint, make_curve, read_curve, relative, wer_at_depth

POINTS = (
    {"executed_layers": 3, "wer": 5.5, "removed": "mha 2"},
    {"executed_layers": 1, "wer": 9, "wer_interval": [8, 10]},
)


def test_a_generic_curve_is_read(tmp_path):
    file = tmp_path / "pruning.json"
    file.write_text(json.dumps({"label": "pruned", "points": POINTS, "num_layers": 6, "meta": {"seed": 0}}))
    curve = read_curve(file)
    assert curve == make_curve("pruned", (CurvePoint(1.0, 9.0, (8.0, 10.0)), CurvePoint(3.0, 5.5)), 6)
    assert read_curve(file, "mine").label == "mine"
    file.write_text(json.dumps({"split": "dev", "rows": POINTS}))
    assert read_curve(file).label == f"{tmp_path.name}/pruning" and read_curve(file).points == curve.points


def test_a_sweep_is_read(tmp_path):
    points = tuple(SweepPoint(b, w, None, d, d / 9, 3, 1, 1, 1) for b, w, d in ((0.0, 5.0, 6.0), (0.5, 6.0, 4.0)))
    write_sweep(tmp_path / "sweep-dev.json", Sweep("demo", "dev", 0.5, 6, points), {})
    curve = read_curve(tmp_path / "sweep-dev.json")
    assert (curve.label, curve.num_layers) == ("demo", 6)
    assert [(p.executed_layers, p.wer) for p in curve.points] == [(4.0, 6.0), (6.0, 5.0)]


@pytest.mark.parametrize("text", ["", "[]", '{"label": "a"}', '{"label": "a", "points": []}', '{"beta": 1, "rows": []}',
                                  '{"label": "a", "points": [{"executed_layers": 1, "wer": NaN}]}'])  # fmt: skip
def test_what_is_no_curve_is_named(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is not a curve"):
        read_curve(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match="y.json: no such curve"):
        read_curve(tmp_path / "y.json")


@given(st.lists(st.tuples(st.floats(0, 36), st.floats(0, 100)), min_size=1, max_size=8))
def test_wer_between_points_lies_between_theirs(pairs):
    curve = make_curve("a", [CurvePoint(*pair) for pair in pairs])
    for point in curve.points:
        found = wer_at_depth(curve, point.executed_layers)
        same = [p.wer for p in curve.points if p.executed_layers == point.executed_layers]
        assert min(same) - 1e-9 <= found <= max(same) + 1e-9
    low, high = curve.points[0], curve.points[-1]
    middle = wer_at_depth(curve, (low.executed_layers + high.executed_layers) / 2)
    assert min(p.wer for p in curve.points) - 1e-9 <= middle <= max(p.wer for p in curve.points) + 1e-9
    assert wer_at_depth(curve, high.executed_layers + 1) is None


def test_relative_curves():
    curve = make_curve("a", [CurvePoint(18.0, 13.1), CurvePoint(36.0, 11.7, (11.0, 12.0))], 36)
    shares = relative(curve, 11.7)
    assert [p.executed_layers for p in shares.points] == [0.5, 1.0]
    assert shares.points[1].wer == 1 and shares.points[1].wer_interval == (11 / 11.7, 12 / 11.7)
    with pytest.raises(ValueError, match="relative to None layers"):
        relative(make_curve("a", [CurvePoint(1.0, 1.0)]), 10.0)


def test_the_papers_points():
    for figure in TITLES:
        for curve in paper_curves(figure):
            for point in curve.points:
                assert 18 <= point.executed_layers <= 36
                assert round(point.wer, 1) == point.wer, "read on a grid of 0.1"
    clean = {curve.label: curve for curve in paper_curves("fig2-clean")}
    assert len(clean["pruned layer by layer"].points) == 19
    assert paper_reference("fig2-clean") == 11.7 and paper_reference("fig4") == 10.9
    # What the paper says: about 20.5 layers of GlobalGP beat 20 dense ones, and 27 on test-clean.
    assert wer_at_depth(clean["I3D-GlobalGP"], 20.5) < wer_at_depth(clean["Transformer"], 27)
    assert all(sum(counts) <= 36 for one in OPEN_GATES.values() for counts in one.values())
    with pytest.raises(ValueError, match="'fig9'"):
        paper_curves("fig9")

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from i3d_jax.analysis.sweep import (
    MAX_POINTS,
    Baseline,
    Sweep,
    SweepPoint,
    choose_thresholds,
    format_sweep,
    read_baseline,
    read_sweep,
    sweep_points,
    write_sweep,
)
from i3d_jax.inference.evaluation import Evaluation
from i3d_jax.inference.scoring import UtteranceErrors, score


def depth(probabilities, beta):
    return (probabilities > beta).sum() / len(probabilities) / probabilities.shape[2]


@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6), st.just(2)), elements=st.floats(0, 1, width=32)
    ),
    st.floats(0, 1),
    st.integers(2, 12),
)
def test_grid_laws(probabilities, beta, count):
    betas = choose_thresholds(probabilities, beta, count)
    assert {0.0, beta} <= set(betas) and len(betas) <= max(count, 2)
    assert betas == sorted(set(betas)) and all(0 <= b <= 1 for b in betas)
    others = [b for b in betas if b not in (0.0, beta)]
    depths = [depth(probabilities, b) for b in others]
    assert len(set(depths)) == len(depths), "no operating point twice"
    assert all(np.abs(probabilities.astype(float) - b).min() > 2e-7 for b in others), "between probabilities"


def test_even_grid_of_depths():
    probabilities = np.random.default_rng(0).random((40, 18, 2)) ** 3  # most gates nearly closed
    betas = choose_thresholds(probabilities, 0.5)
    depths = np.array([depth(probabilities, b) for b in betas])
    assert len(betas) >= MAX_POINTS - 1 and depths[0] == 18
    assert np.abs(np.diff(depths)).max() < 4, "an even grid of thresholds would jump by more than half of the layers"


def test_clusters_give_their_own_operating_points_and_no_others():
    probabilities = np.broadcast_to(np.array([[0.1, 0.1], [0.3, 0.9], [0.9, 0.9]]), (7, 3, 2))
    betas = choose_thresholds(probabilities, 0.5)
    assert betas == [0.0, 0.2, 0.5]
    assert [depth(probabilities, b) for b in betas] == [3.0, 2.0, 1.5]
    assert choose_thresholds(np.ones((4, 3, 2)), 0.5) == [0.0, 0.5], "one state, whatever the threshold"


def evaluation(gates, probabilities):
    count = len(gates)
    references = ["a b c d"] * count
    hypotheses = [" ".join("abcd"[: int(row.sum())]) for row in gates]
    return Evaluation(
        ids=[f"u{i}" for i in range(count)],
        references=references,
        hypotheses=hypotheses,
        score=score(references, hypotheses, bootstrap_samples=50),
        gates=gates,
        gate_probabilities=probabilities,
        gflops=gates.sum(axis=(1, 2)).astype(float),
        encoder_share=gates.mean(axis=(1, 2)),
        audio_seconds=np.full(count, 2.0),
        alternatives=[()] * count,
    )


@pytest.mark.parametrize("local", [False, True])
def test_points(local):
    base = np.random.default_rng(1).random((9, 2, 2))
    asked = []

    def evaluate(beta):
        asked.append(beta)
        probabilities = base * (1 - 0.3 * beta) if local else base  # local ones move with the threshold
        return evaluation(probabilities > beta, probabilities)

    baseline = evaluation(np.ones((9, 2, 2), bool), base).score
    against = UtteranceErrors("dense", (), baseline.utterance_errors, baseline.utterance_words, ())
    points = list(
        sweep_points(evaluate, ("mha", "ffn"), thresholds=(), beta=0.5, local=local, against=against)
    )  # fmt: skip
    assert asked[:2] == [0.0, 0.5] and len(asked) == len(set(asked)) == len(points) <= MAX_POINTS
    for point in points:
        result = evaluate(point.beta)
        assert point.executed_layers == result.executed_layers and point.wer == result.score.wer
        assert point.wer_difference == pytest.approx(point.wer), "every gate open makes no error here"
        assert point.wer_difference_interval[0] <= point.wer_difference <= point.wer_difference_interval[1]
        assert point.deletions == result.score.deletions and point.gflops_per_second == result.gflops_per_second
        assert point.distinct_patterns == len({row.tobytes() for row in result.gates})
    asked.clear()
    chosen = list(sweep_points(evaluate, ("mha", "ffn"), thresholds=(0.7, 0.2, 0.7), beta=0.5, local=local))
    assert asked == [0.2, 0.7] and chosen[0].wer_difference is None


def sweep(baseline=None):
    difference = dict(wer_difference=-0.5, wer_difference_interval=(-1.25, 0.5)) if baseline else {}
    point = SweepPoint(0.5, 12.345, (10.0, 15.0), 3.5, 0.25, 4, 1, 2, 3, **difference)
    open_point = SweepPoint(0.0, 11.0, None, 6.0, 0.5, 1, 1, 1, 1, **difference)
    return Sweep("demo", "dev", 0.5, 6, (open_point, point), baseline)


def test_files_and_table(tmp_path):
    baseline = Baseline("runs/dense/eval/dev-masked", "dense", 11.5, 6.0, 0.5)
    for one in (sweep(), sweep(baseline)):
        path = tmp_path / "eval" / "sweep-dev.json"
        write_sweep(path, one, {"seed": 0})
        assert read_sweep(path) == one
    data = json.loads(path.read_text())
    assert data["rows"][1]["wer_interval"] == [10.0, 15.0] and data["meta"] == {"seed": 0}
    lines = format_sweep(sweep(baseline)).splitlines()
    assert "WER - dense" in lines[0] and "-0.50  -1.25 to +0.50" in lines[3] and "12.35  10.00 to 15.00" in lines[3]
    assert "dense" not in format_sweep(sweep())
    with pytest.raises(FileNotFoundError, match="no sweep there"):
        read_sweep(tmp_path / "sweep-test.json")
    for damaged in ("{", "[]", '{"model": "x"}', json.dumps(data | {"rows": [{"beta": "high"}]})):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="is not a sweep"):
            read_sweep(path)


def test_baseline(tmp_path):
    with pytest.raises(FileNotFoundError, match="no evaluation there"):
        read_baseline(tmp_path)
    (tmp_path / "report.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match="not the report of one evaluation"):
        read_baseline(tmp_path)
    row = {"model": "dense", "wer": 5, "executed_layers": 6, "gflops_per_second": 0.5}
    (tmp_path / "report.json").write_text(json.dumps({"rows": [row]}))
    assert read_baseline(tmp_path) == Baseline(str(tmp_path), "dense", 5.0, 6.0, 0.5)

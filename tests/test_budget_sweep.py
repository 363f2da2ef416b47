"""Budgets: a bound for each utterance with a global predictor, a calibrated average with local ones."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import eval as eval_script
from i3d_jax.analysis.sweep import format_sweep, read_sweep
from i3d_jax.audio.io import read_audio
from i3d_jax.budget_sweep import sweep_budgets
from i3d_jax.experiment import load_saved_config, save_config
from i3d_jax.inference.bundle import Calibration
from i3d_jax.inference.recognizer import load
from i3d_jax.model.asr import ASRModel
from i3d_jax.model.flops import encoder_share
from i3d_jax.model.gates import GateConfig
from tests.test_threshold_sweep import run as global_run  # noqa: F401

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def local_run(global_run, tmp_path_factory):  # noqa: F811
    """The demo model with local predictors that nobody trained, but whose gates depend on the input."""
    folder = tmp_path_factory.mktemp("local") / "demo"
    shutil.copytree(global_run, folder, ignore=shutil.ignore_patterns("eval"))
    config = load_saved_config(folder / "config.json")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, gates=GateConfig(predictor="local")))
    (folder / "config.json").unlink()
    save_config(config, folder / "config.json")
    asr = load(folder)
    model = ASRModel(config.model, config.frontend.num_mels, asr.tokenizer.vocab_size)
    predictor = model.init(jax.random.key(0))["predictor"]
    for name in ("kernel", "bias"):
        leaf = predictor["logits"][name]
        predictor["logits"][name] = 0.7 * jax.random.normal(jax.random.key(1), leaf.shape)
    asr.config = dataclasses.replace(asr.config, model=config.model)
    asr.params = asr.params | {"predictor": predictor}
    asr.save(folder / "model")
    return folder


def test_no_utterance_exceeds_its_budget(global_run):  # noqa: F811
    eval_script.main([str(global_run), "--split=dev", "--sweep-budget=0.3,0.55,1.0"])
    sweep = read_sweep(global_run / "eval" / "budget-dev.json")
    assert [point.budget for point in sweep.points] == [0.3, 0.55, 1.0]
    assert (global_run / "eval" / "budget-dev.png").stat().st_size > 10_000
    for point in sweep.points:
        assert point.beta is None and 0 < point.encoder_share <= point.largest_share <= point.budget + 1e-9
    assert sweep.points[-1].executed_layers == 6
    first = format_sweep(sweep).splitlines()
    assert first[0].split()[:3] == ["budget", "spent", "at"] and len(first) == 5


def test_a_budget_of_one_evaluation_has_a_folder_of_its_own(global_run, capsys):  # noqa: F811
    eval_script.main([str(global_run), "--split=dev", "--budget=0.5"])
    assert (global_run / "eval" / "dev-compacted-budget0.5" / "report.json").exists()
    assert (global_run / "gates-dev-budget0.5.png").exists()


def test_transcriptions_keep_to_it_and_to_a_threshold(global_run):  # noqa: F811
    asr = load(global_run)
    samples = read_audio(ROOT / "docs" / "demo_model" / "sample.flac", 16000)
    frames = np.array([(len(samples) - 400) // 160 + 1])
    shares = []
    for budget in (0.0, 0.25, 0.6, 1.0):
        result = asr.transcribe(samples, sample_rate=16000, budget=budget)
        shares.append(float(encoder_share(asr.config.model, frames, result.gates[None])[0]))
        assert shares[-1] <= budget
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1 and shares[2] > 0.5
    both = asr.transcribe(samples, sample_rate=16000, budget=1.0, threshold=0.5)
    np.testing.assert_array_equal(both.gates, asr.transcribe(samples, sample_rate=16000, threshold=0.5).gates)


def test_local_predictors_are_calibrated_on_dev(local_run):
    with pytest.raises(ValueError, match="needs a calibration: run eval.py RUN --split=dev --sweep-budget"):
        load(local_run).transcribe(ROOT / "docs" / "demo_model" / "sample.flac", budget=0.5)
    with pytest.raises(ValueError, match="needs a calibration"):
        eval_script.main([str(local_run), "--split=test", "--sweep-budget"])
    eval_script.main([str(local_run), "--split=dev", "--sweep-budget=0.4,0.7,0.9"])
    points = read_sweep(local_run / "eval" / "budget-dev.json").points
    for point in points:  # on what it was calibrated with, the average holds
        assert point.encoder_share <= point.budget + 1e-9
        assert point.beta is not None
    assert points[0].beta > points[2].beta and points[0].encoder_share < points[2].encoder_share
    calibration = load(local_run).config.calibration
    assert len(calibration.thresholds) > 8 and calibration.thresholds[0] == 0.0 and calibration.shares[0] == 1.0
    eval_script.main([str(local_run), "--split=test", "--sweep-budget=0.7"])
    (other,) = read_sweep(local_run / "eval" / "budget-test.json").points
    assert other.beta == points[1].beta
    with pytest.raises(ValueError, match="with local predictors a budget is a threshold"):
        load(local_run).decision(threshold=0.5, budget=0.5)


def test_a_calibration_keeps_to_the_budget_at_every_larger_threshold():
    calibration = Calibration((0.0, 0.2, 0.4, 0.6, 0.8), (1.0, 0.8, 0.5, 0.55, 0.1))
    for budget, threshold in ((1.0, 0.0), (0.9, 0.2), (0.52, 0.8), (0.56, 0.4), (0.1, 0.8), (0.05, 1.0)):
        assert calibration.threshold(budget) == threshold


def test_what_has_no_budget_is_refused_at_once(global_run, monkeypatch):  # noqa: F811
    monkeypatch.setattr("i3d_jax.threshold_sweep.evaluate", lambda *_, **__: pytest.fail("evaluated before the check"))
    asr, config = load(global_run), load_saved_config(global_run / "config.json")
    with pytest.raises(ValueError, match="budget=1.2 is not a share"):
        sweep_budgets(asr, config, global_run, "dev", (0.5, 1.2))
    with pytest.raises(ValueError, match="a sweep sets"):
        eval_script.main([str(global_run), "--sweep-budget", "--budget=0.5"])
    asr.config = dataclasses.replace(asr.config, model=dataclasses.replace(asr.config.model, gates=GateConfig()))
    with pytest.raises(ValueError, match="has no gates"):
        asr.decision(budget=0.5)

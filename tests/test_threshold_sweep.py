"""Sweeps of the committed demo model on a few sentences of its own corpus."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import eval as eval_script
from i3d_jax import threshold_sweep
from i3d_jax.analysis.sweep import read_sweep
from i3d_jax.cli import runs as runs_script
from i3d_jax.experiment import load_config, load_saved_config, save_config
from i3d_jax.inference.pattern import Pattern, write_pattern
from i3d_jax.inference.recognizer import load
from i3d_jax.model.gates import GateConfig
from i3d_jax.split_evaluation import split_name
from i3d_jax.threshold_sweep import sweep_run
from tests.quick_compilation import FLAGS_OF_LONGER_WORK

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "demo"
    config = load_config(ROOT / "configs" / "demo.py")
    demo = dataclasses.replace(config.data.demo, train_utterances=2, dev_utterances=12, test_utterances=8)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, demo=demo, cache_dir=str(folder.parent / "cache")),
        batching=dataclasses.replace(config.batching, num_buckets=1),
        evaluation=dataclasses.replace(config.evaluation, bootstrap_samples=100, timed_utterances=0),
    )
    shutil.copytree(ROOT / "docs" / "demo_model", folder / "model")
    shutil.copy(ROOT / "docs" / "demo_model" / "tokenizer.model", folder)
    save_config(config, folder / "config.json")
    return folder


@pytest.fixture(scope="module")
def dev_sweep(run):
    eval_script.main([str(run), "--split=dev", "--execution=masked", "--threshold=0"])
    eval_script.main([str(run), "--split=dev", "--sweep-threshold", f"--against={run / 'eval' / 'dev-masked-0'}"])
    return read_sweep(run / "eval" / "sweep-dev.json")


def test_automatic_sweep_of_dev(run, dev_sweep):
    points = dev_sweep.points
    betas = [point.beta for point in points]
    assert betas == sorted(betas) and {0.0, 0.5} <= set(betas) and 6 <= len(betas) <= 12
    depths = [point.executed_layers for point in points]
    assert depths[0] == 6 and depths == sorted(depths, reverse=True) and len(set(depths)) == len(depths)
    assert (run / "eval" / "sweep-dev.png").stat().st_size > 10_000
    assert dev_sweep.baseline.wer == points[0].wer and points[0].wer_difference == 0
    for point in points:
        assert point.wer_difference == pytest.approx(point.wer - dev_sweep.baseline.wer)


def test_each_point_equals_an_evaluation_of_its_own(run, dev_sweep):
    for point in (dev_sweep.points[2], next(p for p in dev_sweep.points if p.beta == 0.5)):
        eval_script.main([str(run), "--split=dev", f"--threshold={point.beta!r}"])
        beta = str(point.beta).removesuffix(".0")
        report = json.loads((run / "eval" / f"dev-compacted-{beta}" / "report.json").read_text())
        (row,), score = report["rows"], report["meta"]["score"]
        assert (point.wer, point.executed_layers) == (row["wer"], row["executed_layers"])
        assert point.gflops_per_second == row["gflops_per_second"]
        assert list(point.wer_interval) == score["wer_interval"]
        assert point.distinct_patterns == report["gates"]["demo/dev"]["distinct_patterns"]
        for name in ("substitutions", "deletions", "insertions"):
            assert getattr(point, name) == score[name]


def test_thresholds_of_other_splits_come_from_dev_or_the_command_line(run, dev_sweep, tmp_path):
    recognizer, config = load(run), load_saved_config(run / "config.json")
    with pytest.raises(FileNotFoundError, match=r"thresholds are not chosen on test: run --split=dev"):
        sweep_run(recognizer, config, tmp_path, "test")
    swept = sweep_run(recognizer, config, run, "test")
    assert [point.beta for point in swept.points] == [point.beta for point in dev_sweep.points]
    programs = recognizer.pipeline.rest._cache_size()
    assert programs > 0
    swept = sweep_run(recognizer, config, tmp_path, "test", (0.7, 0.3))
    assert [point.beta for point in swept.points] == [0.3, 0.7]
    assert split_name(config, config.data.dev) == "dev" and split_name(config, "a+b") == "a+b"
    assert recognizer.pipeline.rest._cache_size() == programs, "another threshold is not another program"


def test_what_cannot_be_swept_or_compared_is_refused_before_anything_is_evaluated(run, dev_sweep, monkeypatch):
    def evaluate(*_, **__):
        raise AssertionError("evaluated before the check")

    monkeypatch.setattr(threshold_sweep, "evaluate", evaluate)
    monkeypatch.setattr("i3d_jax.split_evaluation.evaluate", evaluate)
    dev = run / "eval" / "dev-masked-0"
    for options in (["--sweep-threshold"], []):
        with pytest.raises(FileNotFoundError, match="no evaluation there"):
            eval_script.main([str(run), "--split=dev", f"--against={run}", *options])
        with pytest.raises(ValueError, match=r"demo/test and .*dev-masked-0 are evaluations of different utterances"):
            eval_script.main([str(run), "--split=test", f"--against={dev}", *options])
    with pytest.raises(ValueError, match="threshold=1.5"):
        eval_script.main([str(run), "--sweep-threshold=0.5,1.5"])
    with pytest.raises(ValueError, match="leave out"):
        eval_script.main([str(run), "--sweep-threshold", "--threshold=0.5"])
    config = load_saved_config(run / "config.json")
    dense = dataclasses.replace(config, model=dataclasses.replace(config.model, gates=GateConfig()))
    with pytest.raises(ValueError, match="has no gates"):
        sweep_run(load(run), dense, run, "dev")


def test_a_pattern_excludes_what_sets_gates_otherwise_and_must_fit(run, tmp_path, monkeypatch):
    monkeypatch.setattr("i3d_jax.split_evaluation.evaluate", lambda *_, **__: pytest.fail("evaluated before the check"))
    path = tmp_path / "p.json"
    write_pattern(path, Pattern(np.ones((6, 2), bool), ("mha", "ffn"), ""))
    for option in ("--threshold=0.5", "--budget=0.5", "--sweep-threshold", "--sweep-budget"):
        with pytest.raises(ValueError, match="fixes the gates: leave out thresholds, budgets and sweeps"):
            eval_script.main([str(run), f"--pattern={path}", option])
    write_pattern(path, Pattern(np.ones((5, 2), bool), ("mha", "ffn"), ""))
    with pytest.raises(ValueError, match="p.json: gates.mha: 5 values: expected a list of 6"):
        eval_script.main([str(run), f"--pattern={path}"])


def test_sweeps_of_several_runs_are_drawn_together(run, dev_sweep, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("dev-*"))
    picture = tmp_path / "sweeps.png"
    runs_script.main([str(run), str(other), f"--plot={picture}"])
    assert picture.stat().st_size > 10_000
    with pytest.raises(ValueError, match="none of the 2 runs has a sweep of train"):
        runs_script.main([str(run), str(other), f"--plot={picture}", "--split=train"])


def test_output_that_is_no_terminal_has_plain_lines(run):
    environment = os.environ | {"XLA_FLAGS": " ".join(FLAGS_OF_LONGER_WORK)}
    for command in (["eval.py", str(run), "--sweep-threshold=0.5"], ["-m", "i3d_jax.cli.runs", str(run)]):
        process = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, timeout=300
        )
        assert process.returncode == 0, process.stderr.decode()
        assert process.stdout
        for stream in (process.stdout, process.stderr):
            assert b"\r" not in stream and b"\x1b" not in stream, stream.decode()

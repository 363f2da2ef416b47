"""Controls of the committed demo model, made to depend on its input, on a few sentences of its own corpus."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import eval as eval_script
from i3d_jax.cli.controls import format_rows, main, run_controls
from i3d_jax.experiment import load_saved_config
from i3d_jax.inference.evaluation import evaluate
from i3d_jax.inference.pattern import PerUtterance, read_pattern
from i3d_jax.inference.recognizer import load
from i3d_jax.inference.scoring import compare
from i3d_jax.model.gates import GateConfig
from i3d_jax.split_evaluation import load_split
from tests.test_threshold_sweep import run as demo_run  # noqa: F401


@pytest.fixture(scope="module")
def run(demo_run, tmp_path_factory):  # noqa: F811
    """With a predictor whose gates differ between utterances."""
    folder = tmp_path_factory.mktemp("controls") / "demo"
    shutil.copytree(demo_run, folder, ignore=shutil.ignore_patterns("eval"))
    asr = load(folder)
    logits = asr.params["predictor"]["logits"]
    kernel = jax.random.normal(jax.random.key(3), logits["kernel"].shape)
    asr.params = asr.params | {"predictor": asr.params["predictor"] | {"logits": logits | {"kernel": kernel}}}
    asr.save(folder / "model")
    return folder


@pytest.fixture(scope="module")
def tables(run):
    main([str(run), "--split=test", "--seeds=2"])
    folder = run / "controls" / "test"
    return {
        name: json.loads((folder / f"{name}.json").read_text())["rows"] for name in ("frozen", "permuted", "random")
    }


def gates_of(folder):
    lines = [json.loads(line) for line in (folder / "utterances.jsonl").read_text().splitlines()]
    return {line["id"]: (tuple(line["gates"]["mha"]), tuple(line["gates"]["ffn"])) for line in lines}


def test_frozen_gates_are_the_majority_of_dev_and_a_pattern_file(run, tables):
    asr, config = load(run), load_saved_config(run / "config.json")
    dev = evaluate(asr, load_split(config, "dev"), asr.decision(), "masked", config.evaluation, config.batching)
    pattern = read_pattern(run / "controls" / "test" / "frozen-pattern.json", 6, ("mha", "ffn"))
    np.testing.assert_array_equal(pattern.gates, dev.gates.sum(axis=0) > len(dev.gates) / 2)
    model, frozen = tables["frozen"]
    assert model["distinct_patterns"] > 1 and frozen["distinct_patterns"] == 1
    assert frozen["executed_layers"] == pattern.executed_layers
    folder = run / "controls" / "test"
    difference = compare(folder / "frozen", folder / "model")
    assert frozen["wer_difference"] == pytest.approx(difference.difference)
    assert frozen["wer_difference_interval"] == pytest.approx(list(difference.interval))
    # The pattern file makes the same evaluation.
    eval_script.main([str(run), "--split=test", f"--pattern={folder / 'frozen-pattern.json'}"])
    report = json.loads((run / "eval" / f"test-compacted-pattern{pattern.digest}" / "report.json").read_text())
    assert report["rows"][0]["wer"] == frozen["wer"] and report["rows"][0]["cer"] == frozen["cer"]
    assert report["meta"]["pattern"] == pattern.to_dict()


def test_permuted_gates_are_those_of_other_utterances(run, tables):
    folder = run / "controls" / "test"
    model, first, second, mean = tables["permuted"]
    assert [row["name"] for row in tables["permuted"]] == [
        "model",
        "permuted-seed0",
        "permuted-seed1",
        "permuted, mean",
    ]
    own, others = gates_of(folder / "model"), gates_of(folder / "permuted-seed0")
    assert sorted(own.values()) == sorted(others.values()) and own != others
    assert first["executed_layers"] == pytest.approx(model["executed_layers"])
    assert 0 < first["changed_gates"] < 1 and model["changed_gates"] == 0
    assert mean["wer"] == pytest.approx((first["wer"] + second["wer"]) / 2)
    assert mean["wer_difference"] == pytest.approx(mean["wer"] - model["wer"])
    low, high = mean["wer_difference_interval"]
    assert low <= mean["wer_difference"] <= high


def test_random_gates_spend_what_the_model_spends(run, tables):
    folder = run / "controls" / "test"
    own, drawn = gates_of(folder / "model"), gates_of(folder / "random-seed1")
    assert own != drawn
    for name, columns in own.items():
        assert [sum(column) for column in columns] == [sum(column) for column in drawn[name]]
    model, *rows = tables["random"]
    for row in rows:
        assert row["gflops_per_second"] == pytest.approx(model["gflops_per_second"], rel=1e-12)


def test_a_seed_gives_the_same_result_again_however_it_is_executed(run, tables):
    asr, config = load(run), load_saved_config(run / "config.json")
    again = run_controls(asr, config, run, ("random",), "test", seeds=1)["random"]
    assert [row.wer for row in again[:2]] == [row["wer"] for row in tables["random"][:2]]
    corpus = load_split(config, "test")
    lines = gates_of(run / "controls" / "test" / "random-seed0")
    gates = np.array([np.stack(lines[u.id], axis=1) for u in corpus.utterances], bool)
    result = evaluate(asr, corpus, PerUtterance(gates), "masked", config.evaluation, config.batching)
    assert result.score.wer == again[1].wer
    np.testing.assert_array_equal(result.gates, gates)


def test_tables_are_printed_and_written(run, tables):
    written = (run / "controls" / "test" / "permuted.txt").read_text().splitlines()
    assert written[0].split()[0] == "WER" and len(written) == 6
    rows = run_controls(load(run), load_saved_config(run / "config.json"), run, ("frozen",), "dev", threshold=0.0)
    assert rows["frozen"][1].executed_layers == 6 and rows["frozen"][1].wer_difference == 0
    assert (run / "controls" / "dev-0.0" / "frozen.txt").read_text() == format_rows(rows["frozen"]) + "\n"


def test_what_cannot_be_controlled_is_refused_at_once(run, monkeypatch):
    monkeypatch.setattr("i3d_jax.cli.controls.evaluate", lambda *_, **__: pytest.fail("evaluated before the check"))
    asr, config = load(run), load_saved_config(run / "config.json")
    with pytest.raises(ValueError, match="seeds=0: expected at least 1"):
        main([str(run), "--seeds=0"])
    with pytest.raises(ValueError, match="threshold=2.0"):
        main([str(run), "--threshold=2"])
    dense = dataclasses.replace(config, model=dataclasses.replace(config.model, gates=GateConfig()))
    with pytest.raises(ValueError, match="has no gates to control"):
        run_controls(asr, dense, run, ("frozen",), "test")
    with pytest.raises(ValueError, match="3 gate patterns for the 8 utterances"):
        patterns = PerUtterance(np.ones((3, 6, 2), bool))
        evaluate(asr, load_split(config, "test"), patterns, "masked", config.evaluation, config.batching)

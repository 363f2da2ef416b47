"""Pruning of the committed demo model on a few sentences of its own corpus."""

import json
import shutil
from itertools import islice

import jax
import numpy as np
import pytest

import eval as eval_script
from i3d_jax.cli import prune as prune_script
from i3d_jax.experiment import load_saved_config
from i3d_jax.inference.encoded import EncodedCorpus
from i3d_jax.inference.evaluation import evaluate
from i3d_jax.inference.pattern import read_pattern
from i3d_jax.inference.pruning import prune, read_pruning
from i3d_jax.inference.recognizer import load
from i3d_jax.inference.scoring import compare
from i3d_jax.model.gates import Fixed
from i3d_jax.split_evaluation import load_split
from tests.test_threshold_sweep import run as demo_run  # noqa: F401

NAMES = ("mha", "ffn")


@pytest.fixture(scope="module")
def run(demo_run, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("prune") / "demo"
    shutil.copytree(demo_run, folder, ignore=shutil.ignore_patterns("eval"))
    return folder


@pytest.fixture(scope="module")
def pruned(run):
    prune_script.main([str(run)])
    return run / "pruning" / "layer"


def test_candidates_share_encoder_inputs_and_programs_and_equal_evaluations(run):
    asr, config = load(run), load_saved_config(run / "config.json")
    corpus = load_split(config, "dev")
    encoded = EncodedCorpus(asr, corpus, config.evaluation, config.batching)
    patterns = np.random.default_rng(0).random((3, 6, 2)) < 0.7
    found = [encoded.evaluate(gates) for gates in patterns]
    programs = asr.pipeline.rest._cache_size()
    assert programs == asr.pipeline.start._cache_size()
    for gates, result in zip(patterns, found, strict=True):
        whole = evaluate(asr, corpus, Fixed(gates), "masked", config.evaluation, config.batching)
        assert result.hypotheses == whole.hypotheses
        assert result.executed_layers == gates.sum() / 2 and np.isnan(result.score.wer_interval[0])
        np.testing.assert_array_equal(result.gates, np.broadcast_to(gates, result.gates.shape))
    assert len({result.score.cer for result in found}) > 1
    assert asr.pipeline.rest._cache_size() == programs, "another pattern is not another program"


def test_every_depth_has_a_pattern_that_evaluates_to_its_row(run, pruned):
    table = json.loads((pruned / "pruning.json").read_text())
    assert table["finished"] and table["meta"]["command"]
    assert [row["executed_layers"] for row in table["rows"]] == [6, 5, 4, 3, 2, 1, 0]
    assert (pruned / "pruning.png").stat().st_size > 10_000
    for row in (table["rows"][0], table["rows"][2], table["rows"][5]):
        path = pruned / f"depth-{row['executed_layers']:g}.json"
        pattern = read_pattern(path, 6, NAMES)
        assert pattern.executed_layers == row["executed_layers"]
        eval_script.main([str(run), "--split=dev", f"--pattern={path}", "--execution=conditional"])
        report = json.loads((run / "eval" / f"dev-conditional-pattern{pattern.digest}" / "report.json").read_text())
        (found,) = report["rows"]
        for name in ("wer", "cer", "gflops_per_second"):
            assert found[name] == pytest.approx(row[name], rel=1e-12)
        cheapest = min((c["word_errors"], c["character_errors"]) for c in row["candidates"].values() or [row])
        assert cheapest == (row["word_errors"], row["character_errors"])


def test_an_interrupted_pruning_goes_on_and_a_finished_one_is_only_read(run, pruned, tmp_path, monkeypatch):
    other = tmp_path / "demo"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("pruning", "eval"))
    written = []
    write = prune_script.write_pruning

    def killed(path, pruning, meta):
        write(path, pruning, meta)
        written.append(len(pruning.steps))
        if len(written) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(prune_script, "write_pruning", killed)
    with pytest.raises(KeyboardInterrupt):
        prune_script.main([str(other)])
    with pytest.raises(ValueError, match="3 of 6 removals are done"):
        prune_script.main([str(other), "--evaluate=test"])
    prune_script.main([str(other)])
    assert written == list(range(1, 8))
    ours, theirs = (json.loads((f / "pruning.json").read_text()) for f in (other / "pruning" / "layer", pruned))
    assert ours["rows"] == theirs["rows"] and ours["inputs"] == theirs["inputs"]
    with pytest.raises(ValueError, match="leave out --split"):
        prune_script.main([str(other), "--evaluate=test", "--split=dev"])
    monkeypatch.setattr(prune_script, "EncodedCorpus", lambda *_: pytest.fail("a finished pruning is done again"))
    prune_script.main([str(other)])


def test_another_split_is_evaluated_with_intervals(run, pruned):
    prune_script.main([str(run), "--evaluate=test"])
    rows = json.loads((pruned / "curve-test.json").read_text())["rows"]
    assert [row["executed_layers"] for row in rows] == [6, 5, 4, 3, 2, 1, 0]
    assert rows[0]["wer_difference"] == 0 and rows[0]["wer_difference_interval"] == [0, 0]
    assert (pruned / "curve-test.png").stat().st_size > 10_000
    folders = []
    for depth in (6, 3):
        path = pruned / f"depth-{depth}.json"
        eval_script.main([str(run), "--split=test", f"--pattern={path}"])
        folders.append(run / "eval" / f"test-compacted-pattern{read_pattern(path, 6, NAMES).digest}")
    difference = compare(folders[1], folders[0])
    assert rows[3]["wer_difference"] == pytest.approx(difference.difference)
    assert rows[3]["wer_difference_interval"] == pytest.approx(list(difference.interval))


def test_blocks_are_removed_one_by_one(run, monkeypatch):
    asr, config = load(run), load_saved_config(run / "config.json")
    folder = run / "pruning" / "block"

    monkeypatch.setattr(prune_script, "prune", lambda *arguments: islice(prune(*arguments), 2))
    pruning = prune_script.prune_run(asr, config, folder, "block")
    assert len(pruning.steps) == 2 and len(pruning.steps[1].candidates) == 12
    assert read_pattern(folder / "depth-5.5.json", 6, NAMES).gates.sum() == 11
    assert read_pruning(folder / "pruning.json") == pruning


def test_depths_are_not_chosen_on_test_however_it_is_spelt(run, monkeypatch):
    monkeypatch.setattr(prune_script, "EncodedCorpus", lambda *_: pytest.fail("encoded before the check"))
    config = load_saved_config(run / "config.json")
    for split in ("test", config.data.test, f"./{config.data.test}", f"{config.data.dev}+{config.data.test}"):
        with pytest.raises(ValueError, match="chosen on dev, never on test"):
            prune_script.main([str(run), f"--split={split}"])


def test_the_pruning_of_another_model_or_set_is_not_continued(run, pruned, tmp_path):
    other = tmp_path / "demo"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("eval"))
    asr = load(other)
    asr.params = asr.params | {"head": jax.tree.map(lambda leaf: leaf + 1, asr.params["head"])}
    asr.save(other / "model")
    for options in ([], ["--evaluate=test"]):
        with pytest.raises(ValueError, match="is the pruning of another model or selection set"):
            prune_script.main([str(other), *options])
    with pytest.raises(ValueError, match="is the pruning of another model or selection set"):
        prune_script.main([str(run), "--split=train"])

"""Whole runs on tone words: train, resume after a kill, evaluate, load, transcribe."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath

import eval as eval_script
import i3d_jax
import train as train_script
from i3d_jax.data.corpora import load_corpus
from i3d_jax.experiment import load_config, load_saved_config
from i3d_jax.inference.decoding_config import DecodingConfig
from i3d_jax.inference.evaluation import evaluate
from i3d_jax.inference.report import ReportRow
from i3d_jax.inference.scoring import compare, score
from i3d_jax.model.decoder import DecoderConfig
from i3d_jax.runner import train
from i3d_jax.training.warm_start import WarmStartConfig
from tests.training.test_summaries import read_events
from tests.trainings import ROOT, log_lines

CONFIG = Path(__file__).with_name("tiny_config.py")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    arguments = ("--training.epochs=12", "--training.checkpoint-every-steps=1000")
    train_script.main([f"--config={CONFIG}", f"--workdir={workdir}", *arguments])
    return workdir


def test_training_learns_and_leaves_everything_behind(run):
    dev = [line for line in log_lines(run) if line["kind"] == "dev"]
    assert len(dev) == 12 and dev[-1]["wer"] < 60 < dev[0]["wer"] + 1
    assert {"wer", "cer", "executed_layers", "soft_wer", "soft_layers"} <= dev[0].keys()
    for name in ("config.json", "tokenizer.model", "model/params.npz", "gates-test.png", "report.json", "tensorboard"):
        assert (run / name).exists(), name
    assert load_saved_config(run / "config.json").training.epochs == 12


def test_the_log_tells_what_the_machine_does_and_nothing_is_compiled_after_the_first_evaluation(run):
    lines = log_lines(run, "train")
    assert all(0 <= line["input_wait"] < 1 and 0 < line["mfu"] < 1 and line["memory_gb"] > 0.1 for line in lines)
    first = log_lines(run, "dev")[0]["step"]
    assert len({line["compilations"] for line in lines if line["step"] > first}) == 1


def test_tensorboard_shows_gates_and_transcripts_at_every_dev_evaluation(run):
    steps = [line["step"] for line in log_lines(run) if line["kind"] == "dev"]
    shown = {}
    for event in read_events(run):
        for value in event.summary.value:
            shown.setdefault(value.tag, []).append((event.step, value))
    assert [step for step, _ in shown["dev/gates"]] == steps
    assert all(value.image.width > 100 for _, value in shown["dev/gates"])
    layers = [line["executed_layers"] for line in log_lines(run) if line["kind"] == "dev"]
    histograms = [value.histo for _, value in shown["dev/executed_layers_of_utterances"]]
    assert [h.sum / h.num for h in histograms] == pytest.approx(layers)
    corpus = load_corpus(load_saved_config(run / "config.json").data, "dev")
    samples = [line for line in log_lines(run) if line["kind"] == "text"]
    names = [f"sample/{corpus.utterances[i].id}" for i in (0, 5, 10, 15)]
    assert [(line["step"], line["name"]) for line in samples] == [(step, name) for step in steps for name in names]
    reference, hypothesis, executed = samples[-1]["text"].splitlines()
    assert reference == f"ref: {corpus.utterances[15].text}" and hypothesis.startswith("hyp: ")
    assert 0 <= float(executed.removeprefix("executed layers: ")) <= 2
    for name in names:
        assert any(tag.startswith(name) for tag in shown)


def test_report(run):
    report = json.loads((run / "report.json").read_text())
    assert [(row["execution"], row["split"]) for row in report["rows"]] == [
        ("masked", "dev"),
        ("masked", "test"),
        ("conditional", "test"),
        ("compacted", "test"),
        ("eager", "test"),
    ]
    assert all(row.keys() == ReportRow.__annotations__.keys() for row in report["rows"])
    test = report["rows"][1:]
    assert len({(row["wer"], row["cer"], row["executed_layers"]) for row in test}) == 1
    assert test[0]["gflops_per_second"] >= test[1]["gflops_per_second"] == test[2]["gflops_per_second"]
    assert all(row["real_time_factor"] > 0 for row in test)
    gates = report["gates"]["tiny/test"]
    assert np.shape(gates["probability_std"]) == (2, 2) and gates["distinct_patterns"] >= 1
    assert gates["static"] == (gates["distinct_patterns"] == 1)


@pytest.mark.parametrize("execution", ["conditional", "eager"])
def test_eval_writes_hypotheses_and_gates(run, execution, capsys):
    eval_script.main([str(run), "--split=test", f"--execution={execution}", "--threshold=0.6"])
    assert "executed layers" in capsys.readouterr().out
    folder = run / "eval" / f"test-{execution}-0.6"
    rows = [json.loads(line) for line in (folder / "utterances.jsonl").read_text().splitlines()]
    corpus = load_corpus(load_saved_config(run / "config.json").data, "test")
    assert [row["id"] for row in rows] == [u.id for u in corpus.utterances]
    hypotheses = (folder / "hyp.trn").read_text().splitlines()
    for row, line in zip(rows, hypotheses, strict=True):
        assert line == f"{row['hypothesis']} ({row['id']})".strip()
        gates = np.array([row["gates"]["mha"], row["gates"]["ffn"]])
        probabilities = np.array([row["gate_probabilities"]["mha"], row["gate_probabilities"]["ffn"]])
        clear = np.abs(probabilities - 0.6) > 1e-4
        np.testing.assert_array_equal(gates[clear], (probabilities > 0.6)[clear])
        assert row["executed_layers"] == gates.sum() / 2
    score = json.loads((folder / "report.json").read_text())["meta"]["score"]
    assert score["words"] == sum(row["words"] for row in rows)
    low, high = score["wer_interval"]
    assert low <= score["wer"] <= high


def test_bad_thresholds_and_splits_are_refused(run):
    with pytest.raises(ValueError, match="threshold=1.5"):
        eval_script.main([str(run), "--threshold=1.5"])
    with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
        eval_script.main([str(run), "--split=nowhere"])
    with pytest.raises(FileNotFoundError, match="neither a finished run"):
        i3d_jax.load(run / "eval")


def test_the_python_door(run):
    asr = i3d_jax.load(run)
    corpus = load_corpus(load_saved_config(run / "config.json").data, "test")
    saved = (run / "eval" / "test-masked" / "utterances.jsonl").read_text().splitlines()
    for index in (0, 5):
        samples = corpus.load_audio(index)
        results = [asr.transcribe(samples, sample_rate=16000, execution=e) for e in ("masked", "conditional", "eager")]
        for result in results:
            assert result.text == json.loads(saved[index])["hypothesis"]
            assert result.gates.shape == result.gate_probabilities.shape == (2, 2)
            assert result.gate_names == ("mha", "ffn")
            assert result.executed_layers == result.gates.sum() / 2
            assert result.audio_seconds == pytest.approx(len(samples) / 16000) and result.compute_seconds > 0
        np.testing.assert_array_equal(results[0].gates, results[2].gates)
        assert results[0].gflops >= results[1].gflops == results[2].gflops
    closed = asr.transcribe(samples, sample_rate=16000, threshold=1.0)
    assert closed.executed_layers == 0 and closed.gflops < results[0].gflops


def test_transcribe_reads_files_and_refuses_bad_input(run, tmp_path):
    import soundfile

    asr = i3d_jax.load(run)
    corpus = load_corpus(load_saved_config(run / "config.json").data, "test")
    samples = corpus.load_audio(0)
    path = tmp_path / "a.flac"
    soundfile.write(path, samples, 16000)
    assert asr.transcribe(path).text == asr.transcribe(samples, sample_rate=16000).text
    with pytest.raises(ValueError, match="sample_rate"):
        asr.transcribe(samples)
    with pytest.raises(ValueError, match="states its own rate"):
        asr.transcribe(path, sample_rate=16000)
    with pytest.raises(ValueError, match="too short"):
        asr.transcribe(samples[:200], sample_rate=16000)
    with pytest.raises(ValueError, match="NaN"):
        asr.transcribe(np.full(16000, np.nan, np.float32), sample_rate=16000)
    with pytest.raises(ValueError, match="float array"):
        asr.transcribe(np.zeros((2, 16000), np.float32), sample_rate=16000)
    with pytest.raises(FileNotFoundError, match="missing.flac"):
        asr.transcribe(tmp_path / "missing.flac")


def test_a_bundle_round_trips(run, tmp_path):
    asr = i3d_jax.load(run)
    assert asr.config.window_seconds == 5.0  # its utterances are shorter
    asr.save(tmp_path / "bundle", dtype="float16")
    small = i3d_jax.load(tmp_path / "bundle")
    samples = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    a, b = (m.transcribe(samples, sample_rate=16000) for m in (asr, small))
    np.testing.assert_allclose(a.gate_probabilities, b.gate_probabilities, atol=2e-2)
    (tmp_path / "bundle" / "recognizer.json").write_text(
        (run / "model" / "recognizer.json").read_text().replace('"d_model": 32', '"d_model": 16')
    )
    with pytest.raises(ValueError, match=r"recognizer.json has .*if you changed it on purpose, delete manifest.json"):
        i3d_jax.load(tmp_path / "bundle")
    (tmp_path / "bundle" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="does not fit"):
        i3d_jax.load(tmp_path / "bundle")


def test_a_finished_run_is_not_trained_again_and_other_settings_are_refused(run):
    config = load_saved_config(run / "config.json")
    before = (run / "log.jsonl").read_text()
    train(config, run)
    assert (run / "log.jsonl").read_text() == before
    with pytest.raises(ValueError, match=r"seed is 0 there, 1 wanted"):
        train(dataclasses.replace(config, seed=1), run)


def test_the_config_of_these_tests_is_valid():
    assert load_config(CONFIG).name == "tiny"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["eval.py", "nowhere"], "nowhere: neither a finished run nor a model bundle"),
        (["train.py", f"--config={CONFIG}", "--data.source=/nowhere"], "/nowhere"),
        (["train.py", f"--config={CONFIG}", "--data.source=${NO_SUCH_VARIABLE}"], "NO_SUCH_VARIABLE"),
        (["train.py", f"--config={CONFIG}", "--data.test=tst"], "train, dev, test, not 'tst'"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, tmp_path):
    if arguments[0] == "train.py":
        arguments = [*arguments, f"--workdir={tmp_path / 'run'}"]
    process = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 2
    assert message in process.stderr and "Traceback" not in process.stderr


def test_a_dense_run_keeps_its_results_when_it_is_tested_on_other_data(run, tmp_path, monkeypatch):
    source = load_config(CONFIG)
    gated = dataclasses.replace(
        source,
        data=dataclasses.replace(source.data, test="dev"),
        warm_start=WarmStartConfig(run=str(run)),
    )
    placed = []

    def evaluate(recognizer, config, place, split, executions, tag=""):
        placed.append((place, split, tag, config.data.test))
        raise KeyboardInterrupt

    monkeypatch.setattr(train_script, "train", lambda *_: i3d_jax.load(run))
    monkeypatch.setattr(train_script, "evaluate_run", evaluate)
    for test, place, tag in (("dev", epath.Path(tmp_path / "gated"), "dense-"), ("test", run, "")):
        config = dataclasses.replace(gated, data=dataclasses.replace(gated.data, test=test))
        monkeypatch.setattr(train_script, "parse_experiment", lambda *_, **__: (flags, config))  # noqa: B023
        flags = train_script.TrainFlags(workdir=str(tmp_path / "gated"))
        with pytest.raises(KeyboardInterrupt):
            train_script.main([])
        assert placed.pop() == (place, "dev", tag, test)


def test_an_attention_decoder_starts_new_from_a_ctc_run_and_decodes(run, tmp_path, capsys):
    source = load_saved_config(run / "config.json")
    aed = dataclasses.replace(
        source,
        name="aed",
        model=dataclasses.replace(source.model, decoder=DecoderConfig(1, 2, 64, dropout=0.0, embedding_std=0.2)),
        loss=dataclasses.replace(source.loss, ctc_weight=0.3),
        training=dataclasses.replace(source.training, epochs=6, eval_every_epochs=6, average_best=1),
        warm_start=WarmStartConfig(run=str(run)),
    )
    with pytest.raises(ValueError, match=r"(?s)decoder/embedding: not in the trained model.*warm_start.new_decoder"):
        train(aed, epath.Path(tmp_path / "refused"))
    start = dataclasses.replace(aed.warm_start, new_decoder=True)
    model = train(dataclasses.replace(aed, warm_start=start), epath.Path(tmp_path / "aed"))
    assert "tiny gives everything but the attention decoder, which starts new" in capsys.readouterr().out
    lines = log_lines(tmp_path / "aed", "train")
    assert lines[-1]["attention_accuracy"] > lines[0]["attention_accuracy"] + 0.1
    assert lines[-1]["attention"] < lines[0]["attention"]
    dev, how = load_corpus(aed.data, "dev"), (aed.evaluation, aed.batching)
    ctc, joint = (
        evaluate(each, dev, model.decision(), "compacted", *how, interactive=False)
        for each in (model, model.with_decoder(DecodingConfig("joint", beam=4)))
    )
    np.testing.assert_array_equal(ctc.gates, joint.gates)
    np.testing.assert_allclose(ctc.gflops, joint.gflops)
    assert ctc.hypotheses != joint.hypotheses and joint.score.wer < 60


def test_a_failed_start_does_not_block_the_corrected_one(tmp_path):
    config = load_config(CONFIG)
    wrong = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(tmp_path / "nowhere")))
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            train(wrong, tmp_path / "run")
    other = dataclasses.replace(wrong, seed=3)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train(other, tmp_path / "run")


def test_evaluations_are_compared_utterance_by_utterance(run, capsys):
    against = run / "eval" / "test-masked"
    eval_script.main([str(run), "--execution=masked", "--threshold=1.0", f"--against={against}"])
    printed = capsys.readouterr().out
    assert "WER minus that of" in printed and "fewer errors in" in printed
    same = compare(against, against)
    assert same.difference == 0 and same.interval == (0, 0)
    with pytest.raises(FileNotFoundError, match="no evaluation there"):
        compare(against, run)
    with pytest.raises(ValueError, match="different utterances"):
        compare(against, run / "eval" / "dev-masked")


def test_saving_never_replaces_something_else(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a model bundle"):
        i3d_jax.load(run).save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_damaged_bundle_is_named(run, tmp_path):
    i3d_jax.load(run).save(tmp_path / "bundle")
    (tmp_path / "bundle" / "params.npz").write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match=r"is damaged: params.npz has 12 bytes"):
        i3d_jax.load(tmp_path / "bundle")


DEMO_MODEL = ROOT / "docs" / "demo_model"


def test_the_committed_model_transcribes_its_sample():
    assert sum(file.stat().st_size for file in DEMO_MODEL.iterdir()) <= 2_000_000
    asr = i3d_jax.load(DEMO_MODEL)
    reference = (DEMO_MODEL / "sample.txt").read_text().strip()
    results = {e: asr.transcribe(DEMO_MODEL / "sample.flac", execution=e) for e in ("masked", "conditional", "eager")}
    for result in results.values():
        assert score([reference], [result.text]).wer <= 25
        assert result.executed_layers < asr.config.model.encoder.num_layers
    assert len({result.text for result in results.values()}) == 1

"""What a user may give to the programs and to `Recognizer.transcribe` by mistake: one line each, nothing computed."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import eval as eval_script
import i3d_jax
from i3d_jax.data.corpora import Corpus, Utterance
from i3d_jax.experiment import ExperimentConfig, load_config, run_program, save_config
from i3d_jax.inference import recognizer as recognizer_module
from i3d_jax.inference.evaluation import EvaluationConfig, check_lengths, evaluate
from i3d_jax.training_data import prepare_data
from i3d_jax.validation import validate_config

ROOT = Path(__file__).parents[1]
CONFIG = Path(__file__).with_name("tiny_config.py")


@pytest.fixture(scope="module")
def asr():
    return i3d_jax.load(ROOT / "docs" / "demo_model")


@pytest.fixture
def run(tmp_path):
    """A run directory with the committed model."""
    shutil.copytree(ROOT / "docs" / "demo_model", tmp_path / "run" / "model")
    save_config(load_config(CONFIG), tmp_path / "run" / "config.json")
    return tmp_path / "run"


# -- Transcribing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros(0), 16000, "the samples: 0.000 s of audio are too short to recognise; give at least 0.1 s"),
        (np.zeros(1), 16000, "0.000 s of audio are too short"),
        (np.zeros(1300), 16000, "0.081 s of audio are too short"),
        (np.array([0.0, np.inf]), 16000, "NaN or infinite values; mend"),
        (np.array([0.0, 20000.0]), 16000, "samples reach 20000, expected"),
        (np.zeros(16000, np.int16), 16000, "samples must be a float array"),
        (np.zeros((7, 16000)), 16000, "samples must be a float array"),
        (np.zeros(16000), 1, "sample_rate=1: expected a rate in Hz, whole, from 1000 to 1000000"),
        (np.zeros(16000), float("nan"), "sample_rate=nan: expected a rate"),
        (np.zeros(16000), 44100.0, "sample_rate=44100.0: expected a rate in Hz, whole"),
        ((np.zeros(16000) for _ in range(2)), 16000, "audio is of type generator: give a path, samples, or a list"),
        (b"a.flac", None, "audio is of type bytes: give a path"),
    ],
)
def test_bad_samples(asr, samples, rate, message):
    with pytest.raises(ValueError, match=message):
        asr.transcribe(samples, sample_rate=rate)


def test_the_shortest_audio_that_is_promised_to_work_does(asr):
    result = asr.transcribe(np.zeros(1600, np.float32), sample_rate=16000)
    assert result.audio_seconds == 0.1 and np.isfinite(result.gate_probabilities).all()


def test_bad_files(asr, tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(8000 * 470), 8000)
    path.write_bytes(path.read_bytes()[:1000])
    for window in (None, 480.0):
        with pytest.raises(ValueError, match=r"long\.flac: the audio file is truncated"):
            asr.transcribe(path, window_seconds=window)
    with pytest.raises(FileNotFoundError, match=r"missing\.flac: no such audio file"):
        asr.transcribe(tmp_path / "missing.flac")
    with pytest.raises(ValueError, match=r"sample\.flac: a file states its own rate"):
        asr.transcribe(ROOT / "docs" / "demo_model" / "sample.flac", sample_rate=16000)


@pytest.mark.parametrize("audio", [np.zeros(600 * 16000, np.float32), np.zeros(16000, np.float32)])
def test_windows_that_do_not_fit_into_memory_or_overlap_too_much_are_refused(asr, monkeypatch, audio):
    monkeypatch.setattr(recognizer_module.Recognizer, "recognize", None)  # not even called
    for window in (481.0, 0.5, float("nan")):
        with pytest.raises(ValueError, match=f"window_seconds={window}: expected 1 to 480: attention needs memory"):
            asr.transcribe(audio, sample_rate=16000, window_seconds=window)
    for overlap in (0.0, 6.0, float("nan")):
        with pytest.raises(ValueError, match=f"overlap_seconds={overlap}: expected 0.4 to 5, half of window_seconds"):
            asr.transcribe(audio, sample_rate=16000, window_seconds=10.0, overlap_seconds=overlap)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
def test_thresholds(asr, run, threshold, capsys, monkeypatch):
    message = f"threshold={threshold} is not a probability: give a number from 0 to 1"
    with pytest.raises(ValueError, match=message):
        asr.transcribe(np.zeros(16000, np.float32), sample_rate=16000, threshold=threshold)
    with pytest.raises(ValueError, match=message):
        eval_script.main([str(run), f"--threshold={threshold}"])
    assert "utterances" not in capsys.readouterr().out  # refused before anything was read
    config = ExperimentConfig()
    gates = dataclasses.replace(config.model.gates, threshold=threshold)
    with pytest.raises(ValueError, match=rf"model\.gates\.threshold={threshold}: expected"):
        validate_config(dataclasses.replace(config, model=dataclasses.replace(config.model, gates=gates)))


def test_a_bundle_of_another_rate_is_refused(run):
    path = run / "model" / "recognizer.json"
    path.write_text(path.read_text().replace('"sample_rate": 16000', '"sample_rate": 8000'))
    with pytest.raises(ValueError, match=r"recognizer\.json: sample_rate=8000: expected 16000"):
        i3d_jax.load(run)


# -- Evaluating -------------------------------------------------------------------------------------------------------


def corpus_of(*lengths):
    noise = 0.1 * np.random.default_rng(0).standard_normal(max(lengths)).astype(np.float32)
    utterances = (Utterance(f"1-1-{i}", "ONE WORD", n, "1", noise[:n]) for i, n in enumerate(lengths))
    return Corpus("noise", tuple(utterances), 16000)


@pytest.mark.parametrize("execution", ["masked", "conditional", "eager"])
def test_too_short_utterances_count_as_empty_texts(asr, execution):
    config = load_config(CONFIG)
    result = evaluate(asr, corpus_of(1, 8000, 1300), asr.decision(), execution, config.evaluation, config.batching)
    assert [result.hypotheses[i] for i in (0, 2)] == ["", ""]
    assert [result.score.utterance_errors[i] for i in (0, 2)] == [2, 2]
    assert np.isfinite(result.gate_probabilities).all() and np.isfinite(result.gflops).all()


def test_too_long_utterances_end_an_evaluation_before_it_starts(asr, monkeypatch):
    monkeypatch.setattr(recognizer_module.Recognizer, "recognize", None)  # not even called
    config = EvaluationConfig(max_seconds=1.0)
    check_lengths(corpus_of(16000), config)
    message = r"noise: utterance 1-1-1 lasts 2 s, evaluation\.max_seconds is 1: .* Cut it into pieces, or raise"
    with pytest.raises(ValueError, match=message):
        evaluate(asr, corpus_of(100, 32000), asr.decision(), "masked", config, load_config(CONFIG).batching)


def test_too_long_dev_utterances_end_a_training_before_it_starts():
    config = load_config(CONFIG)
    with pytest.raises(ValueError, match=r"synthetic/dev: utterance .* evaluation\.max_seconds is 0\.5"):
        prepare_data(dataclasses.replace(config, evaluation=EvaluationConfig(max_seconds=0.5)), None)


def test_another_rate_is_refused_with_the_reason():
    config = ExperimentConfig()
    with pytest.raises(ValueError, match=r"data\.sample_rate=8000: expected 16000: .* resampled to it"):
        validate_config(dataclasses.replace(config, data=dataclasses.replace(config.data, sample_rate=8000)))


# -- Programs ---------------------------------------------------------------------------------------------------------


def ends_in_one_line(program, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["eval.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        run_program(program)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    return line


def test_eval_answers_in_one_line(run, tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    (data / "other").mkdir(parents=True)
    for arguments, message in (
        ([str(tmp_path)], f"{tmp_path}: neither a finished run nor a model bundle (no recognizer.json)"),
        ([str(run / "model")], "no saved configuration at"),
        (
            [str(run), f"--data={data}"],
            f"there is no folder {data}/test nor {data}/LibriSpeech/test; {data} holds othe",
        ),
        ([str(run), f"--data={tmp_path / 'nowhere'}"], f"there is no folder {tmp_path / 'nowhere'}; give 'demo'"),
        ([str(run), "--data=" + "x" * 5000], "give 'demo', 'synthetic', 'tfds:...' or a folder"),
        ([str(run), "--threshold=nan"], "threshold=nan is not a probability"),
        ([str(run), "--split=tst"], "the synthetic corpus has the splits train, dev, test, not 'tst'"),
        ([str(run), "--split=a+"], "not 'a'"),
        ([str(run), "--max-seconds=0.5"], "evaluation.max_seconds is 0.5: "),
        ([str(run), "--max-seconds=inf"], "evaluation.max_seconds=inf: expected a finite number"),
        ([str(run), f"--against={run}/eval/test-compacted"], "this evaluation is written there; name another one"),
    ):
        assert message in ends_in_one_line(eval_script.main, arguments, monkeypatch, capsys)


def test_what_the_system_refuses_ends_in_one_line(monkeypatch, capsys):
    def full(_):
        raise OSError(28, "No space left on device", "model.npz")

    line = ends_in_one_line(full, [], monkeypatch, capsys)
    assert line == "eval.py: error: model.npz: No space left on device; free space and run again"
    monkeypatch.setenv("I3D_TRACEBACK", "1")
    with pytest.raises(OSError, match="No space"):
        run_program(full)


def test_names_are_printed_on_any_terminal():
    code = "from i3d_jax.experiment import run_program; run_program(lambda _: print('語 \\udcff'))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "\\u8a9e \\udcff\n"), process.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(): return ExperimentConfig(sed=1)", "mine.py, line 2: TypeError: .*unexpected .* 'sed'"),
        ("def get_config(): return ExperimentConfg()", "mine.py, line 2: NameError: .*'ExperimentConfg'"),
        ("def get_config() return 1", "mine.py, line 2: SyntaxError: expected ':'"),
        ("import no_such_module", "mine.py, line 2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise ValueError('why')", "mine.py: why"),
    ],
)
def test_mistakes_in_an_experiment_file_are_one_line(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(f"from i3d_jax.experiment import ExperimentConfig\n{text}\n")
    with pytest.raises(ValueError, match=message) as caught:
        load_config(tmp_path / "mine.py")
    assert "\n" not in str(caught.value)

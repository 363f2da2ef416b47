"""Whole trainings of language models: what a run leaves, kills, and folders of the wrong kind."""

import dataclasses
import json
import math
import re
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

import eval as eval_script
import i3d_jax
import train as train_script
from i3d_jax.cli import ngram
from i3d_jax.cli import runs as runs_command
from i3d_jax.data.corpora import load_corpus
from i3d_jax.data.tokenizer import SPACE, Tokenizer
from i3d_jax.experiment import load_config, save_config
from i3d_jax.inference.language_model_bundle import load_language_model
from i3d_jax.language_model_data import load_pieces, load_sentences
from i3d_jax.language_model_experiment import LanguageModelExperiment
from i3d_jax.language_model_runner import train_language_model
from i3d_jax.training.preemption import RESUMABLE
from tests import trainings
from tests.tiny_config import get_config
from tests.trainings import ROOT, log_lines

CONFIG = Path(__file__).with_name("tiny_language_model.py")
DEMO_MODEL = ROOT / "docs" / "demo_model"


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    """A recogniser's run that has only begun."""
    folder = tmp_path_factory.mktemp("recogniser") / "run"
    config = get_config()
    save_config(config, folder / "config.json")
    texts = [utterance.text for utterance in load_corpus(config.data, "train").utterances]
    Tokenizer.train(texts, config.tokenizer).save(folder / "tokenizer.model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_RUN", str(folder))
        yield folder


@pytest.fixture(scope="module")
def run(recogniser, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "lm"
    train_script.main([f"--config={CONFIG}", f"--workdir={workdir}"])
    return workdir


def tiny(**changes):
    return dataclasses.replace(load_config(CONFIG, LanguageModelExperiment), **changes)


def test_training_learns_and_leaves_everything_behind(run, recogniser):
    dev, train = log_lines(run, "dev"), log_lines(run, "train")
    tokens = Tokenizer.load(recogniser / "tokenizer.model").vocab_size
    assert len(dev) == 3 and dev[-1]["perplexity"] < min(dev[0]["perplexity"], 0.5 * tokens)
    assert train[-1]["loss"] < train[0]["loss"] and train[-1]["tokens_per_second"] > 0
    assert all(line["perplexity"] == pytest.approx(math.exp(line["loss"])) for line in train)
    names = {file.name for file in (run / "model").iterdir()}
    assert names == {"language_model.json", "params.npz", "tokenizer.model", "manifest.json"}
    report = json.loads((run / "report.json").read_text())
    (row,) = report["rows"]
    texts = [utterance.text for utterance in load_corpus(get_config().data, "dev").utterances]
    assert (row["model"], row["split"], row["sentences"]) == ("tiny_lm", "dev", len(texts))
    assert row["words"] == sum(len(text.split()) for text in texts) and report["meta"]["seed"] == 0
    bundle = load_language_model(run)
    assert bundle.config.name == "tiny_lm" and bundle.model.config.width == 16
    nats = 0.0
    for text in texts:  # token by token, as a search does
        state = bundle.model.start(())
        ids = [bundle.tokenizer.sos_eos_id, *bundle.tokenizer.encode(text), bundle.tokenizer.sos_eos_id]
        for before, after in zip(ids, ids[1:], strict=False):
            logits, state = STEP(bundle.model, bundle.params, state, np.int32(before))
            nats -= float(jax.nn.log_softmax(logits)[after])
    assert row["perplexity"] == pytest.approx(math.exp(nats / (row["tokens"] + len(texts))), rel=1e-4)
    assert row["word_perplexity"] == pytest.approx(math.exp(nats / (row["words"] + len(texts))), rel=1e-4)


STEP = jax.jit(lambda model, params, state, token: model.step(params, state, token), static_argnums=0)


def test_a_finished_run_is_only_loaded_and_other_settings_are_refused(run, capsys):
    before = (run / "log.jsonl").read_text()
    train_script.main([f"--config={CONFIG}", f"--workdir={run}"])
    printed = capsys.readouterr().out
    assert "is finished already" in printed and "perplexity  per word" in printed
    assert (run / "log.jsonl").read_text() == before
    with pytest.raises(ValueError, match=r"is finished .* model.width is 16 there, 8 wanted"):
        train_script.main([f"--config={CONFIG}", f"--workdir={run}", "--model.width=8"])


def test_a_folder_of_the_other_kind_is_named_in_one_line(run, recogniser, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="this run has no model yet"):
        load_language_model(recogniser)
    for use in (i3d_jax.load, lambda folder: eval_script.main([str(folder)])):
        for folder in (run, run / "model"):
            with pytest.raises(ValueError, match=r": this is a language model, expected a recogniser; give another"):
                use(folder)
    with pytest.raises(ValueError, match="a configuration of a language model, expected one of a recogniser"):
        ngram.main([str(run), str(tmp_path / "out.arpa")])
    with pytest.raises(ValueError, match="text.run: .*configuration of a language model, expected one of a recogniser"):
        train_script.main([f"--config={CONFIG}", f"--workdir={tmp_path / 'a'}", f"--text.run={run}"])
    with pytest.raises(ValueError, match="configuration of a recogniser, expected one of a language model"):
        train_script.main([f"--config={CONFIG}", f"--workdir={recogniser}"])
    with pytest.raises(ValueError, match="configuration of a language model, expected one of a recogniser"):
        train_script.main([f"--config={ROOT / 'tests/tiny_config.py'}", f"--workdir={run}", "--no-test"])
    runs_command.main([str(run), str(recogniser), str(run / "model")])
    lines = capsys.readouterr().out.splitlines()
    states = {line.split("  ")[0]: line for line in lines}
    assert "language model, finished" in states[str(run)] and "6/6" in states[str(run)]
    assert "language model bundle, no run" in states[str(run / "model")]
    assert "no steps yet" in states[str(recogniser)]


def test_several_processes_are_refused(recogniser, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="tiny_lm: a language model is trained by one process.*, not by 2"):
        train_language_model(tiny(), epath.Path(tmp_path / "run"))


def test_bad_input_is_named(recogniser, tmp_path):
    def train(**changes):
        text = dataclasses.replace(tiny().text, **changes)
        train_language_model(tiny(text=text), epath.Path(tmp_path / "run"))

    with pytest.raises(FileNotFoundError, match=r"text.run: no saved configuration at .*nowhere/config.json"):
        train(run=str(tmp_path / "nowhere"))
    begun = tmp_path / "begun"
    save_config(get_config(), begun / "config.json")
    with pytest.raises(FileNotFoundError, match=r"text.run=.*begun: it has no tokenizer.model yet"):
        train(run=str(begun))
    with pytest.raises(FileNotFoundError, match=r"text.run: .*demo_model is a bundle, .* give --no-text.transcripts"):
        train(run=str(DEMO_MODEL))
    with pytest.raises(FileNotFoundError, match=r"text.run=.*: no tokenizer.model there; expected the run of a recog"):
        train(run=str(tmp_path / "nowhere"), transcripts=False, train=("a.txt",), dev=("a.txt",))
    with pytest.raises(FileNotFoundError, match=r"text.train: .*none.txt is no file"):
        train(train=(str(tmp_path / "none.txt"),))
    (tmp_path / "latin.txt").write_bytes(b"\xe4\n")
    with pytest.raises(ValueError, match=r"latin.txt is not a text file in UTF-8"):
        train(dev=(str(tmp_path / "latin.txt"),))
    (tmp_path / "small.txt").write_text("low hill\n")
    for split in ("train", "dev"):
        with pytest.raises(ValueError, match=r"small.txt: \d+ % of its tokens are <unk>, .* such as 'low hill'; write"):
            train(**{split: (str(tmp_path / "small.txt"),)})
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty.txt: no sentences"):
        train(transcripts=False, train=(str(tmp_path / "empty.txt"),), dev=(str(tmp_path / "empty.txt"),))


def test_text_files_join_or_replace_the_transcripts(recogniser, tmp_path):
    transcripts = [utterance.text for utterance in load_corpus(get_config().data, "train").utterances]
    short, *_, long = sorted(transcripts, key=len)
    (tmp_path / "more.txt").write_text(f"{short}\n\n{long}\n")
    more, tokenizer = (str(tmp_path / "more.txt"),), load_pieces(tiny().text)
    joined = load_sentences(dataclasses.replace(tiny().text, train=more), tokenizer)
    assert len(joined.train) == len(transcripts) + 2
    ids = [tokenizer.encode(text) for text in [*transcripts, short, long]]
    assert list(joined.train.tokens) == ids and joined.dev.name(0).startswith("sentence 1 of transcripts of")
    files = dataclasses.replace(tiny().text, transcripts=False, train=more, dev=more, max_tokens=len(ids[-1]) - 1)
    alone = load_sentences(files, tokenizer)
    # Too long ones are left out of the training alone: a dev perplexity is of all sentences.
    assert list(alone.train.tokens) == ids[-2:-1] and list(alone.dev.tokens) == ids[-2:] and alone.train.too_long == 1


def test_without_transcripts_a_bundle_gives_the_pieces(tmp_path):
    tokenizer = Tokenizer.load(DEMO_MODEL / "tokenizer.model")
    copied = tmp_path / "run"  # of a run only the final model was kept
    shutil.copytree(DEMO_MODEL, copied / "model")
    lines = "\n".join(tokenizer.piece(i).strip(SPACE) for i in range(2, tokenizer.vocab_size - 1))
    (tmp_path / "own.txt").write_text(lines + "\n")
    own = (str(tmp_path / "own.txt"),)
    for folder in (DEMO_MODEL, copied):
        text = dataclasses.replace(tiny().text, run=str(folder), transcripts=False, train=own, dev=own)
        assert load_pieces(text).digest == tokenizer.digest
    config = tiny(text=text, training=dataclasses.replace(tiny().training, epochs=1))
    assert train_language_model(config, epath.Path(tmp_path / "lm")).tokenizer.digest == tokenizer.digest


def test_a_run_goes_on_only_with_its_own_text_and_pieces(recogniser, tmp_path):
    workdir, source, dev = epath.Path(tmp_path / "run"), tmp_path / "more.txt", tmp_path / "dev.txt"
    source.write_text("LOW\nHILL\n" * 40)
    dev.write_text("LOW\n")
    config = tiny(text=dataclasses.replace(tiny().text, train=(str(source),), dev=(str(dev),)))
    calls = iter([False] * 5 + [True])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("i3d_jax.training.preemption.Preemption.asked", lambda _: next(calls))
        with pytest.raises(RuntimeError, match="after step 6, which is saved"):
            train_language_model(config, workdir)
    text = source.read_text()
    source.write_text("HILL\nLOW\n" * 40)
    with pytest.raises(ValueError, match=r"step 6 was trained on other sentences: \d+ there, \d+ here, or their texts"):
        train_language_model(config, workdir)
    source.write_text(text)
    dev.write_text("HILL\n")
    with pytest.raises(
        ValueError, match=r"up to step 6 were ranked by their perplexity on other dev sentences: \d+ there, \d+ here"
    ):
        train_language_model(config, workdir)
    Tokenizer.train(["OTHER WORDS"], dataclasses.replace(get_config().tokenizer, kind="char")).save(
        workdir / "tokenizer.model"
    )
    with pytest.raises(ValueError, match="is not the tokenizer of text.run="):
        train_language_model(config, workdir)


def test_killed_anywhere_the_resumed_run_is_bit_equal(recogniser, run, tmp_path, capsys):
    killed = tmp_path / "killed"
    variables = {"TINY_RUN": str(recogniser), **trainings.keeping_programs(tmp_path / "programs")}

    def start(workdir):
        return trainings.start(workdir, config=str(CONFIG), devices=8, **variables)

    total = log_lines(run)[-1]["step"]
    for stop, how in ((total // 3, signal.SIGKILL), (2 * total // 3, signal.SIGTERM)):
        process = start(killed)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if (lines := log_lines(killed)) and lines[-1]["step"] >= stop:
                break
            time.sleep(0.002)
        process.send_signal(how)
        output, _ = process.communicate(timeout=60)
        assert not (killed / "model").exists()
    assert process.returncode == RESUMABLE, output
    saved = re.search(r"train\.py: ended on request after step (\d+), which is saved; the same", output)
    train_script.main([f"--config={CONFIG}", f"--workdir={killed}"])
    assert f"resumed from step {saved[1]}\n" in capsys.readouterr().out
    assert trainings.same_parameters(killed, run)
    assert trainings.losses(killed) == trainings.losses(run)

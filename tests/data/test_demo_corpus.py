import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from i3d_jax.data import demo_corpus
from i3d_jax.data.corpora import DataConfig, load_corpus
from i3d_jax.data.demo_corpus import DemoCorpusConfig, ensure_demo_corpus, sentences

SMALL = DemoCorpusConfig(train_utterances=40, dev_utterances=8, test_utterances=8)

speaks = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed: no demo speech"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ensure_demo_corpus(SMALL, tmp_path_factory.mktemp("demo"))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


@speaks
def test_is_a_corpus(folder):
    config = DataConfig(source="demo", demo=SMALL, cache_dir=str(folder.parent))
    texts = []
    for split, count in (("train", 40), ("dev", 8), ("test", 8)):
        corpus = load_corpus(config, split)
        assert len(corpus) == count and not corpus.rejected
        texts += [u.text for u in corpus.utterances]
        assert {u.speaker for u in corpus.utterances} <= {str(i + 1) for i in range(12)}
        for i, utterance in enumerate(corpus.utterances):
            assert 0.8 < utterance.num_samples / 16000 < 6.5
            audio = corpus.load_audio(i)
            level = 20 * np.log10(np.sqrt(np.mean(audio**2)))
            assert -27 < level < -19 and np.abs(audio).max() <= 0.99
    assert len(set(texts)) == 56  # no sentence is shared
    assert [p.name for p in folder.parent.iterdir() if p.name != "measures"] == [folder.name]


@speaks
def test_bit_identical_for_the_same_config(folder, tmp_path):
    again = ensure_demo_corpus(SMALL, tmp_path)
    assert again.name == folder.name
    assert contents(again) == contents(folder)
    other = ensure_demo_corpus(dataclasses.replace(SMALL, seed=1), tmp_path)
    assert other.name != folder.name
    assert contents(other).keys() != contents(folder).keys() or contents(other) != contents(folder)


@speaks
def test_is_made_once(folder, monkeypatch):
    monkeypatch.setattr(demo_corpus, "_generate", None)
    assert ensure_demo_corpus(SMALL, folder.parent) == folder


@speaks
def test_an_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_corpus, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ensure_demo_corpus(SMALL, tmp_path)
    assert list(tmp_path.iterdir()) == []


@speaks
@pytest.mark.parametrize("voice", [("en-us", "no-such-variant"), ("no-such-voice", "m1")])
def test_unknown_voices_are_errors(tmp_path, monkeypatch, voice):
    monkeypatch.setattr(demo_corpus, "VOICES", (voice,))
    with pytest.raises(OSError, match=r"eSpeak NG failed \(exit code 1\).*has no voice.*no-such"):
        ensure_demo_corpus(SMALL, tmp_path)


@speaks
def test_espeak_never_enters_this_process(folder):
    assert "espeakng_loader" not in sys.modules
    assert "espeak" not in Path("/proc/self/maps").read_text()


def test_missing_package_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install espeakng-loader"):
        ensure_demo_corpus(SMALL, tmp_path)


def test_counts_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"demo\.dev_utterances = 0"):
        ensure_demo_corpus(dataclasses.replace(SMALL, dev_utterances=0), tmp_path)


def test_sentences():
    made = sentences(2300, 0)
    assert len(set(made)) == 2300 and made == sentences(2300, 0) and made != sentences(2300, 1)
    words = {word for text in made for word in text.split()}
    assert 90 <= len(words) <= 110
    assert all(text == text.upper() and text.isascii() for text in made)
    lengths = [len(text.split()) for text in made]
    assert (min(lengths), max(lengths)) == (3, 13)
    reached = {word for rules in demo_corpus.GRAMMAR.values() for rule in rules for word in rule.split()}
    assert {word for word in reached if word.isupper()} == words  # every word of the grammar occurs


def test_too_many_sentences(monkeypatch):
    monkeypatch.setitem(demo_corpus.GRAMMAR, "sentence", ("MY NUMBER IS number",))
    with pytest.raises(ValueError, match="only 12 different sentences, 13 wanted"):
        sentences(13, 0)

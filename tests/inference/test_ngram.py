import importlib.util
import itertools
import sys

import numpy as np
import pytest

from i3d_jax.data.ngram_training import train_ngrams, write_ngrams
from i3d_jax.data.tokenizer import SPACE, Tokenizer, TokenizerConfig
from i3d_jax.inference.decoding_config import DecodingConfig
from i3d_jax.inference.ngram import NGramModel, NGramSearch
from i3d_jax.inference.prefix_beam import prefix_beam_search
from i3d_jax.inference.recognition import CTCScores
from i3d_jax.inference.recognizer import load
from tests.data.test_ngram_training import log10, read
from tests.inference.ctc_oracle import sequences
from tests.inference.test_prefix_beam import lattice, lists
from tests.trainings import ROOT

needs_flashlight = pytest.mark.skipif(
    importlib.util.find_spec("flashlight") is None, reason="flashlight-text is not installed: no language models"
)

TEXTS = ["AB A", "A AB B", "B A", "AB AB", "A"]
FRAMES = 5


@pytest.fixture(scope="module")
def tokenizer():
    """Pieces of one letter: "▁", "A", "B"."""
    return Tokenizer.train(TEXTS, TokenizerConfig("char", 6))


def model(folder, tokenizer, unit):
    """The path of an ARPA file, and a function from token ids to their natural log probability."""
    if unit == "word":
        units = [text.split() for text in TEXTS]
    else:
        units = [[tokenizer.piece(i) for i in tokenizer.encode(text)] for text in TEXTS]
    text = train_ngrams(units, 3)
    write_ngrams(folder / f"{unit}.arpa", text)
    table = read(text)

    def score(ids):
        if unit == "word":
            written = tokenizer.decode(ids).split()
        else:
            written = [tokenizer.piece(i) if (tokenizer.piece(i),) in table else "<unk>" for i in ids]
        sentence = ["<s>", *(word if (word,) in table else "<unk>" for word in written), "</s>"]
        total = sum(log10(table, tuple(sentence[max(0, i - 2) : i]), sentence[i]) for i in range(1, len(sentence)))
        begun = sum(tokenizer.piece(i).startswith(SPACE) for i in ids)
        return total * np.log(10), len(written) if unit == "word" else begun

    return folder / f"{unit}.arpa", score


@needs_flashlight
@pytest.mark.parametrize("unit, word_score", [("word", 0.0), ("word", 1.3), ("piece", 0.0), ("piece", 1.3)])
def test_a_beam_of_every_prefix_is_exact(tmp_path, tokenizer, unit, word_score):
    path, language = model(tmp_path, tokenizer, unit)
    vocabulary = tokenizer.vocab_size
    search = NGramSearch(
        NGramModel(tokenizer, path),
        lm_weight=0.7,
        word_score=word_score,
        beam=10_000,
        n_best=2000,
        tokens_per_frame=vocabulary,
    )
    for seed in range(3):
        log_probs = lattice(seed, frames=4, vocabulary=vocabulary)
        found = dict(lists(search(CTCScores(log_probs, np.ones((1, 4), bool)))))
        wanted = sequences(log_probs[0])
        assert found.keys() == wanted.keys()
        for ids, acoustic in wanted.items():
            natural, count = language(ids)
            assert found[ids] == pytest.approx(acoustic + 0.7 * natural + word_score * count, abs=1e-3), ids


@needs_flashlight
def test_without_weight_it_is_prefix_beam_search(tmp_path, tokenizer):
    path, _ = model(tmp_path, tokenizer, "word")
    log_probs = lattice(3, frames=12, vocabulary=tokenizer.vocab_size, rows=4)
    mask = np.arange(12)[None] < np.array([12, 0, 5, 9])[:, None]
    search = NGramSearch(NGramModel(tokenizer, path), lm_weight=0.0, beam=400, n_best=3)
    ours = prefix_beam_search(log_probs, mask, beam=200, n_best=3)
    theirs = search(CTCScores(log_probs, mask))
    for row in range(4):
        assert [ids for ids, _ in lists(theirs, row)][:1] == [ids for ids, _ in lists(ours, row)][:1]
    np.testing.assert_allclose(theirs.scores[:, 0], ours.scores[:, 0], atol=1e-2)


@needs_flashlight
def test_a_language_model_changes_what_is_heard(tmp_path):
    asr = load(ROOT / "docs" / "demo_model")
    sample = ROOT / "docs" / "demo_model" / "sample.flac"
    plain = asr.transcribe(sample, decoder="prefix_beam", timestamps=True)
    write_ngrams(tmp_path / "odd.arpa", train_ngrams([["RED", "BOOK"]] * 5 + [plain.text.split()[1:]], 3))
    for execution, weight in itertools.product(("conditional", "eager"), (0.0, 20.0)):
        config = DecodingConfig("prefix_beam", beam=20, lm=str(tmp_path / "odd.arpa"), lm_weight=weight)
        result = asr.transcribe(sample, decoder=config, timestamps=True, execution=execution)
        assert (result.text == plain.text) == (weight == 0.0)
        assert " ".join(word.word for word in result.words) == result.text


@needs_flashlight
def test_models_of_other_pieces_are_refused(tmp_path, tokenizer):
    path, _ = model(tmp_path, tokenizer, "piece")
    other = Tokenizer.train(["XYZ QRS"], TokenizerConfig("char", 9))
    with pytest.raises(ValueError, match="of its 3 pieces are not the tokenizer's, such as 'A'"):
        NGramModel(other, path)
    path.write_text("\\data\\\nngram 1=2\n\n\\1-grams:\n-1\tA\n-1\t</s>\n\n\\end\\\n")
    with pytest.raises(ValueError, match=r"piece\.arpa is not a language model that KenLM reads"):
        NGramModel(tokenizer, path)


def test_without_flashlight_the_error_names_the_remedy(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder.kenlm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'i3d-jax\[lm\]'"):
        NGramModel(tokenizer, tmp_path / "lm.arpa")


@pytest.mark.parametrize(
    "options, error",
    [
        ({"decoder": "greedy", "lm": __file__}, "decoder 'greedy' has no such option"),
        ({"decoder": "prefix_beam", "lm_weight": 1.0}, "weighs a language model: give one"),
        ({"decoder": "prefix_beam", "lm": __file__, "lm_weight": -1.0}, "lm_weight=-1.0: expected a number from 0 on"),
        ({"decoder": "prefix_beam", "lm": __file__, "word_score": np.inf}, "word_score=inf: expected a finite number"),
    ],
)
def test_bad_settings(options, error):
    with pytest.raises(ValueError, match=error):
        DecodingConfig(**options)

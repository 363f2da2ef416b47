"""Decoding with a lexicon against the enumeration of every path."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from i3d_jax.data.tokenizer import Tokenizer, TokenizerConfig
from i3d_jax.inference.decoding_config import DecodingConfig
from i3d_jax.inference.execution import CTCScores
from i3d_jax.inference.lexicon import Lexicon, read_words
from i3d_jax.inference.ngram import NGramModel, NGramSearch
from i3d_jax.inference.recognizer import load
from tests.inference.ctc_oracle import sequences
from tests.inference.test_ngram import TEXTS, model, needs_flashlight
from tests.inference.test_prefix_beam import lattice, lists
from tests.trainings import ROOT

FRAMES = 4


@pytest.fixture(scope="module")
def tokenizer():
    """Pieces of one and of two letters, with and without the mark of a space: words can be cut in several ways."""
    made = Tokenizer.train(TEXTS, TokenizerConfig("bpe", 9))
    assert {made.piece(i) for i in range(2, made.vocab_size - 1)} == {"▁", "A", "B", "AB", "▁A", "▁AB", "▁B"}
    return made


def lexicon(folder, tokenizer, words):
    path = folder / "lexicon.txt"
    path.write_text("\n".join(words))
    return Lexicon(tokenizer, path)


def texts_of(tokenizer, wanted, words):
    """Those of the sequences that are texts of these words."""
    reserved = {tokenizer.blank_id, tokenizer.unk_id, tokenizer.sos_eos_id}
    return {
        ids: score
        for ids, score in wanted.items()
        if not reserved & set(ids) and set(tokenizer.decode(ids).split()) <= set(words)
    }


def everything(tokenizer, language, own, **weights):
    return NGramSearch(
        language, lexicon=own, beam=10_000, n_best=2000, tokens_per_frame=tokenizer.vocab_size, **weights
    )


@needs_flashlight
@pytest.mark.parametrize("unit", ["none", "word", "piece"])
@pytest.mark.parametrize("word_score", [0.0, 1.3])
def test_a_beam_of_every_prefix_is_exact(tmp_path, tokenizer, unit, word_score):
    words = ["AB", "A", "ABA"]  # of which the language model does not know the last one
    own, language, natural, weight = lexicon(tmp_path, tokenizer, words), None, None, 0.0
    if unit != "none":
        path, natural = model(tmp_path, tokenizer, unit)
        language, weight = NGramModel(tokenizer, path), 0.7
    search = everything(tokenizer, language, own, lm_weight=weight, word_score=word_score)
    for seed in range(3):
        log_probs = lattice(seed, frames=FRAMES, vocabulary=tokenizer.vocab_size)
        found = dict(lists(search(CTCScores(log_probs, np.ones((1, FRAMES), bool)))))
        wanted = texts_of(tokenizer, sequences(log_probs[0]), words)
        assert found.keys() == wanted.keys() and len({tokenizer.decode(ids) for ids in found}) < len(found)
        for ids, acoustic in wanted.items():
            score, count = natural(ids) if natural else (0.0, len(tokenizer.decode(ids).split()))
            assert found[ids] == pytest.approx(acoustic + weight * score + word_score * count, abs=1e-3), ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lexica")


@needs_flashlight
@settings(max_examples=40)
@given(
    st.sets(st.text("AB", min_size=1, max_size=3), min_size=1, max_size=5),
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.integers(1, 10),
)
def test_only_words_of_the_lexicon_come_out(folder, tokenizer, words, seed, beam, tokens_per_frame):
    own = lexicon(folder, tokenizer, sorted(words))
    log_probs = lattice(seed, frames=FRAMES, vocabulary=tokenizer.vocab_size)
    wanted = texts_of(tokenizer, sequences(log_probs[0]), words)
    search = NGramSearch(None, lexicon=own, beam=beam, n_best=beam, tokens_per_frame=tokens_per_frame)
    result = search(CTCScores(log_probs, np.ones((1, FRAMES), bool)))
    first = tuple(result.tokens[0, 0, : result.num_tokens[0, 0]].tolist())
    assert first in wanted  # found or not
    found = lists(result)
    assert all(score <= wanted[ids] + 1e-3 for ids, score in found)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def clear(tokenizer, *frames, second=None):
    """Frames [1, T, V] that are sure of these pieces, "" being the blank; every other one is as improbable."""
    ids = {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)} | {"": 0}
    scores = np.zeros((1, len(frames), tokenizer.vocab_size))
    for number, piece in enumerate(frames):
        scores[0, number, ids[piece]] = 10.0
        if second is not None:
            scores[0, number, ids[second]] = 5.0
    return CTCScores(log_softmax(scores, axis=-1).astype(np.float32), np.ones((1, len(frames)), bool))


def best(tokenizer, search, scores):
    found = search(scores)
    return tokenizer.decode(found.tokens[0, 0, : found.num_tokens[0, 0]].tolist()), float(found.scores[0, 0])


@needs_flashlight
@pytest.mark.parametrize(
    "frames, text",
    [
        (("▁A", "B", "B", "B"), "AB"),  # a piece is held, the last one of a word too
        (("▁AB", "▁AB", "", "▁AB", "▁A", "A"), "AB AB A"),  # "AA" begins no word
        (("▁A", "A"), "A"),
        (("▁", "", "A", "", "B", "▁", "A", "B"), "AB AB"),
        (("A", "B", "▁AB"), "AB AB"),  # without the mark at the beginning
    ],
)
def test_words_in_any_pieces(tmp_path, tokenizer, frames, text):
    own = lexicon(tmp_path, tokenizer, ["AB", "A"])
    found, score = best(tokenizer, NGramSearch(None, lexicon=own, beam=100), clear(tokenizer, *frames))
    assert found == text and score > -np.inf


@needs_flashlight
@pytest.mark.parametrize(
    "words, frames, tokens_per_frame, text",
    [
        (["AB"], ("▁A", ""), 9, ""),
        (["A", "BAB"], ("▁A", "", "▁B", "A"), 9, "A"),
        (["A", "ABBB"], ("▁A", "B"), 9, "A"),
        (["A", "BB"], ("▁A", "▁B", "A"), 1, "A"),  # every prefix has left the lexicon
    ],
)
def test_where_no_text_is_complete_its_beginning_is_given_without_a_score(
    tmp_path, tokenizer, words, frames, tokens_per_frame, text
):
    own = lexicon(tmp_path, tokenizer, words)
    search = NGramSearch(None, lexicon=own, beam=1, n_best=1, tokens_per_frame=tokens_per_frame)
    assert best(tokenizer, search, clear(tokenizer, *frames)) == (text, -np.inf)


@needs_flashlight
def test_tokens_that_no_word_has_are_not_among_those_of_a_frame(tmp_path, tokenizer):
    own = lexicon(tmp_path, tokenizer, ["B"])
    assert {piece for piece, usable in zip(own.pieces, own.usable, strict=True) if usable} == {
        "<blank>",
        "▁",
        "B",
        "▁B",
    }
    search = NGramSearch(None, lexicon=own, beam=5, tokens_per_frame=1)
    assert best(tokenizer, search, clear(tokenizer, "A", second="▁B"))[0] == "B"


@needs_flashlight
def test_the_demo_model_says_only_words_that_it_is_given(tmp_path):
    path = tmp_path / "words.txt"
    words = {"THE", "HOUSE", "IS", "NEW", "IN", "OTHER", "EVENING"}  # the sample has VERY too
    path.write_text("\n".join(words))
    config = DecodingConfig("prefix_beam", beam=20, n_best=3, lexicon=str(path))
    model = ROOT / "docs" / "demo_model"
    result = load(model).transcribe(model / "sample.flac", decoder=config, timestamps=True)
    assert result.text.startswith("THE HOUSE IS") and result.text.endswith("NEW IN THE EVENING")
    assert result.alternatives and all(set(one.text.split()) <= words for one in result.alternatives)
    assert " ".join(word.word for word in result.words) == result.text


def test_files_of_kaldi_and_flashlight_are_read(tmp_path, tokenizer):
    path = tmp_path / "lexicon.txt"
    path.write_text("\ufeff!SIL SIL\r\n<UNK> SPN\r\n\r\nAB ▁A B\r\nAB\t▁AB\r\nB 0.5 B\r\n", encoding="utf-8")
    assert read_words(path) == {"AB": 4, "B": 6}
    own = Lexicon(tokenizer, path)
    assert "AB" in own and "A" not in own and "!SIL" not in own


@given(st.sets(st.text("AB", min_size=1, max_size=4), min_size=1), st.lists(st.integers(1, 9), max_size=8))
def test_beginnings_are_those_of_some_text(folder, tokenizer, words, tokens):
    own = lexicon(folder, tokenizer, words)
    reserved = {tokenizer.unk_id, tokenizer.sos_eos_id}
    word, count = "", 0
    for number, token in enumerate(tokens, start=1):
        word = own.follow(word, token)
        *whole, begun = "".join(own.pieces[t] for t in tokens[:number]).split("▁")
        good = set(whole) <= {"", *words} and any(one.startswith(begun) for one in words)
        assert word == (begun if good and token not in reserved else None)
        if word is None:
            break
        count = number if word in {"", *words} else count
    assert own.longest(tokens) == count


@pytest.mark.parametrize(
    "text, error",
    [
        ("", r"lexicon\.txt: no words in 1 lines, expected one a line"),
        ("<eps> 0\n\n", r"lexicon\.txt: no words in 3 lines"),
        ("AB\nAÄBÖ x\nÄ\n", r"lexicon\.txt, line 2: 'AÄBÖ' .* which lack Ä Ö; so are 1 more: leave such words out"),
        ("A▁B", r"lexicon\.txt, line 1: 'A▁B' .* which lack ▁: "),
    ],
)
def test_bad_files(tmp_path, tokenizer, text, error):
    path = tmp_path / "lexicon.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=error):
        Lexicon(tokenizer, path)


def test_files_that_are_none(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such lexicon"):
        Lexicon(tokenizer, tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("Ä".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not a text file in UTF-8"):
        Lexicon(tokenizer, tmp_path / "latin.txt")


@pytest.mark.parametrize(
    "options, error",
    [
        ({"decoder": "greedy"}, "decoder 'greedy' has no such option; take decoder 'prefix_beam'"),
        ({"decoder": "joint"}, "decoder 'joint' has no such option"),
        ({"decoder": "prefix_beam", "lm_weight": 1.0}, "lm_weight=1.0 weighs a language model: give one"),
        ({"decoder": "prefix_beam", "word_score": np.nan}, "word_score=nan: expected a finite number"),
    ],
)
def test_bad_settings(options, error):
    with pytest.raises(ValueError, match=error):
        DecodingConfig(lexicon=__file__, **options)

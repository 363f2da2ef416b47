import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax.data.corpora import DataConfig, load_corpus
from i3d_jax.data.demo_corpus import sentences
from i3d_jax.data.tokenizer import Tokenizer, TokenizerConfig

TEXTS = sentences(500, seed=0)
KINDS = ("unigram", "bpe", "char")
BPE = Tokenizer.train(TEXTS, TokenizerConfig("bpe", 300))


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return Tokenizer.train(TEXTS, TokenizerConfig(request.param, 120))


def test_reserved_ids(tokenizer):
    size = tokenizer.vocab_size
    assert (tokenizer.blank_id, tokenizer.unk_id, tokenizer.sos_eos_id) == (0, 1, size - 1)
    assert tokenizer.decode([0, 1, size - 1]) == ""
    used = {i for text in TEXTS for i in tokenizer.encode(text)}
    assert min(used) >= 2 and max(used) < size - 1
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_round_trip(tokenizer):
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


SCRIPTS = ["ÉTÉ naïve", "語 言 😀👩‍👩‍👧", "שלום עולם", "e\u0301a ไทย", "a\u200bb", "a\u00adb ﬁ Ⅳ", "a\ufeffb"]


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_any_script_survives(kind):
    tokenizer = Tokenizer.train(SCRIPTS * 3, TokenizerConfig(kind, 70))
    for text in SCRIPTS:
        assert tokenizer.unk_id not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(words=st.lists(st.text(sorted(set("".join(TEXTS)) - {" "}), min_size=1, max_size=8), min_size=1, max_size=6))
def test_round_trip_of_unseen_words(words):
    assert BPE.decode(BPE.encode(" ".join(words))) == " ".join(words)


def test_decode_ignores_reserved_ids(tokenizer):
    ids = tokenizer.encode("THE OLD HOUSE")
    noisy = [0, *ids[:2], 0, 1, *ids[2:], tokenizer.sos_eos_id]
    assert tokenizer.decode(noisy) == "THE OLD HOUSE"
    assert tokenizer.unk_id in tokenizer.encode("THE Ω")
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"token id {bad} is outside"):
            tokenizer.decode([bad])


def test_save_and_load(tokenizer, tmp_path):
    path = tmp_path / "run" / "tokenizer.model"
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.vocab_size == tokenizer.vocab_size
    assert [loaded.encode(t) for t in TEXTS[:50]] == [tokenizer.encode(t) for t in TEXTS[:50]]
    assert [p.name for p in path.parent.iterdir()] == ["tokenizer.model"]
    with pytest.raises(FileNotFoundError, match="nothing.model does not exist"):
        Tokenizer.load(tmp_path / "nothing.model")
    path.write_bytes(b"junk")
    with pytest.raises(ValueError, match="tokenizer.model: not a SentencePiece model"):
        Tokenizer.load(path)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic_and_quiet(kind, tmp_path, capfd):
    for name in ("a", "b"):
        Tokenizer.train(iter(TEXTS), TokenizerConfig(kind, 100)).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert capfd.readouterr() == ("", "")


def test_fewer_pieces_when_the_texts_hold_fewer():
    for kind in KINDS:
        tokenizer = Tokenizer.train(["A B", "B A A"], TokenizerConfig(kind, 5000))
        assert 5 <= tokenizer.vocab_size < 20
        assert tokenizer.decode(tokenizer.encode("B B A")) == "B B A"


def test_long_texts_are_not_dropped():
    text = "X Y " * 3000 + "Z"
    assert Tokenizer.train([text, "X"], TokenizerConfig("char")).encode("Z")[-1] != Tokenizer.unk_id


def test_bad_input():
    with pytest.raises(ValueError, match="no transcripts"):
        Tokenizer.train(["", "  "], TokenizerConfig())
    with pytest.raises(ValueError, match=r"vocab_size = 10 from 500 transcripts with 2\d different characters"):
        Tokenizer.train(TEXTS, TokenizerConfig("bpe", 10))


def whole_words(tokenizer, texts):
    words = [word for text in texts for word in text.split()]
    return sum(len(tokenizer.encode(word)) == 1 for word in words) / len(words)


def test_bpe_makes_the_words_of_a_small_vocabulary_one_piece(tmp_path):
    texts = sentences(2000, seed=0)
    assert whole_words(Tokenizer.train(texts, TokenizerConfig("bpe", 400)), texts) == 1
    speech = os.environ.get("I3D_SPEECH_DIR")
    if not speech:
        pytest.skip("I3D_SPEECH_DIR is not set: no real transcripts to read")
    an4 = load_corpus(DataConfig(source="${I3D_SPEECH_DIR}/an4", cache_dir=str(tmp_path)), "splits/train.txt")
    texts = [u.text for u in an4.utterances]
    assert whole_words(Tokenizer.train(texts, TokenizerConfig("bpe", 250)), texts) == 1

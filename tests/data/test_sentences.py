"""Sentences of language models: files, sources, batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax.data.sentences import SentenceBatchingConfig, Sentences, Source, iterate_sentences, read_sentences
from i3d_jax.data.tokenizer import Tokenizer

BATCHING = SentenceBatchingConfig(tokens_per_batch=40, num_buckets=3, batch_multiple=2)


def encode(text):
    """A token a letter, the unknown one for small letters."""
    return [Tokenizer.unk_id if letter.islower() else ord(letter) for letter in text if letter not in " _"]


def sentences(texts, most=None):
    return Sentences([Source("here", lambda: iter(texts))], encode, most)


def test_a_text_file_gives_its_lines(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffÄ B\r\n\n  \nC".encode())
    assert list(read_sentences(path)) == ["Ä B", "", "", "C"]
    path.write_bytes(b"A\n\xe4\n")
    with pytest.raises(ValueError, match=r"text.txt is not a text file in UTF-8: line 2"):
        list(read_sentences(path))


def test_sources_follow_each_other_and_are_named():
    texts = {"a": ["AB C", "", "ABCDEFG"], "b": ["D"], "c": [], "d": ["EF", "G H I"]}
    found = Sentences([Source(name, lambda own=own: iter(own)) for name, own in texts.items()], encode, 5)
    assert [ids for ids in found.tokens] == [encode(text) for text in ("ABC", "D", "EF", "GHI")]
    assert (len(found), found.words, found.too_long) == (4, 7, 1)
    names = [found.name(index) for index in range(4)]
    assert names == ["sentence 1 of a", "sentence 1 of b", "sentence 1 of d", "sentence 2 of d"]
    assert found.describe() == (
        "a + b + c + d: 4 sentences, 9 tokens, 7 words, 0 <unk>; left out: 1 longer than text.max_tokens, "
        "1 without any token"
    )
    with pytest.raises(ValueError, match="here: no sentences, 1 longer than text.max_tokens=2, 2 without any token"):
        sentences(["ABC", "", "_"], 2)


def test_what_the_pieces_cannot_spell_is_counted_and_refused_beyond_a_tenth():
    most = sentences(["A" * 17, "", "Bb", "_", "Cc"], 18)  # 2 of 21; lines of no token do not count
    assert (most.unknown, most.empty, int(most.tokens.counts.sum())) == (2, 2, 21)
    assert most.describe() == "here: 3 sentences, 21 tokens, 3 words, 2 <unk>; left out: 2 without any token"
    assert sentences(["A" * 18, "bb"]).unknown == 2, "a tenth is allowed"
    good = Source("good", lambda: iter(["AAAA"] * 100))
    bad = Source("bad.txt", lambda: iter(["A" * 8, "Of more", "Of less"]))
    message = (
        r"bad.txt: 50 % of its tokens are <unk>, expected at most 10 %: .* lines such as 'Of more'; write this text as "
        r"the transcripts are written .*upper case"
    )
    with pytest.raises(ValueError, match=message):  # though it is little of the whole
        Sentences([good, bad], encode)


@given(st.lists(st.text("ABab _", max_size=12), min_size=1, max_size=20))
def test_every_line_is_a_sentence_or_counted(texts):
    texts = [*texts, "A" * 3000]
    found = sentences(texts)
    assert len(found) + found.empty == len(texts) and found.too_long == 0
    assert found.unknown == sum(text.count("a") + text.count("b") for text in texts)


def test_the_digest_is_of_every_id_and_end():
    digests = {sentences(texts).tokens.digest for texts in (["AB", "C"], ["A", "BC"], ["AB", "D"], ["ABC"])}
    assert len(digests) == 4 and sentences(["AB", "C"]).tokens.digest in digests


@given(st.lists(st.text("ABC", min_size=1, max_size=30), min_size=1, max_size=40), st.integers(0, 5))
def test_every_epoch_holds_every_sentence_once_in_few_shapes(texts, seed):
    found = sentences(texts)
    planner = found.planner(BATCHING, seed)
    total = planner.steps_before(2)
    epochs, shapes = ([], []), set()
    for step, planned, batch in iterate_sentences(found, planner, range(total), lambda batch: batch):
        assert batch.tokens.dtype == np.int32 and not batch.num_tokens[~batch.valid].any()
        shapes.add(batch.tokens.shape)
        assert len(batch.tokens) % 2 == 0 and (batch.tokens.size + len(batch.tokens) <= 40 or len(batch.tokens) == 2)
        for row, (index, count) in enumerate(zip(planned.indices, batch.num_tokens[batch.valid], strict=True)):
            assert list(batch.tokens[row, :count]) == encode(texts[index]) and not batch.tokens[row, count:].any()
            epochs[planner.locate(step)[0]].append(int(index))
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(len(texts)))
    assert len(shapes) <= 3
    later = [planned.indices.tolist() for _, planned, _ in iterate_sentences(found, planner, range(1, total), list)]
    again = found.planner(BATCHING, seed)
    whole = [planned.indices.tolist() for _, planned, _ in iterate_sentences(found, again, range(total), list)]
    assert later == whole[1:], "the position is a function of the step"

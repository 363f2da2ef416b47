"""N-gram models as ARPA files, read here by a reader of their own."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i3d_jax.data.ngram_training import read_unigrams, train_ngrams, write_ngrams

TEXTS = ["A B C", "A B", "B C C A", "C", "A B C", "B"]


def read(text):
    """N-gram -> (log10 probability, log10 backoff)."""
    table, sizes = {}, {}
    for block in text.split("\n\n"):
        head, *lines = block.strip().splitlines()
        if head == "\\data\\":
            sizes = {int(line[6]): int(line[8:]) for line in lines}
        elif head.endswith("-grams:"):
            assert len(lines) == sizes[int(head[1])]
            for line in lines:
                probability, gram, *backoff = line.split("\t")
                assert len(gram.split()) == int(head[1])
                table[tuple(gram.split())] = (float(probability), float(backoff[0]) if backoff else 0.0)
    return table


def log10(table, history, word):
    """Log probability by backing off, as the format defines it."""
    if (*history, word) in table:
        return table[*history, word][0]
    return table.get(history, (0, 0.0))[1] + log10(table, history[1:], word)


words = st.sampled_from(["A", "B", "C", "D"])
corpora = st.lists(st.lists(words, max_size=6), min_size=1, max_size=12)


@settings(max_examples=60)
@given(corpora, st.integers(2, 4), st.lists(words, max_size=3))
def test_probabilities_of_every_history_sum_to_one(sentences, order, more):
    table = read(train_ngrams(sentences, order, ["EXTRA"]))
    vocabulary = [gram[0] for gram in table if len(gram) == 1 and gram != ("<s>",)]
    assert {"EXTRA", "</s>", "<unk>"} <= set(vocabulary)
    histories = [gram for gram in table if len(gram) < order and gram[-1] != "</s>"]
    for history in [(), tuple(more)[: order - 1], *histories]:
        assert sum(10 ** log10(table, history, word) for word in vocabulary) == pytest.approx(1, abs=1e-5)


@settings(max_examples=30)
@given(corpora, st.integers(2, 4))
def test_every_part_of_an_ngram_is_there(sentences, order):
    table = read(train_ngrams(sentences, order))
    for gram in table:
        assert len(gram) == 1 or (gram[1:] in table and gram[:-1] in table)
    seen = {
        ("<s>", *sentence, "</s>")[i : i + order] for sentence in sentences for i in range(len(sentence) + 3 - order)
    }
    assert seen == {gram for gram in table if len(gram) == order}


def test_probabilities_are_those_of_the_formula():
    table = read(train_ngrams([text.split() for text in TEXTS], 2))
    # Bigrams: six sentences; <s> is followed by A 3 times, B 2, C 1. Counted by hand: once are <s> C, A </s>, C C, C A.
    pairs = [pair for text in TEXTS for pair in itertools.pairwise(["<s>", *text.split(), "</s>"])]
    counts = {pair: pairs.count(pair) for pair in pairs}
    ones, twos = (sum(count == times for count in counts.values()) for times in (1, 2))
    discount = ones / (ones + 2 * twos)
    before = {word: len({a for a, b in counts if b == word}) for word in ("A", "B", "C", "</s>")}
    once, twice = (sum(count == times for count in before.values()) for times in (1, 2))
    low = min(max(once / (once + 2 * twice), 0.1), 0.9) if once else 0.1
    total = sum(before.values())
    unigram = {word: (count - low) / total + low * 4 / total / 5 for word, count in before.items()}
    for word, count in (("A", 3), ("B", 2), ("C", 1)):
        p = (count - discount) / 6 + discount * 3 / 6 * unigram[word]
        assert table["<s>", word][0] == pytest.approx(math.log10(p), abs=1e-6)
    assert table["<s>",][1] == pytest.approx(math.log10(discount * 3 / 6), abs=1e-6)
    assert table["<unk>",][0] == pytest.approx(math.log10(low * 4 / total / 5), abs=1e-6)


def test_bad_input_and_files(tmp_path):
    for sentences, order, error in (
        ([], 3, "no transcripts"),
        ([["A"]], 1, "order=1: expected 2 to 6"),
        ([["A", "<unk>"]], 2, "'<unk>' cannot be a word"),
        ([["A", "</s>"]], 2, "'</s>' cannot be a word"),
        ([["A B"]], 2, "'A B' cannot be a word"),
    ):
        with pytest.raises(ValueError, match=error):
            train_ngrams(sentences, order)
    path = tmp_path / "lm.arpa"
    write_ngrams(path, train_ngrams([["ÄRGER", "B"]], 2))
    assert read_unigrams(path) == ["B", "ÄRGER"]
    for text in ("", "no ARPA\n", "\\data\\\n\n\\1-grams:\n-1\t</s>\n\n\\end\\\n", "\\1-grams:\nbroken\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"lm\.arpa is not an ARPA file"):
            read_unigrams(path)
    with pytest.raises(FileNotFoundError, match=r"none\.arpa: no such language model; make one with"):
        read_unigrams(tmp_path / "none.arpa")

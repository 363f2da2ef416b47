import json
import re
from urllib.parse import unquote

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i3d_jax.inference.scoring import paired_bootstrap, read_errors, score, write_jsonl, write_trn

texts = st.lists(st.sampled_from(["a", "b", "cat", "é"]), max_size=6).map(" ".join)


def edit_distance(a, b):
    """Textbook Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


@settings(deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6))
def test_agrees_with_textbook_edit_distance(pairs):
    references, hypotheses = zip(*pairs, strict=True)
    result = score(references, hypotheses, bootstrap_samples=50)
    errors = [edit_distance(r.split(), h.split()) for r, h in pairs]
    words = [len(r.split()) for r in references]
    assert result.utterance_errors.tolist() == errors and result.utterance_words.tolist() == words
    assert result.wer == pytest.approx(100 * sum(errors) / max(sum(words), 1))
    assert result.words == sum(words)
    assert result.substitutions + result.deletions + result.insertions == sum(errors)
    assert result.insertions - result.deletions == sum(len(h.split()) for h in hypotheses) - sum(words)
    characters = sum(edit_distance(r, h) for r, h in pairs)
    assert result.cer == pytest.approx(100 * characters / max(sum(map(len, references)), 1))
    assert result.character_substitutions + result.character_deletions + result.character_insertions == characters
    assert result.characters == sum(map(len, references))
    assert result.wer_interval[0] <= result.wer_interval[1]
    json.dumps(result.to_dict(), allow_nan=False)


def test_errors_of_an_evaluation_are_put_in_order(tmp_path):
    rows = [
        {"id": "b", "errors": 1, "words": 4, "reference": "Q R S T"},
        {"id": "a", "errors": 2, "words": 3, "reference": "X Y Z"},
    ]
    write_jsonl(tmp_path / "utterances.jsonl", rows)
    errors = read_errors(tmp_path).ordered_as(["a", "b"], ["X Y Z", "Q R  S T"], "corpus")
    assert errors.ids == ("a", "b") and errors.errors.tolist() == [2, 1] and errors.words.tolist() == [3, 4]
    with pytest.raises(
        ValueError, match=r"corpus and .* different utterances \(1 are missing in the latter, 2 are only"
    ):
        errors.ordered_as(["c"], ["X"], "corpus")
    with pytest.raises(ValueError, match="different references for 1 utterances, b for one"):
        errors.ordered_as(["a", "b"], ["X Y Z", "Q R T S"], "corpus")
    (tmp_path / "utterances.jsonl").write_text('{"id": "a"}')
    with pytest.raises(ValueError, match=r"utterances.jsonl is damaged"):
        read_errors(tmp_path)


def test_empty_references_count_as_insertions():
    result = score(["", "one two"], ["noise  here", "one two"])
    assert (result.wer, result.insertions, result.words) == (100.0, 2, 2)
    assert score([""], [""]).wer == 0.0
    assert score([""], ["x"]).wer == 100.0


def test_interval_covers_the_true_rate_as_often_as_it_says():
    """Simulated systems with a true WER of 20 %: about 95 % of the intervals contain it."""
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        wrong = rng.random((60, 10)) < 0.2
        hypotheses = [" ".join("x" if w else "a" for w in row) for row in wrong]
        low, high = score(["a " * 10] * 60, hypotheses, bootstrap_samples=200, seed=trial).wer_interval
        hits += low <= 20.0 <= high
    assert 86 <= hits <= 100


def test_interval_is_a_function_of_the_seed():
    references, hypotheses = ["a b c d"] * 20, ["a b c d", "a x c d"] * 10
    first, again, other = (score(references, hypotheses, seed=seed).wer_interval for seed in (1, 1, 2))
    assert first == again and first != other
    assert first[0] < 12.5 < first[1]


def test_score_names_bad_input():
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no utterances"):
        score([], [])
    with pytest.raises(ValueError, match="-1 bootstrap samples"):
        score(["a"], ["a"], bootstrap_samples=-1)


def test_interval_can_be_left_out():
    result = score(["a b"], ["a"], bootstrap_samples=0)
    assert result.wer == 50.0 and np.isnan(result.wer_interval).all()
    assert result.to_dict()["wer_interval"] is None


def test_paired_bootstrap():
    rng = np.random.default_rng(0)
    words = rng.integers(5, 15, 200)
    b = rng.binomial(words, 0.2)
    a = np.maximum(b - (rng.random(200) < 0.3), 0)
    better = paired_bootstrap(a, words, b, words, samples=2000)
    assert better.difference == pytest.approx(100 * (a.sum() - b.sum()) / words.sum())
    assert better.interval[0] < better.difference < better.interval[1] < 0
    assert better.probability_a_better == 1.0
    # Pairing removes what the systems share: the interval is narrower than that of one system.
    alone = paired_bootstrap(a, words, np.zeros_like(a), words, samples=2000)
    assert np.ptp(better.interval) < 0.6 * np.ptp(alone.interval)
    swapped = paired_bootstrap(b, words, a, words, samples=2000)
    assert swapped.difference == -better.difference and swapped.probability_a_better == 0.0
    same = paired_bootstrap(a, words, a, words)
    assert (same.difference, same.interval, same.probability_a_better) == (0.0, (0.0, 0.0), 0.5)


def test_paired_bootstrap_is_the_same_in_chunks(monkeypatch):
    rng = np.random.default_rng(1)
    words, a, b = rng.integers(5, 15, 50), rng.integers(0, 4, 50), rng.integers(0, 4, 50)
    whole = paired_bootstrap(a, words, b, words, samples=1000)
    monkeypatch.setattr("i3d_jax.inference.scoring._DRAWS_PER_CHUNK", 700)
    assert paired_bootstrap(a, words, b, words, samples=1000) == whole


def test_paired_bootstrap_needs_the_same_references():
    with pytest.raises(ValueError, match="same utterances"):
        paired_bootstrap(np.zeros(2), np.array([3, 4]), np.zeros(2), np.array([4, 3]))
    with pytest.raises(ValueError, match="no utterances"):
        paired_bootstrap(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0))


def test_write_trn(tmp_path):
    path = tmp_path / "new" / "hyp.trn"
    write_trn(path, ["spk-1", "spk-2"], ["hello   wörld", ""])
    assert path.read_text(encoding="utf-8") == "hello wörld (spk-1)\n(spk-2)\n"
    with pytest.raises(ValueError, match="utterance id is empty"):
        write_trn(path, [""], ["x"])
    with pytest.raises(ValueError, match="1 ids but 2 texts"):
        write_trn(path, ["a"], ["x", "y"])
    assert path.read_text(encoding="utf-8").startswith("hello"), "a failed write must leave the file alone"


@given(st.lists(st.text(st.characters(exclude_categories=[]), min_size=1), min_size=1, unique=True))
def test_any_id_is_one_word_of_a_trn_line(tmp_path_factory, ids):
    path = tmp_path_factory.mktemp("trn") / "hyp.trn"
    write_trn(path, ids, ["a (b) ü\u2028c"] * len(ids))
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    written = [re.fullmatch(r"a \(b\) ü c \(([^\s()]+)\)", line)[1] for line in lines]
    assert len(set(written)) == len(ids)
    assert [unquote(name, errors="surrogatepass") for name in written] == ids


def test_parentheses_and_blanks_in_ids_are_escaped(tmp_path):
    write_trn(tmp_path / "a.trn", ["take(1)", "100%", "a b", "é"], ["x"] * 4)
    assert (tmp_path / "a.trn").read_text(encoding="utf-8") == "x (take%281%29)\nx (100%25)\nx (a%20b)\nx (é)\n"


def test_words_of_any_script_are_scored():
    texts = ["ÉTÉ naïve", "語 言 😀👩‍👩‍👧", "שלום עולם", "e\u0301a ไทย", "a\u200bb"]
    assert score(texts, texts, bootstrap_samples=0).wer == score(texts, texts, bootstrap_samples=0).cer == 0
    wrong = score(texts, ["ÉTÉ naive", *texts[1:]], bootstrap_samples=0)
    assert (wrong.substitutions, wrong.character_substitutions) == (1, 1)


def test_write_jsonl(tmp_path):
    path = tmp_path / "utterances.jsonl"
    rows = [{"id": "ä", "gates": np.eye(2, dtype=bool), "wer": np.float32(0.5), "n": jnp.int32(3)}, {"id": "b"}]
    write_jsonl(path, rows)
    read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert read == [{"id": "ä", "gates": [[True, False], [False, True]], "wer": 0.5, "n": 3}, {"id": "b"}]
    with pytest.raises(ValueError, match="JSON compliant"):
        write_jsonl(path, [{"x": float("nan")}])
    assert len(list(tmp_path.iterdir())) == 1

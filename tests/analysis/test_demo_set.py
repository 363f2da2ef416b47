import pytest

from i3d_jax.analysis.demo_set import demo_test_set
from i3d_jax.data.demo_corpus import sentences


def test_sentences_are_new_to_the_demo_model(tmp_path):
    corpus = demo_test_set(6, tmp_path)
    assert len(corpus) == 6
    assert not {u.text for u in corpus.utterances} & set(sentences(2000, 0))
    assert [u.id for u in demo_test_set(6, tmp_path).utterances] == [u.id for u in corpus.utterances]
    with pytest.raises(ValueError, match="3 or more"):
        demo_test_set(2, tmp_path)

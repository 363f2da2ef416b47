import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from i3d_jax.inference.decoding import greedy_decode
from i3d_jax.inference.prefix_beam import prefix_beam_search
from tests.inference import fusions
from tests.inference.ctc_oracle import sequences

FRAMES, VOCABULARY = 4, 3
EVERY = sum((VOCABULARY - 1) ** length for length in range(FRAMES + 1))


def lattice(seed, frames=FRAMES, vocabulary=VOCABULARY, rows=1, sharpness=2.0):
    """Log probabilities [B, T, V] of random frames."""
    scores = sharpness * np.random.default_rng(seed).standard_normal((rows, frames, vocabulary))
    return log_softmax(scores, axis=-1).astype(np.float32)


def lists(n_best, row=0):
    """The sequences of a row, best first, with their scores."""
    count = n_best.num_tokens[row]
    return [
        (tuple(np.asarray(n_best.tokens[row, i, : count[i]]).tolist()), float(n_best.scores[row, i]))
        for i in range(len(count))
        if n_best.scores[row, i] > -np.inf
    ]


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(0, FRAMES), st.sampled_from([0.1, 2.0, 8.0]))
def test_a_beam_of_every_prefix_is_exact(seed, valid, sharpness):
    log_probs = lattice(seed, sharpness=sharpness)
    log_probs[:, valid:] = np.nan
    mask = np.arange(FRAMES)[None] < valid
    found = lists(prefix_beam_search(log_probs, mask, beam=EVERY, n_best=EVERY))
    wanted = sequences(log_probs[0, :valid])
    assert len(found) == len(dict(found)) == len(wanted)
    for tokens, score in found:
        assert score == pytest.approx(wanted[tokens], abs=1e-4)
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    assert np.logaddexp.reduce(scores) == pytest.approx(0, abs=1e-4)


@settings(max_examples=40)
@given(
    st.integers(0, 10**6), st.integers(0, FRAMES), st.sampled_from([0.0, 0.3, 2.0]), st.sampled_from([0.0, -1.0, 3.0])
)
def test_with_a_language_model_a_beam_of_every_prefix_is_exact(seed, valid, weight, word_score):
    log_probs = lattice(seed, vocabulary=VOCABULARY + 1)  # the last one is the end, which no frame may say
    log_probs[:, valid:] = np.nan
    fusion = fusions.fusion(VOCABULARY + 1, weight, word_score)
    mask = np.arange(FRAMES)[None] < valid
    found = lists(prefix_beam_search(log_probs, mask, beam=EVERY, n_best=EVERY, fusion=fusion))
    wanted = sequences(log_probs[0, :valid, :VOCABULARY])
    language = dict(zip(wanted, fusions.added(fusion, list(wanted)), strict=True))
    assert len(found) == len(dict(found)) == len(wanted)
    for tokens, score in found:
        assert score == pytest.approx(wanted[tokens] + language[tokens], abs=1e-3)
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)


def test_a_language_model_chooses_within_a_small_beam():
    log_probs = lattice(5, frames=4, vocabulary=VOCABULARY + 1, rows=100, sharpness=0.5)
    mask, fusion = np.ones((100, 4), bool), fusions.fusion(VOCABULARY + 1, 1.0)
    found = {beam: prefix_beam_search(log_probs, mask, beam=beam, fusion=fusion) for beam in (1, EVERY)}
    exact, agree = [], {beam: 0 for beam in found}
    for row in range(100):
        every = sequences(log_probs[row, :, :VOCABULARY])
        total = np.array(list(every.values())) + fusions.added(fusion, list(every))
        exact.append(list(every)[int(np.argmax(total))])
        for beam, n_best in found.items():
            agree[beam] += lists(n_best, row)[0][0] == exact[-1]
    assert agree[EVERY] == 100 > agree[1]
    alone = prefix_beam_search(log_probs[:, :, :VOCABULARY], mask, beam=EVERY)
    assert sum(lists(alone, row)[0][0] != exact[row] for row in range(100)) > 20, "the model is to matter"


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 3]))
def test_a_small_beam_never_exceeds_the_probability(seed, beam, tokens_per_frame):
    log_probs = lattice(seed, frames=5, vocabulary=4)
    found = lists(prefix_beam_search(log_probs, np.ones((1, 5), bool), beam=beam, n_best=beam,
                                     tokens_per_frame=tokens_per_frame))  # fmt: skip
    wanted = sequences(log_probs[0])
    assert 1 <= len(found) == len(dict(found)) <= beam
    assert all(score <= wanted[tokens] + 1e-4 for tokens, score in found)


def test_a_wider_beam_finds_better_sequences():
    log_probs = lattice(3, frames=5, vocabulary=4, rows=200, sharpness=1.0)
    exact = [sequences(row) for row in log_probs]
    best = np.mean([max(every.values()) for every in exact])
    means = []
    for beam in (1, 2, 4, 16):
        n_best = prefix_beam_search(log_probs, np.ones((200, 5), bool), beam=beam)
        means.append(np.mean([exact[row][lists(n_best, row)[0][0]] for row in range(200)]))
    assert means == sorted(means) and means[0] < means[-1]
    assert means[-1] == pytest.approx(best, abs=1e-3)


def test_sums_over_alignments_beat_the_best_path():
    # Every frame prefers the blank, yet "1" has more paths than "": 0.36 against 0.64.
    log_probs = np.log(np.array([[[0.6, 0.4], [0.6, 0.4]]], np.float32))
    mask = np.ones((1, 2), bool)
    assert greedy_decode(log_probs, mask)[1][0] == 0
    (best, score), (other, _) = lists(prefix_beam_search(log_probs, mask, beam=2, n_best=2))
    assert best == (1,) and other == () and score == pytest.approx(np.log(0.64), abs=1e-6)


def test_a_prefix_that_comes_back_is_merged_again():
    # "1" leaves a beam of two and comes back from "" beside "1 2": what is extended from it must be one prefix.
    for seed in range(200):
        log_probs = lattice(seed, frames=7, vocabulary=3, sharpness=1.5)
        found = lists(prefix_beam_search(log_probs, np.ones((1, 7), bool), beam=3, n_best=3))
        assert len(found) == len(dict(found))


def test_batches_padding_and_devices_change_nothing():
    log_probs = lattice(5, frames=30, vocabulary=20, rows=8)
    lengths = np.array([30, 0, 7, 29, 1, 12, 30, 3])
    mask = np.arange(30)[None] < lengths[:, None]
    log_probs[~mask] = np.nan
    together = prefix_beam_search(log_probs, mask, beam=6, n_best=3)
    place = jax.sharding.NamedSharding(
        jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,)), jax.sharding.PartitionSpec("data")
    )
    split = prefix_beam_search(*jax.device_put((log_probs, mask), place), beam=6, n_best=3)
    for row, length in enumerate(lengths):
        alone = prefix_beam_search(log_probs[row : row + 1, :length], mask[row : row + 1, :length], beam=6, n_best=3)
        for other in (together, split):
            assert [tokens for tokens, _ in lists(other, row)] == [tokens for tokens, _ in lists(alone)]
            np.testing.assert_allclose(other.scores[row], alone.scores[0], atol=1e-4)
    assert lists(together, 1) == [((), 0.0)]


def test_a_large_vocabulary_is_pruned_without_harm():
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((2, 20, 5000))
    scores[:, np.arange(20), generator.integers(0, 5000, 20)] += 14.0
    scores[:, ::3, 0] += 14.0
    log_probs = log_softmax(scores, axis=-1).astype(np.float32)
    mask = np.ones((2, 20), bool)
    pruned = prefix_beam_search(log_probs, mask, beam=5, n_best=2)
    whole = prefix_beam_search(log_probs, mask, beam=5, n_best=2, tokens_per_frame=5000)
    np.testing.assert_array_equal(pruned.tokens, whole.tokens)
    np.testing.assert_allclose(pruned.scores, whole.scores, atol=1e-4)
    assert pruned.num_tokens.min() > 5


def test_probabilities_of_zero():
    log_probs = np.full((1, 3, 4), -np.inf, np.float32)
    log_probs[0, [0, 1, 2], [1, 0, 1]] = 0.0
    assert lists(prefix_beam_search(log_probs, np.ones((1, 3), bool), beam=4, n_best=4)) == [((1, 1), 0.0)]

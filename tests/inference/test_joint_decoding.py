"""Joint decoding against the enumeration of all transcripts, against greedy steps, and its laws."""

import itertools
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax.inference import joint_decoding
from i3d_jax.inference.joint_decoding import JointDecodingConfig, greatest_length, joint_search
from i3d_jax.model.decoder import Decoder, DecoderConfig, after_start, before_end
from i3d_jax.training.losses import ctc_feasible, ctc_loss
from tests.inference import fusions
from tests.model.test_layers import randomised

ROWS, FRAMES, WIDTH, VOCABULARY = 12, 4, 8, 5
EOS = VOCABULARY - 1
DECODER = Decoder(DecoderConfig(num_layers=2, num_heads=2, ffn_dim=12), WIDTH, VOCABULARY)
PARAMS = randomised(jax.jit(DECODER.init)(jax.random.key(0)))
PARAMS["output"]["projection"]["kernel"] *= 3  # sure of itself, and no friend of short transcripts
PARAMS["output"]["projection"]["bias"] -= 4.0 * jax.nn.one_hot(EOS, VOCABULARY)
STATES = 2 * jax.random.normal(jax.random.key(1), (ROWS, FRAMES, WIDTH))
LOGITS = 2 * jax.random.normal(jax.random.key(2), (ROWS, FRAMES, VOCABULARY))
LENGTHS = np.array([4, 4, 4, 4, 4, 4, 3, 3, 2, 2, 1, 0])
MASK = jnp.arange(FRAMES)[None] < LENGTHS[:, None]
EVERY = [s for length in range(FRAMES + 1) for s in itertools.product((1, 2, 3), repeat=length)]

search = jax.jit(joint_search, static_argnums=(0, 1))


def frames_of(tokens):
    """The fewest frames of a CTC path with these tokens."""
    return len(tokens) + sum(a == b for a, b in itertools.pairwise(tokens))


@cache
def enumerated():
    """Sequences, and log p of the decoder and of CTC: [rows, sequences] each."""
    labels = jnp.array([[*s, *[0] * (FRAMES - len(s))] for s in EVERY])
    num_labels = jnp.array([len(s) for s in EVERY])
    targets, valid = before_end(labels, num_labels, VOCABULARY)

    @partial(jax.vmap, in_axes=(0, 0, 0))
    def both(states, logits, mask):
        def repeat(x):
            return jnp.broadcast_to(x, (len(EVERY), *x.shape))

        answers = DECODER.apply(PARAMS, after_start(labels, VOCABULARY), repeat(states), repeat(mask))
        log_p = jnp.take_along_axis(jax.nn.log_softmax(answers), targets[..., None], -1)[..., 0]
        ctc = -ctc_loss(repeat(logits), repeat(mask), labels, num_labels)
        fits = ctc_feasible(jnp.sum(mask), labels, num_labels)
        return jnp.sum(jnp.where(valid, log_p, 0), axis=1), jnp.where(fits, ctc, -jnp.inf)

    return [np.asarray(x, np.float64) for x in jax.jit(both)(STATES, LOGITS, MASK)]


@pytest.mark.parametrize(
    "weight, bonus, language",
    [
        (0.0, 0.0, None),
        (0.0, 2.0, None),
        (0.3, 0.0, None),
        (0.5, 1.5, None),
        (0.9, 0.5, None),
        (0.0, 4.0, (1.0, 0.0)),
        (0.3, 1.0, (0.5, 2.0)),
        (0.3, 7.0, (2.0, -1.0)),
    ],
)
def test_a_wide_beam_finds_the_best_of_all_transcripts(weight, bonus, language):
    config = JointDecodingConfig(beam=len(EVERY), ctc_weight=weight, length_bonus=bonus, end_margin=0.0)
    fusion = fusions.fusion(VOCABULARY, *language) if language else None
    found = jax.device_get(search(config, DECODER, PARAMS, STATES, LOGITS, MASK, fusion))
    attention, ctc = enumerated()
    counts = np.array([len(s) for s in EVERY])
    taken = np.array([frames_of(s) for s in EVERY])
    lengths = set()
    for row, frames in enumerate(LENGTHS):
        score = (1 - weight) * attention[row] + bonus * (counts + 1) + (weight * ctc[row] if weight else 0.0)
        score += fusions.added(fusion, EVERY) if fusion else 0.0
        score[taken > frames] = -np.inf
        best = int(np.argmax(score))
        assert tuple(found.tokens[row, 0, : found.num_tokens[row, 0]]) == EVERY[best]
        lengths.add(len(EVERY[best]))
        for k in np.flatnonzero(np.isfinite(found.scores[row])):  # each of the others has its own score too
            sequence = tuple(found.tokens[row, k, : found.num_tokens[row, k]])
            np.testing.assert_allclose(found.scores[row, k], score[EVERY.index(sequence)], rtol=1e-4, atol=1e-4)
            assert not found.tokens[row, k, found.num_tokens[row, k] :].any()
        assert np.all(np.diff(found.scores[row][np.isfinite(found.scores[row])]) <= 0)
    assert len(lengths) > 1, "the cases are to differ"


@pytest.mark.parametrize("n_best", [1, 3, 10])
def test_the_best_transcripts_are_the_best_of_all(n_best):
    config = JointDecodingConfig(beam=len(EVERY), ctc_weight=0.3, length_bonus=1.0, end_margin=0.0, n_best=n_best)
    found = jax.device_get(search(config, DECODER, PARAMS, STATES, LOGITS, MASK))
    attention, ctc = enumerated()
    counts, taken = np.array([[len(s), frames_of(s)] for s in EVERY]).T
    for row, frames in enumerate(LENGTHS):
        score = 0.7 * attention[row] + 0.3 * ctc[row] + counts + 1
        order = sorted(np.flatnonzero(taken <= frames), key=lambda i: -score[i])[:n_best]
        wanted = [EVERY[i] for i in order]
        assert [tuple(found.tokens[row, k, : found.num_tokens[row, k]]) for k in range(len(wanted))] == wanted
        np.testing.assert_allclose(found.scores[row, : len(wanted)], score[order], rtol=1e-4, atol=1e-4)


def test_a_beam_of_one_takes_the_best_token_each_time():
    config = JointDecodingConfig(beam=1, ctc_weight=0.0, end_margin=0.0)
    found = jax.device_get(search(config, DECODER, PARAMS, STATES, LOGITS, MASK))
    for row, frames in enumerate(LENGTHS):
        tokens, total = [], 0.0
        while True:
            given_ids = after_start(jnp.array([tokens], int).reshape(1, -1), VOCABULARY)
            answer = jax.nn.log_softmax(DECODER.apply(PARAMS, given_ids, STATES[row : row + 1], MASK[row : row + 1]))
            answer = np.asarray(answer)[0, -1]
            fits = [t for t in (1, 2, 3) if frames_of([*tokens, t]) <= frames]
            token = max([*fits, EOS], key=lambda t: answer[t])
            total += answer[token]
            if token == EOS:
                break
            tokens.append(token)
        assert found.tokens[row, 0, : found.num_tokens[row, 0]].tolist() == tokens
        np.testing.assert_allclose(found.scores[row, 0], total, rtol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_neighbours_padding_and_what_it_holds_do_not_matter(weight):
    config = JointDecodingConfig(beam=3, ctc_weight=weight, length_bonus=0.5)
    whole = jax.device_get(search(config, DECODER, PARAMS, STATES, LOGITS, MASK))
    reversed_rows = jax.device_get(search(config, DECODER, PARAMS, STATES[::-1], LOGITS[::-1], MASK[::-1]))
    valid = MASK[..., None]
    poisoned = search(
        config, DECODER, PARAMS, jnp.where(valid, STATES, jnp.nan), jnp.where(valid, LOGITS, jnp.nan), MASK
    )
    for field in ("tokens", "num_tokens", "scores"):
        expected = getattr(whole, field)
        np.testing.assert_array_equal(getattr(poisoned, field), expected)
        np.testing.assert_allclose(getattr(reversed_rows, field)[::-1], expected, rtol=1e-5)
    short = slice(6, 8)  # of three frames
    alone = jax.device_get(search(config, DECODER, PARAMS, STATES[short, :3], LOGITS[short, :3], MASK[short, :3]))
    np.testing.assert_array_equal(alone.tokens[:, 0], whole.tokens[short, 0, :3])
    np.testing.assert_allclose(alone.scores[:, 0], whole.scores[short, 0], rtol=1e-5)


def end_detect(ended, step, margin):
    """ESPnet's rule, for (length with start and end, score)."""
    best = max((score for _, score in ended), default=-np.inf)
    behind = 0
    for length in (step, step - 1, step - 2):
        same = [score for own, score in ended if own == length]
        behind += bool(same) and max(same) - best < -margin
    return behind == 3


@given(st.lists(st.one_of(st.none(), st.floats(-40, 0)), min_size=1, max_size=8), st.floats(1, 20))
def test_end_detection_is_espnets(scores, margin):
    step = len(scores) - 1
    ended = [(count + 2, score) for count, score in enumerate(scores) if score is not None]
    ended_at = np.array([[-np.inf if s is None else s for s in scores] + [-np.inf] * (8 - len(scores))], np.float32)
    config = JointDecodingConfig(end_margin=margin)
    found = joint_decoding._detected(config, jnp.asarray(ended_at), jnp.max(ended_at, axis=1), jnp.int32(step))
    ended = [(length, float(np.float32(score))) for length, score in ended]
    if all(abs(a - b + margin) > 1e-4 for _, a in ended for _, b in ended):
        assert bool(found[0]) == end_detect(ended, step, margin)
    assert not joint_decoding._detected(JointDecodingConfig(end_margin=0.0), jnp.asarray(ended_at), jnp.zeros(1), 9)[0]


def test_greatest_lengths_grow_with_the_frames():
    assert greatest_length(10, JointDecodingConfig()).tolist() == list(range(11))
    assert greatest_length(3, JointDecodingConfig(max_length_ratio=1e-12)).tolist() == [0, 1, 1, 1]
    assert greatest_length(10, JointDecodingConfig(max_length_ratio=0.3)).tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("beam", 0, "at least 1"),
        ("ctc_weight", 1.0, "below 1"),
        ("ctc_weight", -0.1, "at least 0"),
        ("length_bonus", float("nan"), "a finite number"),
        ("max_length_ratio", 0.0, "more than 0"),
        ("pre_beam_ratio", 0.5, "at least 1"),
        ("end_margin", -1.0, "0 or more"),
        ("n_best", 11, "1 to 10, the beam"),
    ],
)
def test_values_out_of_range_are_named(key, value, expected):
    with pytest.raises(ValueError, match=re.escape(f"{key}={value}: expected") + ".*" + expected):
        JointDecodingConfig(**{key: value})

"""Regrouping changes the order of the rows and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from i3d_jax.inference import execution
from i3d_jax.inference.pattern import PerUtterance
from i3d_jax.inference.recognizer import load
from i3d_jax.inference.scheduler import Work, by_pattern, recognize_batches
from tests.trainings import ROOT

ROWS, SAMPLES = 4, 16000


@pytest.fixture(scope="module")
def works():
    """Two full batches, and one with a single utterance."""
    rng = np.random.default_rng(0)
    found = []
    for first, count in ((0, ROWS), (ROWS, ROWS), (2 * ROWS, 1)):
        waveform = np.zeros((ROWS, SAMPLES), np.float32)
        num_samples = np.zeros(ROWS, np.int32)
        for row in range(count):
            num_samples[row] = rng.integers(6000, SAMPLES)
            tone = np.sin(np.arange(num_samples[row]) * rng.uniform(0.02, 0.9))
            waveform[row, : num_samples[row]] = 0.3 * tone + 0.05 * rng.standard_normal(num_samples[row])
        found.append(Work(np.arange(first, first + count), waveform, num_samples))
    return found


@pytest.fixture(scope="module")
def asr(works):
    """The demo model with gates that divide the utterances of the test in halves."""
    asr = load(ROOT / "docs" / "demo_model")
    predictor = asr.params["predictor"]
    kernel = 3 * jax.random.normal(jax.random.key(1), predictor["logits"]["kernel"].shape)

    def with_bias(bias):
        return asr.params | {"predictor": predictor | {"logits": {"kernel": kernel, "bias": bias}}}

    asr.params = with_bias(jnp.zeros(kernel.shape[1]))
    starts = [asr.pipeline.start(asr.params, work.waveform, work.num_samples, asr.decision()) for work in works[:2]]
    logits = [asr.model.encoder.predict(asr.params, start.x, start.mask) for start in starts]  # [N, B, M, 2]
    asr.params = with_bias(-jnp.median(jnp.concatenate(logits, axis=1), axis=1).reshape(-1))
    return asr


def by_index(results):
    rows = {}
    for indices, recognition in results:
        for row, index in enumerate(indices.tolist()):
            assert index not in rows
            rows[index] = jax.tree.map(lambda leaf, row=row: np.asarray(leaf)[row], recognition)
    return rows


@pytest.mark.parametrize("pool", [1, 2, 8])
@pytest.mark.parametrize("decision", [{}, {"threshold": 0.45}, {"budget": 0.5}])
def test_every_utterance_comes_once_with_the_result_it_has_in_its_own_batch(asr, works, decision, pool, monkeypatch):
    monkeypatch.setattr(execution, "_FRAMES_AT_ONCE", {"cpu": 60})
    asr = load(ROOT / "docs" / "demo_model") if not decision else asr
    decide = asr.decision(**decision)
    assert asr.regroups((ROWS, SAMPLES), "compacted") and not asr.regroups((ROWS, SAMPLES), "conditional")
    regrouped = by_index(recognize_batches(asr, works, decide, "compacted", pool=pool))
    expected = by_index(recognize_batches(asr, works, decide, "masked"))
    assert sorted(regrouped) == list(range(2 * ROWS + 1))
    if decision:
        assert len({row.gates.tobytes() for row in expected.values()}) > 2
    for index, row in regrouped.items():
        wanted = expected[index]
        np.testing.assert_array_equal(row.gates, wanted.gates)
        np.testing.assert_allclose(row.gate_probabilities, wanted.gate_probabilities, atol=1e-5)
        assert row.num_frames == wanted.num_frames
        np.testing.assert_array_equal(row.tokens[: row.num_tokens], wanted.tokens[: wanted.num_tokens])


@pytest.mark.parametrize("chosen, regroups", [("compacted", True), ("conditional", False), ("masked", False)])
def test_patterns_of_single_utterances_stay_with_them(asr, works, chosen, regroups, monkeypatch):
    monkeypatch.setattr(execution, "_FRAMES_AT_ONCE", {"cpu": 60})
    fresh = load(ROOT / "docs" / "demo_model")
    fresh.params = asr.params
    patterns = np.random.default_rng(2).random((2 * ROWS + 1, 6, 2)) < 0.6
    assert fresh.regroups((ROWS, SAMPLES), chosen) == regroups
    together = by_index(recognize_batches(fresh, works, PerUtterance(patterns), chosen, pool=2))
    assert sorted(together) == list(range(2 * ROWS + 1))
    for work in works:
        for row, index in enumerate(work.indices.tolist()):
            one = Work(np.array([index]), work.waveform[[row]], work.num_samples[[row]])
            ((_, alone),) = recognize_batches(fresh, [one], PerUtterance(patterns), "eager")
            np.testing.assert_array_equal(together[index].gates, patterns[index])
            np.testing.assert_array_equal(alone.gates[0], patterns[index])
            count = alone.num_tokens[0]
            np.testing.assert_array_equal(together[index].tokens[: together[index].num_tokens], alone.tokens[0, :count])


@given(hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 2))))
def test_like_patterns_are_neighbours(gates):
    order = by_pattern(gates)
    assert sorted(order) == list(range(len(gates)))
    words = [gates[row].tobytes() for row in order]
    assert sum(a != b for a, b in zip(words, words[1:], strict=False)) == len(set(words)) - 1


def test_parts_of_one_row_need_no_regrouping(asr, monkeypatch):
    monkeypatch.setattr(execution, "_FRAMES_AT_ONCE", {"cpu": 1})
    fresh = load(ROOT / "docs" / "demo_model")
    assert not fresh.regroups((ROWS, SAMPLES), "compacted")
    assert fresh.pipeline.rows_at_once(ROWS, 24) == 1

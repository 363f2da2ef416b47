import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from i3d_jax.analysis.gate_stats import gate_statistics


@st.composite
def decisions(draw):
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3)))
    probabilities = draw(hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
    return probabilities > draw(st.sampled_from([0.25, 0.5])), probabilities


def names(gates):
    return tuple("abc"[: gates.shape[2]])


@given(decisions())
def test_definitions(case):
    gates, probabilities = case
    stats = gate_statistics(gates, probabilities, names(gates))
    utterances, layers, branches = gates.shape
    for n in range(layers):
        for m in range(branches):
            values = [float(p) for p in probabilities[:, n, m]]
            mean = sum(values) / utterances
            assert stats.probability_mean[n, m] == pytest.approx(mean, abs=1e-6)
            variance = sum((v - mean) ** 2 for v in values) / utterances
            assert stats.probability_std[n, m] ** 2 == pytest.approx(variance, abs=1e-6)
            share = sum(bool(g) for g in gates[:, n, m]) / utterances
            assert stats.decision_mean[n, m] == pytest.approx(share)
            assert stats.decision_std[n, m] ** 2 == pytest.approx(share * (1 - share), abs=1e-9)
    counts = [sum(map(bool, row.ravel())) / branches for row in gates]
    assert stats.executed_layers_mean == pytest.approx(np.mean(counts))
    assert stats.executed_layers_std == pytest.approx(np.std(counts), abs=1e-9)
    assert stats.distinct_patterns == len({tuple(row.ravel().tolist()) for row in gates})


@given(decisions())
def test_laws(case):
    gates, probabilities = case
    stats = gate_statistics(gates, probabilities, names(gates))
    assert sum(stats.executed_blocks.values()) / gates.shape[2] == pytest.approx(stats.executed_layers_mean)
    assert stats.decision_mean.sum() == pytest.approx(sum(stats.executed_blocks.values()))
    assert stats.is_static == (np.abs(stats.decision_std).max() == 0)
    order = np.random.default_rng(0).permutation(len(gates))
    shuffled = gate_statistics(gates[order], probabilities[order], names(gates))
    np.testing.assert_allclose(shuffled.probability_mean, stats.probability_mean, atol=1e-12)
    assert shuffled.distinct_patterns == stats.distinct_patterns
    twice = gate_statistics(np.repeat(gates, 2, 0), np.repeat(probabilities, 2, 0), names(gates))
    assert twice.distinct_patterns == stats.distinct_patterns
    assert twice.executed_layers_std == pytest.approx(stats.executed_layers_std, abs=1e-9)


@given(decisions())
def test_json_round_trip(case):
    gates, probabilities = case
    stats = gate_statistics(gates, probabilities, names(gates))
    read = json.loads(json.dumps(stats.to_dict(), allow_nan=False))
    assert read["static"] is stats.is_static and read["gate_names"] == list(names(gates))
    np.testing.assert_allclose(read["decision_std"], stats.decision_std)


def test_dense_model():
    stats = gate_statistics(np.ones((4, 12, 2), bool), np.ones((4, 12, 2)), ("mha", "ffn"))
    assert stats.is_static and stats.executed_layers_mean == 12
    assert stats.executed_blocks == {"mha": 12.0, "ffn": 12.0}


def test_bad_input_is_named():
    gates = np.ones((2, 3, 2), bool)
    with pytest.raises(ValueError, match="float64; expected boolean"):
        gate_statistics(gates.astype(float), gates, ("mha", "ffn"))
    with pytest.raises(ValueError, match=r"\(2, 3, 2\).*\(2, 3\)"):
        gate_statistics(gates, gates[..., 0], ("mha", "ffn"))
    with pytest.raises(ValueError, match="M names"):
        gate_statistics(gates, gates, ("mha",))
    with pytest.raises(ValueError, match="no utterances"):
        gate_statistics(gates[:0], gates[:0], ("mha", "ffn"))

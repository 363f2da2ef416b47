"""Gate maths against closed forms and sampling statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from i3d_jax.model.gates import (
    Budget,
    Fixed,
    GateConfig,
    GumbelSoftmax,
    LayerDrop,
    LayerDropConfig,
    Open,
    SoftMean,
    StraightThrough,
    Threshold,
    drop_rates,
    execute_probability,
    executed_layers,
    inference_decision,
    settled,
    training_decision,
    utility,
)


def keys(seed, rows):
    return jax.random.split(jax.random.key(seed), rows)


logits_arrays = hnp.arrays(np.float32, (3, 2, 2), elements=st.floats(-20, 20, width=32))


@given(logits_arrays)
def test_execute_probability_is_the_softmax_entry(logits):
    expected = np.exp(logits[..., 1]) / np.exp(logits.astype(np.float64)).sum(-1)
    np.testing.assert_allclose(execute_probability(jnp.asarray(logits)), expected, rtol=1e-5, atol=1e-7)


@given(logits_arrays, st.floats(0, 1))
def test_a_smaller_threshold_never_closes_a_gate(logits, beta):
    closed_more = Threshold(beta)(jnp.asarray(logits), None, 0)
    closed_less = Threshold(beta / 2)(jnp.asarray(logits), None, 0)
    assert bool(jnp.all(closed_less | ~closed_more))


def test_threshold_is_strict():
    logits = jnp.zeros((1, 2, 2))
    assert not Threshold(0.5)(logits, None, 0).any()
    assert Threshold(0.49)(logits, None, 0).all()


def test_soft_samples_exceed_one_half_with_the_gate_probability():
    # argmax of log p + Gumbel noise is a draw from p, whatever the temperature.
    logits = jnp.broadcast_to(jnp.array([[0.0, 1.2], [0.5, -0.4]]), (20000, 2, 2))
    for temperature in (0.3, 1.0, 4.0):
        samples = GumbelSoftmax(temperature)(logits, keys(0, 20000), 3)
        frequency = jnp.mean(samples > 0.5, axis=0)
        np.testing.assert_allclose(frequency, execute_probability(logits[0]), atol=0.012)


def test_soft_sample_against_its_definition():
    logits = jax.random.normal(jax.random.key(1), (4, 2, 2))
    noise = np.stack([jax.random.gumbel(jax.random.fold_in(key, 5), (2, 2)) for key in keys(2, 4)])
    log_p = np.asarray(jax.nn.log_softmax(logits))
    z = np.exp((log_p + noise) / 0.7)
    expected = z[..., 1] / z.sum(-1)
    np.testing.assert_allclose(GumbelSoftmax(0.7)(logits, keys(2, 4), 5), expected, rtol=1e-5)


def test_samples_differ_between_layers_and_utterances_and_repeat_with_the_key():
    logits = jnp.zeros((2, 2, 2))
    a, b = (GumbelSoftmax(1.0)(logits, keys(0, 2), layer) for layer in (0, 1))
    assert not jnp.any(a == b) and not jnp.any(a[0] == a[1])
    np.testing.assert_array_equal(a, GumbelSoftmax(1.0)(logits, keys(0, 2), 0))


def test_gumbel_needs_a_key():
    with pytest.raises(ValueError, match="gate_keys"):
        GumbelSoftmax(1.0)(jnp.zeros((1, 2, 2)), None, 0)


def test_straight_through_is_hard_forward_and_soft_backward():
    logits = jax.random.normal(jax.random.key(3), (5, 2, 2))
    key = keys(4, 5)
    hard = StraightThrough(1.0)(logits, key, 0)
    soft = GumbelSoftmax(1.0)(logits, key, 0)
    np.testing.assert_allclose(hard, (soft > 0.5).astype(np.float32), atol=1e-6)
    weights = jnp.arange(10.0).reshape(5, 2)
    gradients = [
        jax.grad(lambda z, d=d: jnp.sum(weights * d(z, key, 0)))(logits)
        for d in (StraightThrough(1.0), GumbelSoftmax(1.0))
    ]
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-6)


def test_soft_gate_gradient_against_finite_differences():
    logits, key = jax.random.normal(jax.random.key(5), (1, 2, 2)), keys(6, 1)

    def f(z):
        return jnp.sum(jnp.sin(GumbelSoftmax(0.8)(z, key, 0)))

    gradient, step = jax.grad(f)(logits), 1e-2
    for index in np.ndindex(1, 2, 2):
        unit = jnp.zeros_like(logits).at[index].set(step)
        np.testing.assert_allclose(gradient[index], (f(logits + unit) - f(logits - unit)) / (2 * step), atol=2e-4)


@given(st.floats(0, 0.99), st.integers(1, 40), st.sampled_from(["layer", "block"]))
def test_drop_rates_by_depth(rate, layers, unit):
    constant = drop_rates(LayerDropConfig(rate, unit), layers, 2)
    linear = drop_rates(LayerDropConfig(rate, unit, "linear"), layers, 2)
    assert constant.shape == linear.shape == (layers, 1 if unit == "layer" else 2)
    np.testing.assert_allclose(constant, np.full(constant.shape, rate), rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(linear[:, 0], [rate * n / layers for n in range(1, layers + 1)], rtol=1e-6, atol=1e-30)
    np.testing.assert_array_equal(linear[-1], constant[-1])


@pytest.mark.parametrize("unit", ["layer", "block"])
def test_layer_drop_drops_as_often_as_it_says(unit):
    decide, rows = LayerDrop(drop_rates(LayerDropConfig(0.4, unit, "linear"), 2, 2)), 20000
    gates = [np.asarray(decide(jnp.zeros((rows, 2, 2)), keys(0, rows), n)) for n in range(2)]
    for n, dropped in enumerate((0.2, 0.4)):
        assert gates[n].dtype == bool
        np.testing.assert_allclose(np.mean(~gates[n], axis=0), dropped, atol=0.012)
        both = np.mean(~gates[n][:, 0] & ~gates[n][:, 1])  # together, or independent
        np.testing.assert_allclose(both, dropped if unit == "layer" else dropped**2, atol=0.012)
    np.testing.assert_allclose(np.mean(~gates[0][:, 0] & ~gates[1][:, 0]), 0.2 * 0.4, atol=0.012)
    np.testing.assert_array_equal(gates[0][:7], decide(jnp.zeros((7, 2, 2)), keys(0, rows)[:7], 0))


def test_layer_drop_needs_a_key():
    with pytest.raises(ValueError, match="gate_keys"):
        LayerDrop(np.full((1, 1), 0.5))(jnp.zeros((1, 2, 2)), None, 0)


@given(hnp.arrays(bool, (3, 4, 2)))
def test_fixed_returns_its_pattern_row_by_row(mask):
    logits = jnp.zeros((3, 2, 2))
    for layer in range(4):
        np.testing.assert_array_equal(Fixed(mask)(logits, None, layer), mask[:, layer])
        np.testing.assert_array_equal(Fixed(mask[0])(logits, None, layer), np.tile(mask[0, layer], (3, 1)))


@given(hnp.arrays(bool, (3, 5, 2)))
def test_counts_follow_the_paper(gates):
    layers = executed_layers(gates)
    np.testing.assert_allclose(layers, [(g[:, 0].sum() + g[:, 1].sum()) / 2 for g in gates])
    np.testing.assert_allclose(utility(jnp.asarray(gates)), layers / 5, rtol=1e-6)


def test_configured_decisions():
    assert training_decision(GateConfig("none"), 3, 2) == Open() == inference_decision(GateConfig("none"), 0.3)
    assert training_decision(GateConfig("local", temperature=0.5), 3, 2) == GumbelSoftmax(0.5)
    assert training_decision(GateConfig("global", straight_through=True), 3, 2) == StraightThrough(1.0)
    dropping = GateConfig(layer_drop=LayerDropConfig(0.3, "block"))
    np.testing.assert_array_equal(training_decision(dropping, 3, 2).rates, np.full((3, 2), 0.3, np.float32))
    assert inference_decision(dropping) == Open()
    assert inference_decision(GateConfig("global", threshold=0.4)) == Threshold(0.4)
    assert inference_decision(GateConfig("global"), 0.0) == Threshold(0.0)
    logits = jax.random.normal(jax.random.key(0), (2, 2, 2))
    np.testing.assert_array_equal(SoftMean()(logits, None, 0), execute_probability(logits))


# Layers, rows, branches: the smallest, the largest and what differs from both; each is compiled once.
BUDGET_SIZES = [(1, 1, 1), (3, 5, 3), (2, 4, 2), (1, 5, 2), (3, 1, 2), (2, 3, 1), (1, 2, 3)]
settle = jax.jit(settled)


def budget_cases():
    return st.sampled_from(BUDGET_SIZES).flatmap(
        lambda size: st.tuples(
            hnp.arrays(np.float32, (size[1], size[0], size[2], 2), elements=st.floats(-9, 9, width=32)),
            hnp.arrays(np.int32, size[2], elements=st.integers(1, 50)),
            hnp.arrays(np.int32, size[2], elements=st.integers(0, 9)),
            hnp.arrays(np.int64, size[0], elements=st.integers(1, 20)),
            st.floats(0, 1, width=32),
        )
    )


@given(budget_cases(), st.sampled_from([-1.0, 0.4]))
def test_a_budget_takes_the_most_probable_blocks_that_fit(case, beta):
    logits, fixed, per_frame, frames, share = case
    layers, rows, branches, _ = logits.shape
    mask = np.arange(20)[None] < frames[:, None]
    decide = settle(Budget(share, fixed, per_frame, beta), jnp.asarray(logits), jnp.asarray(mask))
    gates = np.stack([decide(jnp.asarray(logits[n]), None, n) for n in range(layers)], axis=1)
    probability = np.swapaxes(np.asarray(execute_probability(jnp.asarray(logits))), 0, 1).reshape(rows, -1)
    for row in range(rows):
        cost = np.tile(fixed.astype(np.int64) + per_frame * frames[row], layers)
        limit, spent, expected = np.float32(share) * np.float32(cost.sum()), 0, np.zeros(layers * branches, bool)
        for block in sorted(range(len(cost)), key=lambda k: -probability[row, k]):
            if probability[row, block] > beta and spent + cost[block] <= limit:
                spent += cost[block]
                expected[block] = True
        np.testing.assert_array_equal(gates[row].ravel(), expected)
        assert cost[gates[row].ravel()].sum() <= share * cost.sum() * (1 + 1e-6)


def test_budgets_of_everything_and_of_nothing():
    logits, mask = jnp.zeros((3, 2, 2, 2)), jnp.ones((2, 5), bool)
    for share in (0.0, 1.0):
        decide = settled(Budget(share, np.array([7, 2]), np.array([1, 0])), logits, mask)
        assert (np.asarray(decide.mask) == (share == 1.0)).all()


def test_a_budget_cannot_decide_layer_by_layer():
    with pytest.raises(ValueError, match="global gate predictor"):
        Budget(0.5, np.array([1, 1]), np.array([0, 0]))(jnp.zeros((1, 2, 2)), None, 0)
    assert settled(Threshold(0.5), jnp.zeros((1, 1, 2, 2)), jnp.ones((1, 1), bool)) == Threshold(0.5)

"""CTC against brute force over all alignments, infeasible rows, the attention loss, the total of Eqs. 5 and 6."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from i3d_jax.model.asr import ModelConfig
from i3d_jax.model.encoder import EncoderConfig
from i3d_jax.model.flops import block_costs, branch_flops
from i3d_jax.training.losses import LossConfig, attention_loss, ctc_feasible, ctc_loss, loss_totals, utility_loss
from i3d_jax.types import Batch, ModelOutput

FRAMES, VOCABULARY = 5, 3


def collapse(path):
    return [token for token, _ in itertools.groupby(path) if token != 0]


def brute_force(log_probabilities, labels):
    """-log of the summed probability of every path that collapses to the labels."""
    frames, vocabulary = log_probabilities.shape
    total = [
        sum(log_probabilities[t, token] for t, token in enumerate(path))
        for path in itertools.product(range(vocabulary), repeat=frames)
        if collapse(path) == list(labels)
    ]
    return -np.logaddexp.reduce(total) if total else np.inf


@pytest.mark.parametrize("labels", [[], [1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 1]])
@pytest.mark.parametrize("frames", [FRAMES, 4])
def test_ctc_against_all_alignments(labels, frames):
    logits = jax.random.normal(jax.random.key(len(labels)), (1, FRAMES, VOCABULARY)) * 2
    mask = jnp.arange(FRAMES)[None] < frames
    padded = jnp.array([labels + [0] * (4 - len(labels))])
    loss = ctc_loss(logits, mask, padded, jnp.array([len(labels)]))
    expected = brute_force(np.asarray(jax.nn.log_softmax(logits))[0, :frames], labels)
    np.testing.assert_allclose(loss[0], 0.0 if np.isinf(expected) else expected, rtol=1e-5, atol=1e-5)


def test_ctc_gradient_against_finite_differences():
    logits = jax.random.normal(jax.random.key(1), (1, FRAMES, VOCABULARY))
    arguments = jnp.ones((1, FRAMES), bool), jnp.array([[1, 2, 0]]), jnp.array([2])
    gradient = jax.grad(lambda z: ctc_loss(z, *arguments)[0])(logits)
    log_softmax = jax.nn.log_softmax
    for t, v in itertools.product(range(FRAMES), range(VOCABULARY)):
        unit = np.zeros((FRAMES, VOCABULARY))
        unit[t, v] = 1e-4
        values = [brute_force(np.asarray(log_softmax(np.float64(logits[0]) + s * unit)), [1, 2]) for s in (1, -1)]
        np.testing.assert_allclose(gradient[0, t, v], (values[0] - values[1]) / 2e-4, atol=5e-3)


def test_infeasible_rows_weigh_nothing():
    logits = jax.random.normal(jax.random.key(2), (2, 3, VOCABULARY))
    mask, labels = jnp.ones((2, 3), bool), jnp.array([[1, 1, 1], [1, 2, 0]])
    loss, gradient = jax.value_and_grad(lambda z: ctc_loss(z, mask, labels, jnp.array([3, 2])).sum())(logits)
    assert np.isfinite(loss) and not gradient[0].any() and gradient[1].any()


@given(st.lists(st.integers(1, 3), max_size=6), st.integers(0, 8))
def test_feasible_means_some_alignment_exists(labels, frames):
    needed = len(labels) + sum(a == b for a, b in itertools.pairwise(labels))
    padded = jnp.array([labels + [0] * (6 - len(labels))], jnp.int32)
    assert bool(ctc_feasible(jnp.array([frames]), padded, jnp.array([len(labels)]))[0]) == (frames >= needed)


def test_loss_is_never_negative():
    logits = jnp.array([[[0.0, 17.0], [0.0, 17.0]]])
    assert ctc_loss(logits, jnp.ones((1, 2), bool), jnp.array([[1]]), jnp.array([1]))[0] >= 0


def batch_and_output(valid):
    rows = len(valid)
    logits = jax.random.normal(jax.random.key(3), (rows, FRAMES, VOCABULARY))
    gates = jax.random.uniform(jax.random.key(4), (rows, 4, 2))
    output = ModelOutput(logits, jnp.ones((rows, FRAMES), bool), gates, gates)
    labels = jnp.tile(jnp.array([[1, 2]]), (rows, 1))
    batch = Batch(
        jnp.zeros((rows, 8)), jnp.full(rows, 8), labels, jnp.full(rows, 2), jnp.array(valid), jnp.arange(rows)
    )
    return batch, output


def test_total_loss_is_the_papers_sum_over_valid_rows():
    batch, output = batch_and_output([True, False, True])
    totals = loss_totals(LossConfig(utility_weight=5.0), output, batch)
    ctc = ctc_loss(output.logits, output.mask, batch.labels, batch.num_labels)
    utility = [float((g[:, 0] + g[:, 1]).sum() / (2 * 4)) for g in output.gates]
    expected = np.sum([ctc[i] + 5.0 * utility[i] for i in (0, 2)])
    np.testing.assert_allclose(totals.loss, expected, rtol=1e-5)
    assert float(totals.utterances) == 2
    np.testing.assert_allclose(totals.executed_layers, 4 * (utility[0] + utility[2]), rtol=1e-5)


def test_filler_rows_may_hold_anything():
    batch, output = batch_and_output([True, False])
    poisoned = output._replace(logits=output.logits.at[1].set(jnp.nan), gates=output.gates.at[1].set(jnp.nan))
    np.testing.assert_array_equal(
        loss_totals(LossConfig(2.0), output, batch), loss_totals(LossConfig(2.0), poisoned, batch)
    )


def test_interctc_mixes_the_mean_of_the_intermediate_losses():
    batch, output = batch_and_output([True, False, True])
    taps = tuple(jax.random.normal(jax.random.key(k), output.logits.shape) for k in (5, 6))
    output = output._replace(intermediate_logits=taps)
    totals = loss_totals(LossConfig(interctc_layers=(1, 2), interctc_weight=0.3), output, batch)
    last, first, second = (
        ctc_loss(logits, output.mask, batch.labels, batch.num_labels) for logits in (output.logits, *taps)
    )
    expected = np.sum([0.7 * last[i] + 0.15 * (first[i] + second[i]) for i in (0, 2)])
    np.testing.assert_allclose(totals.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(totals.interctc, sum(0.5 * (first[i] + second[i]) for i in (0, 2)), rtol=1e-5)


SIZE = ModelConfig(encoder=EncoderConfig(num_layers=4, d_model=32, num_heads=2, ffn_dim=96))


def utility_gradient(config, gates, mask):
    """Gradient of lambda * L_utility, summed over rows, by the gates; and the utility of each row."""

    def loss(gates):
        used, term = utility_loss(config, gates, block_costs(SIZE, jnp.asarray(mask)))
        return config.utility_weight * jnp.sum(term), used

    return jax.grad(loss, has_aux=True)(jnp.asarray(gates))


@given(
    hnp.arrays(np.float32, (3, 4, 2), elements=st.floats(0, 1, width=32)),
    hnp.arrays(np.int64, 3, elements=st.integers(1, 5000)),
    st.sampled_from(["linear", "cost"]),
    st.none() | st.floats(0, 1),
)
def test_utility_and_its_gradient_against_closed_forms(gates, frames, kind, target):
    mask = np.arange(8)[None] < np.minimum(frames, 8)[:, None]
    gradient, used = utility_gradient(LossConfig(3.0, kind, target), gates, mask)
    # A block of n frames: 2 n D (3D + D) + 4 n^2 D for attention, 4 n D H for the feed-forward block.
    n, width, hidden = np.minimum(frames, 8).astype(float), 32, 96
    costs = np.stack([8 * n * width**2 + 4 * n**2 * width, 4 * n * width * hidden], axis=1)
    weights = costs / costs.sum(1, keepdims=True) if kind == "cost" else np.full((3, 2), 0.5)
    expected_used = np.einsum("bnm,bm->b", gates.astype(float), weights) / 4
    slope = np.ones(3) if target is None else 2 * (expected_used - target)
    np.testing.assert_allclose(used, expected_used, rtol=1e-5, atol=1e-6)
    expected = np.broadcast_to(3.0 * (slope[:, None] * weights)[:, None] / 4, gates.shape)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 7, 3000])
def test_costs_in_a_program_are_those_of_the_count(frames):
    mask = jnp.arange(3000)[None] < jnp.array([[frames], [0]])
    counted = np.array(list(branch_flops(SIZE, frames).values())) / frames
    np.testing.assert_allclose(block_costs(SIZE, mask), [counted, [0, 0]], rtol=1e-6)


def test_all_gates_open_have_the_utility_one_and_padding_costs_nothing():
    gates, mask = np.ones((2, 4, 2), np.float32), np.arange(6)[None] < np.array([[3], [0]])
    gradient, used = utility_gradient(LossConfig(1.0, "cost"), gates, mask)
    np.testing.assert_allclose(used, [1.0, 0.0], rtol=1e-6)
    assert gradient[0].all() and not gradient[1].any()


def test_the_total_loss_takes_the_utility_that_is_configured():
    batch, output = batch_and_output([True, False, True])
    costs = jnp.array([[3.0, 1.0]] * 3)
    plain = loss_totals(LossConfig(0.0), output, batch)
    totals = loss_totals(LossConfig(5.0, "cost", 0.25), output, batch, costs=costs)
    used = [float((0.75 * g[:, 0] + 0.25 * g[:, 1]).mean()) for g in output.gates]
    np.testing.assert_allclose(totals.utility, used[0] + used[2], rtol=1e-5)
    distance = (used[0] - 0.25) ** 2 + (used[2] - 0.25) ** 2
    np.testing.assert_allclose(totals.loss - plain.loss, 5.0 * distance, rtol=1e-4)
    with pytest.raises(ValueError, match="needs the costs"):
        loss_totals(LossConfig(1.0, "cost"), output, batch)


@pytest.mark.parametrize("target", [0.3, 0.8])
def test_a_target_is_reached(target):
    """Gradient descent on probabilities that are gates ends at the target, from above and from below."""
    logits = jnp.array([[[2.0, -1.0]] * 4, [[0.0, 0.5]] * 4])
    mask = np.ones((2, 5), bool)
    for _ in range(100):
        probability = jax.nn.sigmoid(logits)
        gradient, _ = utility_gradient(LossConfig(40.0, "linear", target), probability, mask)
        logits -= gradient * probability * (1 - probability)
    np.testing.assert_allclose(jnp.mean(jax.nn.sigmoid(logits), axis=(1, 2)), target, atol=0.01)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_attention_loss_against_optax_and_an_answer_that_is_right(smoothing):
    vocabulary, labels, num_labels = 5, jnp.array([[1, 3, 2], [2, 0, 0]]), jnp.array([3, 1])
    logits = 2 * jax.random.normal(jax.random.key(6), (2, 4, vocabulary))
    targets = [[1, 3, 2, 4], [2, 4]]

    def smoothed(tokens):  # optax spreads the smoothing over all tokens, the right one included
        share = smoothing * vocabulary / (vocabulary - 1)
        return optax.smooth_labels(jax.nn.one_hot(jnp.array(tokens), vocabulary), share)

    def expected(logits):
        rows = [(logits[r, : len(own)], smoothed(own)) for r, own in enumerate(targets)]
        return jnp.stack(
            [
                jnp.sum(
                    optax.safe_softmax_cross_entropy(z, t)
                    - optax.safe_softmax_cross_entropy(jnp.log(jnp.maximum(t, 1e-30)), t)
                )
                for z, t in rows
            ]
        )

    def loss(logits):
        return attention_loss(logits, labels, num_labels, smoothing)[0]

    np.testing.assert_allclose(loss(logits), expected(logits), rtol=1e-5, atol=1e-5)
    ours, theirs = (jax.grad(lambda z, f=f: jnp.sum(f(z)))(logits) for f in (loss, expected))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    right = jnp.log(jnp.maximum(smoothed([1, 3, 2, 4]), 1e-30))[None]
    perfect, correct = attention_loss(right, labels[:1], num_labels[:1], smoothing)
    np.testing.assert_allclose(perfect, 0.0, atol=1e-5)
    assert correct.tolist() == [4]


@given(st.integers(0, 3), st.integers(0, 2**31))
def test_attention_loss_is_a_sum_over_the_tokens_of_the_row_alone(count, seed):
    logits = jax.random.normal(jax.random.key(seed), (1, 4, 6))
    labels = jax.random.randint(jax.random.key(seed), (1, 3), 1, 5)
    loss, correct = attention_loss(logits, labels, jnp.array([count]), 0.1)
    noise = jnp.where(jnp.arange(4)[None, :, None] <= count, logits, 1e4)
    other = jnp.where(jnp.arange(3)[None] < count, labels, 0)
    again, _ = attention_loss(noise, other, jnp.array([count]), 0.1)
    np.testing.assert_array_equal(loss, again)
    answers = np.argmax(logits[0], -1)[: count + 1].tolist()
    assert float(correct[0]) == sum(a == b for a, b in zip(answers, [*labels[0, :count].tolist(), 5], strict=True))
    assert float(loss[0]) > 0


@pytest.mark.parametrize("taps", [0, 1])
def test_attention_and_ctc_are_mixed_by_the_weight_of_ctc(taps):
    batch, output = batch_and_output([True, False, True])
    decoded = jax.random.normal(jax.random.key(8), (3, 3, VOCABULARY))
    intermediate = (jax.random.normal(jax.random.key(5), output.logits.shape),) * taps
    output = output._replace(decoder_logits=decoded.at[1].set(jnp.nan), intermediate_logits=intermediate)
    config = LossConfig(2.0, (1,) * taps, interctc_weight=0.4, ctc_weight=0.3)
    totals = loss_totals(config, output, batch)
    ctc = [ctc_loss(z, output.mask, batch.labels, batch.num_labels) for z in (output.logits, *intermediate)]
    speech = 0.6 * ctc[0] + 0.4 * ctc[1] if taps else ctc[0]
    attention, correct = attention_loss(decoded, batch.labels, batch.num_labels, 0.1)
    utility = output.gates.mean(axis=(1, 2))
    expected = sum(0.3 * speech[i] + 0.7 * attention[i] + 2.0 * utility[i] for i in (0, 2))
    np.testing.assert_allclose(totals.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(totals.attention, attention[0] + attention[2], rtol=1e-6)
    assert (float(totals.tokens), float(totals.correct_tokens)) == (6, float(correct[0] + correct[2]))

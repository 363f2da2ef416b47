"""Branches against brute force in NumPy, dropout statistics, predictor laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i3d_jax.model.layers import (
    Context,
    CTCHead,
    FeedForward,
    GatePredictor,
    SelfAttention,
    dropout,
    sinusoidal_positions,
)

BATCH, FRAMES, WIDTH, HEADS = 2, 7, 12, 3


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (BATCH, FRAMES, WIDTH))


@pytest.fixture
def context():
    return Context(jnp.arange(FRAMES)[None] < jnp.array([FRAMES, 4])[:, None])


def randomised(params):
    """Every leaf random, so that biases and scales count."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    return jax.tree.unflatten(tree, [0.5 * jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)])


def reference_norm(x, p):
    x = np.asarray(x, np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def test_attention_against_loops(x, context):
    module = SelfAttention(HEADS, 0.0, 0.0)
    params = randomised(module.init(jax.random.key(1), x, context)["params"])
    output = module.apply({"params": params}, x, context)
    p = jax.tree.map(np.asarray, params)
    head = WIDTH // HEADS
    for b in range(BATCH):
        qkv = reference_norm(x[b], p["norm"]) @ p["qkv"]["kernel"] + p["qkv"]["bias"]
        q, k, v = qkv[:, :WIDTH], qkv[:, WIDTH : 2 * WIDTH], qkv[:, 2 * WIDTH :]
        valid = np.flatnonzero(context.mask[b])
        mixed = np.zeros((FRAMES, WIDTH))
        for h in range(HEADS):
            part = slice(h * head, (h + 1) * head)
            for t in range(FRAMES):
                scores = np.array([q[t, part] @ k[s, part] for s in valid]) / np.sqrt(head)
                weights = np.exp(scores - scores.max())
                mixed[t, part] = (weights / weights.sum()) @ v[valid][:, part]
        expected = mixed @ p["output"]["kernel"] + p["output"]["bias"]
        np.testing.assert_allclose(output[b], expected, rtol=1e-4, atol=1e-4)


def test_feed_forward_against_loops(x, context):
    module = FeedForward(20, 0.0)
    params = randomised(module.init(jax.random.key(1), x, context)["params"])
    p = jax.tree.map(np.asarray, params)
    hidden = np.maximum(reference_norm(x, p["norm"]) @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0)
    expected = hidden @ p["output"]["kernel"] + p["output"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, x, context), expected, rtol=1e-4, atol=1e-4)


def test_padding_does_not_reach_valid_frames(x, context):
    module = SelfAttention(HEADS, 0.0, 0.0)
    params = module.init(jax.random.key(1), x, context)
    changed = jnp.where(context.mask[..., None], x, 1e3)
    a, b = module.apply(params, x, context), module.apply(params, changed, context)
    np.testing.assert_array_equal(np.asarray(a)[context.mask], np.asarray(b)[context.mask])


@pytest.mark.parametrize("shape", [(64, 128), (50, 3, 101)])
def test_dropout_rate_mean_and_gradient(shape):
    x = jnp.ones(shape)
    keys = jax.random.split(jax.random.key(0), len(x))
    y = dropout(x, 0.25, keys)
    kept = 256 / 192
    assert set(np.unique(y).tolist()) <= {0.0, np.float32(kept)}
    assert abs(float(jnp.mean(y == 0)) - 0.25) < 0.02
    np.testing.assert_array_equal(jax.grad(lambda x: dropout(x, 0.25, keys).sum())(x), y)
    np.testing.assert_array_equal(dropout(x, 0.25, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, keys), x)
    np.testing.assert_array_equal(dropout(x[5:9], 0.25, keys[5:9]), y[5:9])  # whatever the rows beside it
    columns = jnp.mean(y == 0, axis=tuple(range(y.ndim - 1)))
    assert float(columns.max()) < 0.6  # no column is always dropped


def test_predictor_starts_open_for_every_input_and_ignores_padding(x, context):
    module = GatePredictor(num_gates=4, hidden_dim=32, initial_logit=2.0, normalize_input=True)
    params = module.init(jax.random.key(1), x, context.mask)["params"]
    logits = module.apply({"params": params}, 100 * x, context.mask)
    np.testing.assert_allclose(logits[..., 1] - logits[..., 0], 2.0, rtol=1e-6)
    params = randomised(params)
    nan = jnp.where(context.mask[..., None], x, jnp.nan)
    a, b = (module.apply({"params": params}, z, context.mask) for z in (x, nan))
    np.testing.assert_array_equal(a, b)
    alone = module.apply({"params": params}, x[1:, :4], context.mask[1:, :4])
    np.testing.assert_allclose(a[1:], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_predictor_against_numpy(x, context, normalize):
    module = GatePredictor(num_gates=2, hidden_dim=8, initial_logit=1.0, normalize_input=normalize)
    params = randomised(module.init(jax.random.key(1), x, context.mask)["params"])
    p = jax.tree.map(np.asarray, params)
    for b, frames in enumerate((FRAMES, 4)):
        mean = np.asarray(x[b, :frames], np.float64).mean(0)
        if normalize:
            mean = (mean - mean.mean()) / np.sqrt(mean.var() + 1e-6)
        hidden = np.maximum(mean @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0)
        expected = (hidden @ p["logits"]["kernel"] + p["logits"]["bias"]).reshape(2, 2)
        np.testing.assert_allclose(module.apply({"params": params}, x, context.mask)[b], expected, rtol=1e-4, atol=1e-4)


def test_head_projects_normalised_states(x):
    module = CTCHead(5)
    params = randomised(module.init(jax.random.key(0), x)["params"])
    p = jax.tree.map(np.asarray, params)
    expected = reference_norm(x, p["norm"]) @ p["projection"]["kernel"] + p["projection"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-4)


def test_positions_against_the_formula():
    positions = sinusoidal_positions(9, 6)
    for t in range(9):
        for i in range(3):
            angle = t / 10000 ** (2 * i / 6)
            np.testing.assert_allclose(positions[t, 2 * i : 2 * i + 2], [np.sin(angle), np.cos(angle)], atol=1e-6)

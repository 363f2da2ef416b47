"""Attention against NumPy in float64, its hand-written gradient against that of a plain formulation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i3d_jax.model import attention
from i3d_jax.model.attention import Kept, attend

BATCH, FRAMES, WIDTH, HEADS = 3, 7, 12, 3


def inputs(seed=0, batch=BATCH, frames=FRAMES, dtype=jnp.float32):
    qkv_key, y_key, kept_key = jax.random.split(jax.random.key(seed), 3)
    qkv = jax.random.normal(qkv_key, (batch, frames, 3 * WIDTH)).astype(dtype)
    dy = jax.random.normal(y_key, (batch, frames, WIDTH)).astype(dtype)
    mask = jnp.arange(frames)[None] < jnp.array([frames, 4, 1])[:batch, None]
    kept = Kept(jax.random.bernoulli(kept_key, 0.7, (batch, HEADS, frames, frames)), jnp.float32(1 / 0.7))
    return qkv, dy, mask, kept


def plain(qkv, mask, kept):
    """All heads together, weights normalised and kept for the gradient."""
    batch, frames, _ = qkv.shape
    q, k, v = jnp.moveaxis(qkv.reshape(batch, frames, 3, HEADS, -1), 2, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min))
    if kept is not None:
        weights = jnp.where(kept.mask, weights * kept.scale, 0)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, frames, -1)


def in_float64(qkv, mask, kept):
    qkv, mask = np.asarray(qkv, np.float64), np.asarray(mask)
    y, head = np.zeros((*qkv.shape[:2], WIDTH)), WIDTH // HEADS
    for b, h, t in np.ndindex(qkv.shape[0], HEADS, qkv.shape[1]):
        q, k, v = (qkv[b, :, part * WIDTH + h * head :][:, :head] for part in range(3))
        scores = np.where(mask[b], k @ q[t] / math.sqrt(head), -np.inf)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        if kept is not None:
            weights = weights * np.asarray(kept.mask[b, h, t]) * float(kept.scale)
        y[b, t, h * head : (h + 1) * head] = weights @ v
    return y


@pytest.fixture(params=["by head", "together"], autouse=True)
def layout(request, monkeypatch):
    """Either formulation, whatever the platform."""
    if request.param == "together":
        choose = jax.lax.platform_dependent
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *x, cpu, default: choose(*x, default=default))
        assert attention.jax is jax


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_values(seed, dropped):
    qkv, _, mask, kept = inputs(seed)
    kept = kept if dropped else None
    y = attend(qkv, mask, kept, HEADS, "float32")
    np.testing.assert_allclose(y, in_float64(qkv, mask, kept), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_gradient(seed, dropped):
    qkv, dy, mask, kept = inputs(seed)
    kept = kept if dropped else None
    y, back = jax.vjp(lambda qkv: attend(qkv, mask, kept, HEADS, "float32"), qkv)
    expected, expected_back = jax.vjp(lambda qkv: plain(qkv, mask, kept), qkv)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(back(dy)[0], expected_back(dy)[0], rtol=1e-4, atol=1e-5)


def test_large_scores_neither_overflow_nor_vanish():
    qkv, dy, mask, _ = inputs()
    y, back = jax.vjp(lambda qkv: attend(qkv, mask, None, HEADS, "float32"), 100 * qkv)
    np.testing.assert_allclose(y, in_float64(100 * qkv, mask, None), rtol=1e-4, atol=1e-3)
    assert jnp.isfinite(back(dy)[0]).all()


def test_a_row_without_valid_frames_stays_finite():
    qkv, dy, mask, _ = inputs()
    y, back = jax.vjp(lambda qkv: attend(qkv, jnp.zeros_like(mask), None, HEADS, "float32"), qkv)
    assert jnp.isfinite(y).all() and jnp.isfinite(back(dy)[0]).all()


def test_bfloat16_is_close_and_gradients_have_its_type():
    qkv, dy, mask, kept = inputs(dtype=jnp.bfloat16)
    y, back = jax.vjp(lambda qkv: attend(qkv, mask, kept, HEADS, "bfloat16"), qkv)
    (gradient,) = back(dy)
    assert y.dtype == gradient.dtype == jnp.bfloat16
    exact, exact_back = jax.vjp(lambda qkv: plain(qkv, mask, kept), qkv.astype(jnp.float32))
    (wanted,) = exact_back(dy.astype(jnp.float32))
    for ours, theirs in ((y, exact), (gradient, wanted)):
        error = np.asarray(ours, np.float32) - theirs
        assert np.linalg.norm(error) < 2e-2 * np.linalg.norm(theirs)


def test_weights_are_not_kept_for_the_gradient():
    frames = 64
    qkv, _, mask, _ = inputs(batch=1, frames=frames)
    _, back = jax.vjp(lambda qkv: attend(qkv, mask, None, HEADS, "float32"), qkv)
    assert max(leaf.size for leaf in jax.tree.leaves(back)) < frames * frames

"""The step of a language model: its loss by hand, skipped updates, and one trajectory on any devices."""

import jax
import numpy as np
import pytest

from i3d_jax.model.language_model import LanguageModel, LanguageModelConfig
from i3d_jax.training.compiled import CompiledStep
from i3d_jax.training.language_model_step import Seeded, TokenMeter, make_language_model_step
from i3d_jax.training.optimizer import OptimizerConfig, make_optimizer
from i3d_jax.training.sharding import Parallel, ParallelConfig
from i3d_jax.training.step import init_state
from i3d_jax.types import SentenceBatch

VOCAB = 9
MODEL = LanguageModel(LanguageModelConfig(1, 8, 0.4), VOCAB)


def make_batch(rows=16, length=5, valid=13):
    rng = np.random.default_rng(0)
    counts = rng.integers(1, length + 1, rows).astype(np.int32)
    tokens = rng.integers(1, VOCAB - 1, (rows, length)).astype(np.int32)
    tokens[np.arange(length)[None] >= counts[:, None]] = 0
    return SentenceBatch(tokens, counts, np.arange(rows) < valid)


def run(batch, steps=3, parallel=None, accumulate=1, model=MODEL):
    """Losses in nats a token, gradient norms, and the last state."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=1), 100)
    state = init_state(jax.jit(model.init)(jax.random.key(0)), optimizer)
    step = make_language_model_step(model, optimizer, accumulate)
    seed = Seeded(np.uint32(3))
    if parallel:
        state, batch, seed = parallel.place(state), parallel.put_batch(batch), parallel.replicate(seed)
    step = CompiledStep(jax.jit(step, out_shardings=parallel and parallel.replicated), seed, 1, lambda _: None)
    losses, norms = [], []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics.totals.loss / metrics.totals.tokens))
        norms.append(float(metrics.grad_norm))
    return losses, norms, state


def nats_by_hand(params, batch):
    """From one token to the next, with nothing of the batch's own masks."""
    total, apply = 0.0, jax.jit(MODEL.apply)
    for tokens, count, valid in zip(*map(np.asarray, batch), strict=True):
        ids = [VOCAB - 1, *tokens[:count].tolist(), VOCAB - 1]
        if valid:
            padded = np.array([ids[:-1] + [1] * (len(tokens) - count)], np.int32)
            scores = np.asarray(jax.nn.log_softmax(apply(params, padded)))[0]
            total -= float(sum(scores[position, ids[position + 1]] for position in range(count + 1)))
    return total


def test_the_loss_is_that_of_every_token_and_the_end_of_valid_rows():
    plain = LanguageModel(LanguageModelConfig(1, 8, 0.0), VOCAB)
    batch, params = make_batch(6, 4, 4), jax.jit(MODEL.init)(jax.random.key(0))
    losses, _, _ = run(batch, 1, model=plain)
    nats, tokens = nats_by_hand(params, batch), int(batch.num_tokens[:4].sum()) + 4
    np.testing.assert_allclose(losses[0], nats / tokens, rtol=1e-5)
    assert not batch.valid.all()
    counts, tokens_there = np.where(batch.valid, batch.num_tokens, 2), np.where(batch.valid[:, None], batch.tokens, 3)
    assert run(SentenceBatch(tokens_there, counts, batch.valid), 1, model=plain)[0] == losses


@pytest.mark.parametrize("accumulate", [1, 2])
def test_eight_devices_and_parts_follow_the_trajectory_of_one(accumulate):
    alone = Parallel.over_devices(ParallelConfig(), 8, jax.devices()[:1])
    many = Parallel.over_devices(ParallelConfig(accumulate=accumulate), 16)
    (losses, norms, state), (theirs, their_norms, other) = (
        run(make_batch(), parallel=alone),
        run(make_batch(), parallel=many, accumulate=accumulate),
    )
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, theirs, rtol=1e-5)
    np.testing.assert_allclose(norms, their_norms, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state.params, other.params)


def test_a_step_that_is_not_finite_changes_nothing():
    optimizer = make_optimizer(OptimizerConfig(), 100)
    params = jax.jit(MODEL.init)(jax.random.key(0))
    params["ends"]["bias"] = params["ends"]["bias"].at[2].set(np.nan)
    state = init_state(params, optimizer)
    after, metrics = jax.jit(make_language_model_step(MODEL, optimizer))(state, make_batch(), Seeded(np.uint32(0)))
    assert int(after.bad_steps) == int(metrics.bad_steps) == 1 and int(after.step) == 1
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


def test_the_log_tells_perplexity_and_tokens():
    meter, tokens = TokenMeter(), 0
    optimizer = make_optimizer(OptimizerConfig(), 100)
    step = jax.jit(make_language_model_step(MODEL, optimizer))
    state = init_state(jax.jit(MODEL.init)(jax.random.key(0)), optimizer)
    for batch in (make_batch(valid=13), make_batch(valid=2)):
        state, metrics = step(state, batch, Seeded(np.uint32(0)))
        meter.add(jax.device_get(metrics), None)
        tokens += int((batch.num_tokens + 1)[batch.valid].sum())
    found = meter.summary()
    assert int(meter._tokens) == tokens and found["tokens_per_second"] > 0
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    assert {"grad_norm", "input_wait", "memory_gb", "compilations"} < found.keys()

"""Schedules against their closed forms, updates against a NumPy Adam."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from i3d_jax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer


def test_inverse_sqrt_is_espnets_warmup_lr():
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=2e-3, warmup_steps=100), 1000)
    for count in (0, 1, 50, 99, 100, 500, 5000):
        step = count + 1
        expected = 2e-3 * 100**0.5 * min(step**-0.5, step * 100**-1.5)
        np.testing.assert_allclose(schedule(count), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_other_schedules(name):
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=10, schedule=name), 110)
    np.testing.assert_allclose([schedule(0), schedule(4), schedule(9)], [0.1, 0.5, 1.0], rtol=1e-6)
    done = (60 - 10) / 100
    expected = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[name]
    np.testing.assert_allclose(schedule(59), expected, rtol=1e-5)
    if name != "constant":
        np.testing.assert_allclose(schedule(109), 0.0, atol=1e-6)


@pytest.mark.parametrize("decoupled", [True, False])
def test_updates_against_numpy(decoupled):
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=1, schedule="constant", weight_decay=0.3, decoupled=decoupled, clip_norm=2.0
    )
    optimizer = make_optimizer(config, 10)
    params = {"dense": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([0.5])}}
    state = optimizer.init(params)
    value = {"kernel": np.array([[1.0, -2.0]]), "bias": np.array([0.5])}
    m, v = ({k: np.zeros_like(x) for k, x in value.items()} for _ in range(2))
    for t in range(1, 4):
        grads = {"kernel": np.array([[3.0 * t, -1.0]]), "bias": np.array([2.0])}
        updates, state = optimizer.update({"dense": {k: jnp.asarray(g) for k, g in grads.items()}}, state, params)
        params = optax.apply_updates(params, updates)
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        for k, g in grads.items():
            g = g * min(1.0, 2.0 / norm)
            if not decoupled:
                g = g + 0.3 * value[k]
            m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.98 * v[k] + 0.02 * g**2
            step = (m[k] / (1 - 0.9**t)) / (np.sqrt(v[k] / (1 - 0.98**t)) + 1e-9)
            if decoupled and k == "kernel":
                step = step + 0.3 * value[k]
            value[k] = value[k] - 0.1 * step
        for k in value:
            np.testing.assert_allclose(params["dense"][k], value[k], rtol=1e-5)

"""Composition of branches and gates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from i3d_jax.model.encoder import Encoder, EncoderConfig, compacted, conditional, masked, rows_at_once
from i3d_jax.model.gates import Fixed, GateConfig, Open, SoftMean, Threshold, inference_decision
from i3d_jax.model.layers import Context

LAYERS, WIDTH = 3, 16


def make(predictor, **gates):
    config = EncoderConfig(num_layers=LAYERS, d_model=WIDTH, num_heads=2, ffn_dim=24, dropout=0.1)
    encoder = Encoder(config, GateConfig(predictor=predictor, **gates))
    return encoder, encoder.init(jax.random.key(0))


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (3, 6, WIDTH))


@pytest.fixture
def mask():
    return jnp.arange(6)[None] < jnp.array([6, 4, 1])[:, None]


def reference(encoder, params, x, mask, gates):
    """Equations 3 and 4, one layer after the other, in Python."""
    context = Context(mask)
    for n in range(LAYERS):
        for m, branch in enumerate(encoder.branches):
            p = jax.tree.map(lambda leaf, n=n: leaf[n], params["layers"][branch.name])
            x = x + gates[:, n, m][:, None, None] * branch.module.apply({"params": p}, x, context)
    return x


@pytest.mark.parametrize("predictor", ["none", "local", "global"])
def test_scan_equals_the_equations(predictor, x, mask):
    encoder, params = make(predictor)
    pattern = jax.random.bernoulli(jax.random.key(2), 0.5, (3, LAYERS, 2))
    for execute in (masked, conditional):
        output = encoder.apply(params, x, mask, Fixed(pattern), execute=execute)
        expected = reference(encoder, params, x, mask, pattern.astype(jnp.float32))
        np.testing.assert_allclose(output.x, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(output.gates, pattern)


@pytest.mark.parametrize("predictor", ["none", "local", "global"])
def test_taps_are_the_outputs_of_their_layers_and_change_nothing_else(predictor, x, mask):
    encoder, params = make(predictor)
    pattern = jax.random.bernoulli(jax.random.key(2), 0.5, (3, LAYERS, 2))
    plain = encoder.apply(params, x, mask, Fixed(pattern))
    tapped = encoder.apply(params, x, mask, Fixed(pattern), taps=(1, 2))
    for one, other in zip(plain[:3], tapped[:3], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for layer, states in zip((1, 2), tapped.taps, strict=True):
        closed = pattern.at[:, layer:].set(False)  # skipping every later block leaves the output of this layer
        np.testing.assert_allclose(states, encoder.apply(params, x, mask, Fixed(closed)).x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("predictor", ["local", "global"])
def test_soft_gates_multiply(predictor, x, mask):
    encoder, params = make(predictor)
    output = encoder.apply(params, x, mask, SoftMean())
    np.testing.assert_allclose(
        output.x, reference(encoder, params, x, mask, output.probabilities), rtol=1e-5, atol=1e-5
    )


def test_one_tree_for_vanilla_local_and_global():
    trees = {p: make(p)[1] for p in ("none", "local", "global")}
    layers = [jax.tree.map(jnp.shape, tree["layers"]) for tree in trees.values()]
    assert layers[0] == layers[1] == layers[2]
    assert "predictor" not in trees["none"]
    assert trees["local"]["predictor"]["logits"]["kernel"].shape == (LAYERS, 32, 4)
    assert trees["global"]["predictor"]["logits"]["kernel"].shape == (32, LAYERS * 4)


def test_local_predictor_reads_its_layers_input_and_global_the_encoder_input(x, mask):
    def random_kernel(params):
        kernel = params["predictor"]["logits"]["kernel"]
        params["predictor"]["logits"]["kernel"] = jax.random.normal(jax.random.key(5), kernel.shape)
        return params

    for predictor in ("local", "global"):
        encoder, params = make(predictor)
        params = random_kernel(params)
        closed = encoder.apply(params, x, mask, Fixed(np.zeros((LAYERS, 2), bool))).probabilities
        opened = encoder.apply(params, x, mask, Open()).probabilities
        np.testing.assert_allclose(closed[:, 0], opened[:, 0], rtol=1e-5)
        changed = not np.allclose(closed[:, 1:], opened[:, 1:], atol=1e-3)
        assert changed == (predictor == "local")
        if predictor == "local":  # with every layer skipped each reads x itself
            p = jax.tree.map(lambda leaf: leaf[2], params["predictor"])
            logits = encoder.predictor.apply({"params": p}, x, mask)
            np.testing.assert_allclose(closed[:, 2], jax.nn.softmax(logits)[..., 1], rtol=1e-5)


@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("predictor", ["local", "global"])
def test_every_predictor_gets_a_gradient_in_training(predictor, straight_through, x, mask):
    encoder, params = make(predictor, straight_through=straight_through)

    def loss(params):
        output = encoder.apply(
            params,
            x,
            mask,
            encoder.training_decision(),
            gate_keys=jax.random.split(jax.random.key(3), len(x)),
            dropout_keys=jax.random.split(jax.random.key(4), len(x)),
        )
        return jnp.sum(jnp.where(mask[..., None], output.x, 0) ** 2)

    gradient = jax.grad(loss)(params)["predictor"]["logits"]["bias"].reshape(LAYERS, 2, 2)
    assert jnp.all(jnp.abs(gradient) > 1e-6)


def test_a_closed_boolean_gate_gives_no_gradient_and_stops_nan(x, mask):
    encoder, params = make("none")
    pattern = np.ones((LAYERS, 2), bool)
    pattern[1, 0] = False

    def loss(params, execute):
        return jnp.sum(encoder.apply(params, x, mask, Fixed(pattern), execute=execute).x ** 2)

    for execute in (masked, conditional):
        gradient = jax.grad(loss)(params, execute)["layers"]
        assert all(not jnp.any(leaf[1]) for leaf in jax.tree.leaves(gradient["mha"]))
        assert all(jnp.any(leaf[0]) for leaf in jax.tree.leaves(gradient["ffn"]))
        params_nan = jax.tree.map(lambda leaf: leaf, params)
        params_nan["layers"]["mha"] = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), params["layers"]["mha"])
        np.testing.assert_array_equal(loss(params_nan, execute), loss(params, execute))


@pytest.mark.parametrize("execute", [conditional, partial(compacted, frames_at_once=1)])
def test_what_skips_refuses_float_gates(execute, x, mask):
    encoder, params = make("global")
    with pytest.raises(TypeError, match="boolean"):
        encoder.apply(params, x, mask, SoftMean(), execute=execute)


@given(hnp.arrays(bool, st.integers(1, 7)), st.integers(1, 40), st.booleans())
def test_compacted_runs_as_few_parts_as_the_rows_need(gate, frames_at_once, filler):
    rows, frames = len(gate), 4
    x = np.arange(rows * frames * 2, dtype=np.float32).reshape(rows, frames, 2)
    mask = np.ones((rows, frames), bool)
    mask[-1] = not filler
    size = rows_at_once(rows, frames, frames_at_once)
    seen = []

    def branch(x, context):
        jax.debug.callback(lambda x: seen.append(x), x)
        return x + context.mask[..., None]

    context = Context(jnp.asarray(mask))
    output = jax.jit(partial(compacted, branch, frames_at_once=frames_at_once))(x, gate, context)
    jax.effects_barrier()
    gate = gate & mask.any(axis=1)
    np.testing.assert_array_equal(output, np.where(gate[:, None, None], 2 * x + 1, x))
    assert len(seen) == -(-gate.sum() // size) and all(len(part) == size for part in seen)


@pytest.mark.parametrize("predictor", ["none", "local", "global"])
def test_a_loop_over_unstacked_layers_equals_the_scan(predictor, x, mask):
    encoder, params = make(predictor)
    pattern = jax.random.bernoulli(jax.random.key(2), 0.5, (3, LAYERS, 2))
    for execute in (masked, conditional, partial(compacted, frames_at_once=6)):
        run = partial(encoder.apply, x=x, mask=mask, decide=Fixed(pattern), execute=execute, taps=(1,))
        scanned, looped = run(params), run(encoder.unstack(params))
        for one, other in zip(jax.tree.leaves(scanned), jax.tree.leaves(looped), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("predictor", ["local", "global"])
def test_a_fresh_predictor_opens_everything(predictor, x, mask):
    encoder, params = make(predictor)
    dense, _ = make("none")
    output = encoder.apply(params, x, mask, inference_decision(encoder.gates))
    assert output.gates.all()
    np.testing.assert_array_equal(output.x, dense.apply(params, x, mask, Open()).x)
    assert not encoder.apply(params, x, mask, Threshold(0.95)).gates.any()


def test_dropout_noise_differs_between_layers_and_keys(x, mask):
    encoder, params = make("none")
    same = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), params["layers"])
    outputs = [
        encoder.apply({"layers": same}, x, mask, Open(), dropout_keys=keys).x
        for keys in (None, *(jax.random.split(jax.random.key(seed), len(x)) for seed in (0, 0, 1)))
    ]
    np.testing.assert_array_equal(outputs[1], outputs[2])
    assert not np.allclose(outputs[1], outputs[3]) and not np.allclose(outputs[0], outputs[1])

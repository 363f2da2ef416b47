"""Mixed precision: exact for operands that need no rounding, float32 where promised, close to float32 as a whole."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.export import export

from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.encoder import EncoderConfig
from i3d_jax.model.gates import GateConfig, GumbelSoftmax, Threshold
from i3d_jax.model.precision import convolution, product
from i3d_jax.model.subsampling import SubsamplingConfig, conv2d


def exact(seed, *shape):
    """Values that bfloat16 holds."""
    return jax.random.normal(jax.random.key(seed), shape).astype(jnp.bfloat16).astype(jnp.float32)


def close(a, b, tolerance=1e-5):
    scale = float(jnp.abs(b).max())
    np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=tolerance * scale)


@pytest.mark.parametrize(
    "spec, a, b",
    [
        ("rk,kn->rn", (5, 7), (7, 3)),
        ("bqhd,bkhd->bhqk", (2, 5, 3, 4), (2, 6, 3, 4)),
        ("bhqk,bkhd->bqhd", (2, 3, 5, 6), (2, 6, 3, 4)),
    ],
)
def test_products_of_exact_operands_are_those_of_float32_gradients_too(spec, a, b):
    a, b = exact(0, *a), exact(1, *b)
    y, back = jax.vjp(lambda a, b: product(spec, a, b, "bfloat16"), a, b)
    expected, expected_back = jax.vjp(lambda a, b: product(spec, a, b, "float32"), a, b)
    close(y, expected)
    cotangent = exact(2, *y.shape)
    for ours, theirs in zip(back(cotangent), expected_back(cotangent), strict=True):
        assert ours.dtype == jnp.float32
        close(ours, theirs)


@pytest.mark.parametrize("frames, mels", [(7, 8), (8, 7), (9, 9), (10, 12)])
def test_convolutions_of_exact_operands_are_those_of_float32_gradients_too(frames, mels):
    x, kernel = exact(0, 2, frames, mels, 3), exact(1, 3, 3, 3, 5)
    y, back = jax.vjp(lambda x, kernel: convolution(x, kernel, "bfloat16"), x, kernel)
    expected, expected_back = jax.vjp(lambda x, kernel: convolution(x, kernel, "float32"), x, kernel)
    close(y, expected)
    cotangent = exact(2, *y.shape)
    for ours, theirs in zip(back(cotangent), expected_back(cotangent), strict=True):
        close(ours, theirs)


def test_the_algorithms_of_the_convolution_agree_in_bfloat16():
    x, kernel, bias = exact(0, 2, 9, 8, 3), exact(1, 3, 3, 3, 5), exact(2, 5)
    native = conv2d(x, kernel, bias, "native", "bfloat16")
    for method in ("im2col", "shifted"):
        close(conv2d(x, kernel, bias, method, "bfloat16"), native)


def model(precision, predictor="local"):
    config = ModelConfig(SubsamplingConfig(8), EncoderConfig(2, 16, 2, 32), GateConfig(predictor), precision)
    return ASRModel(config, 12, 6)


PARAMS = cache(lambda: jax.jit(model("float32").init)(jax.random.key(0)))
FEATURES = jax.random.normal(jax.random.key(5), (2, 40, 12))
MASK = jnp.arange(40)[None] < jnp.array([[40], [29]])


def loss(params, precision, predictor="local"):
    keys = jax.random.split(jax.random.key(1), 2)
    output = model(precision, predictor).apply(params, FEATURES, MASK, GumbelSoftmax(1.0), gate_keys=keys)
    return jnp.where(output.mask[..., None], jnp.square(output.logits), 0).mean(), output


@pytest.mark.parametrize("predictor", ["local", "global"])
def test_on_accelerators_products_take_bfloat16_and_everything_that_sums_takes_float32(predictor):
    params = jax.eval_shape(model("bfloat16", predictor).init, jax.random.key(0))
    gradient = jax.jit(jax.grad(lambda params: loss(params, "bfloat16", predictor)[0]))
    program = export(gradient, platforms=["tpu"])(params)
    assert {str(leaf.dtype) for leaf in program.out_avals} == {"float32"}
    text = program.mlir_module()
    products = [
        (re.findall(r"x(bf16|f32)>", line.rpartition(" : ")[2]), line)
        for line in text.splitlines()
        if "stablehlo.dot_general" in line or "stablehlo.convolution" in line
    ]
    assert all(kinds[2] == "f32" for kinds, _ in products), products
    # Those of float32 are the gate predictors': two layers, and for each the gradients of input and kernel.
    assert sum(kinds[:2] == ["f32", "f32"] for kinds, _ in products) <= 6
    assert sum(kinds[:2] == ["bf16", "bf16"] for kinds, _ in products) >= 20
    assert all(kinds[0] == kinds[1] for kinds, _ in products)
    for line in text.splitlines():
        if re.search(r"stablehlo\.(reduce\(|exponential|log|logistic|rsqrt|sqrt)", line):
            assert "bf16" not in line, line


def test_outputs_and_gradients_stay_close_to_float32():
    params = PARAMS()
    both = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (ours, output), gradient = both(params, "bfloat16")
    (theirs, expected), expected_gradient = both(params, "float32")
    assert output.logits.dtype == output.gate_probabilities.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, rtol=2e-2)
    close(output.gate_probabilities, expected.gate_probabilities, 1e-2)
    flat, wanted = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(g)]) for g in (gradient, expected_gradient))
    assert float(jnp.linalg.norm(flat - wanted) / jnp.linalg.norm(wanted)) < 3e-2


def test_remat_changes_no_gradient():
    params = PARAMS()
    keys = jax.random.split(jax.random.key(1), 2)

    def gradient(remat):
        def objective(params):
            output = model("float32").apply(
                params, FEATURES, MASK, GumbelSoftmax(1.0), gate_keys=keys, dropout_keys=keys, remat=remat
            )
            return jnp.square(output.logits).mean()

        return jax.jit(jax.grad(objective))(params)

    expected = gradient("none")
    for remat in ("dense", "full"):
        jax.tree.map(lambda a, b: close(a, b), gradient(remat), expected)


def test_nothing_of_a_closed_branch_comes_through():
    params = PARAMS()
    run = jax.jit(lambda params: model("bfloat16").apply(params, FEATURES, MASK, Threshold(1.0)))
    closed = run(params)
    assert not closed.gates.any() and jnp.abs(closed.logits).max() > 0
    poisoned = params | {"layers": jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params["layers"])}
    np.testing.assert_array_equal(run(poisoned).logits, closed.logits)

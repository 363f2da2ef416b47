import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from i3d_jax.model.subsampling import (
    Kernel,
    Subsampling,
    SubsamplingConfig,
    conv2d,
    convolutions,
    num_subsampled_frames,
)

METHODS = ["auto", "im2col", "shifted", "winograd"]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def native(x, kernel, bias):
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias


def module(method="auto", channels=5, d_model=6, mels=20):
    """The module's jitted ``apply`` and variables."""
    subsampling = Subsampling(SubsamplingConfig(channels=channels, convolution=method), d_model)
    variables = jax.jit(subsampling.init)(jax.random.key(0), jnp.zeros((1, 16, mels)), jnp.ones((1, 16), bool))
    return jax.jit(subsampling.apply), variables


@pytest.mark.parametrize("method", [*METHODS, "native"])
@pytest.mark.parametrize("shape", [(2, 9, 11, 1), (3, 12, 7, 4), (1, 3, 3, 2), (1, 4, 8, 3)])
def test_convolutions_and_gradients_equal_the_native_one(method, shape):
    x, kernel, bias = normal(*shape), normal(3, 3, shape[-1], 5, seed=1), normal(1, 1, 1, 5, seed=2)

    def value_and_grads(function):
        y, pullback = jax.vjp(function, x, kernel, bias)
        return y, *pullback(jnp.asarray(normal(*y.shape, seed=3)))

    actual = jax.jit(lambda: value_and_grads(lambda x, k, b: conv2d(x, k, b.reshape(-1), method)))()
    for mine, expected in zip(actual, jax.jit(lambda: value_and_grads(native))(), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", [*METHODS, "native"])
def test_convolution_gradient_against_differences(method):
    arguments = normal(1, 5, 6, 2), normal(3, 3, 2, 2, seed=1), normal(2, seed=2)
    check_grads(jax.jit(lambda *a: conv2d(*a, method)), arguments, 1, ["rev"], atol=2e-2, rtol=2e-2)


def test_convolution_against_loops():
    x, kernel, bias = normal(1, 6, 5, 2), normal(3, 3, 2, 3, seed=1), normal(3, seed=2)
    expected = np.zeros((1, 2, 2, 3))
    for t in range(2):
        for f in range(2):
            patch = x[0, 2 * t : 2 * t + 3, 2 * f : 2 * f + 3]
            expected[0, t, f] = np.einsum("ijc,ijcd->d", patch, kernel) + bias
    np.testing.assert_allclose(conv2d(x, kernel, bias, "shifted"), expected, rtol=1e-4, atol=1e-5)


def convolutions_in(lowered):
    return lowered.as_text().count("stablehlo.convolution")


def test_auto_follows_the_platform_of_the_lowering():
    step = jax.jit(jax.grad(lambda x, k, b: conv2d(x, k, b).sum(), (0, 1)))
    arguments = normal(1, 9, 9, 2), normal(3, 3, 2, 4), normal(4)
    assert convolutions_in(step.trace(*arguments).lower(lowering_platforms=("cpu",))) == 0
    for platform in ("tpu", "cuda"):
        assert convolutions_in(step.trace(*arguments).lower(lowering_platforms=(platform,))) > 0


@pytest.mark.parametrize("method", METHODS)
def test_module_equals_its_definition(method):
    apply, variables = module(method)
    p = variables["params"]
    features, mask = normal(2, 30, 20), np.ones((2, 30), bool)
    x, out_mask = apply(variables, features, mask)
    h = np.maximum(native(features[..., None], p["conv1"]["kernel"], p["conv1"]["bias"].reshape(1, 1, 1, -1)), 0)
    h = np.maximum(native(h, p["conv2"]["kernel"], p["conv2"]["bias"].reshape(1, 1, 1, -1)), 0)
    channel_major = np.asarray(h).transpose(0, 1, 3, 2).reshape(*h.shape[:2], -1)  # ESPnet's transpose and view
    expected = channel_major @ np.asarray(p["out"]["kernel"]) + np.asarray(p["out"]["bias"])
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-5)
    assert out_mask.all() and out_mask.shape == x.shape[:2]


def test_parameters_are_named_and_channels_default_to_the_width():
    _, variables = module(channels=0, d_model=8)
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes == {
        "conv1": {"kernel": (3, 3, 1, 8), "bias": (8,)},
        "conv2": {"kernel": (3, 3, 8, 8), "bias": (8,)},
        "out": {"kernel": (8 * 4, 8), "bias": (8,)},
    }


@given(st.integers(0, 200))
def test_num_subsampled_frames_is_what_the_module_returns(frames):
    features, mask = jax.ShapeDtypeStruct((2, frames, 20), jnp.float32), jax.ShapeDtypeStruct((2, frames), bool)
    subsampling = Subsampling(SubsamplingConfig(channels=5), 6)
    (x, mask), _ = jax.eval_shape(subsampling.init_with_output, jax.random.key(0), features, mask)
    assert x.shape == (2, num_subsampled_frames(frames), 6)
    assert mask.shape == x.shape[:2]
    assert isinstance(num_subsampled_frames(frames), int)
    for array in (np.array([frames]), jnp.array([frames])):
        np.testing.assert_array_equal(num_subsampled_frames(array), [x.shape[1]])
    reads_up_to = 4 * (x.shape[1] - 1) + 6  # the last frame that the last output reads; one more output would not fit
    assert x.shape[1] == 0 or reads_up_to < frames
    assert reads_up_to + 4 >= frames


def test_too_short_batches_give_no_frames_and_zero_gradients():
    apply, variables = module()
    for frames in (0, 6):
        mask = np.ones((2, frames), bool)
        x, out_mask = apply(variables, normal(2, frames, 20), mask)
        assert x.shape == (2, 0, 6) and out_mask.shape == (2, 0)
    gradients = jax.jit(jax.grad(lambda v: apply(v, normal(2, 6, 20), np.ones((2, 6), bool))[0].sum()))(variables)
    assert all(not np.any(g) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("method", ["auto", "native"])
def test_padding_and_the_batch_change_nothing(method):
    apply, variables = module(method)
    lengths = [40, 23, 7, 6, 0]
    mask = np.arange(40)[None, :] < np.array(lengths)[:, None]
    features = np.where(mask[:, :, None], normal(5, 40, 20), np.nan)
    x, out_mask = apply(variables, features, mask)
    assert np.isfinite(x).all()
    for i, n in enumerate(lengths):
        frames = num_subsampled_frames(n)
        assert out_mask[i].sum() == frames and out_mask[i, :frames].all()
        alone, _ = apply(variables, features[i : i + 1, :n], mask[i : i + 1, :n])
        np.testing.assert_allclose(x[i, :frames], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["auto", "native"])
def test_nan_in_padding_leaves_gradients_alone(method):
    apply, variables = module(method)
    mask = np.arange(30)[None, :] < np.array([30, 17])[:, None]

    def loss(variables, features):
        x, out_mask = apply(variables, features, mask)
        return jnp.where(out_mask[:, :, None], x**2, 0).sum()

    clean, dirty = (
        jax.jit(jax.grad(loss, (0, 1)))(variables, np.where(mask[:, :, None], normal(2, 30, 20), np.float32(fill)))
        for fill in (0, np.nan)
    )
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert all(np.any(g) for g in jax.tree.leaves(clean))


def test_errors():
    with pytest.raises(ValueError, match="at least 7 mel channels, not 6"):
        module(mels=6)
    with pytest.raises(ValueError, match=r"convolution 'fft': expected 'auto' or one of native, im2col, shifted"):
        conv2d(normal(1, 5, 5, 1), normal(3, 3, 1, 2), normal(2), "fft")
    with pytest.raises(ValueError, match="at least 3 frames"):
        conv2d(normal(1, 2, 5, 1), normal(3, 3, 1, 2), normal(2))
    with pytest.raises(ValueError, match=r"subsampling\.channels -1"):
        SubsamplingConfig(channels=-1)
    with pytest.raises(ValueError, match=r"subsampling\.convolution 'fft'"):
        SubsamplingConfig(convolution="fft")


@pytest.mark.parametrize(
    "rows, frames, mels",
    [(1, 7, 7), (2, 8, 9), (1, 12, 15), (3, 16, 11), (1, 199, 20), (1, 2051, 9), (1, 2055, 9), (2, 4200, 7)],
)
def test_what_a_cpu_does_without_a_gradient_is_the_same(rows, frames, mels):
    features = jnp.asarray(normal(rows, frames, mels))
    first = Kernel(jnp.asarray(normal(3, 3, 1, 3, seed=1)), jnp.asarray(normal(3, seed=2)))
    second = Kernel(jnp.asarray(normal(3, 3, 3, 3, seed=3)), jnp.asarray(normal(3, seed=4)))

    def whole(features, first, second):
        x = jax.nn.relu(conv2d(features[..., None], *first, "native"))
        return jax.nn.relu(conv2d(x, *second, "native"))

    def own(*arguments):
        return convolutions("auto", "float32", *arguments)

    y = jax.jit(own)(features, first, second)  # no gradient is asked for: filtered, in pieces of 512 frames
    expected, expected_back = jax.vjp(whole, features, first, second)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    again, back = jax.vjp(own, features, first, second)
    np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-4)
    dy = jnp.asarray(normal(*y.shape, seed=5))
    for mine, theirs in zip(jax.tree.leaves(back(dy)), jax.tree.leaves(expected_back(dy)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-2)

"""Convolutional subsampling by 4, as ESPnet's ``Conv2dSubsampling`` (scaling and positions are the caller's).

XLA:CPU runs a strided convolution far below matrix product speed, and its gradient worse still; the nine taps of a 3x3
kernel as nine matrix products on shifted views are two to four times faster and need no more memory. Without a
gradient a CPU saves three in ten of their multiplications by Winograd's minimal filtering (`_winograd`). Accelerators
have fast convolutions, so there the native one stays. ``auto`` decides when a program is lowered for its platform.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax.model.precision import Precision, convolution, product

Method = Literal["auto", "native", "im2col", "shifted", "winograd"]
Count = TypeVar("Count", int, np.ndarray, jax.Array)

_SHORTEST = 7  # frames (and mel channels) that one output position reads
_FRAMES_AT_ONCE = 512  # encoder frames that a CPU convolves at once, at most: bounds memory, not speed


@dataclass(frozen=True)
class SubsamplingConfig:
    """Two 3x3 convolutions of stride 2, then a linear map to d_model."""

    channels: int = 0
    """Channels of both convolutions; 0 means d_model."""
    convolution: Method = "auto"
    """Algorithm: ``auto`` takes matrix products on CPU and the native convolution elsewhere."""

    def __post_init__(self) -> None:
        """Raises ValueError for a negative number of channels or an unknown algorithm."""
        if self.channels < 0:
            raise ValueError(f"subsampling.channels {self.channels}: expected 0 (d_model) or more")
        if self.convolution not in ("auto", *_ALGORITHMS):
            raise ValueError(
                f"subsampling.convolution {self.convolution!r}: expected 'auto' or one of {', '.join(_ALGORITHMS)}"
            )


def num_subsampled_frames(num_frames: Count) -> Count:
    """Encoder frames of ``num_frames`` feature frames: 3-wide windows of stride 2, twice; 0 below 7 frames."""
    frames = ((num_frames - 1) // 2 - 1) // 2
    return frames * (frames > 0)  # an arithmetic select: the same for int, numpy and traced arrays


def conv2d(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, method: Method = "auto", precision: Precision = "float32"
) -> jax.Array:
    """3x3 convolution of stride 2 without padding.

    Args:
      x: [B, T, F, C], T and F at least 3.
      kernel: [3, 3, C, C'].
      bias: [C'].
      method: ``native`` (XLA's convolution), ``im2col`` (one matrix product over copied patches), ``shifted`` (nine
        over shifted views), ``winograd`` (minimal filtering) or ``auto`` (``shifted`` on CPU, ``native`` elsewhere).
        All agree, gradients included.
      precision: of the products.

    Returns:
      [B, (T - 1) // 2, (F - 1) // 2, C'], float32.

    Raises:
      ValueError: x is smaller than the kernel, or the method is unknown.
    """
    if x.shape[1] < 3 or x.shape[2] < 3:
        raise ValueError(f"a 3x3 convolution needs at least 3 frames and 3 channels, not {x.shape[1:3]}")
    if method == "auto":
        shifted, native = (partial(algorithm, precision) for algorithm in (_shifted, _native))
        return jax.lax.platform_dependent(x, kernel, bias, cpu=shifted, default=native)
    if method not in _ALGORITHMS:
        raise ValueError(f"convolution {method!r}: expected 'auto' or one of {', '.join(_ALGORITHMS)}")
    return _ALGORITHMS[method](precision, x, kernel, bias)


def _native(precision: Precision, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return convolution(x, kernel, precision) + bias[None, None, None, :]


def _taps(x: jax.Array) -> list[jax.Array]:
    """Nine views [B, T', F', C] of x [B, T, F, C]: what each position of the kernel sees, row by row."""
    rows, columns = (x.shape[1] - 1) // 2, (x.shape[2] - 1) // 2
    return [x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for i in range(3) for j in range(3)]


def _im2col(precision: Precision, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    patches = jnp.concatenate(_taps(x), axis=-1)
    kernel = kernel.reshape(-1, kernel.shape[-1])
    return product("btfk,kn->btfn", patches, kernel, precision) + bias[None, None, None, :]


def _shifted(precision: Precision, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    taps = zip(_taps(x), kernel.reshape(9, *kernel.shape[2:]), strict=True)
    products = (product("btfk,kn->btfn", tap, weight, precision) for tap, weight in taps)
    return sum(products, start=bias[None, None, None, :])


def _winograd(precision: Precision, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Two outputs along each axis from 5 x 5 products instead of 6 x 6 (Winograd's F(2, 2), arXiv 1509.09308).

    ::

        y0 = (x0 - x2) k0 + x1 k1  +  x2 (k0 + k2)
        y1 = (x4 - x2) k2 + x3 k1  +  x2 (k0 + k2)          the last product is shared

    Products that are summed anyway are one, over channels side by side: nine remain, along time and frequency together.
    """
    rows, columns = (x.shape[1] - 1) // 2, (x.shape[2] - 1) // 2
    pairs = (-(-rows // 2), -(-columns // 2))
    missing = [max(0, 4 * n + 1 - size) for n, size in zip(pairs, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))

    def inputs(x: jax.Array, axis: int) -> list[tuple[jax.Array, ...]]:
        ends = 4 * pairs[axis - 1] - 3
        x0, x1, x2, x3, x4 = (jax.lax.slice_in_dim(x, n, n + ends, 4, axis) for n in range(5))
        return [(x0 - x2, x1), (x2,), (x4 - x2, x3)]

    def weights(k: jax.Array) -> list[tuple[jax.Array, ...]]:
        return [(k[0], k[1]), (k[0] + k[2],), (k[2], k[1])]

    def filtered(row: int, column: int) -> jax.Array:
        patches = [part for half in times[row] for part in inputs(half, 2)[column]]
        taps = [part for half in weights(kernel)[row] for part in weights(half)[column]]
        return product("btfk,kn->btfn", jnp.concatenate(patches, -1), jnp.concatenate(taps), precision)

    times = inputs(x, 1)
    z = [[filtered(row, column) for column in range(3)] for row in range(3)]
    quarters = [[z[i][j] + z[i][1] + z[1][j] + z[1][1] for j in (0, 2)] for i in (0, 2)]
    y = jnp.stack([jnp.stack(halves, axis=3) for halves in quarters], axis=2)
    y = y.reshape(x.shape[0], 2 * pairs[0], 2 * pairs[1], -1)[:, :rows, :columns]
    return y + bias[None, None, None, :]


_ALGORITHMS = {"native": _native, "im2col": _im2col, "shifted": _shifted, "winograd": _winograd}


class Kernel(NamedTuple):
    """Parameters of a convolution: kernel [3, 3, C, C'], bias [C']."""

    kernel: jax.Array
    bias: jax.Array


def _both(
    methods: tuple[Method, Method], precision: Precision, features: jax.Array, first: Kernel, second: Kernel
) -> jax.Array:
    x = features[..., None]
    for method, (kernel, bias) in zip(methods, (first, second), strict=True):
        x = nn.relu(conv2d(x, kernel, bias, method, precision).astype(precision))
    return x


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def convolutions(method: Method, precision: Precision, features: jax.Array, first: Kernel, second: Kernel) -> jax.Array:
    """Two convolutions with ReLU, features [B, T, F] to [B, T', F', C].

    Without a gradient, ``auto`` on a CPU takes one utterance after the other, and saves multiplications where they are
    of full precision: what Winograd's filtering adds to rounding is too much for 16 bits.
    """
    whole = partial(_both, (method, method), precision)
    if method != "auto" or precision != "float32":
        return whole(features, first, second)
    return jax.lax.platform_dependent(features, first, second, cpu=_piecewise, default=whole)


def _piecewise(features: jax.Array, first: Kernel, second: Kernel) -> jax.Array:
    rows, given, mels = features.shape
    frames = num_subsampled_frames(given)
    pieces = -(-frames // _FRAMES_AT_ONCE)
    size = -(-frames // (2 * pieces)) * 2  # whole pairs, of frames and below of mel channels: nothing is padded later
    step, read, wide = 4 * size, 4 * size + 3, 8 * -(-num_subsampled_frames(mels) // 2) + 3
    x = jnp.pad(features, ((0, 0), (0, max(0, step * pieces + 3 - given)), (0, max(0, wide - mels))))

    def piece(index: jax.Array | int) -> jax.Array:
        start = (index // pieces, index % pieces * step, 0)
        part = jax.lax.dynamic_slice(x, start, (1, read, x.shape[2]))
        return _both(("shifted", "winograd"), "float32", part, first, second)[0]

    # A loop of one turn would not be the same: XLA spreads what stands in a loop over fewer threads.
    y = piece(0)[None] if rows * pieces == 1 else jax.lax.map(piece, jnp.arange(rows * pieces))
    return y.reshape(rows, pieces * size, *y.shape[2:])[:, :frames, : num_subsampled_frames(mels)]


def _convolutions_forward(
    method: Method, precision: Precision, features: jax.Array, first: Kernel, second: Kernel
) -> tuple[jax.Array, Any]:
    return jax.vjp(partial(_both, (method, method), precision), features, first, second)


def _convolutions_backward(method: Method, precision: Precision, back: Any, y: jax.Array) -> Any:
    return back(y)


convolutions.defvjp(_convolutions_forward, _convolutions_backward)


class _Parameters(nn.Module):
    """``kernel`` [3, 3, C, C'] and ``bias`` [C'] of a convolution."""

    given: int
    channels: int

    @nn.compact
    def __call__(self) -> Kernel:
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (3, 3, self.given, self.channels))
        return Kernel(kernel, self.param("bias", nn.initializers.zeros, (self.channels,)))


class _Projection(nn.Module):
    """Flattens [B, T, F, C] and maps it to [B, T, D].

    As in ESPnet the rows of ``kernel`` [C * F, D] run over channels first, then frequencies. Reordering the small
    kernel instead of the activations saves a transposition of the latter.
    """

    d_model: int
    precision: Precision

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, frames, mels, channels = x.shape
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (channels * mels, self.d_model))
        bias = self.param("bias", nn.initializers.zeros, (self.d_model,))
        kernel = kernel.reshape(channels, mels, self.d_model).swapaxes(0, 1).reshape(-1, self.d_model)
        x = x.reshape(batch, frames, mels * channels)
        return product("btk,kn->btn", x, kernel, self.precision) + bias[None, None, :]


class Subsampling(nn.Module):
    """Two convolutions with ReLU, then a linear map: one encoder frame for four feature frames.

    Parameters: ``conv1``, ``conv2`` {kernel [3, 3, C, C'], bias}, ``out`` {kernel [C' * F', D], bias}, the kernel of
    ``out`` channel-major.

    Attributes:
      config: static.
      d_model: width D.
      precision: of the products.
    """

    config: SubsamplingConfig
    d_model: int
    precision: Precision = "float32"

    @nn.compact
    def __call__(self, features: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Subsamples a batch.

        Args:
          features: [B, T, F]; padded frames are ignored, NaN included.
          mask: [B, T] bool, valid frames first.

        Returns:
          x [B, T', D] float32 with T' = ``num_subsampled_frames(T)``, possibly 0; mask [B, T'] bool, True for the
          ``num_subsampled_frames`` of each row's valid frames. No valid frame of x depends on padding.

        Raises:
          ValueError: fewer than 7 feature channels.
        """
        frames, mels = features.shape[1:]
        if mels < _SHORTEST:
            raise ValueError(f"subsampling needs at least {_SHORTEST} mel channels, not {mels}")
        channels = self.config.channels or self.d_model
        x = jnp.where(mask[:, :, None], features, 0.0)
        x = jnp.pad(x, ((0, 0), (0, max(0, _SHORTEST - frames)), (0, 0)))
        kernels = _Parameters(1, channels, name="conv1")(), _Parameters(channels, channels, name="conv2")()
        x = convolutions(self.config.convolution, self.precision, x, *kernels)
        x = _Projection(self.d_model, self.precision, name="out")(x)[:, : num_subsampled_frames(frames)]
        valid = num_subsampled_frames(mask.sum(axis=1))
        return x, jnp.arange(x.shape[1])[None, :] < valid[:, None]

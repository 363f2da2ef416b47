"""Mixed precision: products of bfloat16 operands, summed in float32, for float32 parameters.

Rounding happens in the operands of products only, forward and backward; gradients of parameters leave every product in
float32, before they are summed over devices. XLA on TPUs and GPUs runs these products on its matrix units; its CPU
backend has none of this type, there the rounded operands are multiplied in float32, which gives the same.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

Precision = Literal["float32", "bfloat16"]

DENSE = "dense"
"""Name of the outputs of dense layers for rematerialisation (``model.encoder``)."""


def product(spec: str, a: jax.Array, b: jax.Array, precision: Precision) -> jax.Array:
    """``jnp.einsum(spec, a, b)`` of operands rounded to the precision; float32.

    Each index of ``spec`` occurs in two of the three terms, so that the gradients are such products too.
    """
    if precision == "float32":
        return jnp.einsum(spec, a, b)
    return _rounded(spec, a, b)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounded(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return _on_matrix_units(lambda a, b: jnp.einsum(spec, a, b, preferred_element_type=jnp.float32), a, b)


def _rounded_forward(spec: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _rounded(spec, a, b), (a, b)


def _rounded_backward(spec: str, operands: tuple[jax.Array, jax.Array], y: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = operands
    terms, out = spec.split("->")
    of_a, of_b = terms.split(",")
    return (
        _rounded(f"{out},{of_b}->{of_a}", y, b).astype(a.dtype),
        _rounded(f"{of_a},{out}->{of_b}", a, y).astype(b.dtype),
    )


_rounded.defvjp(_rounded_forward, _rounded_backward)


def _on_matrix_units(multiply: Callable[..., jax.Array], a: jax.Array, b: jax.Array) -> jax.Array:
    def rounded(a: jax.Array, b: jax.Array) -> jax.Array:
        return multiply(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))

    def rounded_in_place(a: jax.Array, b: jax.Array) -> jax.Array:  # a cast to and fro might be optimised away
        bfloat16 = jnp.finfo(jnp.bfloat16)
        a, b = (jax.lax.reduce_precision(x.astype(jnp.float32), bfloat16.nexp, bfloat16.nmant) for x in (a, b))
        return multiply(a, b)

    return jax.lax.platform_dependent(a, b, cpu=rounded_in_place, default=rounded)


def convolution(x: jax.Array, kernel: jax.Array, precision: Precision) -> jax.Array:
    """3x3 convolution of stride 2 without padding: [B, T, F, C], [3, 3, C, C'] to float32 [B, T', F', C']."""
    return _convolve(x, kernel) if precision == "float32" else _rounded_convolution(x, kernel)


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "VALID", dimension_numbers=numbers, preferred_element_type=jnp.float32
    )


@jax.custom_vjp
def _rounded_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _on_matrix_units(_convolve, x, kernel)


def _convolution_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _rounded_convolution(x, kernel), (x, kernel)


def _convolution_backward(operands: tuple[jax.Array, jax.Array], y: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    rows, columns = (size - 2 * (given - 1) - 3 for size, given in zip(x.shape[1:3], y.shape[1:3], strict=True))
    of_x = partial(  # of the outputs, spread out, with the kernel turned round
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding=((2, 2 + rows), (2, 2 + columns)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
        preferred_element_type=jnp.float32,
    )
    of_kernel = partial(  # the batch takes the place of the channels
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="VALID",
        rhs_dilation=(2, 2),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        preferred_element_type=jnp.float32,
    )
    return (
        _on_matrix_units(of_x, y, kernel[::-1, ::-1]).astype(x.dtype),
        _on_matrix_units(of_kernel, x, y)[:3, :3].astype(kernel.dtype),
    )


_rounded_convolution.defvjp(_convolution_forward, _convolution_backward)


class Dense(nn.Module):
    """Linear map of the last axis, with float32 parameters ``kernel`` [K, N] and ``bias`` [N].

    Attributes:
      features: N.
      precision: of the product.
      kernel_init: initialiser of the kernel.
      output: of the result; None means as ``precision``.
    """

    features: int
    precision: Precision
    kernel_init: Any
    output: Precision | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., K] -> [..., N]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        rows = x.reshape(-1, x.shape[-1])
        y = product("rk,kn->rn", rows, kernel, self.precision) + bias[None]
        return checkpoint_name(y.reshape(*x.shape[:-1], self.features).astype(self.output or self.precision), DENSE)

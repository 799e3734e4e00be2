"""The convolutions of `convolution.cpp`, by Winograd's algorithm, as torch operators. On the CPU, without gradients.

Images are [B, channels, height, width], float32 or bfloat16, with channels last in memory; others are copied. The input
of a first layer may be pixels: uint8, which stand for x / 255, with contiguous memory. Kernels [O, C, k, k] and their
gradients are float32. k is one, two or three strides; there is no padding.

Rounding: in float32 as in a plain sum, or three times that where k is three strides. In bfloat16 tiles are rounded once
more, after their transformation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nap_rl.native.build import has, operator


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_convolution(
    channels: int, outputs: int, kernel: int, stride: int, dtype: torch.dtype, pixels: bool = False
) -> bool:
    """Whether this CPU has code for such a layer in this dtype. It takes AVX-512, for bfloat16 its BF16 too."""
    return has("has_convolution", channels, outputs, kernel, stride, dtype=dtype, pixels=pixels)


def convolution(x: Tensor, weight: Tensor, stride: int, dtype: torch.dtype) -> Tensor:
    """x [B, C, H, W] of this dtype or pixels, weight [O, C, k, k] -> [B, O, H', W'] of this dtype."""
    y: Tensor = torch.ops.nap_rl.convolution(x, weight, stride, dtype)
    return y


def convolution_input_gradient(dy: Tensor, weight: Tensor, height: int, width: int, stride: int) -> Tensor:
    """dy [B, O, H', W'] -> dx [B, C, height, width], of the dtype of dy."""
    dx: Tensor = torch.ops.nap_rl.convolution_input_gradient(dy, weight, height, width, stride)
    return dx


def convolution_weight_gradient(dy: Tensor, x: Tensor, kernel: int, stride: int) -> Tensor:
    """dy [B, O, H', W'], x [B, C, H, W] of its dtype or pixels -> dw [O, C, kernel, kernel] float32."""
    dw: Tensor = torch.ops.nap_rl.convolution_weight_gradient(dy, x, kernel, stride)
    return dw


def _convolution_shape(x: Tensor, weight: Tensor, stride: int, dtype: torch.dtype) -> Tensor:
    (images, _, height, width), (outputs, _, kernel, _) = x.shape, weight.shape
    return _images(images, outputs, (height - kernel) // stride + 1, (width - kernel) // stride + 1, dtype, x.device)


def _input_gradient_shape(dy: Tensor, weight: Tensor, height: int, width: int, stride: int) -> Tensor:
    return _images(len(dy), weight.shape[1], height, width, dy.dtype, dy.device)


def _weight_gradient_shape(dy: Tensor, x: Tensor, kernel: int, stride: int) -> Tensor:
    return x.new_empty(dy.shape[1], x.shape[1], kernel, kernel, dtype=torch.float32)


def _images(count: int, channels: int, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    size = (count, channels, height, width)
    return torch.empty(size, dtype=dtype, device=device, memory_format=torch.channels_last)


operator("convolution", "(Tensor x, Tensor weight, int stride, ScalarType dtype) -> Tensor", _convolution_shape)
operator(
    "convolution_input_gradient",
    "(Tensor dy, Tensor weight, int height, int width, int stride) -> Tensor",
    _input_gradient_shape,
)
operator(
    "convolution_weight_gradient", "(Tensor dy, Tensor x, int kernel, int stride) -> Tensor", _weight_gradient_shape
)

"""The convolutions of `convolution.cpp`, by Winograd's algorithm, as torch operators for compiled graphs on the CPU.

Images are [B, channels, height, width] with channels last in memory, and copied where they are not; results are laid
out so. Their type is float32 or bfloat16; those of a first layer may be pixels, uint8, which stand for x / 255 and are
laid out as they are written. Kernels [O, C, k, k] and their gradients are float32; k is one, two or three strides,
without padding.

In float32 rounding is that of a plain sum (three strides: three times that). In bfloat16, tiles are rounded once more
after their transformation: results differ from exact ones of the same inputs by 0.4 % of their deviation, where those
of torch, rounded at the end, do by 0.2 %.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from nap_rl.native.build import call, library, operator, type_name


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_convolution(
    channels: int, outputs: int, kernel: int, stride: int, dtype: torch.dtype, pixels: bool = False
) -> bool:
    """Whether there is code for such a layer in this type, on this CPU (AVX-512, with bfloat16)."""
    return (
        kernel in (stride, 2 * stride, 3 * stride)
        and (not pixels or stride % 4 == 0)
        and outputs % 32 == 0
        and stride * channels % 16 == 0
        and stride * stride * channels % 32 == 0
        and hasattr(library(), f"convolution_input_gradient_{type_name(dtype)}")
    )


def convolution(x: Tensor, weight: Tensor, stride: int, dtype: torch.dtype) -> Tensor:
    """x [B, C, H, W] of this type or pixels, weight [O, C, k, k] -> [B, O, H', W'] of this type; without a gradient."""
    y: Tensor = torch.ops.nap_rl.convolution(x, weight, stride, dtype)
    return y


def convolution_input_gradient(dy: Tensor, weight: Tensor, height: int, width: int, stride: int) -> Tensor:
    """dy [B, O, H', W'] -> dx [B, C, height, width], in the type of dy."""
    dx: Tensor = torch.ops.nap_rl.convolution_input_gradient(dy, weight, height, width, stride)
    return dx


def convolution_weight_gradient(dy: Tensor, x: Tensor, kernel: int, stride: int) -> Tensor:
    """dy [B, O, H', W'], x [B, C, H, W] of its type or pixels -> dw [O, C, kernel, kernel], summed in float32."""
    dw: Tensor = torch.ops.nap_rl.convolution_weight_gradient(dy, x, kernel, stride)
    return dw


def _convolution(x: Tensor, weight: Tensor, stride: int, dtype: torch.dtype) -> Tensor:
    y = _convolution_shape(x, weight, stride, dtype)
    _run(f"convolution_of_{_source(x)}", x, y, weight, stride, (_laid(x), weight.contiguous(), y))
    return y


def _convolution_shape(x: Tensor, weight: Tensor, stride: int, dtype: torch.dtype) -> Tensor:
    (images, _, height, width), (outputs, _, kernel, _) = x.shape, weight.shape
    return _images(images, outputs, (height - kernel) // stride + 1, (width - kernel) // stride + 1, dtype, x.device)


def _input_gradient(dy: Tensor, weight: Tensor, height: int, width: int, stride: int) -> Tensor:
    dx = _input_gradient_shape(dy, weight, height, width, stride)
    tensors = (_laid(dy), weight.contiguous(), dx)
    _run("convolution_input_gradient", dx, dy, weight, stride, tensors)
    return dx


def _input_gradient_shape(dy: Tensor, weight: Tensor, height: int, width: int, stride: int) -> Tensor:
    return _images(len(dy), weight.shape[1], height, width, dy.dtype, dy.device)


def _weight_gradient(dy: Tensor, x: Tensor, kernel: int, stride: int) -> Tensor:
    dw = _weight_gradient_shape(dy, x, kernel, stride)
    _run(f"convolution_weight_gradient_of_{_source(x)}", x, dy, dw, stride, (_laid(dy), _laid(x), dw))
    return dw


def _weight_gradient_shape(dy: Tensor, x: Tensor, kernel: int, stride: int) -> Tensor:
    dw: Tensor = x.new_empty(dy.shape[1], x.shape[1], kernel, kernel, dtype=torch.float32)
    return dw


def _images(count: int, channels: int, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    size = (count, channels, height, width)
    return torch.empty(size, dtype=dtype, device=device, memory_format=torch.channels_last)


def _laid(images: Tensor) -> Tensor:
    """As native code reads them."""
    pixels = images.dtype is torch.uint8
    return images.contiguous(memory_format=torch.contiguous_format if pixels else torch.channels_last)


def _source(images: Tensor) -> str:
    return "pixels" if images.dtype is torch.uint8 else "numbers"


def _run(name: str, x: Tensor, y: Tensor, weight: Tensor, stride: int, tensors: tuple[Tensor, ...]) -> None:
    call(*_checked(name, x.shape, x.dtype, y.shape, y.dtype, weight.shape, weight.dtype, stride), tensors)


@functools.cache
def _checked(
    name: str,
    x: torch.Size,
    source: torch.dtype,
    y: torch.Size,
    dtype: torch.dtype,
    weight: torch.Size,
    weights: torch.dtype,
    stride: int,
) -> tuple[str, tuple[int, ...]]:
    """The function's name and sizes. Of shapes that were seen before nothing is asked again, which takes as long."""
    (images, channels, height, width), (outputs, _, kernel, _), pixels = x, weight, source is torch.uint8
    assert (pixels or source is dtype) and weights is torch.float32
    assert weight == (outputs, channels, kernel, kernel) and y[:2] == (images, outputs)
    assert has_convolution(channels, outputs, kernel, stride, dtype, pixels)
    assert list(y[2:]) == [(size - kernel) // stride + 1 for size in (height, width)]
    return f"{name}_{type_name(dtype)}", (images, height, width, channels, outputs, kernel, stride)


operator(
    "convolution", "(Tensor x, Tensor weight, int stride, ScalarType dtype) -> Tensor", _convolution, _convolution_shape
)
operator(
    "convolution_input_gradient",
    "(Tensor dy, Tensor weight, int height, int width, int stride) -> Tensor",
    _input_gradient,
    _input_gradient_shape,
)
operator(
    "convolution_weight_gradient",
    "(Tensor dy, Tensor x, int kernel, int stride) -> Tensor",
    _weight_gradient,
    _weight_gradient_shape,
)

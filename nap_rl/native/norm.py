"""The norm and ReLU of `norm.cpp`, as torch operators for compiled graphs on the CPU.

Images are [B, channels, height, width] of float32 or bfloat16, with channels last in memory; gains, offsets and their
gradients are float32 [channels].
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from nap_rl.native.build import call, library, operator, type_name


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_norm_relu(channels: int, dtype: torch.dtype) -> bool:
    """Whether there is code for images of this type, on this CPU (AVX-512, with bfloat16)."""
    return channels % 32 == 0 and hasattr(library(), f"norm_relu_{type_name(dtype)}")


def norm_relu(x: Tensor, gain: Tensor, offset: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """relu(GroupNorm(1)(x)) [B, C, H, W], and [B, 2] float32 for its gradient; without a gradient of its own."""
    y, statistics = torch.ops.nap_rl.norm_relu(x, gain, offset, eps)
    return y, statistics


def norm_relu_gradient(
    dy: Tensor, x: Tensor, gain: Tensor, offset: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dy [B, C, H, W] in the type of x -> dx in the same, and those of gain and offset."""
    dx, dgain, doffset = torch.ops.nap_rl.norm_relu_gradient(dy, x, gain, offset, statistics)
    return dx, dgain, doffset


def _norm_relu(x: Tensor, gain: Tensor, offset: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y, statistics = found = _norm_relu_shape(x, gain, offset, eps)
    _run("norm_relu", x, gain, offset, (x, gain, offset, *found), (eps,))
    return y, statistics


def _norm_relu_shape(x: Tensor, gain: Tensor, offset: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[0], 2, dtype=torch.float32)


def _gradient(dy: Tensor, x: Tensor, gain: Tensor, offset: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found = _gradient_shape(dy, x, gain, offset, statistics)
    assert dy.dtype is x.dtype and dy.shape == x.shape and _is_last(dy)
    assert statistics.shape == (x.shape[0], 2) and statistics.is_contiguous()
    _run("norm_relu_gradient", x, gain, offset, (dy, x, gain, offset, statistics, *found))
    return found


def _gradient_shape(
    dy: Tensor, x: Tensor, gain: Tensor, offset: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(gain), torch.empty_like(gain)


def _run(
    name: str, x: Tensor, gain: Tensor, offset: Tensor, tensors: tuple[Tensor, ...], numbers: tuple[float, ...] = ()
) -> None:
    assert _is_last(x) and gain.is_contiguous() and offset.is_contiguous()
    call(*_checked(name, x.shape, x.dtype, gain.shape, gain.dtype, offset.shape, offset.dtype), tensors, numbers)


@functools.cache
def _checked(
    name: str,
    x: torch.Size,
    dtype: torch.dtype,
    gain: torch.Size,
    of_gain: torch.dtype,
    offset: torch.Size,
    of_offset: torch.dtype,
) -> tuple[str, tuple[int, int, int]]:
    """The function's name and sizes. Of shapes that were seen before nothing is asked again, which takes as long."""
    images, channels, height, width = x
    assert has_norm_relu(channels, dtype)
    assert gain == offset == (channels,) and of_gain is of_offset is torch.float32
    return f"{name}_{type_name(dtype)}", (images, height * width, channels)


def _is_last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last)


operator(
    "norm_relu",
    "(Tensor x, Tensor gain, Tensor offset, float eps) -> (Tensor, Tensor)",
    _norm_relu,
    _norm_relu_shape,
)
operator(
    "norm_relu_gradient",
    "(Tensor dy, Tensor x, Tensor gain, Tensor offset, Tensor statistics) -> (Tensor, Tensor, Tensor)",
    _gradient,
    _gradient_shape,
)

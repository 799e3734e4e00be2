"""The norm and ReLU of `norm.cpp`, as torch operators for compiled graphs on the CPU.

Images are [B, channels, height, width] of float32 or bfloat16, with channels last in memory; gains, offsets and their
gradients are float32 [channels].
"""

from __future__ import annotations

import torch
from torch import Tensor

from nap_rl.native.build import has, operator


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_norm_relu(channels: int, dtype: torch.dtype) -> bool:
    """Whether there is code for images of this type, on this CPU (AVX-512, with bfloat16)."""
    return has("has_norm_relu", channels, dtype=dtype)


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


def _norm_relu_shape(x: Tensor, gain: Tensor, offset: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[0], 2, dtype=torch.float32)


def _gradient_shape(
    dy: Tensor, x: Tensor, gain: Tensor, offset: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(gain), torch.empty_like(gain)


operator("norm_relu", "(Tensor x, Tensor gain, Tensor offset, float eps) -> (Tensor, Tensor)", _norm_relu_shape)
operator(
    "norm_relu_gradient",
    "(Tensor dy, Tensor x, Tensor gain, Tensor offset, Tensor statistics) -> (Tensor, Tensor, Tensor)",
    _gradient_shape,
)

"""Convolutions that are native code where that is faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nap_rl.native.convolution import (
    convolution,
    convolution_input_gradient,
    convolution_weight_gradient,
    has_convolution,
)


class Conv2d(nn.Conv2d):
    """nn.Conv2d with a square kernel and no padding: x [B, C, H, W] -> [B, O, H', W']."""

    native_code = False

    def __init__(self, channels: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__(channels, outputs, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        """nn.Conv2d's; with `native_code`, by `nap_rl.native` in compiled graphs on the CPU.

        There x may be pixels, uint8, where it `reads` them: they stand for x / 255.
        """
        if not self.reads(x):
            return super().forward(x)
        dtype = _type(x)
        x = x if x.dtype is torch.uint8 else _last(x.to(dtype))
        y: Tensor = _Convolution.apply(x, self.weight.float(), self.stride[0], dtype)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(dtype)[:, None, None]

    def reads(self, x: Tensor) -> bool:
        """Whether native code takes x as it is."""
        return (
            self.native_code
            and torch.compiler.is_compiling()
            and x.device.type == "cpu"
            and has_convolution(
                self.in_channels,
                self.out_channels,
                self.kernel_size[0],
                self.stride[0],
                _type(x),
                pixels=x.dtype is torch.uint8,
            )
        )


class _Convolution(torch.autograd.Function):
    """Without a bias; the weight and its gradient are float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return convolution(x, weight, stride, dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        dy, stride, dx = _last(dy), ctx.stride, None
        if ctx.needs_input_grad[0]:
            dx = convolution_input_gradient(dy, weight, x.shape[2], x.shape[3], stride)
        return dx, convolution_weight_gradient(dy, x, weight.shape[2], stride), None, None


def _type(x: Tensor) -> torch.dtype:
    """Of a product with x."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return torch.float32 if x.dtype is torch.uint8 else x.dtype


def _last(images: Tensor) -> Tensor:
    """Channels last in memory: a copy by the graph, which puts it with what made them."""
    return images.contiguous(memory_format=torch.channels_last)

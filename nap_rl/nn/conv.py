"""Convolutions whose weights' gradients are native code where that is faster."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nap_rl.native.products import convolution_weight_gradient, has_product


class Conv2d(nn.Conv2d):
    """nn.Conv2d with a square kernel and no padding: x [B, C, H, W] -> [B, O, H', W']."""

    native_code = False

    def __init__(self, channels: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__(channels, outputs, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        """nn.Conv2d's; with `native_code` the weight's gradient in compiled graphs on the CPU is by `nap_rl.native`."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if (
            self.native_code
            and torch.compiler.is_compiling()
            and x.device.type == "cpu"
            and has_product(self.kernel_size[0] * self.in_channels, self.out_channels, dtype)
        ):
            y: Tensor = _Convolution.apply(x.to(dtype), self.weight, self.stride[0])  # type: ignore[no-untyped-call]
            return y if self.bias is None else y + self.bias.to(dtype)[:, None, None]
        return super().forward(x)


class _Convolution(torch.autograd.Function):
    """Without a bias, in the type of x; the gradient to the weight is float32, as the weight is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        cast = weight.to(x.dtype)
        ctx.save_for_backward(x, cast)
        ctx.stride = stride
        return F.conv2d(x, cast, stride=stride)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        stride, dx = ctx.stride, None
        if ctx.needs_input_grad[0]:
            # Stride, padding, dilation, whether transposed, output's padding, groups.
            settings = ([stride, stride], [0, 0], [1, 1], False, [0, 0], 1)
            dx, _, _ = torch.ops.aten.convolution_backward(dy, x, weight, None, *settings, [True, False, False])
        return dx, convolution_weight_gradient(dy, x, weight.shape[2], stride), None

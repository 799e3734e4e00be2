"""Layers with the weights, names and numbers of the plain ones, and native code in compiled graphs on the CPU.

Uncompiled passes are the plain ones: they can be differentiated twice, vmapped and traced.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nap_rl.native.convolution import (
    convolution,
    convolution_input_gradient,
    convolution_weight_gradient,
    has_convolution,
)
from nap_rl.native.products import few_rows, has_product, input_gradient, product, weight_gradient
from nap_rl.nn import NoisyLinear, QNetwork

FEW = 16  # rows: acting in a few environments
LARGE = 1 << 18  # elements of a weight: a hidden layer


class NativeLinear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in] -> [B, out]."""
        return linear(x, self.weight, self.bias)


class NativeNoisyLinear(NoisyLinear):
    """NoisyLinear by `linear`."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [B, in], weight [out, in], bias [out] -> [B, out]."""
        return linear(x, weight, bias)


class NativeConv2d(nn.Conv2d):
    """nn.Conv2d with a square kernel, without padding, dilation and groups."""

    @staticmethod
    def can_replace(layer: nn.Conv2d) -> bool:
        """Whether it is such a layer."""
        square = len(set(layer.kernel_size)) == len(set(layer.stride)) == 1
        plain = layer.padding == (0, 0) and layer.dilation == (1, 1) and layer.groups == 1
        return type(layer) is nn.Conv2d and square and plain

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, O, H', W']; uint8 where it `reads` them, which stand for x / 255."""
        if not self.reads(x):
            return super().forward(x)
        dtype = _dtype_of_products(x)
        x = x if x.dtype is torch.uint8 else _channels_last(x.to(dtype))
        y: Tensor = _Convolution.apply(x, self.weight.float(), self.stride[0], dtype)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(dtype)[:, None, None]

    def reads(self, x: Tensor) -> bool:
        """Whether there is native code for x here."""
        sizes = self.in_channels, self.out_channels, self.kernel_size[0], self.stride[0]
        return (
            torch.compiler.is_compiling()
            and x.device.type == "cpu"
            and has_convolution(*sizes, _dtype_of_products(x), pixels=x.dtype is torch.uint8)
        )


class NativeQNetwork(QNetwork):
    """QNetwork whose pixels get into memory in the order that compiled graphs are fast with."""

    def scale(self, stacks: Tensor) -> Tensor:
        """stacks / 255, [B, C, *frame] uint8 -> float32; left to the first convolution where that reads pixels.

        Inductor transposes single bytes slowly. So four channels become one integer a pixel, whose bytes in memory are
        the channels: f_0 | f_1 << 8 | f_2 << 16 | f_3 << 24.
        """
        first = self.torso[0] if isinstance(self.torso, nn.Sequential) else None
        if isinstance(first, NativeConv2d) and first.reads(stacks):
            return stacks
        packs = stacks.dim() == 4 and stacks.shape[1] == 4 and sys.byteorder == "little"
        if not (packs and torch.compiler.is_compiling() and stacks.device.type == "cpu"):
            return super().scale(stacks)
        channels = [channel << 8 * place for place, channel in enumerate(stacks.to(torch.int32).unbind(1))]
        packed = channels[0] | channels[1] | channels[2] | channels[3]
        by_pixel = packed.view(torch.uint8).view(*packed.shape, 4)
        return (by_pixel.float() / 255.0).permute(0, 3, 1, 2)


SUBCLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: NativeLinear,
    NoisyLinear: NativeNoisyLinear,
    QNetwork: NativeQNetwork,
}


def replace_layers(module: nn.Module) -> None:
    """Give `module` and the layers in it their native subclasses, in place; names, weights and hooks stay."""
    for layer in module.modules():
        if type(layer) in SUBCLASSES:
            layer.__class__ = SUBCLASSES[type(layer)]
        elif isinstance(layer, nn.Conv2d) and NativeConv2d.can_replace(layer):
            layer.__class__ = NativeConv2d


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear: x [B, in], weight [out, in], bias [out] -> [B, out], the same up to rounding.

    Large weights meet few rows natively in inference mode, and any rows in compiled graphs. Other float32 products of
    compiled graphs are taken as y^T = W x^T and dx^T = W^T dy^T: threads share the many rows of W better than the few
    rows of a batch.
    """
    device = x.device.type
    if device != "cpu" or x.dim() != 2 or len(x) >= len(weight):
        return F.linear(x, weight, bias)
    compiling, large = torch.compiler.is_compiling(), weight.numel() >= LARGE
    # `is_inference_mode_enabled()` breaks a graph; `is_grad_enabled()` does not.
    acting = not torch.is_grad_enabled() if compiling else torch.is_inference_mode_enabled()
    dtype = _dtype_of_products(x)
    y: Tensor
    if acting and large and len(x) <= FEW and dtype is torch.float32:
        y = few_rows(x, weight)
    elif compiling and large and has_product(weight.shape[1], weight.shape[0], dtype):
        y = _NativeProduct.apply(x.to(dtype), weight)  # type: ignore[no-untyped-call]
    elif compiling and dtype is torch.float32:
        y = _TransposedProduct.apply(x, weight).t()  # type: ignore[no-untyped-call]
    else:
        return F.linear(x, weight, bias)
    return y if bias is None else y + bias.to(y.dtype)


class _NativeProduct(torch.autograd.Function):
    """x W^T, [B, out], in the dtype of x; the gradient to W is float32, as W is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        cast = weight.to(x.dtype)
        ctx.save_for_backward(x, cast)
        return product(x, cast)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return input_gradient(dy, weight), weight_gradient(dy, x)


class _TransposedProduct(torch.autograd.Function):
    """W x^T, [out, B], with W the first factor also of the gradient to x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.mm(weight, x.t())

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return torch.mm(weight.t(), dy).t(), torch.mm(dy, x)


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
        dy, stride, dx = _channels_last(dy), ctx.stride, None
        if ctx.needs_input_grad[0]:
            dx = convolution_input_gradient(dy, weight, x.shape[2], x.shape[3], stride)
        return dx, convolution_weight_gradient(dy, x, weight.shape[2], stride), None, None


def _dtype_of_products(x: Tensor) -> torch.dtype:
    """That of autocast, or of x; of pixels float32."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return torch.float32 if x.dtype is torch.uint8 else x.dtype


def _channels_last(images: Tensor) -> Tensor:
    """A copy that the graph fuses with what made the images."""
    return images.contiguous(memory_format=torch.channels_last)

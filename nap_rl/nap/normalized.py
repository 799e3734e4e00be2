"""An activation and the norm in front of it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from nap_rl.native.norm import has_norm_relu, norm_relu, norm_relu_gradient


class Normalized(nn.Sequential):
    """`norm`, then `activation`; with `native_code`, by `nap_rl.native` in compiled graphs on the CPU.

    There the norm is one over channels and positions of images, GroupNorm of one group, and the activation a ReLU.
    """

    native_code = False

    def __init__(self, norm: nn.Module, activation: nn.Module) -> None:
        super().__init__(OrderedDict(norm=norm, activation=activation))

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Sequential."""
        norm = self.norm
        if not self._has_code_for(x):
            y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return y
        assert isinstance(norm, nn.GroupNorm)
        gain, offset = norm.weight.float(), norm.bias.float()  # a target network may be kept in bfloat16
        y = _NormReLU.apply(_last(x), gain, offset, norm.eps)  # type: ignore[no-untyped-call]
        return y

    def _has_code_for(self, x: Tensor) -> bool:
        norm = self.norm
        return (
            self.native_code
            and torch.compiler.is_compiling()
            and x.dim() == 4
            and x.device.type == "cpu"
            and type(norm) is nn.GroupNorm
            and norm.num_groups == 1
            and norm.affine
            and type(self.activation) is nn.ReLU
            and has_norm_relu(norm.num_channels, x.dtype)
        )


class _NormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, offset: Tensor, eps: float) -> Tensor:
        y, statistics = norm_relu(x, gain, offset, eps)
        ctx.save_for_backward(x, gain, offset, statistics)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gain, offset, statistics = ctx.saved_tensors
        return *norm_relu_gradient(_last(dy), x, gain, offset, statistics), None


def _last(images: Tensor) -> Tensor:
    """Channels last in memory: a copy by the graph, which puts it with what made them."""
    return images.contiguous(memory_format=torch.channels_last)

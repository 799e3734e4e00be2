"""The normalisation layers that `normalize` inserts."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

NormKind = Literal["layer", "rms", "group", "batch"]
Axes = Literal["all", "channels"]

# Invariance is exact for eps = 0 alone. With torch's usual 1e-5, a layer whose outputs have variance 0.1
# changes by half a percent when its weights shrink tenfold; with 1e-8 it stays below 1e-4 down to a variance
# of 0.005.
EPS = 1e-8

TORCH_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _BatchNorm, _InstanceNorm)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight + bias: LayerNorm without the subtraction of the mean.

    Unlike torch.nn.RMSNorm it has an offset, since the biases in front of it are removed: LayerNorm and
    RMSNorm nets then differ in the mean alone. What the paper's RMSNorm has is not stated.

    Args:
        channels: size of gain and offset.
        positions: how many dimensions follow the channels. 0: x [..., channels], one mean for each vector. 2:
            x [batch, channels, height, width], one mean for each image.
        affine: whether there are a gain and an offset.
    """

    def __init__(self, channels: int, positions: int = 0, affine: bool = True) -> None:
        super().__init__()
        self.positions = positions
        self.eps = EPS
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(x, x.shape[-1 - self.positions :], eps=self.eps)
        if self.weight is None or self.bias is None:
            return y
        shape = (-1,) + (1,) * self.positions
        return torch.addcmul(self.bias.view(shape), y, self.weight.view(shape))

    def extra_repr(self) -> str:
        channels = None if self.weight is None else self.weight.numel()
        return f"{channels}, positions={self.positions}, eps={self.eps}"


class OverChannels(nn.Module):
    """A norm of vectors, applied at each position of x [batch, channels, *positions] on its own."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.movedim(1, -1))
        return y.movedim(-1, 1)


class OverTokens(nn.Module):
    """A norm of [batch, channels] (BatchNorm1d, GroupNorm), applied to x [..., channels]."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.flatten(0, -2))
        return y.view_as(x)


def is_norm(module: nn.Module) -> bool:
    """Whether the module as a whole is a normalisation: torch's, ours, or a leaf that calls itself one."""
    if isinstance(module, (*TORCH_NORMS, RMSNorm, OverChannels, OverTokens)):
        return True
    return "norm" in type(module).__name__.lower() and next(module.children(), None) is None


def build_norm(kind: NormKind, shape: tuple[int, ...], convolutional: bool, axes: Axes, affine: bool) -> nn.Module:
    """The normalisation for activations of `shape`, float32, on the CPU.

    Args:
        shape: [batch, channels, *positions] if `convolutional`. Else [..., channels], where each vector is
            normalised by itself: a mean over tokens would let the future into the past.
        axes: for convolutions, "all" takes mean and variance over channels and positions, with gain and
            offset per channel; "channels" takes them at each position. Which one the paper means is not
            stated.
    """
    positions = len(shape) - 2 if convolutional else 0
    channels = shape[1] if convolutional else shape[-1]
    norm: nn.Module
    if kind == "group":
        norm = nn.GroupNorm(group_count(channels), channels, EPS, affine)
        return norm if positions or len(shape) == 2 else OverTokens(norm)
    if kind == "batch":
        norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[positions](channels, EPS, affine=affine)
        return norm if positions or len(shape) == 2 else OverTokens(norm)
    if positions and axes == "all":
        # GroupNorm with one group is LayerNorm over channels and positions, but its gain is per channel, so
        # that it fits images of any size. It is also the fastest kernel for the purpose on a CPU.
        return nn.GroupNorm(1, channels, EPS, affine) if kind == "layer" else RMSNorm(channels, positions, affine)
    norm = nn.LayerNorm(channels, EPS, affine) if kind == "layer" else RMSNorm(channels, 0, affine)
    return OverChannels(norm) if positions else norm


def group_count(channels: int) -> int:
    """GroupNorm's number of groups: as many as leave 16 channels in each, 32 at most (Wu & He 2018), or 1."""
    counts = [n for n in range(1, 33) if channels % n == 0 and channels // n >= 16]
    return max(counts, default=1)

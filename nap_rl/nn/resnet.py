"""Residual networks (He et al. 2016, arXiv 1512.03385): images [B, C, H, W] -> logits [B, classes].

    stem -> 4 stages of blocks, channels times 1, 2, 4, 8, each stage but the first halves the image -> mean -> linear

    basic block (ResNet-18, 34)    x -> 3x3, norm, relu -> 3x3, norm -> + x -> relu
    bottleneck (ResNet-50)         x -> 1x1, norm, relu -> 3x3, norm, relu -> 1x1, norm -> + x -> relu

Every ReLU is a submodule and is used once, so that `nap_rl.nap.normalize` can put a norm in front of it: behind the sum
too. The stride of a bottleneck is in its 3x3 (Goyal et al. 2017, arXiv 1706.02677, section 5.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

Stem = Literal["small", "strided", "large"]
Norm = Literal["batch", "none"]
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
STEMS = ("small", "strided", "large")
BOTTLENECK = 4  # its outputs to its inner channels


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; outputs have `channels` channels."""

    def __init__(self, inputs: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = conv(inputs, channels, 3, stride, norm)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(channels, channels, 3, 1, norm)
        self.shortcut = shortcut(inputs, channels, stride, norm)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu2(self.conv2(self.relu1(self.conv1(x))) + self.shortcut(x))
        return y


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; outputs have 4 * `channels` channels."""

    def __init__(self, inputs: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        outputs = BOTTLENECK * channels
        self.conv1 = conv(inputs, channels, 1, 1, norm)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(channels, channels, 3, stride, norm)
        self.relu2 = nn.ReLU()
        self.conv3 = conv(channels, outputs, 1, 1, norm)
        self.shortcut = shortcut(inputs, outputs, stride, norm)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.relu1(self.conv1(x)))
        z: Tensor = self.relu3(self.conv3(self.relu2(y)) + self.shortcut(x))
        return z


class ResNet(nn.Sequential):
    """A residual network.

    Args:
        depth: 18, 34 or 50.
        classes: number of logits.
        channels: of the images.
        width: channels of the first stage, 64 in the paper.
        stem: "small", one 3x3 for images of 28 or 32 pixels; "strided", the same with stride 2, for less work; "large",
            7x7 with stride 2 and a maximum over 3x3 with stride 2, for 224 pixels.
        norm: "batch" behind every convolution, as in the paper, or "none": then convolutions have biases.

    Raises:
        ValueError: another depth or stem, or a width below 1.
    """

    def __init__(
        self,
        depth: int,
        classes: int,
        channels: int = 3,
        width: int = 64,
        stem: Stem = "large",
        norm: Norm = "batch",
    ) -> None:
        if depth not in DEPTHS:
            raise ValueError(f"a ResNet of depth {depth} is not there: expected one of {', '.join(map(str, DEPTHS))}")
        if stem not in STEMS:
            raise ValueError(f"stem='{stem}', expected one of {', '.join(STEMS)}")
        if width < 1:
            raise ValueError(f"width={width}, expected 1 or more")
        block: Callable[[int, int, int, Norm], nn.Module] = Bottleneck if depth == 50 else BasicBlock
        grows = BOTTLENECK if depth == 50 else 1
        kernel, stride = {"small": (3, 1), "strided": (3, 2), "large": (7, 2)}[stem]
        layers: list[nn.Module] = [conv(channels, width, kernel, stride, norm), nn.ReLU()]
        if stem == "large":
            layers.append(nn.MaxPool2d(3, stride=2, padding=1))
        inputs = width
        for stage, blocks in enumerate(DEPTHS[depth]):
            for number in range(blocks):
                first = 2 if stage > 0 and number == 0 else 1
                layers.append(block(inputs, width << stage, first, norm))
                inputs = grows * (width << stage)
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # He et al. 2015, arXiv 1502.01852
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def conv(inputs: int, outputs: int, kernel: int, stride: int, norm: Norm) -> nn.Module:
    """A convolution that keeps the size of the image but for its stride, and its norm."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=norm == "none")
    return layer if norm == "none" else nn.Sequential(layer, nn.BatchNorm2d(outputs))


def shortcut(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Module:
    """x where shapes stay, else a 1x1 convolution (option B of the paper)."""
    same = inputs == outputs and stride == 1
    return nn.Identity() if same else conv(inputs, outputs, 1, stride, norm)

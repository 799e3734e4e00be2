"""Torsos: stacks [B, C, 84, 84], float32 in [0, 1], or vectors -> features [B, F], float32.

`features` is F, for 84x84 input. Each nonlinearity is an `nn.ReLU` submodule of its own, so that `nap_rl.nap.normalize`
can put a normalisation in front of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nap_rl.nn.spectral import SpectralConv2d


class NatureTorso(nn.Sequential):
    """Three convolutions (Mnih et al. 2015, Methods): 32 of 8x8/4, 64 of 4x4/2, 64 of 3x3/1; F = 3136."""

    features = 64 * 7 * 7

    def __init__(self, channels: int = 4) -> None:
        super().__init__(
            nn.Conv2d(channels, 32, kernel_size=8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, kernel_size=3, stride=1),
            nn.ReLU(),
            nn.Flatten(),
        )


class DataEfficientTorso(nn.Sequential):
    """Two convolutions of 5x5/5, 32 and 64 (van Hasselt et al. 2019, arXiv 1906.05243, appendix E); F = 576."""

    features = 64 * 3 * 3

    def __init__(self, channels: int = 4) -> None:
        super().__init__(
            nn.Conv2d(channels, 32, kernel_size=5, stride=5),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=5, stride=5),
            nn.ReLU(),
            nn.Flatten(),
        )


class MinAtarTorso(nn.Sequential):
    """One convolution of 3x3/1, 16 (Young & Tian 2019, arXiv 1903.03176, section 4); F = 1024 for 10x10."""

    features = 16 * 8 * 8

    def __init__(self, channels: int = 10) -> None:
        super().__init__(nn.Conv2d(channels, 16, kernel_size=3), nn.ReLU(), nn.Flatten())


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), channels and size kept."""

    def __init__(self, channels: int, spectral_norm: bool = False) -> None:
        super().__init__()
        convolution = SpectralConv2d if spectral_norm else nn.Conv2d
        self.branch = nn.Sequential(
            nn.ReLU(),
            convolution(channels, channels, kernel_size=3, padding=1),
            nn.ReLU(),
            convolution(channels, channels, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(x)
        return y


class ImpalaTorso(nn.Sequential):
    """IMPALA's residual torso (Espeholt et al. 2018, arXiv 1802.01561, figure 3): 16, 32, 32 channels; F = 3872.

    Args:
        channels: of the input.
        width: factor of 16, 32, 32 and of F.
        max_pool: side to which an adaptive max pooling brings the last images; None for none. F = 32 width max_pool^2.
        spectral_norm: of the convolutions in the residual branches (Gogianu et al. 2021, arXiv 2105.05246).
    """

    features = 32 * 11 * 11

    def __init__(
        self, channels: int = 4, width: int = 1, max_pool: int | None = None, spectral_norm: bool = False
    ) -> None:
        layers: list[nn.Module] = []
        for filters in (16 * width, 32 * width, 32 * width):
            layers += [
                nn.Conv2d(channels, filters, kernel_size=3, padding=1),
                nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
                ResidualBlock(filters, spectral_norm),
                ResidualBlock(filters, spectral_norm),
            ]
            channels = filters
        pooling = [] if max_pool is None else [nn.AdaptiveMaxPool2d(max_pool)]
        super().__init__(*layers, nn.ReLU(), *pooling, nn.Flatten())


class MlpTorso(nn.Sequential):
    """Stacks of C vectors [B, C, n] through fully connected layers of these widths; F is the last width."""

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for width in widths:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        super().__init__(*layers)
        self.features = inputs


def feature_count(torso: nn.Sequential, height: int, width: int) -> int:
    """F of an image torso for images of this size, by the sizes of its layers; nothing is computed.

    Raises:
        ValueError: a layer's window is larger than what it looks at.
    """
    size: tuple[int, ...] = (height, width)
    channels = 0
    for layer in torso:
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            window, stride, padding = (_pair(each) for each in (layer.kernel_size, layer.stride, layer.padding))
            size = tuple((n + 2 * p - w) // s + 1 for n, p, w, s in zip(size, padding, window, stride, strict=True))
        if isinstance(layer, nn.AdaptiveMaxPool2d):
            assert isinstance(layer.output_size, int)
            size = _pair(layer.output_size)
        if min(size) < 1:
            raise ValueError(f"images of {height} x {width} pixels are too small")
    return channels * size[0] * size[1]


def _pair(size: int | str | tuple[int, ...]) -> tuple[int, int]:
    assert not isinstance(size, str)
    return (size, size) if isinstance(size, int) else (size[0], size[1])

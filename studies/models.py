"""The studies' networks: [B, C, H, W] float -> logits [B, classes]. Every ReLU is a submodule and is used once."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from nap_rl.nn.torsos import ResidualBlock


def build_model(name: str, shape: tuple[int, int, int], classes: int, width: int, depth: int) -> nn.Module:
    """Returns a network for images of `shape` (C, H, W).

    Args:
        name: mlp, cnn or resnet.
        width: units (mlp) or channels (cnn, resnet) of a hidden layer.
        depth: hidden layers (mlp), convolutions (cnn) or residual blocks (resnet).

    Raises:
        ValueError: the name is unknown, or width or depth is below 1.
    """
    if name not in MODELS:
        raise ValueError(f"There is no model {name!r}; there are {', '.join(MODELS)}.")
    if width < 1 or depth < 1:
        raise ValueError(f"width and depth must be at least 1; got {width} and {depth}.")
    return MODELS[name](shape, classes, width, depth)


def mlp(shape: tuple[int, int, int], classes: int, width: int, depth: int) -> nn.Module:
    """`depth` hidden layers of `width` units."""
    layers: list[nn.Module] = [nn.Flatten()]
    features = shape[0] * shape[1] * shape[2]
    for _ in range(depth):
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))


def cnn(shape: tuple[int, int, int], classes: int, width: int, depth: int) -> nn.Module:
    """`depth` convolutions of 3x3 with stride 2, then one hidden layer of 4 * width units."""
    channels, height, breadth = shape
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1), nn.ReLU()]
        channels, height, breadth = width, (height + 1) // 2, (breadth + 1) // 2
    features = channels * height * breadth
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(features, 4 * width), nn.ReLU(), nn.Linear(4 * width, classes)
    )


def resnet(shape: tuple[int, int, int], classes: int, width: int, depth: int) -> nn.Module:
    """One convolution of 3x3 with stride 2, `depth` residual blocks, a mean over space, a linear layer."""
    return nn.Sequential(
        nn.Conv2d(shape[0], width, kernel_size=3, stride=2, padding=1),
        *(ResidualBlock(width) for _ in range(depth)),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


MODELS: dict[str, Callable[[tuple[int, int, int], int, int, int], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet": resnet,
}

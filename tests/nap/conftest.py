"""The architectures that Normalize-and-Project must work on, small enough to train in a test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nap_rl.nap import normalize
from nap_rl.nn import ImpalaTorso, NatureTorso, Streams


class BasicBlock(nn.Module):
    """As in torchvision's ResNet-18: one ReLU module used twice, the second time on a sum, and in place."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            convolution = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(16, 16, 1), BasicBlock(16, 16, 1))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        split = (*x.shape[:2], self.heads, -1)
        q, k, v = (layer(x).view(split).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(out.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """A pre-norm transformer block with a functional nonlinearity and functional dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + F.dropout(self.down(F.gelu(self.up(self.norm2(x)))), 0.1, self.training)


class Transformer(nn.Module):
    def __init__(self, tokens: int = 11, width: int = 32, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.position = nn.Parameter(0.02 * torch.randn(8, width))
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Dueling(nn.Module):
    """Dueling noisy streams over a Nature torso, with fresh noise at every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.torso = NatureTorso()
        self.streams = Streams(256, 4, 5, hidden=32, dueling=True, sigma0=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.streams(self.torso(x), self.streams.sample_noise())


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))


ARCHITECTURES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (mlp(), torch.randn(8, 8)),
    "nature": lambda: (nn.Sequential(NatureTorso(), nn.Linear(256, 10)), torch.rand(4, 4, 44, 44)),
    "impala": lambda: (nn.Sequential(ImpalaTorso(), nn.Linear(128, 10)), torch.rand(2, 4, 12, 12)),
    "resnet": lambda: (ResNet(), torch.randn(6, 3, 8, 8)),
    "transformer": lambda: (Transformer(), torch.randint(0, 11, (4, 8))),
    "dueling": lambda: (Dueling(), torch.rand(4, 4, 44, 44)),
}


@pytest.fixture
def build() -> Callable[[str], tuple[nn.Module, Tensor]]:
    """A fresh network and an example input for it, by the name of the architecture."""

    def build_named(name: str) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        return ARCHITECTURES[name]()

    return build_named


@pytest.fixture
def transformer() -> Callable[..., nn.Module]:
    return Transformer


def train(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, updates: int) -> None:
    """Fit fresh random targets: gradients stay large, so that free norms keep growing."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        optimizer.zero_grad()
        out = module(x)
        (out - torch.randn(out.shape, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.fixture(name="train")
def train_fixture() -> Callable[..., None]:
    return train


@pytest.fixture
def small() -> Callable[[], tuple[nn.Sequential, Tensor]]:
    """A normalised MLP and its example: layers 0 and 2 are hidden, 4 is the output; norms are 1.norm and 3.norm."""

    def make() -> tuple[nn.Sequential, Tensor]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
        x = torch.randn(16, 6)
        normalize(module, x)
        return module, x

    return make


@pytest.fixture
def push() -> Callable[..., None]:
    """One update on random gradients of the given size for everything that the optimiser owns."""

    def step(optimizer: torch.optim.Optimizer, size: float = 1.0) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = size * torch.randn_like(parameter)
        optimizer.step()

    return step


@pytest.fixture
def norm_of() -> Callable[..., float]:
    """The oracle: the norm of several tensors as one float64 vector."""

    def norm(*tensors: Tensor) -> float:
        return torch.cat([tensor.detach().double().flatten() for tensor in tensors]).norm().item()

    return norm

"""Time and memory of `normalize` and `Projector` on a language model: `python benchmarks/normalize.py --layers 24`.

The default is a model like LLaMA with 411 million parameters. Give --layers twice or more to see how the time grows.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nap_rl.nap import Projector, normalize


class Block(nn.Module):
    """RMSNorm, causal attention with rotary positions; RMSNorm, SwiGLU. No biases."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, width] -> the same shape."""
        h = self.norm1(x)
        q, k, v = (layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + self.o(attended.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def rotate(x: Tensor) -> Tensor:
    """Rotary positions: x [..., tokens, head width] turned by an angle that grows with the token's place."""
    half = x.shape[-1] // 2
    rates = 1e4 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * rates
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class LanguageModel(nn.Module):
    """Embedding, blocks, norm, head."""

    def __init__(self, layers: int, width: int = 1024, hidden: int = 3328, tokens: int = 32000) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width, hidden, width // 64) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, tokens, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [batch, tokens] int64 -> logits [batch, tokens, vocabulary]."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[24], help="one model for each number")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=32000, help="size of the vocabulary")
    arguments = parser.parse_args()
    for layers in arguments.layers:
        torch.manual_seed(0)
        model = LanguageModel(layers, arguments.width, 13 * arguments.width // 4, arguments.tokens)
        size = sum(parameter.numel() for parameter in model.parameters())
        example = torch.randint(0, arguments.tokens, (2, 8))
        start = time.perf_counter()
        normalize(model, example)
        middle = time.perf_counter()
        projector = Projector(model, torch.optim.SGD(model.parameters(), lr=0.1))
        end = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{layers} layers, {size / 1e6:.0f}M parameters: normalize {middle - start:.1f} s, Projector "
            f"{end - middle:.1f} s, {len(projector.groups)} norms held, peak memory {peak:.1f} GiB"
        )


if __name__ == "__main__":
    main()

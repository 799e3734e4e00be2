"""A decoder for text: tokens [B, T] int64 -> logits of the next token [B, T, vocabulary], float32.

    x = embedding(tokens) * sqrt(width)
    x = x + o(attention(q(norm(x)), k(norm(x)), v(norm(x))))      once a layer, with rotary positions on q and k
    x = x + down(silu(gate(norm(x))) * up(norm(x)))               likewise; feedforward="gelu": down(gelu(up(norm(x))))
    logits = head(norm(x))

No layer has a bias. Sources: pre-norm (Xiong et al. 2020, arXiv 2002.04745), rotary positions (Su et al. 2021, arXiv
2104.09864), gated feed-forward (Shazeer 2020, arXiv 2002.05202), the embedding's factor (Vaswani et al. 2017, arXiv
1706.03762), the branches' initial scale (Radford et al. 2019, GPT-2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5  # of the norms; `normalize` makes it smaller


@dataclass(frozen=True)
class TransformerSize:
    """What the shapes of a decoder follow from. ValueError where they do not fit."""

    layers: int
    width: int
    heads: int
    hidden: int  # units between `up` and `down`
    context: int  # tokens, at most
    feedforward: Literal["swiglu", "gelu"] = "swiglu"

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "hidden", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(
                f"each of heads={self.heads} heads takes an equal, even share of width={self.width}: choose others."
            )


# The paper names "a 400M-parameter transformer" and no shape: that of transformer_400m is LLaMA's way to divide 411M.
SIZES = {
    "transformer_400m": TransformerSize(layers=24, width=1024, heads=16, hidden=2816, context=1024),
    "transformer_tiny": TransformerSize(layers=2, width=96, heads=4, hidden=256, context=128),
}


class Rotary(nn.Module):
    """Turns pair i of a head by the angle position * base^(-2 i / size); pairs are (i, i + size / 2)."""

    cosines: Tensor  # [context, size]
    sines: Tensor

    def __init__(self, size: int, context: int, base: float = 10_000.0) -> None:
        super().__init__()
        frequencies = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles = torch.outer(torch.arange(context, dtype=torch.float64), frequencies).repeat(1, 2)
        self.register_buffer("cosines", angles.cos().float(), persistent=False)
        self.register_buffer("sines", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, heads, T, size] -> the same shape and dtype."""
        tokens, half = x.shape[-2], x.shape[-1] // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return (x * self.cosines[:tokens] + turned * self.sines[:tokens]).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention, x [B, T, width] -> [B, T, width]."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.q, self.k, self.v, self.o = (nn.Linear(size.width, size.width, bias=False) for _ in range(4))
        self.rotary = Rotary(size.width // size.heads, size.context)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (y.view(batch, tokens, self.heads, -1).transpose(1, 2) for y in (self.q(x), self.k(x), self.v(x)))
        y = F.scaled_dot_product_attention(self.rotary(q), self.rotary(k), v, is_causal=True)
        out: Tensor = self.o(y.transpose(1, 2).reshape(batch, tokens, -1))
        return out


class GatedFeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)), x [B, T, width] -> [B, T, width]."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.gate = nn.Linear(size.width, size.hidden, bias=False)
        self.up = nn.Linear(size.width, size.hidden, bias=False)
        self.activation = nn.SiLU()
        self.down = nn.Linear(size.hidden, size.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.activation(self.gate(x)) * self.up(x))
        return y


class FeedForward(nn.Module):
    """down(gelu(up(x))), x [B, T, width] -> [B, T, width]."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.up = nn.Linear(size.width, size.hidden, bias=False)
        self.activation = nn.GELU()
        self.down = nn.Linear(size.hidden, size.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.activation(self.up(x)))
        return y


class Block(nn.Module):
    def __init__(self, size: TransformerSize, norm: type[nn.LayerNorm] | type[nn.RMSNorm], affine: bool) -> None:
        super().__init__()
        self.attention_norm = norm(size.width, EPS, affine)
        self.attention = Attention(size)
        self.feedforward_norm = norm(size.width, EPS, affine)
        self.feedforward = (GatedFeedForward if size.feedforward == "swiglu" else FeedForward)(size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        y: Tensor = x + self.feedforward(self.feedforward_norm(x))
        return y


class Transformer(nn.Module):
    """The decoder above.

    Weights start as N(0, 1 / inputs), those of `o` and `down` divided by sqrt(2 layers).

    Args:
        vocabulary: how many tokens there are.
        norm: "rms" (with a gain), or "layer" (with gain and offset).
        affine: false leaves gains and offsets out.
        tied: whether the head's weight is the embedding's.
    """

    def __init__(
        self,
        size: TransformerSize,
        vocabulary: int,
        *,
        norm: Literal["rms", "layer"] = "rms",
        affine: bool = True,
        tied: bool = False,
    ) -> None:
        super().__init__()
        if vocabulary < 2:
            raise ValueError(f"vocabulary must be at least 2; got {vocabulary}.")
        self.size = size
        norm_class = nn.RMSNorm if norm == "rms" else nn.LayerNorm
        self.embedding = nn.Embedding(vocabulary, size.width)
        self.blocks = nn.ModuleList(Block(size, norm_class, affine) for _ in range(size.layers))
        self.norm = norm_class(size.width, EPS, affine)
        self.head = nn.Linear(size.width, vocabulary, bias=False)
        nn.init.normal_(self.embedding.weight, std=size.width**-0.5)
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                last = name.endswith((".o", ".down"))
                nn.init.normal_(layer.weight, std=(layer.in_features * (2 * size.layers if last else 1)) ** -0.5)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > self.size.context:
            raise ValueError(f"{tokens.shape[1]} tokens are more than the context of {self.size.context}.")
        x = self.embedding(tokens) * self.size.width**0.5
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def count_parameters(size: TransformerSize, vocabulary: int, *, tied: bool = False) -> dict[str, int]:
    """Returns weights by part, norms left out: embedding, attention, feedforward, head (0 if tied)."""
    matrices = 3 if size.feedforward == "swiglu" else 2
    return {
        "embedding": vocabulary * size.width,
        "attention": size.layers * 4 * size.width**2,
        "feedforward": size.layers * matrices * size.width * size.hidden,
        "head": 0 if tied else vocabulary * size.width,
    }


def training_flops(size: TransformerSize, vocabulary: int, tokens: int) -> dict[str, int]:
    """Returns the floating-point operations of forward and backward pass for one token, in rows of `tokens`, by part.

    A product with a weight takes 2 a weight forward and twice that backward. Attention's scores and sums take
    2 * 2 * tokens * width a layer, halved by the causal mask.
    """
    parts = count_parameters(size, vocabulary)
    products = {name: 3 * 2 * parts[name] for name in ("attention", "feedforward", "head")}
    return {**products, "scores": 3 * 2 * size.layers * tokens * size.width}

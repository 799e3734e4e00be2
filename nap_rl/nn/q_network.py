"""A value network: torso -> streams, read by a head."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from nap_rl.nn.conv import Conv2d
from nap_rl.nn.embedding import QuantileEmbedding
from nap_rl.nn.heads import Head, Part
from nap_rl.nn.streams import Noise, Stream, Streams


class QNetwork(nn.Module):
    """stacks [B, C, 84, 84] uint8 -> outputs [B, A, N] float32, which `head` turns into values and losses.

    With an embedding of quantile levels, the N outputs are those at N levels of each row, which are an argument of the
    pass as the noise is. With a torso for them, observations may have any shape [B, C, *frame]; those that are not
    uint8 are no pixels.
    """

    def __init__(
        self, torso: nn.Module, streams: Streams, head: Head, embedding: QuantileEmbedding | None = None
    ) -> None:
        super().__init__()
        self.torso = torso
        self.streams = streams
        self.head = head
        self.embedding = embedding

    def forward(self, stacks: Tensor, noise: Noise | None = None, taus: Tensor | None = None) -> Tensor:
        """Pixels are divided by 255 here, or by a first layer that reads them, and nowhere else.

        Without noise, noisy layers act at their mean; without taus [B, N], an embedding takes evenly spaced levels.
        """
        features: Tensor = self.torso(self._scaled(stacks))
        if self.embedding is None:
            outputs: Tensor = self.streams(features, noise)
            return outputs
        taus = self.embedding.levels.expand(len(features), -1) if taus is None else taus
        b, n = taus.shape  # every row of features meets its n levels: b * n rows go through the streams
        rows = features.repeat_interleave(n, dim=0) * self.embedding(taus.reshape(-1))
        if noise is not None:  # noise of a row is noise of all its levels
            noise = [(i, o) if i.dim() == 1 else (_repeat(i, n), _repeat(o, n)) for i, o in noise]
        by_level: Tensor = self.streams(rows, noise)  # [b * n, A, 1]
        return by_level.view(b, n, -1).transpose(1, 2)

    def _scaled(self, stacks: Tensor) -> Tensor:
        if stacks.dtype != torch.uint8:
            return stacks.float()
        first = self.torso[0] if isinstance(self.torso, nn.Sequential) else None
        return stacks if isinstance(first, Conv2d) and first.reads(stacks) else pixels(stacks)

    def body_to(self, dtype: torch.dtype) -> None:
        """Weights in `dtype`, but for those of the output layers and what the head has."""
        self.torso.to(dtype)
        for stream in self.streams.children():
            assert isinstance(stream, Stream)
            stream.body_to(dtype)

    def q_values(self, stacks: Tensor, noise: Noise | None = None, taus: Tensor | None = None) -> Tensor:
        """Expected returns, [B, A] float32."""
        return self.head.q_values(self(stacks, noise, taus))

    def sample_noise(self, generator: torch.Generator | None = None, rows: int | None = None) -> Noise | None:
        """An independent draw for a forward pass, or for each of its `rows`; None when no layer is noisy."""
        return self.streams.sample_noise(generator, rows)

    def sample_taus(self, part: Part, rows: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Levels [rows, N] ~ U(0, 1) for the `part` that a pass plays; None without an embedding."""
        counts = self.head.levels
        if counts is None:
            return None
        device = next(self.parameters()).device
        return torch.rand(rows, counts[part], generator=generator, device=device)


def pixels(stacks: Tensor) -> Tensor:
    """stacks / 255: [B, C, *frame] uint8 -> float32, the same numbers in the memory layout that convolutions want.

    On the CPU that is channels last: oneDNN takes the weight gradient of a first convolution in a third of the time of
    the other layout. Compiled, a transposition of single bytes is slow; four channels are therefore put into one
    integer a pixel, whose bytes in memory are those channels: f_0 | f_1 << 8 | f_2 << 16 | f_3 << 24.
    """
    if stacks.device.type != "cpu" or stacks.dim() != 4:
        return stacks.float() / 255.0
    if torch.compiler.is_compiling() and stacks.shape[1] == 4 and sys.byteorder == "little":
        channels = [channel << 8 * place for place, channel in enumerate(stacks.to(torch.int32).unbind(1))]
        packed = channels[0] | channels[1] | channels[2] | channels[3]
        by_pixel = packed.view(torch.uint8).view(*packed.shape, 4)
    else:
        by_pixel = stacks.permute(0, 2, 3, 1).contiguous()
    return (by_pixel.float() / 255.0).permute(0, 3, 1, 2)  # from [B, H, W, C]


def _repeat(noise: Tensor, n: int) -> Tensor:
    return noise.repeat_interleave(n, dim=0)

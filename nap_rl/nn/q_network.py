"""A value network: torso -> streams, read by a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nap_rl.nn.embedding import QuantileEmbedding
from nap_rl.nn.heads import Head, TauUse
from nap_rl.nn.noisy import scale_noise, split_noise
from nap_rl.nn.streams import Noise, Stream, Streams


class QNetwork(nn.Module):
    """stacks [B, C, 84, 84] uint8 -> outputs [B, A, N] float32, which `head` turns into values and losses.

    With an embedding, the N outputs are those at N quantile levels of each row. The levels are an argument of the pass,
    as the noise is. Observations may have any shape [B, C, *frame] that the torso takes. Only uint8 means pixels.
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
        """Without noise, noisy layers act at their mean. Without taus [B, N], levels are evenly spaced."""
        features: Tensor = self.torso(self.scale(stacks) if stacks.dtype == torch.uint8 else stacks.float())
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

    def scale(self, stacks: Tensor) -> Tensor:
        """stacks / 255: [B, C, *frame] uint8 -> float32. Pixels are divided here and nowhere else.

        On a CPU images become channels last in memory, in which convolutions are fastest.
        """
        if stacks.device.type != "cpu" or stacks.dim() != 4:
            return stacks.float() / 255.0
        return (stacks.permute(0, 2, 3, 1).contiguous().float() / 255.0).permute(0, 3, 1, 2)

    def body_to(self, dtype: torch.dtype) -> None:
        """Cast the weights to `dtype`, but for the output layers, the embedding and the head."""
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

    def sample_eps(self, generator: torch.Generator, *draws: int) -> Tensor | None:
        """[*draws, numbers] ~ N(0, 1) of all noisy layers side by side, for `noise`; None when no layer is noisy."""
        sizes = self.streams.noise_sizes
        return torch.randn(*draws, sum(sizes), generator=generator, device=generator.device) if sizes else None

    def noise(self, eps: Tensor | None) -> Noise | None:
        """The noise of each layer from eps [numbers], or [B, numbers] for each row."""
        return None if eps is None else split_noise(scale_noise(eps), self.streams.noise_sizes)

    def sample_taus(self, use: TauUse, rows: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Levels [rows, N] ~ U(0, 1) for a pass of this use; None where the head's outputs are not at drawn levels."""
        if self.head.tau_counts is None:
            return None
        device = next(self.parameters()).device
        return torch.rand(rows, self.head.tau_counts[use], generator=generator, device=device)


def _repeat(noise: Tensor, n: int) -> Tensor:
    return noise.repeat_interleave(n, dim=0)

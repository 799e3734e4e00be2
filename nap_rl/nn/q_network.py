"""A value network: torso -> streams, read by a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nap_rl.nn.embedding import QuantileEmbedding
from nap_rl.nn.heads import Head, Part
from nap_rl.nn.streams import Noise, Streams


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
        """Pixels are divided by 255 here and nowhere else.

        Without noise, noisy layers act at their mean; without taus [B, N], an embedding takes evenly spaced levels.
        """
        x = stacks.float()
        if stacks.dtype == torch.uint8:
            x = x / 255.0
        features: Tensor = self.torso(x)
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


def _repeat(noise: Tensor, n: int) -> Tensor:
    return noise.repeat_interleave(n, dim=0)

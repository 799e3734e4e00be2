"""A value network: torso -> streams, read by a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nap_rl.nn.heads import Head
from nap_rl.nn.streams import Noise, Streams


class QNetwork(nn.Module):
    """stacks [B, C, 84, 84] uint8 -> outputs [B, A, N] float32, which `head` turns into values and losses.

    With a torso for them, observations may have any shape [B, C, *frame]; those that are not uint8 are no pixels.
    """

    def __init__(self, torso: nn.Module, streams: Streams, head: Head) -> None:
        super().__init__()
        self.torso = torso
        self.streams = streams
        self.head = head

    def forward(self, stacks: Tensor, noise: Noise | None = None) -> Tensor:
        """Pixels are divided by 255 here and nowhere else; without noise, noisy layers act at their mean."""
        x = stacks.float()
        if stacks.dtype == torch.uint8:
            x = x / 255.0
        outputs: Tensor = self.streams(self.torso(x), noise)
        return outputs

    def q_values(self, stacks: Tensor, noise: Noise | None = None) -> Tensor:
        """Expected returns, [B, A] float32."""
        return self.head.q_values(self(stacks, noise))

    def sample_noise(self, generator: torch.Generator | None = None, rows: int | None = None) -> Noise | None:
        """An independent draw for a forward pass, or for each of its `rows`; None when no layer is noisy."""
        return self.streams.sample_noise(generator, rows)

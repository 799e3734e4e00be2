"""The embedding of quantile levels: with it a value network takes the levels as an input (IQN)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class QuantileEmbedding(nn.Module):
    """phi_j(tau) = ReLU(sum_{i<n} cos(pi i tau) w_ij + b_j) (Dabney et al. 2018b, arXiv 1806.06923, equation 4).

    Args:
        features: F, the torso's: the embedding is multiplied with the torso's features.
        cosines: n.
        samples: number of `levels`, which a pass without drawn levels takes.
    """

    frequencies: Tensor
    levels: Tensor  # [samples]: the mid-levels of equal shares, (i + 1/2) / samples

    def __init__(self, features: int, cosines: int = 64, samples: int = 32) -> None:
        super().__init__()
        self.linear = nn.Linear(cosines, features)
        self.activation = nn.ReLU()
        self.register_buffer("frequencies", math.pi * torch.arange(cosines), persistent=False)
        self.register_buffer("levels", (torch.arange(samples) + 0.5) / samples, persistent=False)

    def forward(self, taus: Tensor) -> Tensor:
        """taus [K] in [0, 1] -> [K, F] float32."""
        y: Tensor = self.activation(self.linear(torch.cos(taus[:, None] * self.frequencies)))
        return y

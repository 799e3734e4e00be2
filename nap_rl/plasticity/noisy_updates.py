"""Noisy updates: the perturbation of Dohare et al. 2021 (arXiv 2108.06325) without its shrinking."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nap_rl.plasticity.method import Inputs, Method, option


class NoisyUpdates(Method):
    """After each update theta <- theta + scale * xi, xi ~ N(0, I), over all parameters.

    The paper on NaP does not state its scale: 1e-4 is our choice. After t updates the noise alone has grown
    to scale * sqrt(t) an entry; with NaP each projection takes its radial part away, and what is left is a
    random turn.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, *, scale: float = 1e-4, seed: int = 0) -> None:
        super().__init__(network, optimizer, seed=seed)
        self.scale = option("scale", scale)
        self.parameters: list[Tensor] = list(network.parameters())
        self.noise = [torch.empty_like(p) for p in self.parameters]

    @torch.no_grad()
    def after_update(self, update: int, inputs: Inputs) -> bool:
        for noise in self.noise:
            noise.normal_(std=self.scale, generator=self.generator)
        torch._foreach_add_(self.parameters, self.noise)
        return True

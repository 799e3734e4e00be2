"""Regenerative regularisation: L2 towards the initial parameters (Kumar et al. 2023, arXiv 2308.11958)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nap_rl.plasticity.method import Method, option


class Regenerative(Method):
    """loss + coefficient * ||theta - theta_0||^2 over all parameters; the source sweeps 1e-2 .. 1e-5.

    With NaP theta_0 lies on the sphere that theta is projected to, so the term is 2 coefficient ||theta_0||^2
    (1 - cos(theta, theta_0)): it only turns the weights back, and never competes with the projection.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, *, coefficient: float = 1e-3, seed: int = 0) -> None:
        super().__init__(network, optimizer, seed=seed)
        self.coefficient: float = option("coefficient", coefficient)
        self.initial = self.anchors.initial = self.frozen_copy()

    def penalty(self) -> Tensor:
        pairs = zip(self.network.parameters(), self.initial.parameters(), strict=True)
        distances = [(parameter - initial).square().sum() for parameter, initial in pairs]
        return self.coefficient * torch.stack(distances).sum()

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {f"initial.{name}": p for name, p in self.initial.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        for name, initial in self.initial.named_parameters():
            initial.copy_(state[f"initial.{name}"])

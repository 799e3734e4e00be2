"""C-CHAIN: churn is held down by a penalty (Tang et al. 2025, arXiv 2506.00592; github.com/bluecontra/C-CHAIN)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nap_rl.plasticity.method import Inputs, Method, option


class CChain(Method):
    """loss + coefficient * mean (f(x; theta_t) - f(x; theta_t-1))^2 over a reference batch x and all outputs.

    theta_t-1 are the parameters before the last update, and x is drawn anew at each update: what a network says of
    states outside of its batch should not change. f is what the network gives: values, logits or quantiles; noisy
    layers are at their mean. The first update has no penalty.

    The source holds the penalty near a share of the loss, by a coefficient that follows both. Here it is fixed.

    With NaP theta_t-1 lies on the same sphere, so the term only slows the turning.

    Args:
        coefficient: the source begins at 50 in MinAtar with DQN. On logits, which move further, 1 is our choice.
    """

    within_update = True
    statistics_batch = 32

    def __init__(self, network: nn.Module, optimizer: Optimizer, *, coefficient: float = 1.0, seed: int = 0) -> None:
        super().__init__(network, optimizer, seed=seed)
        self.coefficient: float = option("coefficient", coefficient)
        self.parameters = dict(network.named_parameters())
        self.latest = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.previous = {name: p.clone() for name, p in self.latest.items()}
        self.reference: Tensor | None = None

    def penalty(self) -> Tensor | None:
        if self.reference is None:
            return None
        with torch.no_grad():
            before: Tensor = torch.func.functional_call(self.network, self.previous, (self.reference,))
        now: Tensor = self.network(self.reference)
        return self.coefficient * (now - before).square().mean()

    @torch.no_grad()
    def after_update(self, update: int, inputs: Inputs) -> bool:
        self.previous, self.latest = self.latest, self.previous
        torch._foreach_copy_(list(self.latest.values()), list(self.parameters.values()))
        self.reference = inputs()
        return False

    def state_dict(self) -> dict[str, Tensor]:
        kept = {f"latest.{name}": p for name, p in self.latest.items()}
        kept |= {f"previous.{name}": p for name, p in self.previous.items()}
        return super().state_dict() | kept | ({} if self.reference is None else {"reference": self.reference})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        for name in self.parameters:
            self.latest[name].copy_(state[f"latest.{name}"])
            self.previous[name].copy_(state[f"previous.{name}"])
        device = next(iter(self.parameters.values())).device
        self.reference = state["reference"].to(device) if "reference" in state else None

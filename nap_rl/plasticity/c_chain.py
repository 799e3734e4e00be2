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
        example_input: [B, ...], whose shape and dtype are those of a state.
        coefficient: the source begins at 50 in MinAtar with DQN. On logits, which move further, 1 is our choice.
    """

    statistics_batch = 32

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        *,
        example_input: Tensor,
        coefficient: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(network, optimizer, seed=seed)
        self.coefficient: float = option("coefficient", coefficient)
        self.latest = self.frozen_copy()
        self.previous = self.anchors.previous = self.frozen_copy()
        # Until the first update both passes are of the same weights, whatever the states are.
        self.anchors.register_buffer(
            "reference", example_input.new_zeros(self.statistics_batch, *example_input.shape[1:])
        )

    def penalty(self) -> Tensor:
        reference = self.anchors.get_buffer("reference")
        with torch.no_grad():
            before: Tensor = self.previous(reference)
        now: Tensor = self.network(reference)
        return self.coefficient * (now - before).square().mean()

    @torch.no_grad()
    def after_update(self, update: int, inputs: Inputs) -> bool:
        _copy(self.previous, self.latest)
        _copy(self.latest, self.network)
        self._refer_to(inputs())
        return False

    def _refer_to(self, states: Tensor) -> None:
        reference = self.anchors.get_buffer("reference")
        if reference.shape == states.shape:
            reference.copy_(states)
        else:
            self.anchors.register_buffer("reference", states.to(reference.device))

    def state_dict(self) -> dict[str, Tensor]:
        kept = {f"latest.{name}": p for name, p in self.latest.named_parameters()}
        kept |= {f"previous.{name}": p for name, p in self.previous.named_parameters()}
        return super().state_dict() | kept | {"reference": self.anchors.get_buffer("reference")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        for kept in ("latest", "previous"):
            for name, parameter in getattr(self, kept).named_parameters():
                parameter.copy_(state[f"{kept}.{name}"])
        if "reference" in state:  # older checkpoints have none before the first update
            self._refer_to(state["reference"])


def _copy(to: nn.Module, origin: nn.Module) -> None:
    torch._foreach_copy_(list(to.parameters()), list(origin.parameters()))

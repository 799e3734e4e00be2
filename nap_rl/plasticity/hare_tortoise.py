"""Hare & Tortoise (Lee et al. 2024, arXiv 2406.02596; github.com/dojeon-ai/hare-tortoise)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nap_rl.plasticity.method import Inputs, Method, option


class HareTortoise(Method):
    """The network, the hare, goes back to a slow average of itself, the tortoise, every `every` updates.

        after each update      tortoise <- decay * tortoise + (1 - decay) * hare
        every `every` updates  hare <- tortoise

    Parameters and buffers in floating point take part; the optimiser's moments are kept, as in the source. The source
    evaluates the tortoise. Here the hare acts.

    With NaP the average of weights on a sphere lies inside it. The hare is projected to the sphere after it went back;
    the tortoise stays where the average is.

    Args:
        decay: of the average; our choice, since the source's files do not state it as far as we read them.
        every: updates between two resets.
    """

    def __init__(
        self, network: nn.Module, optimizer: Optimizer, *, decay: float = 0.999, every: int = 1000, seed: int = 0
    ) -> None:
        super().__init__(network, optimizer, seed=seed)
        self.decay: float = option("decay", decay)
        self.every: int = option("every", every)
        named = (*network.named_parameters(), *network.named_buffers())
        self.hare: dict[str, Tensor] = {name: tensor for name, tensor in named if tensor.is_floating_point()}
        self.tortoise = {name: tensor.detach().clone() for name, tensor in self.hare.items()}

    @torch.no_grad()
    def after_update(self, update: int, inputs: Inputs) -> bool:
        hare, tortoise = list(self.hare.values()), list(self.tortoise.values())
        torch._foreach_lerp_(tortoise, hare, 1.0 - self.decay)
        if update % self.every:
            return False
        torch._foreach_copy_(hare, tortoise)
        return True

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {f"tortoise.{name}": tensor for name, tensor in self.tortoise.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        for name, tensor in self.tortoise.items():
            tensor.copy_(state[f"tortoise.{name}"])

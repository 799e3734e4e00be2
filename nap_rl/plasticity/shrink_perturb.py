"""Shrink & perturb (Ash & Adams 2020, arXiv 1910.08475, section 4)."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from nap_rl.plasticity.fresh import fresh_parameters
from nap_rl.plasticity.method import Inputs, Method, option


class ShrinkPerturb(Method):
    """Every `every` updates, theta <- shrink * theta + (1 - shrink) * psi, with psi a new draw of the
    initialisation.

    All parameters take part; moments are kept. The original acts when new data arrive: `every` is the length
    of a task there. The paper on NaP does not state its values: 0.8 is our choice.

    With NaP the sum is projected back to the initial norm, so `shrink` weighs two directions. psi has that
    norm in expectation, and is nearly at right angles to theta, so without NaP the norm falls.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        *,
        shrink: float = 0.8,
        every: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(network, optimizer, seed=seed)
        self.shrink = option("shrink", shrink)
        self.every = option("every", every)

    @torch.no_grad()
    def after_update(self, update: int, inputs: Inputs) -> bool:
        if update % self.every:
            return False
        fresh = fresh_parameters(self.network, self.generator)
        for name, parameter in self.network.named_parameters():
            parameter.lerp_(fresh[name], 1.0 - self.shrink)
        return True

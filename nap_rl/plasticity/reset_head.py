"""Resets of the last layer or layers (Nikishin et al. 2022, arXiv 2205.07802)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nap_rl.plasticity.fresh import fresh_parameters
from nap_rl.plasticity.method import Inputs, Method, option
from nap_rl.plasticity.units import moments, output_layers


class ResetHead(Method):
    """Every `every` updates the head is drawn afresh and its moments become 0; data and all other layers
    stay.

    The head is every layer whose output reaches no other layer: one linear layer in a classifier, the output layers of
    both streams in a dueling network. The source resets the last one to three layers every 2e5 updates
    (DQN-like agents: 2e4 gradient steps at a higher replay ratio).

    With NaP the head is free, and so keeps the norm of its new draw until the next update.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        *,
        example_input: Tensor,
        every: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(network, optimizer, seed=seed)
        self.every = option("every", every)
        self.head = output_layers(network, example_input)
        if not self.head:
            raise ValueError("reset_head found no layer that gives the output.")

    @torch.no_grad()
    def after_update(self, update: int, inputs: Inputs) -> bool:
        if update % self.every:
            return False
        for layer in self.head:
            fresh = fresh_parameters(layer, self.generator)
            for name, parameter in layer.named_parameters():
                parameter.copy_(fresh[name])
                for moment in moments(self.optimizer, parameter):
                    moment.zero_()
        return True

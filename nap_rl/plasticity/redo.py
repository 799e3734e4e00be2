"""ReDo: dormant units are recycled (Sokar et al. 2023, arXiv 2302.12902, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nap_rl.plasticity.method import Inputs, Method, option
from nap_rl.plasticity.units import hidden_units, recorded, recycle


class ReDo(Method):
    """Every `every` updates, a unit with s_u <= tau is recycled, s_u = E|h_u| / mean_k E|h_k| within its
    layer.

    Incoming weights are drawn afresh, the bias and the outgoing weights become 0, the moments of all of these
    0. Units of the output layer and units on a skip connection are never recycled. A network without
    normalisation computes the same function after units with s_u = 0 were recycled; with a LayerNorm in front
    of the activation the other units of the layer see a new mean and variance.

    With NaP: the zeroed outgoing columns leave their tensor shorter, and the projection that follows scales
    the rest of it up by one factor, which the next normalisation does not see.

    Args:
        example_input: [B, ...], to find the layers with.
        tau: threshold on s_u; 0.025 and 0.1 in the paper.
        every: updates between two looks. The statistics are of the batch that `inputs` gives: 64 or more.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        *,
        example_input: Tensor,
        tau: float = 0.025,
        every: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(network, optimizer, seed=seed)
        self.tau = option("tau", tau)
        self.every = option("every", every)
        self.units = [u for u in hidden_units(network, example_input) if u.recyclable]

    @torch.no_grad()
    def after_update(self, update: int, inputs: Inputs) -> bool:
        if update % self.every:
            return False
        activity: dict[str, Tensor] = {}
        with recorded(self.units, activity):
            self.network(inputs())
        for units in self.units:
            recycle(units, dormant(activity, units.name, self.tau), self.optimizer, self.generator)
        return True


def dormant(activity: Mapping[str, Tensor], name: str, tau: float) -> Tensor:
    """[U] bool: s_u <= tau. A layer that is silent altogether is dormant altogether."""
    mean = activity[name]
    return mean <= tau * mean.mean()

"""Weight clipping (Elsayed et al. 2024, arXiv 2407.01704; github.com/mohmdelsayed/weight-clipping)."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from nap_rl.nap.groups import is_weight_layer
from nap_rl.plasticity.method import Inputs, Method, option
from nap_rl.plasticity.units import matrices


class WeightClipping(Method):
    """After each update, every entry of a layer's weights and biases is clipped to [-kappa s, kappa s].

    s = 1 / sqrt(fan in) is the bound of torch's uniform initialisation. Scale and offset of normalisations, of which
    the source has none, are left alone.

    With NaP a clipped tensor is shorter, and the projection that follows scales it up again: what is left is that its
    largest entries turn towards the others. Biases and the output layer, which NaP leaves free, stay clipped.

    Args:
        kappa: in initial bounds; the source sweeps 1 to 5.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, *, kappa: float = 3.0, seed: int = 0) -> None:
        super().__init__(network, optimizer, seed=seed)
        self.kappa: float = option("kappa", kappa)
        self.layers = [layer for layer in network.modules() if is_weight_layer(layer) and matrices(layer)]

    @torch.no_grad()
    def after_update(self, update: int, inputs: Inputs) -> bool:
        for layer in self.layers:
            bound = self.kappa / matrices(layer)[0][0].numel() ** 0.5
            for parameter in layer.parameters(recurse=False):
                parameter.clamp_(-bound, bound)
        return True

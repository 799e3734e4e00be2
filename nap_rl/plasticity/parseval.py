"""Parseval regularisation (Chung et al. 2024, arXiv 2412.07224)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nap_rl.nap.groups import is_weight_layer
from nap_rl.plasticity.method import Method, option
from nap_rl.plasticity.units import matrices, output_layers


class Parseval(Method):
    """loss + coefficient * sum_l ||W W^T - scale I||^2 over the layers but those that give the output.

    W [out, in] are a layer's mean weights. A convolution counts as [out, in * k]; the source has linear layers alone.
    The rows of W become orthogonal, each of the squared norm `scale`. Where out > in they cannot, and share what there
    is.

    With NaP `scale` does not matter: its part of the gradient, -4 scale W, lies along W, and the projection undoes it.
    What is left turns the rows away from each other.

    Args:
        example_input: [B, ...], to find the output layers with.
        coefficient: 1e-3 in the source's experiments, as far as we know.
        scale: the source's s.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        *,
        example_input: Tensor,
        coefficient: float = 1e-3,
        scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(network, optimizer, seed=seed)
        self.coefficient: float = option("coefficient", coefficient)
        self.scale: float = option("scale", scale)
        outputs = output_layers(network, example_input)
        layers = [each for each in network.modules() if is_weight_layer(each) and all(each is not o for o in outputs)]
        self.layers = [layer for layer in layers if matrices(layer)]

    def penalty(self) -> Tensor:
        deviations = []
        for layer in self.layers:
            rows = matrices(layer)[0].flatten(1)
            deviations.append((rows @ rows.T - self.scale * torch.eye(len(rows)).to(rows)).square().sum())
        return self.coefficient * torch.stack(deviations).sum()

"""L2 regularisation, in the loss or decoupled from it (Loshchilov & Hutter 2019, arXiv 1711.05101)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nap_rl.plasticity.method import Inputs, Method, option


class L2(Method):
    """loss + coefficient * ||W||^2 over the weight tensors (two dimensions or more); its gradient passes
    through Adam.

    With NaP ||W|| is constant where W is projected: the term then has a gradient along W only, which the
    projection undoes (up to Adam's rescaling), and acts on the output layer, which NaP leaves free.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, *, coefficient: float = 1e-4, seed: int = 0) -> None:
        super().__init__(network, optimizer, seed=seed)
        self.coefficient: float = option("coefficient", coefficient)

    def penalty(self) -> Tensor:
        weights = [p for p in self.network.parameters() if p.ndim >= 2]
        return self.coefficient * torch.stack([w.square().sum() for w in weights]).sum()


class LayerNormL2(L2):
    """Layer normalisation and L2 together: the baseline of Lyle et al. 2024 (arXiv 2402.18762, section 5)."""

    norm = "layer"


class WeightDecay(Method):
    """After each optimiser step W <- (1 - lr * coefficient) W over the weight tensors, lr being the rate of
    their group.

    With NaP a projected W keeps its length, so all that is left of the decay there is a rate that is larger
    by 1 / (1 - lr * coefficient) at the next step; the free output layer decays as usual.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, *, coefficient: float = 1e-2, seed: int = 0) -> None:
        super().__init__(network, optimizer, seed=seed)
        self.coefficient: float = option("coefficient", coefficient)

    @torch.no_grad()
    def after_update(self, update: int, inputs: Inputs) -> bool:
        for group in self.optimizer.param_groups:
            weights = [p for p in group["params"] if p.ndim >= 2]
            if weights:
                torch._foreach_mul_(weights, 1.0 - float(group["lr"]) * self.coefficient)
        return True

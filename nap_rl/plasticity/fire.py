"""FIRE: weights become orthogonal at a task switch (Han et al. 2026, arXiv 2602.08040; github.com/isaac7778/FIRE)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nap_rl.nap.groups import is_weight_layer
from nap_rl.plasticity.method import Method, option
from nap_rl.plasticity.units import matrices


class Fire(Method):
    """At a task switch W <- sqrt(out / in) / k * polar(W), for the mean weights of each layer; moments are kept.

    polar(W) = W (W^T W)^(-1/2) is the orthogonal matrix nearest to W: all of its singular values are 1. A convolution
    has such a matrix for each of its k positions. Newton-Schulz, `iterations` times, from X = W / ||W||:

        X <- 1.5 X - 0.5 X X^T X

    Small singular values are not at 1 after ten iterations, as in the source. A tensor that is 0 stays so, and noise
    scales of noisy layers are left alone.

    With NaP the factor in front does not matter: the projection that follows gives W its initial norm. The output
    layer, which NaP leaves free, keeps it.

    Args:
        iterations: of Newton-Schulz; 10 in the source.
    """

    only_at_switches = True

    def __init__(self, network: nn.Module, optimizer: Optimizer, *, iterations: int = 10, seed: int = 0) -> None:
        super().__init__(network, optimizer, seed=seed)
        self.iterations: int = option("iterations", iterations)
        self.weights = [matrices(layer)[0] for layer in network.modules() if is_weight_layer(layer) and matrices(layer)]

    @torch.no_grad()
    def at_switch(self) -> bool:
        for weight in self.weights:
            positions = weight.flatten(2) if weight.ndim > 2 else weight[:, :, None]  # [out, in, k]
            out, fan, count = positions.shape
            orthogonal = polar(positions.permute(2, 0, 1), self.iterations).permute(1, 2, 0)
            weight.copy_((orthogonal * ((out / fan) ** 0.5 / count)).reshape(weight.shape))
        return True


def polar(matrices: Tensor, iterations: int) -> Tensor:
    """[N, out, in] -> the orthogonal matrix nearest to each, by so many iterations of Newton-Schulz."""
    x: Tensor = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-30)
    for _ in range(iterations):
        cube = (x @ x.mT) @ x if x.shape[1] <= x.shape[2] else x @ (x.mT @ x)  # the smaller product first
        x = 1.5 * x - 0.5 * cube
    return x

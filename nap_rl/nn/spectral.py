"""Spectral normalisation of convolutions (Miyato et al. 2018, arXiv 1802.05957, section 2.1 and algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIRST_ITERATIONS = 15
"""Power iterations on new weights, as in torch's parametrisation. One follows each update."""


class SpectralConv2d(nn.Conv2d):
    """conv(x, W / sigma(W)) + b, sigma the largest singular value of W as a matrix [out, in * height * width].

    sigma = left^T W right, with the singular vectors by power iteration. They follow W in `iterate`, after each change
    of W, and no pass moves them: a pass is a function of tensors, in acting and learning alike. W stays a parameter
    `weight`, which optimisers, plasticity methods and projections find as in any convolution. sigma(c W) = c sigma(W):
    the scale of W has no effect, and a projection may hold it.

    `torch.nn.utils.parametrizations.spectral_norm` is the same, with an iteration in each pass in train mode.
    """

    left: Tensor  # [out]
    right: Tensor  # [in * height * width]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        rows, columns = self.weight.flatten(1).shape
        self.register_buffer("left", torch.randn(rows))
        self.register_buffer("right", torch.randn(columns))
        if not self.weight.is_meta:  # where sizes alone are asked for
            self.iterate(FIRST_ITERATIONS)

    @torch.no_grad()
    def iterate(self, times: int = 1) -> None:
        """Move the singular vectors towards those of the present W."""
        matrix = self._matrix()
        for _ in range(times):  # the length of `right` does not matter here
            self.left.copy_(F.normalize(matrix @ self.right.to(matrix.dtype), dim=0))
            self.right.copy_(F.normalize(matrix.t() @ self.left.to(matrix.dtype), dim=0))

    def sigma(self) -> Tensor:
        """The largest singular value, []; its gradient reaches W and not the singular vectors."""
        matrix = self._matrix()
        with torch.autocast(matrix.device.type, enabled=False):  # 8 bits are too few for a sum over all weights
            largest: Tensor = self.left.to(matrix.dtype) @ (matrix @ self.right.to(matrix.dtype))
        return largest

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, O, H', W']."""
        weight = self.weight / self.sigma().to(self.weight.dtype)
        y: Tensor = self._conv_forward(x, weight, self.bias)
        return y

    def _matrix(self) -> Tensor:
        """W as a matrix, in float32 or more."""
        return self.weight.flatten(1).to(torch.promote_types(self.weight.dtype, torch.float32))


def iterate_spectral_norms(network: nn.Module, times: int = 1) -> None:
    """`SpectralConv2d.iterate` in every such layer."""
    for layer in network.modules():
        if isinstance(layer, SpectralConv2d):
            layer.iterate(times)

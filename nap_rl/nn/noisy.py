"""Factorised noisy linear layers (Fortunato et al. 2018, arXiv 1706.10295, section 3.1).

Noise is an argument of the forward pass and never a side effect of train/eval mode: the caller decides whether two
passes share a draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LayerNoise = tuple[Tensor, Tensor]
"""(eps_in [in_features], eps_out [out_features]), float32, after f(x) = sign(x) sqrt|x|: one draw for a whole batch.
([B, in_features], [B, out_features]): one draw for each row."""


def scale_noise(eps: Tensor) -> Tensor:
    """f(x) = sign(x) sqrt|x|, elementwise (equation 10 of the paper gives the factorised noise f(e_i) f(e_j))."""
    return eps.abs().sqrt_().copysign_(eps)


class NoisyLinear(nn.Module):
    """y = (mu_w + sigma_w * eps_out eps_in^T) x + mu_b + sigma_b * eps_out.

    Args:
        in_features, out_features: sizes of x [B, in_features] and y [B, out_features], float32.
        sigma0: every sigma starts at sigma0 / sqrt(in_features). 0.1 in dqn_zoo, 0.5 in Hessel et al. 2018.
        bias: whether the layer has mu_b and sigma_b.
    """

    # c times all four is c times the output, so a projection treats them as one vector.
    joint_scale = ("weight_mu", "weight_sigma", "bias_mu", "bias_sigma")

    def __init__(self, in_features: int, out_features: int, sigma0: float = 0.1, bias: bool = True) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.sigma0 = sigma0
        self.weight_mu = nn.Parameter(torch.empty(out_features, in_features))
        self.weight_sigma = nn.Parameter(torch.empty(out_features, in_features))
        self.bias_mu: nn.Parameter | None = nn.Parameter(torch.empty(out_features)) if bias else None
        self.bias_sigma: nn.Parameter | None = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """mu ~ U(-1/sqrt(in), 1/sqrt(in)); sigma = sigma0 / sqrt(in) (section 3.2, factorised case)."""
        bound = 1.0 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight_mu, -bound, bound)
        nn.init.constant_(self.weight_sigma, self.sigma0 * bound)
        if self.bias_mu is not None and self.bias_sigma is not None:
            nn.init.uniform_(self.bias_mu, -bound, bound)
            nn.init.constant_(self.bias_sigma, self.sigma0 * bound)

    def remove_bias(self) -> None:
        """Drop both bias tensors: a normalisation that follows makes them redundant."""
        self.bias_mu = None
        self.bias_sigma = None

    def sample_noise(self, generator: torch.Generator | None = None, rows: int | None = None) -> LayerNoise:
        """One draw shared by a whole batch or, given `rows`, an independent one for each row."""
        return sample_noise([self], generator, rows)[0]

    def forward(self, x: Tensor, noise: LayerNoise | None = None) -> Tensor:
        """x [B, in_features] -> [B, out_features]; without noise, the mean weights."""
        if noise is None:
            return self.linear(x, self.weight_mu, self.bias_mu)
        eps_in, eps_out = noise
        if eps_in.dim() == 2:
            # No weight matrix for each row: (sigma * eps_out eps_in^T) x = eps_out * (sigma (eps_in * x)).
            y = self.linear(x, self.weight_mu, self.bias_mu)
            y = y + self.linear(x * eps_in, self.weight_sigma, None) * eps_out
            return y if self.bias_sigma is None else y + self.bias_sigma * eps_out
        weight = torch.addcmul(self.weight_mu, self.weight_sigma, torch.outer(eps_out, eps_in))
        bias = None
        if self.bias_mu is not None and self.bias_sigma is not None:
            bias = torch.addcmul(self.bias_mu, self.bias_sigma, eps_out)
        return self.linear(x, weight, bias)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """F.linear, through which all products of `forward` go."""
        return F.linear(x, weight, bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, sigma0={self.sigma0}"


def sample_noise(
    layers: Sequence[NoisyLinear], generator: torch.Generator | None = None, rows: int | None = None
) -> list[LayerNoise]:
    """An independent draw for each layer, all taken from one call: a network has many small ones."""
    sizes, draws = noise_sizes(layers), () if rows is None else (rows,)
    eps = torch.randn(*draws, sum(sizes), generator=generator, device=layers[0].weight_mu.device)
    return split_noise(scale_noise(eps), sizes)


def noise_sizes(layers: Sequence[NoisyLinear]) -> list[int]:
    """How many numbers each layer takes: eps_in and eps_out in turn."""
    return [size for layer in layers for size in (layer.in_features, layer.out_features)]


def split_noise(eps: Tensor, sizes: Sequence[int]) -> list[LayerNoise]:
    """The noise of each layer: views of eps [..., sum of sizes]."""
    eps_of_layers = torch.split(eps, list(sizes), dim=-1)
    return list(zip(eps_of_layers[::2], eps_of_layers[1::2], strict=True))

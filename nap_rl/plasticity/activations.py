"""Methods that change the activation and nothing else: leaky ReLU and CReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nap_rl.nap.groups import is_weight_layer
from nap_rl.plasticity.method import Method
from nap_rl.plasticity.units import hidden_units


class LeakyReLU(Method):
    """Every ReLU becomes max(x, slope * x): no unit is ever without a gradient (Maas et al. 2013).

    Positively homogeneous like ReLU, so NaP treats it alike.
    """

    slope = 0.01

    @staticmethod
    def prepare(network: nn.Module, example_input: Tensor) -> nn.Module:
        for name, module in list(network.named_modules()):
            if isinstance(module, nn.ReLU):
                network.set_submodule(name, nn.LeakyReLU(LeakyReLU.slope))
        return network


class ConcatReLU(nn.Module):
    """[B, U, ...] -> [B, 2U, ...]: ReLU(x) beside ReLU(-x) (Shang et al. 2016, arXiv 1603.05201)."""

    def __init__(self) -> None:
        super().__init__()
        self.positive = nn.ReLU()
        self.negative = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.positive(x), self.negative(-x)], dim=1)


class CReLU(Method):
    """Every ReLU becomes CReLU, and every layer that reads one gets twice the inputs, drawn afresh (Abbas et
    al. 2023, arXiv 2303.07507, section 5). The network grows; its layers' numbers of outputs stay.

    Each half is a ReLU submodule of its own, so `normalize` puts a normalisation in front of each.
    """

    @staticmethod
    def prepare(network: nn.Module, example_input: Tensor) -> nn.Module:
        found = hidden_units(network, example_input)
        for units in found:
            if not all(is_weight_layer(m) for m in units.outgoing):
                raise ValueError(
                    f"crelu doubles what the activation {units.name!r} gives, but its output is also added "
                    "to a skip connection; use a network whose activations feed layers only."
                )
        for units in found:
            network.set_submodule(units.name, ConcatReLU())
        for layer in dict.fromkeys(layer for units in found for layer in units.outgoing):
            _double_inputs(layer)
        return network


def _double_inputs(layer: nn.Module) -> None:
    for name, parameter in list(layer.named_parameters(recurse=False)):
        if parameter.ndim >= 2:  # [out, in, ...]
            wider = parameter.new_empty(parameter.shape[0], 2 * parameter.shape[1], *parameter.shape[2:])
            setattr(layer, name, nn.Parameter(wider))
    for size in ("in_features", "in_channels"):
        if hasattr(layer, size):
            setattr(layer, size, 2 * getattr(layer, size))
    layer.reset_parameters()  # type: ignore[operator]

"""A norm and the activation behind it."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class Normalized(nn.Sequential):
    """`norm`, then `activation`."""

    def __init__(self, norm: nn.Module, activation: nn.Module) -> None:
        super().__init__(OrderedDict(norm=norm, activation=activation))

"""The nonlinearities that a value network may have."""

from __future__ import annotations

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def with_activation(network: nn.Module, name: str) -> None:
    """Put the nonlinearity of this name, with torch's defaults, in the place of every ReLU inside `network`."""
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.ReLU) and name != "relu":
            network.set_submodule(path, ACTIVATIONS[name]())

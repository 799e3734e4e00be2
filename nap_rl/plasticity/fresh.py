"""New draws from a network's own initialisers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def fresh_parameters(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """A new draw of every parameter of `module`, by name, from `reset_parameters` of the layer that owns it.

    `module` keeps its own parameters and buffers, and the global random state stays where it was; the draw is
    decided by `generator` alone. A layer of vectors `weight` and `bias` and no `reset_parameters` is taken
    for a
    normalisation: 1 and 0. Raises TypeError for any other layer without one.
    """
    kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    gpus = {p.device.index for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(int(seed))
        for name, layer in module.named_modules():
            _reset(layer, name)
    drawn = {name: parameter.clone() for name, parameter in module.named_parameters()}
    for name, tensor in module.state_dict(keep_vars=True).items():
        tensor.copy_(kept[name])
    return drawn


def _reset(layer: nn.Module, name: str) -> None:
    own = dict(layer.named_parameters(recurse=False))
    reset = getattr(layer, "reset_parameters", None)
    if callable(reset):
        reset()
    elif all(key in ("weight", "bias") and parameter.ndim == 1 for key, parameter in own.items()):
        for key, parameter in own.items():
            parameter.fill_(1.0 if key == "weight" else 0.0)
    else:
        raise TypeError(
            f"The layer {name or type(layer).__name__!r} ({type(layer).__name__}) has parameters but no "
            "reset_parameters(), so no fresh ones can be drawn for it."
        )

"""A torso of the user's own, by the dotted path of its class: `agent.torso=my_package.MyTorso`."""

from __future__ import annotations

import torch
from torch import nn

from nap_rl.dotted import import_object


def custom_torso(path: str, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """The torso `path` for inputs [B, *shape] float32, and F, the number of its features.

    The class is called with `shape`, which is (stack, *observation), and returns [B, F] float32. For NaP every
    nonlinearity has to be a module.

    Raises:
        ValueError: there is no such class, or it cannot be built or does not return [B, F]; one sentence.
    """
    kind = import_object(path)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"torso {path} is no class of torch.nn.Module")
    try:
        torso = kind(shape)
        with torch.no_grad():
            features = torso(torch.zeros(2, *shape))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"torso {path} fails on inputs [2, {', '.join(map(str, shape))}]: {reason}") from None
    if not (isinstance(features, torch.Tensor) and features.dim() == 2 and len(features) == 2):
        found = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise ValueError(f"torso {path} returns {found} for a batch of 2, expected [2, features]")
    if features.dtype != torch.float32:
        raise ValueError(f"torso {path} returns {features.dtype}, expected torch.float32")
    return torso, features.shape[1]

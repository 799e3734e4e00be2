"""The target network: a copy of the online network that moves seldom or slowly."""

from __future__ import annotations

import torch

from nap_rl.nn import QNetwork


@torch.no_grad()
def move_target(target: QNetwork, online: QNetwork, tau: float = 1.0) -> None:
    """target <- tau * online + (1 - tau) * target, a copy for tau = 1. It is never projected by itself."""
    targets, onlines = list(target.state_dict().values()), list(online.state_dict().values())
    if tau == 1.0:
        torch._foreach_copy_(targets, onlines)
        return
    for before, now in zip(targets, onlines, strict=True):
        if before.is_floating_point():  # counts of batches seen stay
            before.lerp_(now.to(before.dtype), tau)

"""BatchNorm where a compiled update takes it: as plain operations, with its running statistics given from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nap_rl.agents.value_agent import ValueAgent


def statistics_of(agent: ValueAgent) -> dict[str, Tensor]:
    """The running statistics of both networks: {"network.<name>" or "target.<name>": buffer}."""
    return {
        f"{which}.{path}.{name}": buffer
        for which, network in (("network", agent.network), ("target", agent.target))
        for path, norm in network.named_modules()
        if isinstance(norm, _BatchNorm)
        for name, buffer in norm.named_buffers()
    }


@contextmanager
def plain_batch_norms(*networks: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm is a sum of operators that torch.vmap and torch.func.grad know.

    torch's own changes running statistics in a kernel, where neither follows.
    """
    norms = [module for network in networks for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(_normalize, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalize(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Ioffe & Szegedy 2015, arXiv 1502.03167, algorithm 1 and what follows on inference; x [B, channels, ...]."""
    over = [0, *range(2, x.ndim)]
    mean, variance = norm.running_mean, norm.running_var
    if norm.training or mean is None or variance is None:
        mean, variance = x.mean(over), x.var(over, correction=0)
        _follow(norm, mean.detach(), variance.detach(), x.numel() // x.shape[1])
    shape = (1, -1, *[1] * (x.ndim - 2))
    y = (x - mean.view(shape)) * (variance.view(shape) + norm.eps).rsqrt()
    return y if norm.weight is None else y * norm.weight.view(shape) + norm.bias.view(shape)


def _follow(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """The running variance follows the unbiased one, as torch has it."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    assert norm.momentum is not None
    norm.num_batches_tracked.copy_(norm.num_batches_tracked + 1)
    norm.running_mean.copy_(torch.lerp(norm.running_mean, mean, norm.momentum))
    norm.running_var.copy_(torch.lerp(norm.running_var, variance * (count / (count - 1)), norm.momentum))

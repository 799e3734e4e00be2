"""Which tensors of a network are weights, which of them share one scale, and their norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel

Weights = tuple[nn.Parameter, ...]


def unwrap(module: nn.Module) -> nn.Module:
    """The user's own module inside DistributedDataParallel and torch.compile, so that names stay the same."""
    while True:
        if isinstance(module, DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def weight_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Every Linear, convolution and layer with `joint_scale`, by module path, in order of registration."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, _ConvNd)) or hasattr(layer, "joint_scale")
    }


def weight_groups(module: nn.Module) -> dict[str, Weights]:
    """The weight tensors of every weight layer, those with one common scale together, by module path.

    A plain Linear or convolution gives `(weight,)` and leaves its bias out. A layer with `joint_scale`, such
    as a noisy one, gives all tensors listed there, biases included. Tensors that several layers share belong
    to the first of them.

    Raises:
        ValueError: a layer's weight is computed from others (parametrised) or not yet shaped (lazy), or two
            layers share some of their tensors, but not all.
    """
    groups: dict[str, Weights] = {}
    owner: dict[nn.Parameter, str] = {}
    for name, layer in weight_layers(unwrap(module)).items():
        tensors = layer_weights(layer, name)
        earlier = {owner[tensor] for tensor in tensors if tensor in owner}
        if not earlier:
            groups[name] = tensors
            owner.update(dict.fromkeys(tensors, name))
        elif len(earlier) > 1 or set(groups[min(earlier)]) != set(tensors):
            raise ValueError(f"layers '{name}' and '{min(earlier)}' share some of their tensors, but not all.")
    return groups


def layer_weights(layer: nn.Module, name: str) -> Weights:
    """The tensors of one weight layer that share one scale: its `weight`, or what its `joint_scale` lists."""
    attributes: tuple[str, ...] = getattr(layer, "joint_scale", ("weight",))
    tensors = tuple(tensor for tensor in (getattr(layer, each) for each in attributes) if tensor is not None)
    for tensor in tensors:
        if isinstance(tensor, nn.parameter.UninitializedParameter):
            raise ValueError(f"layer '{name}' is lazy and has no weight yet: run the module once before.")
        if not isinstance(tensor, nn.Parameter):
            raise ValueError(
                f"layer '{name}' ({type(layer).__name__}) computes its weight from other tensors (weight_norm or "
                "another parametrisation), so it has no norm of its own to project: remove that first."
            )
    return tensors


class GroupNorms:
    """Norms of groups of tensors, each group taken as one vector.

    Args:
        groups: for each group its tensors; all on one device, else ValueError.
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]]) -> None:
        self.tensors: list[Tensor] = [tensor for group in groups for tensor in group]
        devices = {tensor.device for tensor in self.tensors}
        if len(devices) > 1:
            raise ValueError(f"the weights lie on {len(devices)} devices, but their norms are taken on one.")
        device = self.tensors[0].device if self.tensors else None
        owners = [number for number, group in enumerate(groups) for _ in group]
        # owner [tensors]: the group of each tensor. members [groups, tensors]: 1 where tensor is in group.
        self.owner = torch.tensor(owners, dtype=torch.long, device=device)
        self.members = torch.zeros(len(groups), len(owners), dtype=torch.float64, device=device)
        self.members[self.owner, torch.arange(len(owners), device=device)] = 1.0

    def __call__(self, tensors: Sequence[Tensor] | None = None) -> Tensor:
        """[groups] float64: the norms of `tensors` (None: the groups' own), without a host sync."""
        norms = torch.stack(tensor_norms(self.tensors if tensors is None else tensors)).double()
        # A sum of products and no matmul, which may run in reduced precision.
        return (self.members * norms.square()).sum(1).sqrt()


def tensor_norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Frobenius norm of each tensor: 0-dim, float32 or wider, one read of the memory, no host sync."""
    if tensors[0].device.type == "cpu":
        return [_cpu_norm(tensor) for tensor in tensors]
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return list(torch._foreach_norm(list(tensors), 2, torch.float64 if wide else torch.float32))


def _cpu_norm(tensor: Tensor) -> Tensor:
    """A CPU norm that is right to 1e-7.

    torch's kernel for the norm of a whole tensor adds float32 squares one after the other: on 3.2M equal
    elements, which is how a noisy layer's sigma starts, it is off by 8e-4. The norms of rows of at most 512
    elements cost the same and keep seven digits, so large tensors are cut into such rows.
    """
    row = next((k for k in range(512, 63, -1) if tensor.numel() % k == 0), 0) if tensor.numel() > 4096 else 0
    if row and tensor.dtype != torch.float64:
        tensor = torch.linalg.vector_norm(tensor.reshape(-1, row), dim=1, dtype=torch.float32)
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return norm
